"""An analysis on several ranks, which count and write parts of it each, gives the store of one, byte for byte."""

import pytest

from dist_moe.config.load import load_config
from dist_moe.measure import parts
from dist_moe.store import MaskStore, plan
from dist_moe.workflows import analyze
from tests.checkpoint import prompt_rows, save_checkpoint, write_config, write_jsonl
from tests.ranks.harness import run_ranks

CATEGORIES = ("hacking", "weapons", "drugs")


def analyzed(comm, config, run_dir, arguments):
    """The digest of the store, and which batches this rank has written."""
    parts.ROWS_AT_ONCE = 32
    plan.batches_per_file = lambda num_batches: 1
    written, original = [], analyze.selected

    def selected(counts, batches, *rest, **settings):
        written.append(batches.start)
        return original(counts, batches, *rest, **settings)

    analyze.selected = selected
    analyze.analyze(load_config(config, ["--run-dir", str(run_dir), *arguments]), comm)
    store = MaskStore.open(run_dir / "masks.zarr")
    store.check()
    store.counts.check()
    counted_P = store.counts.prompt_counts[:].any(axis=(1, 2))
    # an answer that ends at once has no token that is read, so none that is counted
    assert counted_P.mean() > 0.5 if "generated" in arguments else counted_P.all()
    assert store.masks[:].any()
    return (store.digest, store.counts.digest), written


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("analyze")
    data = write_jsonl(root / "prompts.jsonl", prompt_rows(num_safe=40, categories=CATEGORIES, per_category=16))
    return write_config(root / "run.yaml", save_checkpoint(root / "model"), data, root / "run")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--analysis.rule", "esft_gate", "--analysis.micro_batch_tokens", "60"],
        ["--analysis.tokens", "generated", "--analysis.max_new_tokens", "5", "--analysis.temperature", "1.0"],
        pytest.param(["--analysis.rule", "shrunk", "--analysis.threshold", "0.01"], marks=pytest.mark.long),
        ["--analysis.no-gates", "--analysis.ep_size", "all"],
    ],
)
def test_any_number_of_ranks_writes_the_same_store(config, tmp_path, arguments):
    arguments = [*arguments, "--analysis.statistics.permutations", "50", "--analysis.statistics.resamples", "10"]
    digests = set()
    for num_ranks in (1, 2, 3):
        given = [str(num_ranks) if argument == "all" else argument for argument in arguments]
        answers = run_ranks(num_ranks, analyzed, config, tmp_path / str(num_ranks), given)
        digests |= {digest for digest, _ in answers}
        assert [written for _, written in answers] == [list(range(5))[rank::num_ranks] for rank in range(num_ranks)]
        assert not (tmp_path / str(num_ranks) / "analysis").exists()
    assert len(digests) == 1


def analyzed_apart(comm, config, run_dir):
    return analyze.analyze(load_config(config, ["--run-dir", str(run_dir / str(comm.rank))]), comm)


def test_a_run_directory_that_ranks_do_not_share_is_one_line(config, tmp_path):
    with pytest.raises(
        AssertionError,
        match=r"UserError: rank 1: .* does not hold what other ranks have counted: run_dir must be where all",
    ):
        run_ranks(2, analyzed_apart, config, tmp_path)
