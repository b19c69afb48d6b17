"""Files of tensors are verified without torch: whether a value is finite is read from its bytes."""

import pytest
import torch

from dist_moe.errors import UserError
from dist_moe.weights.parts import DENSE, INDEX, check_parts
from dist_moe.weights.parts_io import read_dense, write_dense


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "largest", "smallest"])
def test_a_value_that_is_not_finite_is_found_in_every_type(tmp_path, dtype, value):
    known = {"largest": torch.finfo(dtype).max, "smallest": torch.finfo(dtype).min}
    tensor = torch.linspace(-1, 1, 12, dtype=dtype).view(3, 4)
    tensor[1, 2] = known.get(value) or float(value)
    part = write_dense(tmp_path, {"a": tensor, "empty": torch.zeros(0, 3, dtype=dtype)})
    (tmp_path / INDEX).touch()
    if value in known:
        check_parts(tmp_path, {}, {}, "advice", part)
        assert torch.equal(read_dense(tmp_path, part)["a"], tensor)
        return
    with pytest.raises(UserError, match=rf"{DENSE}: tensor a has NaN or infinite values: advice"):
        check_parts(tmp_path, {}, {}, "advice", part)


def test_types_have_the_names_that_an_index_has(tmp_path):
    names = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
    part = write_dense(tmp_path, {name: torch.ones(2, dtype=getattr(torch, name)) for name in names})
    (tmp_path / INDEX).touch()
    assert [part.tensors[name].dtype for name in names] == list(names)
    check_parts(tmp_path, {}, {}, "advice", part)
