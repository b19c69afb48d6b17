"""Names of the hub and URLs that are wrong by themselves. tests/cli/test_hub.py has what a hub refuses."""

from pathlib import Path

import pytest

from tests.bad_inputs.harness import Case, check, ids, nothing

ANALYZE = "analyze --config run.yaml --run-dir new"
CASES = [
    Case(
        "a revision of a directory",
        nothing,
        f"{ANALYZE} --model.revision main",
        ("model.path: model is a directory here, and has no revision 'main': leave model.revision out",),
    ),
    Case(
        "an entry of the cache without a branch",
        lambda: Path("models--a--b/snapshots").mkdir(parents=True),
        "inspect-model models--a--b",
        ("model: models--a--b is an entry of the hub's cache without a branch main: give one of its snapshots/",),
    ),
    Case(
        "two revisions",
        nothing,
        f"{ANALYZE} --model.path owner/name@v1 --model.revision v2",
        ("model.path is owner/name@v1, and the revision 'v2' is given too",),
    ),
    Case(
        "a dataset without a split",
        nothing,
        f"{ANALYZE} --data.paths hf:owner/name",
        ("'hf:owner/name': expected hf:OWNER/NAME:SPLIT",),
    ),
    Case(
        "a dataset as fsspec names it",
        nothing,
        "evaluate run --data hf://datasets/owner/name:train",
        ("'hf:/datasets/owner/name:train': expected hf:OWNER/NAME:SPLIT",),
    ),
    Case(
        "a push to no owner", nothing, "export run --out new --push name", ("--push: expected OWNER/NAME, got 'name'",)
    ),
    Case("public without a push", nothing, "export run --out new --public", ("--public is for a push",)),
    Case(
        "a push of a delta",
        nothing,
        "export run --out new --push owner/name --delta",
        ("--push is for a checkpoint: leave --delta out",),
    ),
    Case("publishing what is not there", nothing, "publish gone memory://a", ("no directory gone: expected a run,",)),
    Case("publishing to a directory", nothing, "publish run there", ("expected a URL, such as s3://bucket/name, got",)),
    Case(
        "fetching nothing",
        nothing,
        "fetch memory://nothing/there new",
        ("there has no published.json",),
    ),
    Case("fetching to what is there", nothing, "fetch memory://nothing/there run", ("run exists: choose",)),
    Case("fetching by no protocol", nothing, "fetch nosuch://a new", ("cannot use nosuch://a (ValueError",)),
]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_hub_names_and_urls(copy, capsys, case):
    check(case, capsys)
