import hashlib
import json
import stat

import pytest

from dist_moe.errors import UserError
from dist_moe.files import atomic_directory, hash_file, require_writable, write_json_atomic


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_hash_file_is_sha256_of_the_bytes(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"a\x00b" * 100_000)
    assert hash_file(path) == hashlib.sha256(b"a\x00b" * 100_000).hexdigest()


def test_directory_appears_only_when_it_is_whole(tmp_path):
    final = tmp_path / "deep" / "final"
    with atomic_directory(final) as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "file").write_text("x")
        assert not final.exists()
    assert (final / "sub" / "file").read_text() == "x"
    assert names(final.parent) == ["final"]


def test_directory_has_the_permissions_of_any_new_directory(tmp_path):
    (tmp_path / "plain").mkdir()
    with atomic_directory(tmp_path / "final"):
        pass
    assert stat.S_IMODE((tmp_path / "final").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_block_leaves_nothing(tmp_path, error):
    def write_and_fail():
        with atomic_directory(tmp_path / "final") as directory:
            (directory / "file").write_text("x")
            raise error

    with pytest.raises(error):
        write_and_fail()
    assert names(tmp_path) == []


def test_an_existing_path_is_refused_before_any_work(tmp_path):
    final = tmp_path / "final"
    final.mkdir()
    with pytest.raises(UserError, match=f"{final} exists: choose another path or remove it"), atomic_directory(final):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_path_that_appears_meanwhile_is_refused_and_kept(tmp_path, kind):
    final = tmp_path / "final"

    def write_while_another_does():
        with atomic_directory(final):
            if kind == "directory":
                final.mkdir()
                (final / "theirs").write_text("x")
            else:
                final.write_text("theirs")

    with pytest.raises(UserError, match="exists"):
        write_while_another_does()
    assert names(tmp_path) == ["final"]
    assert (final.is_dir() and names(final) == ["theirs"]) or final.read_text() == "theirs"


def test_a_file_in_directories_that_will_be_made_is_looked_at_before_any_work(tmp_path):
    require_writable(tmp_path / "new" / "deep" / "x.json")
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*file/deep/x.json: Not a directory"):
        require_writable(tmp_path / "file" / "deep" / "x.json")


def test_overwrite_keeps_the_old_until_the_new_is_whole(tmp_path):
    final = tmp_path / "final"
    with atomic_directory(final) as directory:
        (directory / "old").write_text("x")
    with pytest.raises(RuntimeError), atomic_directory(final, overwrite=True):
        raise RuntimeError
    assert names(final) == ["old"]
    with atomic_directory(final, overwrite=True) as directory:
        (directory / "new").write_text("x")
        assert names(final) == ["old"]
    assert names(final) == ["new"]
    assert names(tmp_path) == ["final"]


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "state.json"
    write_json_atomic(path, {"step": 1})
    with path.open() as reader:
        write_json_atomic(path, {"step": 2, "name": "é"})
        assert json.load(reader) == {"step": 1}
    assert json.loads(path.read_text()) == {"step": 2, "name": "é"}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json_atomic(path, {"loss": float("nan")})
    assert json.loads(path.read_text())["step"] == 2
    assert names(tmp_path) == ["state.json"]
