"""A store that is not whole, not ours or not intact does not open; a large one does not give out what is damaged."""

import json
import os
import random
import shutil
import signal

import pytest
import zarr

from dist_moe import files
from dist_moe.errors import UserError
from dist_moe.store import Counts, MaskStore, StoreWriter, write_store
from tests.forks import start_fork
from tests.unit.store.example import example_contents, write_example


def killed_writer(path, moment):
    """Dies at the given moment of a write, as by `kill -9`."""

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "before the rename":
        files.sync = die
    else:
        put = StoreWriter._put
        StoreWriter._put = lambda self, key, data: die() if key.startswith(moment) else put(self, key, data)
    write_store(path, *example_contents()[2:])


@pytest.fixture
def path(tmp_path):
    return write_example(tmp_path / "masks.zarr")


def edit_root(path, change):
    root = json.loads((path / "zarr.json").read_text())
    change(root["attributes"])
    (path / "zarr.json").write_text(json.dumps(root))


def refused(path):
    with pytest.raises(UserError) as error:
        MaskStore.open(path).check()
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_no_such_path(tmp_path):
    assert "no mask store at" in refused(tmp_path / "nothing.zarr")


@pytest.mark.parametrize("kind", ["empty directory", "file", "zarr v2"])
def test_no_zarr_v3_group(tmp_path, kind):
    path = tmp_path / "other"
    if kind == "file":
        path.write_text("x")
    elif kind == "zarr v2":
        zarr.create_group(store=path, zarr_format=2)
    else:
        path.mkdir()
    assert "is not a mask store: expected a Zarr v3 group" in refused(path)


@pytest.mark.parametrize("attributes", [{}, {"format": "anndata", "complete": {}}])
def test_foreign_group(tmp_path, attributes):
    zarr.create_group(store=tmp_path / "foreign.zarr", attributes=attributes)
    assert "does not say format 'dist_moe.masks'" in refused(tmp_path / "foreign.zarr")


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"attributes": 3}'])
def test_foreign_json(tmp_path, text):
    (tmp_path / "zarr.json").write_text(text)
    assert "does not say format 'dist_moe.masks'" in refused(tmp_path)


def test_newer_version(path):
    edit_root(path, lambda attributes: attributes.update(format_version=4))
    message = refused(path)
    assert "has format version 4" in message
    assert "reads 3: update dist_moe" in message


def test_older_version(path):
    edit_root(path, lambda attributes: attributes.update(format_version=2))
    message = refused(path)
    assert "has format version 2, which an older dist_moe wrote" in message
    assert message.endswith("does not read: select or analyze again")


def test_no_marker(path):
    edit_root(path, lambda attributes: attributes.pop("complete"))
    assert "is incomplete, because writing it was interrupted: remove it and run the analysis again" in refused(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda attributes: attributes["selection_rule"].update(threshold=0.04),
        lambda attributes: attributes["provenance"].update(model_hash="d4" * 32),
        lambda attributes: attributes["complete"]["arrays"].update(masks="d4" * 32),
        lambda attributes: attributes["complete"]["arrays"].pop("masks"),
        lambda attributes: attributes["complete"].pop("digest"),
        lambda attributes: attributes.update(complete=True),
        lambda attributes: attributes.update(extra=1),
    ],
)
def test_edited_metadata(path, change):
    edit_root(path, change)
    assert "zarr.json has changed since it was written" in refused(path)


def test_any_flipped_bit_of_the_metadata_is_refused(path):
    metadata = path / "zarr.json"
    whole = metadata.read_bytes()
    chance = random.Random(0)
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << chance.randrange(8)
        metadata.write_bytes(flipped)
        refused(path)


def test_a_flipped_bit_of_any_array_is_refused(path):
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file != path / "zarr.json"]
    assert len(files) == 18  # 6 arrays: metadata, digests and one shard each
    chance = random.Random(0)
    for file in files:
        whole = file.read_bytes()
        for _ in range(5):
            flipped = bytearray(whole)
            flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
            file.write_bytes(flipped)
            assert f"array {file.relative_to(path).parts[0]} has changed since it was written" in refused(path)
        file.write_bytes(whole)
    MaskStore.open(path).check()


