"""What a run that goes on keeps of its metrics: the lines of the steps that its checkpoint has."""

import pytest

from dist_moe.errors import UserError
from dist_moe.training.ledger import keep_lines

LINES = [b'{"step": 1}\n', b'{"step": 2}\n']


@pytest.mark.parametrize("rest", [b"", b'{"step": 3}\n', b'{"st', b"\xff\xfe\0", b"\xff\n\xff\n"])
def test_what_comes_after_the_checkpoint_is_cut_off_whatever_it_is(tmp_path, rest):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"".join(LINES) + rest)
    keep_lines(file, 2)
    assert file.read_bytes() == b"".join(LINES)


def test_fewer_lines_than_the_checkpoint_has_steps_are_refused(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(LINES[0])
    with pytest.raises(UserError, match="1 lines, but the run's checkpoint is of 2"):
        keep_lines(file, 2)
    assert file.read_bytes() == LINES[0]
