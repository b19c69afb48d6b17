"""Copies of a whole store, to directories and behind URLs: the same bytes, checked on the way, never half a store."""

import pytest

from dist_moe.errors import UserError
from dist_moe.store import MaskStore
from dist_moe.store.copy import copy_store
from tests.unit.store.example import example_contents, tiled_contents, write_contents
from tests.unit.store.killed_writers import visible


@pytest.fixture
def path(tmp_path):
    return write_contents(tmp_path / "masks.zarr", tiled_contents(50))  # several files an array


def test_there_and_back_again(path, tmp_path, bucket):
    expected, url = visible(path), f"{bucket.url}/a/masks.zarr"
    copy_store(MaskStore.open(path), url)
    copy_store(MaskStore.open(url), f"file://{tmp_path}/new/b.zarr")
    copy_store(MaskStore.open(f"file://{tmp_path}/new/b.zarr"), str(tmp_path / "newer" / "c.zarr"))
    assert visible(tmp_path / "new" / "b.zarr") == visible(tmp_path / "newer" / "c.zarr") == expected
    start = f"{bucket.root}/a/masks.zarr"
    keys = {name: bucket.files.cat_file(f"{start}/{name}") for name in bucket.names("a/masks.zarr")}
    assert keys == {key: (path / key).read_bytes() for key in keys}
    assert len(keys) == sum(file.is_file() for file in path.rglob("*"))
    MaskStore.open(url).check()
    assert visible(path) == expected


def test_a_copy_that_breaks_off_is_no_store(path, bucket, monkeypatch):
    """Whichever file it is that cannot be written, also the last."""
    store, url, files = MaskStore.open(path), f"{bucket.url}/masks.zarr", bucket.files
    num_files = sum(file.is_file() for file in path.rglob("*"))
    original = files.pipe_file
    for failing in range(num_files):
        written = []

        def full(key, data, written=written, failing=failing):
            if len(written) == failing:
                raise OSError("no space\nleft")
            written.append(key)
            return original(key, data)

        with monkeypatch.context() as patch:
            patch.setattr(files, "pipe_file", full)
            with pytest.raises(
                UserError, match=rf"^cannot write {url} \(OSError: no space left\): .* remove what is there"
            ) as error:
                copy_store(store, url)
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match=r"not a mask store|no mask store at"):
            MaskStore.open(url)
        if files.exists(bucket.root):  # an object store has no empty directory
            with pytest.raises(UserError, match=f"{url} exists: choose another place or remove it"):
                copy_store(store, url)
            files.rm(bucket.root, recursive=True)
    copy_store(store, url)
    MaskStore.open(url).check()


def test_a_copy_to_a_directory_that_breaks_off_leaves_nothing(path, tmp_path):
    (file,) = path.glob("batch_ids/c/0")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{path} is damaged: array batch_ids has changed since it was written"):
        copy_store(MaskStore.open(path), str(tmp_path / "out" / "copy.zarr"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["masks/c", "masks/zarr.json", "masks/SHA256SUMS"])
def test_damage_is_not_copied(tmp_path, bucket, key):
    path = tmp_path / "masks.zarr"
    write_contents(path, tiled_contents(50))
    file = path / key if (path / key).is_file() else min(f for f in (path / key).rglob("*") if f.is_file())
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="is damaged: array masks has changed since it was written"):
        copy_store(MaskStore.open(path), f"{bucket.url}/masks.zarr")
    with pytest.raises(UserError, match=r"no mask store at|not a mask store"):
        MaskStore.open(f"{bucket.url}/masks.zarr")


def test_a_root_that_changed_since_it_was_opened_is_not_copied(tmp_path, bucket):
    path = tmp_path / "masks.zarr"
    write_contents(path, tiled_contents(50))
    store = MaskStore.open(path)
    (path / "zarr.json").write_text((path / "zarr.json").read_text().replace("prompt", "answer", 1))
    with pytest.raises(UserError, match=r"is damaged: zarr.json has changed since"):
        copy_store(store, f"{bucket.url}/masks.zarr")


@pytest.mark.parametrize("what", ["file", "directory", "store", "url", "file url"])
def test_a_place_that_holds_something_is_refused(path, tmp_path, bucket, what):
    place = str(tmp_path / "there")
    if what == "file":
        (tmp_path / "there").write_text("x")
    elif what == "url":
        place = f"{bucket.url}/there"
        bucket.files.pipe_file(f"{bucket.root}/there/file", b"x")
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
