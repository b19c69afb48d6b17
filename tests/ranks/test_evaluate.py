"""An evaluation on several ranks is that of one: the same file, byte for byte, where each rank holds all experts."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from dist_moe.cli.main import main
from dist_moe.config.load import load_config
from dist_moe.errors import UserError
from dist_moe.evaluation.score import Scorable, Subject, score_rows
from dist_moe.measure.gradients import gradient_table
from dist_moe.model.model import adopt
from dist_moe.parallel.comm import SoloComm
from dist_moe.weights import trained
from dist_moe.workflows import evaluate as module
from dist_moe.workflows import evaluated as models
from dist_moe.workflows.evaluation_request import EvaluationRequest
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
    module.evaluate(EvaluationRequest(path=run_dir, ep_size=ep_size), comm)
    return tuple((run_dir / name).read_bytes() for name in ("evaluation.json", "answers.jsonl"))


def refused(comm, run_dir, ep_size=None):
    with pytest.raises(UserError) as error:
        module.evaluate(EvaluationRequest(path=run_dir, ep_size=ep_size), comm)
    return str(error.value)


def scored(comm):
    """Scores of rows and gradients of the unsafe ones, to the bit."""
    model, rows = adopt(tiny_model("qwen3_moe"), SoloComm(comm.device)), batch_rows(0, 9)
    scores = score_rows(
        {"before": Subject(adopt(tiny_model("qwen3_moe", seed=1), SoloComm(comm.device))), "after": Subject(model)},
        [Scorable(row, (row,)) for row in rows],
        max_new_tokens=4,
        micro_batch_tokens=60,
        pad_id=0,
        eos_ids=(5,),
        comm=comm,
        progress=lambda _: None,
    )
    return scores, gradient_table(model, rows, comm)


def shares(comm, run_dir):
    """What is written of a share of the trained change."""
    module.evaluate(EvaluationRequest(path=run_dir, alphas=(0.5, 0.25)), comm)
    places = [run_dir / "alphas" / alpha for alpha in ("0.25", "0.5")]
    return tuple((place / name).read_bytes() for place in places for name in ("evaluation.json", "answers.jsonl"))


def one_rank(comm, run_dir):
    return {"written": evaluated(comm, run_dir), "shares": shares(comm, run_dir), "scored": scored(comm)}


def two_ranks(comm, run_dir):
    def failing(*arguments, **settings):
        raise UserError("the disk of this node is gone")

    lines, load_model = [refused(comm, run_dir, ep_size=3)], models.load_model
    if comm.rank == 1:
        models.load_model = failing
    lines.append(refused(comm, run_dir))
    models.load_model = load_model
    left = sorted(path.name for path in run_dir.iterdir())
    calls, check = [], trained.check_parts
    trained.check_parts = lambda *given: (calls.append(given), check(*given))
    written, num_hashed = evaluated(comm, run_dir), len(calls)
    return {
        "written": written,
        "shares": shares(comm, run_dir),
        "scored": scored(comm),
        "refused": lines,
        "left": left,
        "num_hashed": num_hashed,
    }


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
    tables = of_groups(expected)
    assert {name for kind, by, name in tables if by == "category"} == {"fraud", "hacking", "uncategorised"}
    losses = tables["trained", "all", "all"]["refusal loss (unsafe)"]
    assert losses["before"]["value"] != losses["after"]["value"], "training has changed nothing"
    assert tables["trained", "all", "all"]["KL to the base (safe)"]["after"]["value"] > 0
    for number in (2, 4):
        assert [answer["written"] for answer in on_ranks[number]] == [expected] * number


def test_any_number_of_ranks_writes_the_same_of_shares(on_ranks):
    expected = on_ranks[1][0]["shares"]
    assert len({*expected, *on_ranks[1][0]["written"]}) == 6
    assert [answer["shares"] for answer in on_ranks[2]] == [expected] * 2


def test_ranks_score_what_plain_transformers_does(run, on_ranks):
    config = load_config(run / "train.yaml")
    inputs = read_inputs(config, SoloComm(torch.device("cpu")))
    unsafe = [row for row in inputs.rows(range(len(inputs.batches))) if row.unsafe]
    plain = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32).eval()
    tables = of_groups(on_ranks[2][0]["written"])
    before = tables["trained", "all", "all"]["refusal loss (unsafe)"]["before"]["value"]
    assert before == pytest.approx(response_loss(plain, unsafe), abs=1e-6)


def test_ranks_that_share_experts_score_what_one_does_but_for_rounding(on_ranks):
    assert len({answer["shared"] for answer in on_ranks[4]}) == 1
    texts = on_ranks[4][0]["shared"], on_ranks[1][0]["written"]
    settings = [json.loads(text[0])["facts"]["settings"]["evaluation.ep_size"] for text in texts]
    assert settings == [2, 1]
    found, right = map(of_groups, texts)
    assert found.keys() == right.keys()
    for group, measures in right.items():
        assert found[group].keys() == measures.keys()
        for measure, times in measures.items():
            for when, estimate in times.items():
                assert found[group][measure][when] == pytest.approx(estimate, rel=1e-4, abs=1e-6)


def of_groups(written):
    """(kind, by, name) -> measures, without what is not there."""
    return {
        (group["kind"], group["by"], group["name"]): {
            name: {when: present(estimate) for when, estimate in times.items() if estimate}
            for name, times in group["measures"].items()
        }
        for group in json.loads(written[0])["groups"]
    }


def present(values):
    return {key: value for key, value in values.items() if value is not None}


def test_scores_and_gradients_have_the_bits_of_one_process(on_ranks):
    scores, gradients = on_ranks[1][0]["scored"]
    assert len({score.replies["after"].ids for score in scores}) > 3
    assert len({score.kl_sums["after"] for score in scores}) > 3
    assert gradients.any()
    for answer in on_ranks[2]:
        found, table = answer["scored"]
        assert found == scores
        assert (table == gradients).all()


def test_one_rank_hashes_the_trained_experts(on_ranks):
    assert [answer["num_hashed"] for answer in on_ranks[2]] == [1, 0]


def test_what_fails_is_one_line_on_all_ranks_and_leaves_nothing(on_ranks):
    for answer in on_ranks[2]:
        assert answer["refused"] == [
            "evaluation.ep_size is 3, but 2 rank(s) do not divide into replicas of 3: choose a divisor, or start "
            "another number of ranks",
            "rank 1: the disk of this node is gone",
        ]
        assert not {"evaluation.json", "answers.jsonl"} & {*answer["left"]}