@pytest.mark.parametrize("kind", ["shard lost", "array lost", "shard added", "cut short", "grown"])
def test_lost_and_added_files(path, kind):
    shard = path / "masks" / "c" / "0" / "0" / "0"
    if kind == "shard lost":
        shard.unlink()  # Zarr itself would read it as all false.
    elif kind == "array lost":
        shutil.rmtree(path / "masks")
    elif kind == "shard added":
        shard.with_name("1").write_bytes(shard.read_bytes())
    elif kind == "cut short":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        shard.write_bytes(shard.read_bytes() + b"\0")
    assert "array masks has changed since it was written" in refused(path)


def test_a_resized_array_is_refused(path):
    zarr.open_group(path, mode="r+")["masks"].resize((2, 2, 1))
    assert "array masks has changed since it was written" in refused(path)


def test_files_of_a_file_system_do_not_count(path):
    (path / "masks" / ".DS_Store").write_bytes(b"x")
    MaskStore.open(path).check()


def damage(path, array):
    (shard,) = (file for file in (path / array / "c").rglob("*") if file.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


@pytest.mark.parametrize(
    ("array", "use"),
    [
        ("masks", lambda store: store.masks[0]),
        ("masks", lambda store: store.union()),
        ("batch_signs", lambda store: store.signs_B3),
        ("batch_ids", lambda store: store.batches),
        ("batch_prompts", lambda store: store.arms_B2),
        ("batch_mask_hashes", lambda store: store.check()),
    ],
)
def test_nothing_damaged_is_decoded(path, array, use):
    damage(path, array)
    store = MaskStore.open(path)
    with pytest.raises(UserError, match=f"array {array} has changed since it was written"):
        use(store)
    with pytest.raises(UserError, match=f"array {array} has changed since it was written"):
        store.check()


@pytest.mark.parametrize(
    ("array", "use"),
    [
        ("prompt_counts", lambda counts: counts.risk_diff[0]),
        ("prompt_counts", lambda counts: counts.aggregated),
        ("prompt_tokens", lambda counts: counts.prompts),
        ("prompt_gates", lambda counts: counts.of_batches(range(1), tables=["gates"])),
        ("prompt_batch", lambda counts: counts.index),
        ("batch_ids", lambda counts: counts.mean_of_batches),
    ],
)
def test_nothing_damaged_of_counts_is_decoded(path, array, use):
    damage(path.parent / "counts.zarr", array)
    counts = Counts.open(path.parent / "counts.zarr")
    with pytest.raises(UserError, match=f"array {array} has changed since it was written"):
        use(counts)
    with pytest.raises(UserError, match=f"array {array} has changed since it was written"):
        counts.check()


def test_one_kind_of_store_is_not_taken_for_the_other(path):
    with pytest.raises(UserError, match=r"is not a counts store: its zarr\.json does not say format"):
        Counts.open(path)
    with pytest.raises(UserError, match=r"is not a mask store: its zarr\.json does not say format"):
        MaskStore.open(path.parent / "counts.zarr")


@pytest.mark.parametrize(
    "moment", ["batch_ids", "batch_signs", ".writing/step", "masks", "zarr.json", "before the rename"]
)
def test_a_killed_write_leaves_nothing_that_opens(tmp_path, moment):
    root = tmp_path / "store"
    root.mkdir()
    path = root / "masks.zarr"
    assert start_fork(tmp_path, killed_writer, path, moment).status() == -signal.SIGKILL
    assert "no mask store at" in refused(path)
    (left_over,) = root.iterdir()
    assert left_over.name.startswith(".masks.zarr.partial-")
    if moment != "before the rename":
        assert "is incomplete" in refused(left_over)
    # And it is not in the way.
    MaskStore.open(write_example(path))
