"""A user's DeepSpeed JSON: what ships is accepted, what belongs to the package is refused by name."""

import json
from pathlib import Path

import pytest

from dist_moe.engines.deepspeed_config import OWNED, OWNED_SECTIONS, read_deepspeed_config
from dist_moe.errors import UserError

SHIPPED = sorted((Path(__file__).parents[3] / "ds_configs").glob("*.json"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_files_are_accepted_as_they_are(file):
    assert read_deepspeed_config(file) == json.loads(file.read_text())


def test_there_is_one_file_a_stage():
    assert [read_deepspeed_config(file)["zero_optimization"]["stage"] for file in SHIPPED] == [0, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((json.dumps({key: 1}), f"'{key}' is set by dist_moe") for key in OWNED + OWNED_SECTIONS),
        ('{"zero_optimization": {"stage": 1}}', "zero_optimization.stage is 1: expected 0, or 3"),
        ('{"zero_optimization": {"stage": 2}}', "zero_optimization.stage is 2: expected 0, or 3"),
        ("[]", "expected a JSON object"),
        ("{\n,}", "ds.json:2: not valid JSON"),
    ],
)
def test_what_is_refused(tmp_path, text, message):
    file = tmp_path / "ds.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"ds\.json") as error:
        read_deepspeed_config(file)
    assert message in str(error.value)
