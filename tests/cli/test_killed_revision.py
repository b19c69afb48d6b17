"""A rank that is killed at the change of masks: the run goes on with the same bits, on 1, 2 and 4 ranks."""

import pytest

from dist_moe.cli.main import main
from tests.cli.killed_revision import LAYOUTS, MOMENTS
from tests.cli.killing import statuses_of
from tests.cli.test_kills import result

CHANGE, LIMIT_S = 3, 500
pytestmark = [pytest.mark.long, pytest.mark.timeout(LIMIT_S + 200)]


@pytest.fixture(scope="module")
def tried(trained, tmp_path_factory):
    """Directory of all runs, and by (layout, moment) the statuses of both starts."""
    out = tmp_path_factory.mktemp("killed")
    other = out / "other"
    settings = ("--run-dir", str(other), "--analysis.rule", "lowest", "--analysis.top-k", "9")
    assert main(["analyze", "--config", str(trained.config), *settings]) == 0
    words = ["--config", trained.config, "--train.masks", trained.masks, "--train.epochs", "4"]
    words += ["--train.revisions", f"{CHANGE}:{other / 'masks.zarr'}", "--checkpoint.every", "1", "--train.audit", "1"]
    return out, statuses_of("tests.cli.killed_revision", out, CHANGE, *words, limit_s=LIMIT_S)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_killed_at_the_change_of_masks_costs_no_bit(tried, layout, moment):
    out, statuses = tried
    num_ranks = LAYOUTS[layout][1]
    first, second = statuses[layout, moment]
    assert first == [1] * (num_ranks - 1) + [-9]
    assert second == [0] * num_ranks
    log = (out / f"{layout}-{moment}-2.log").read_text()
    # the checkpoint of the step is published by the first rank: by another one's death it may be there or not
    steps = {CHANGE, CHANGE + 1} if "the-checkpoint" in moment else {CHANGE}
    assert any(f"Resuming after step {step} of 8" in log for step in steps), log
    experts, metrics = result(out / f"{layout}-{moment}")
    assert (experts, metrics) == result(out / f"{layout}-undisturbed")
    assert experts
    assert [line["mask_revision"] for line in metrics] == [0] * CHANGE + [1] * (8 - CHANGE)
