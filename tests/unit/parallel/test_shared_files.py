import errno

import pytest
import torch
from safetensors.torch import load_file

from dist_moe.errors import UserError
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.shared_files import SharedDirectory, remove_partial, write_tensors

COMM = SoloComm(torch.device("cpu"))


def test_it_gets_its_name_when_it_is_complete(tmp_path):
    for text in ("old", "new"):
        directory = SharedDirectory(tmp_path / "final", COMM)
        (directory.partial / "file").write_text(text)
        assert not (tmp_path / "final").exists() or text == "new"
        directory.publish()
    assert (tmp_path / "final" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_rank_that_outlives_its_job_writes_into_nothing_that_is_read(tmp_path):
    dead = SharedDirectory(tmp_path / "final", COMM)
    alive = SharedDirectory(tmp_path / "final", COMM)
    with pytest.raises(FileNotFoundError):
        (dead.partial / "file").write_text("dead")
    alive.publish()
    assert not list((tmp_path / "final").iterdir())


def test_what_dead_jobs_have_left_is_removed(tmp_path):
    for name in ("step-1", "step-2"):
        SharedDirectory(tmp_path / name, COMM)
    (tmp_path / "step-3").mkdir()
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file.*: Not a directory; solve that"):
        SharedDirectory(tmp_path / "file" / "final", COMM)


def test_tensors_are_readable_as_their_directory_is_and_errors_are_the_systems(tmp_path):
    tmp_path.chmod(0o750)
    write_tensors(tmp_path / "a.safetensors", {"a": torch.arange(3)})
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640
    with pytest.raises(FileNotFoundError) as error:
        write_tensors(tmp_path / "none" / "a.safetensors", {"a": torch.arange(3)})
    assert error.value.errno == errno.ENOENT
