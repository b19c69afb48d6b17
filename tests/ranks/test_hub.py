"""Of several ranks one downloads a model; the others find it in the cache, or all say why not."""

import pytest

from tests.checkpoint import save_checkpoint
from tests.hub_ranks import placed_on_ranks
from tests.hub_repos import files_of
from tests.hub_server import serving


@pytest.mark.long
def test_one_rank_downloads_and_all_read_the_same_commit(tmp_path):
    files, home = files_of(save_checkpoint(tmp_path / "tiny")), tmp_path / "hf"
    with serving() as hub:
        commit = hub.put("models/owner/tiny", files)
        ours, theirs = placed_on_ranks(["owner/tiny", "owner/none", "owner/tiny@main"], tmp_path, hub.url, [home] * 2)
        asked, downloads = list(hub.asked), hub.downloads("owner/tiny")
        apart = placed_on_ranks(["owner/tiny"], tmp_path, hub.url, [home, tmp_path / "of another node"])
    assert ours == theirs
    assert ours[::2] == [f"{home}/hub/models--owner--tiny/snapshots/{commit}"] * 2
    assert "has no model repository owner/none" in ours[1]
    assert downloads == sorted(files)
    assert sum("/revision/main" in each for each in asked) == 3  # of three questions, each by one rank
    line = (
        f"rank 1: model.path: there is no directory 'owner/tiny@{commit}', and owner/tiny@{commit} is not in the hub's"
    )
    for (said,) in apart:
        assert said.startswith(line)
        assert "of another node/hub, and only one rank of all downloads: run `hf download owner/tiny --rev" in said
