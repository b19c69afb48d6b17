"""Downloads from the hub that do not go through at once, by its own client, against a local server."""

from pathlib import Path

import pytest

from tests.checkpoint import save_checkpoint
from tests.hub_places import kill_when, places
from tests.hub_repos import files_of
from tests.hub_server import TOKEN, serving

SHARD = "model-00003-of-00011.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return files_of(save_checkpoint(tmp_path_factory.mktemp("hub") / "tiny"))


@pytest.fixture
def hub():
    with serving() as found:
        yield found


def test_a_large_file_comes_from_another_host_without_the_token(hub, files, tmp_path):
    hub.put("models/owner/tiny", files, private=True)
    (place,) = places([("owner/tiny", None)], tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert files_of(Path(place)) == files
    assert sum(each.startswith("GET /large/") for each in hub.asked) > 5


def test_a_connection_that_is_cut_is_taken_up_where_it_was(hub, files, tmp_path):
    """The client keeps what has come in pieces of 10 MB, and asks for the rest."""
    big = bytes(range(256)) * (24 << 12)
    hub.put("models/owner/tiny", files | {"merges.txt": big})
    hub.cuts = {"GET /large/owner/tiny": 0, "merges.txt": 15 << 20}
    (place,) = places([("owner/tiny", None)], tmp_path, HF_ENDPOINT=hub.url)
    assert files_of(Path(place)) == files | {"merges.txt": big}
    assert hub.cuts == {}
    assert hub.ranges == [f"bytes={10 << 20}-"]


@pytest.mark.long
def test_a_download_that_is_killed_goes_on_with_the_files_that_are_missing(hub, files, tmp_path):
    hub.put("models/owner/tiny", files)
    hub.stalls = {SHARD}
    snapshots = tmp_path / "hf/hub/models--owner--tiny/snapshots"
    asked = [("owner/tiny", None)]
    kill_when(
        "tests.hub_places",
        asked,
        tmp_path,
        lambda: len(list(snapshots.glob("*/*"))) == len(files) - 1,
        HF_ENDPOINT=hub.url,
    )
    hub.stalls.clear()
    hub.asked.clear()
    (offline,) = places(asked, tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert "in the hub's cache" in offline, "a part is taken for the whole"
    assert "run `hf download owner/tiny" in offline
    (place,) = places([("owner/tiny", None)], tmp_path, HF_ENDPOINT=hub.url)
    assert files_of(Path(place)) == files
    assert hub.downloads("owner/tiny") == [SHARD]


def test_a_disk_that_is_full_is_one_line_and_no_part_is_taken_for_whole(hub, files, tmp_path):
    hub.put("models/owner/tiny", files)
    asked = [("owner/tiny", None)]
    (line,) = places(asked, tmp_path, most_kib=8, HF_ENDPOINT=hub.url)
    assert line.startswith(f"cannot write {tmp_path}/hf/hub")
    assert line.endswith("File too large; solve that, then run the same command again")
    assert max(len(data) for data in files_of(tmp_path / "hf/hub").values()) <= 8192
    (place,) = places(asked, tmp_path, HF_ENDPOINT=hub.url)
    assert files_of(Path(place)) == files
