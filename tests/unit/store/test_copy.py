"""Copies of a whole store, to directories and behind URLs: the same bytes, checked on the way, never half a store."""

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dist_moe.errors import UserError
from dist_moe.store import MaskStore
from dist_moe.store.copy import copy_store
from tests.unit.store.example import example_contents, tiled_contents, write_contents
from tests.unit.store.killed_writers import visible


@pytest.fixture
def path(tmp_path):
    return write_contents(tmp_path / "masks.zarr", tiled_contents(50))  # several files an array


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


def test_there_and_back_again(path, tmp_path, memory):
    expected = visible(path)
    copy_store(MaskStore.open(path), "memory://bucket/a/masks.zarr")
    copy_store(MaskStore.open("memory://bucket/a/masks.zarr"), f"file://{tmp_path}/new/b.zarr")
    copy_store(MaskStore.open(f"file://{tmp_path}/new/b.zarr"), str(tmp_path / "newer" / "c.zarr"))
    assert visible(tmp_path / "new" / "b.zarr") == visible(tmp_path / "newer" / "c.zarr") == expected
    keys = {key.removeprefix("/bucket/a/masks.zarr/"): memory.cat_file(key) for key in memory.find("/bucket")}
    assert keys == {key: (path / key).read_bytes() for key in keys}
    assert len(keys) == sum(file.is_file() for file in path.rglob("*"))
    MaskStore.open("memory://bucket/a/masks.zarr").check()
    assert visible(path) == expected


def test_a_copy_that_breaks_off_is_no_store(path, memory, monkeypatch):
    """Whichever file it is that cannot be written, also the last."""
    store, url = MaskStore.open(path), "memory://bucket/masks.zarr"
    num_files = sum(file.is_file() for file in path.rglob("*"))
    original = MemoryFileSystem.pipe_file
    for failing in range(num_files):
        written = []

        def full(self, key, data, *arguments, written=written, failing=failing, **settings):
            if len(written) == failing:
                raise OSError("no space\nleft")
            written.append(key)
            return original(self, key, data, *arguments, **settings)

        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "pipe_file", full)
            with pytest.raises(
                UserError, match=rf"^cannot write {url} \(OSError: no space left\): .* remove what is there"
            ) as error:
                copy_store(store, url)
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match="not a mask store"):
            MaskStore.open(url)
        with pytest.raises(UserError, match=f"{url} exists: choose another place or remove it"):
            copy_store(store, url)
        memory.rm("/bucket", recursive=True)
    copy_store(store, url)
    MaskStore.open(url).check()


def test_a_copy_to_a_directory_that_breaks_off_leaves_nothing(path, tmp_path):
    (file,) = path.glob("batch_ids/c/0")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{path} is damaged: array batch_ids has changed since it was written"):
        copy_store(MaskStore.open(path), str(tmp_path / "out" / "copy.zarr"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["masks/c", "masks/zarr.json", "masks/SHA256SUMS"])
def test_damage_is_not_copied(tmp_path, memory, key):
    path = tmp_path / "masks.zarr"
    write_contents(path, tiled_contents(50))
    file = path / key if (path / key).is_file() else min(f for f in (path / key).rglob("*") if f.is_file())
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="is damaged: array masks has changed since it was written"):
        copy_store(MaskStore.open(path), "memory://bucket/masks.zarr")
    with pytest.raises(UserError, match=r"no mask store at|not a mask store"):
        MaskStore.open("memory://bucket/masks.zarr")


def test_a_root_that_changed_since_it_was_opened_is_not_copied(tmp_path, memory):
    path = tmp_path / "masks.zarr"
    write_contents(path, tiled_contents(50))
    store = MaskStore.open(path)
    (path / "zarr.json").write_text((path / "zarr.json").read_text().replace("prompt", "answer", 1))
    with pytest.raises(UserError, match=r"is damaged: zarr.json has changed since"):
        copy_store(store, "memory://bucket/masks.zarr")


@pytest.mark.parametrize("what", ["file", "directory", "store", "url", "file url"])
def test_a_place_that_holds_something_is_refused(path, tmp_path, memory, what):
    place = str(tmp_path / "there")
    if what == "file":
        (tmp_path / "there").write_text("x")
    elif what == "url":
        place = "memory://bucket/there"
        memory.pipe_file("/bucket/there/file", b"x")
    elif what == "store":
        copy_store(MaskStore.open(path), place)
    else:
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "file").write_text("x")
        place = f"file://{place}" if what == "file url" else place
    with pytest.raises(UserError, match=f"^{place} exists: choose another place or remove it$"):
        copy_store(MaskStore.open(path), place)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nosuch://bucket/masks.zarr", "nosuch://bucket/masks.zarr (ValueError: Protocol not known: nosuch)"),
        ("s3://bucket/masks.zarr", "s3://bucket/masks.zarr (ImportError: Install s3fs to access S3)"),
        ("data://bucket/masks.zarr", "cannot write data://bucket/masks.zarr (ValueError: Read only filesystem)"),
    ],
)
def test_a_url_where_nothing_can_be_written_is_one_line(tmp_path, place, message):
    write_contents(tmp_path / "masks.zarr", example_contents())
    with pytest.raises(UserError) as error:
        copy_store(MaskStore.open(tmp_path / "masks.zarr"), place)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
