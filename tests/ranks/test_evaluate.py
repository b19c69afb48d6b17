"""An evaluation on several ranks is that of one: the same file, byte for byte, where each rank holds all experts."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from dist_moe.cli.main import main
from dist_moe.config.load import load_config
from dist_moe.errors import UserError
from dist_moe.evaluation.score import score_rows
from dist_moe.measure.gradients import gradient_table
from dist_moe.model.model import adopt
from dist_moe.parallel.comm import SoloComm
from dist_moe.workflows import evaluate as module
from dist_moe.workflows.inputs import read_inputs
from tests.checkpoint import prompt_rows, save_checkpoint, write_config, write_jsonl
from tests.plain import response_loss
from tests.ranks.harness import run_ranks
from tests.ranks.test_training import batch_rows
from tests.tiny import tiny_model

FAST = {
    "analyze": ["--analysis.statistics.permutations", "0"],
    "train": ["--train.mode", "update", "--train.lr", "0.05"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, of rows of many lengths, which are scored in several passes."""
    root = tmp_path_factory.mktemp("evaluate")
    rows = prompt_rows(num_safe=24, categories=("hacking", "fraud"), per_category=12)
    for number, row in enumerate(rows):
        row["prompt"] += f" w{number}" * (number % 7)
    data = write_jsonl(root / "prompts.jsonl", rows)
    config = write_config(root / "run.yaml", save_checkpoint(root / "model"), data, root / "run")
    passes = "evaluation: {micro_batch_tokens: 300, max_new_tokens: 5"
    config.write_text(config.read_text().replace("evaluation: {max_new_tokens: 4", passes))
    for command, arguments in FAST.items():
        assert main([command, "--config", str(config), *arguments]) == 0
    return root / "run"


def evaluated(comm, run_dir, ep_size=None):
    module.evaluate(run_dir, (), comm, ep_size)
    return (run_dir / "evaluation.json").read_bytes()


def refused(comm, run_dir, ep_size=None):
    with pytest.raises(UserError) as error:
        module.evaluate(run_dir, (), comm, ep_size)
    return str(error.value)


def scored(comm):
    """Scores of rows and gradients of the unsafe ones, to the bit."""
    model, rows = adopt(tiny_model("qwen3_moe"), SoloComm(comm.device)), batch_rows(0, 9)
    scores = score_rows(
        model,
        rows,
        decode=str,
        refusals=["[1"],
        max_new_tokens=4,
        micro_batch_tokens=60,
        pad_id=0,
        eos_ids=(5,),
        comm=comm,
        progress=lambda _: None,
    )
    numbers = [(score.loss_sum.hex(), score.num_loss_tokens, score.answer, score.refused) for score in scores]
    return numbers, gradient_table(model, rows, comm)


def one_rank(comm, run_dir):
    return {"written": evaluated(comm, run_dir), "scored": scored(comm)}


def two_ranks(comm, run_dir):
    def failing(*arguments):
        raise UserError("the disk of this node is gone")

    lines, load_model = [refused(comm, run_dir, ep_size=3)], module.load_model
    if comm.rank == 1:
        module.load_model = failing
    lines.append(refused(comm, run_dir))
    module.load_model = load_model
    left = sorted(path.name for path in run_dir.iterdir())
    return {"written": evaluated(comm, run_dir), "scored": scored(comm), "refused": lines, "left": left}


def four_ranks(comm, run_dir):
    return {"written": evaluated(comm, run_dir), "shared": evaluated(comm, run_dir, ep_size=2)}


@pytest.fixture(scope="module")
def on_ranks(run, tmp_path_factory):
    """By the number of ranks, what each rank has found, in a copy of the run."""
    root = tmp_path_factory.mktemp("ranks")
    return {
        number: run_ranks(number, work, shutil.copytree(run, root / str(number)))
        for number, work in ((1, one_rank), (2, two_ranks), (4, four_ranks))
    }


def test_any_number_of_ranks_writes_the_same_evaluation(on_ranks):
    expected = on_ranks[1][0]["written"]
    scores = json.loads(expected)
    assert set(scores["category"]) == {"fraud", "hacking"}
    losses = scores["all"]["all"]["refusal loss (unsafe)"]
    assert losses["before"] != losses["after"], "training has changed nothing"
    for number in (2, 4):
        assert [answer["written"] for answer in on_ranks[number]] == [expected] * number


def test_ranks_score_what_plain_transformers_does(run, on_ranks):
    config = load_config(run / "train.yaml")
    inputs = read_inputs(config, SoloComm(torch.device("cpu")))
    unsafe = [row for row in inputs.rows(range(len(inputs.batches))) if row.unsafe]
    plain = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32).eval()
    before = json.loads(on_ranks[2][0]["written"])["all"]["all"]["refusal loss (unsafe)"]["before"]
    assert before == pytest.approx(response_loss(plain, unsafe), abs=1e-6)


def test_ranks_that_share_experts_score_what_one_does_but_for_rounding(on_ranks):
    assert len({answer["shared"] for answer in on_ranks[4]}) == 1
    found, right = (json.loads(text) for text in (on_ranks[4][0]["shared"], on_ranks[1][0]["written"]))
    assert (found["settings"]["evaluation"]["ep_size"], right["settings"]["evaluation"]["ep_size"]) == (2, 1)
    for group in ("batch", "category", "all"):
        assert found[group].keys() == right[group].keys()
        for key, measures in right[group].items():
            for measure, values in measures.items():
                assert found[group][key][measure] == pytest.approx(values, rel=1e-5)


def test_scores_and_gradients_have_the_bits_of_one_process(on_ranks):
    scores, gradients = on_ranks[1][0]["scored"]
    assert len({answer for _, _, answer, _ in scores}) > 3
    assert gradients.any()
    for answer in on_ranks[2]:
        found, table = answer["scored"]
        assert found == scores
        assert (table == gradients).all()


def test_what_fails_is_one_line_on_all_ranks_and_leaves_nothing(on_ranks):
    for answer in on_ranks[2]:
        assert answer["refused"] == [
            "evaluation.ep_size is 3, but 2 rank(s) do not divide into replicas of 3: choose a divisor, or start "
            "another number of ranks",
            "rank 1: the disk of this node is gone",
        ]
        assert "evaluation.json" not in answer["left"]
