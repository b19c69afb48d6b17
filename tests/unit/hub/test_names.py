"""Names of the hub's repositories, and what a place in its cache says."""

from pathlib import Path

import pytest

from dist_moe.hub.names import Origin, Repository, model_name, origin_facts, origin_of, repository_of

COMMIT = "5393d15eb501db6c0cb96aced3abedc96ac34edc"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("allenai/OLMoE-1B-7B-0924", Repository("allenai/OLMoE-1B-7B-0924")),
        ("Qwen/Qwen3.5_MoE@v1.0", Repository("Qwen/Qwen3.5_MoE", "v1.0")),
        ("a/b@refs/pr/1", Repository("a/b", "refs/pr/1")),
        (f"/elsewhere/hub/models--a--b.c/snapshots/{COMMIT}", Repository("a/b.c", COMMIT)),
        ("model", None),
        ("models/tiny/base", None),
        ("/a/b", None),
        ("../b", None),
        ("a/b--c", None),
        ("a/b.", None),
        ("a/b..c", None),
        ("a/ b", None),
        ("a/b@", None),
        ("a/b\0", None),
        (f"/elsewhere/hub/models--a--b/snapshots/{COMMIT}/config.json", None),
    ],
)
def test_a_repository_is_named_by_owner_and_name(text, expected):
    assert repository_of(text) == expected


def test_a_directory_of_the_cache_says_where_it_comes_from(tmp_path):
    snapshot = tmp_path / "models--owner--tiny" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    link = tmp_path / "a name of my own"
    link.symlink_to(snapshot)
    for path in (snapshot, link):
        assert origin_of(path) == Origin("owner/tiny", COMMIT)
        assert model_name(path) == "owner/tiny"
        assert origin_facts(path) == {"model_repository": "owner/tiny", "model_commit": COMMIT}
    assert origin_of(tmp_path) is None
    assert model_name(tmp_path) == tmp_path.name
    assert origin_facts(Path("tiny")) == {}
