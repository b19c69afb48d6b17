"""`dist-moe evaluate` of runs and of models: every row once, where it belongs, with numbers of plain transformers."""

import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dist_moe
from dist_moe.cli.main import main
from dist_moe.judges import Judge, Judgement
from dist_moe.judges.phrases import Phrases
from dist_moe.store import MaskStore
from dist_moe.weights import trained as trained_experts
from dist_moe.workflows import evaluate as workflow
from tests.checkpoint import WORDS, prompt_rows, save_checkpoint, write_jsonl
from tests.evaluations import answers, value

REFUSAL = "sorry w1 w2"


def new_rows(num_safe, num_unsafe):
    """Rows of other words than those of the training, in categories of their own; of three it is not given."""
    draw = np.random.default_rng(9)
    rows = []
    for i in range(num_safe + num_unsafe):
        label = "safe" if i < num_safe else "unsafe"
        row = {"prompt": " ".join(draw.choice(WORDS[40:], 7)), "label": label, "category": f"{label} {i % 3}"}
        rows.append(row | ({"response": " ".join(draw.choice(WORDS, 4))} if label == "safe" else {}))
    for row in rows[-3:]:
        del row["category"]
    return rows


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained.run_dir, tmp_path / "run")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "out"
    dist_moe.export(trained.run_dir, out)
    return out


def evaluate(*words):
    assert main(["evaluate", *map(str, words), "--evaluation.resamples", "100"]) == 0


def groups(directory, by, kind="held out"):
    found = json.loads((directory / "evaluation.json").read_text())["groups"]
    return {g["name"]: (g["num_safe"], g["num_unsafe"]) for g in found if (g["kind"], g["by"]) == (kind, by)}


# Faults that there were


def test_every_row_is_scored_once_and_none_is_left_over(run, tmp_path):
    """Dealt into batches, 10 of such 25 rows were scored, under the words "all rows"."""
    data = write_jsonl(tmp_path / "x.jsonl", new_rows(11, 14))
    evaluate(run, "--data", data)
    assert len(answers(run)) == 25
    assert len({row["id"] for row in answers(run)}) == 25
    assert groups(run, "all") == {"all": (11, 14)}
    assert sorted(int(row["place"]) for row in answers(run)) == [*range(1, 26)]


@pytest.mark.parametrize("label", ["safe", "unsafe"])
def test_rows_of_one_label_are_enough(run, tmp_path, label):
    data = write_jsonl(tmp_path / "x.jsonl", [row for row in new_rows(3, 3) if row["label"] == label])
    evaluate(run, "--data", data)
    assert groups(run, "all") == {"all": (3, 0) if label == "safe" else (0, 3)}


def test_rows_have_their_own_category_and_those_without_one_are_a_group(run, tmp_path):
    """Safe rows had the category of the unsafe rows that they were dealt to."""
    data = write_jsonl(tmp_path / "x.jsonl", new_rows(8, 8))
    evaluate(run, "--data", data)
    assert groups(run, "category") == {
        "safe 0": (3, 0),
        "safe 1": (3, 0),
        "safe 2": (2, 0),
        "uncategorised": (0, 3),
        "unsafe 0": (0, 2),
        "unsafe 1": (0, 1),
        "unsafe 2": (0, 2),
    }


def test_the_trained_experts_are_hashed_once(run, monkeypatch):
    calls, check = [], trained_experts.check_parts
    monkeypatch.setattr(trained_experts, "check_parts", lambda *given: (calls.append(given), check(*given)))
    evaluate(run)
    assert len(calls) == 1


def test_answers_are_judged_while_no_rank_waits_in_one_exchange(run, monkeypatch):
    """A judge that took longer than a group's time limit ended the evaluation; see tests/ranks/test_alone.py."""
    inside, judged, judge = [], [], Phrases.judge

    def alone(comm, work):
        inside.append(comm)
        work()
        inside.pop()

    monkeypatch.setattr(workflow, "alone", alone)
    monkeypatch.setattr(Phrases, "judge", lambda self, given: (judged.append(len(inside)), judge(self, given))[1])
    evaluate(run)
    assert judged == [1, 1], "before and after, each once"


# Where rows belong


def test_trained_rows_are_in_the_batch_that_trained_them_and_apart_from_others(trained, run, tmp_path, capsys):
    own = [json.loads(line) for line in trained.data.read_text().splitlines()]
    nearly = dict(own[0], prompt=own[0]["prompt"] + " w")
    other_answer = dict(own[-1], response="w1 w2 w3")
    data = write_jsonl(tmp_path / "x.jsonl", [*own, nearly, other_answer, *new_rows(2, 2)])
    capsys.readouterr()
    evaluate(run, "--data", data)
    assert groups(run, "all", "trained") == {"all": (16, 16)}
    assert groups(run, "all", "overlapping") == {"all": (1, 1)}
    assert groups(run, "all") == {"all": (2, 2)}
    prompts = MaskStore.open(trained.masks).counts.prompts
    batch_of = dict(zip(prompts["id"], prompts["batch"], strict=True))
    assert {row["id"]: row["batch"] for row in answers(run) if row["kind"] == "trained"} == batch_of
    said = capsys.readouterr().out
    assert "Rows that were trained: 32. Others: 6; of these the prompt of 1 is equal to a trained one" in said
    assert f"{data}:34 is like the trained row" in said
    assert "Held out: these rows were not trained" in said


def test_rows_of_a_training_that_is_gone_are_not_called_held_out(trained, run, tmp_path, capsys):
    config = (run / "train.yaml").read_text()
    assert str(trained.data) in config
    (run / "train.yaml").write_text(config.replace(str(trained.data), str(tmp_path / "gone.jsonl")))
    data = write_jsonl(tmp_path / "x.jsonl", new_rows(2, 2))
    evaluate(run, "--data", data)
    assert groups(run, "all", "unknown") == {"all": (2, 2)}
    assert "is not known: the rows of the training cannot be read" in capsys.readouterr().out


# The numbers


@torch.no_grad()
def plain_numbers(path, rows, base=None):
    """(loss of the response, mean log p of the refusal, greedy answer, KL to the base) of each row, row by row."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model, found = AutoModelForCausalLM.from_pretrained(path).eval(), []
    other = AutoModelForCausalLM.from_pretrained(base).eval() if base else None
    for row in rows:
        prompt = tokenizer(f"<user>{row['prompt']}<end><assistant>", add_special_tokens=False).input_ids

        def log_p(each, text, prompt=prompt):
            response = tokenizer(text, add_special_tokens=False).input_ids
            logits = each(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
            return logits.log_softmax(-1), response

        own, response = log_p(model, f"{row.get('response', REFUSAL)}<end>")
        of_refusal, refusal = log_p(model, REFUSAL)
        written = []
        while len(written) < 4 and (not written or written[-1] != tokenizer.eos_token_id):
            written.append(int(model(torch.tensor([prompt + written])).logits[0, -1].argmax()))
        divergence = 0.0
        if other is not None:
            before, _ = log_p(other, f"{row.get('response', REFUSAL)}<end>")
            divergence = (own.exp() * (own - before)).sum().item()
        found.append(
            (
                -own[range(len(response)), response].sum().item(),
                of_refusal[range(len(refusal)), refusal].mean().item(),
                tokenizer.decode(written),
                divergence,
                len(response),
            )
        )
    return found


def test_a_run_has_the_numbers_of_plain_transformers(trained, run, exported, tmp_path):
    rows = new_rows(9, 8)
    evaluate(run, "--data", write_jsonl(tmp_path / "x.jsonl", rows))
    by_line = sorted(answers(run), key=lambda row: int(row["place"]))
    before, after = plain_numbers(trained.model, rows), plain_numbers(exported, rows, trained.model)
    for when, numbers in (("before", before), ("after", after)):
        for row, (loss, refusal, answer, _, _) in zip(by_line, numbers, strict=True):
            assert row[when]["loss_sum"] == pytest.approx(loss, abs=1e-4)
            assert row[when]["refusal_log_p"] == pytest.approx(refusal, abs=1e-5)
            assert row[when]["answer"] == answer
        scores = [refusal for _, refusal, *_ in numbers]
        wins = [(u > s) + (u == s) / 2 for u in scores[9:] for s in scores[:9]]
        assert value(run, "refusal AUC", when) == pytest.approx(np.mean(wins))
    divergence = sum(numbers[3] for numbers in after[:9]) / sum(numbers[4] for numbers in after[:9])
    assert divergence > 1e-4
    assert value(run, "KL to the base (safe)", "after") == pytest.approx(divergence, rel=1e-3)
    assert [row["kl_sum"] is None for row in by_line] == [False] * 9 + [True] * 8


def test_a_model_against_its_base_has_the_numbers_of_its_run(trained, run, exported, tmp_path):
    data = write_jsonl(tmp_path / "x.jsonl", new_rows(9, 8))
    evaluate(run, "--data", data)
    settings = ["--data.refusal", REFUSAL, "--evaluation.max_new_tokens", 4, "--evaluation.judge.phrases.also", "sorry"]
    evaluate(exported, "--data", data, "--against", trained.model, "--out", tmp_path / "out", *settings)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["answers.jsonl", "evaluation.json"]
    of_run, of_model = answers(run), answers(tmp_path / "out")
    for one, other in zip(of_run, of_model, strict=True):
        assert (one["kind"], other["kind"]) == ("held out", "unknown")
        for when in ("before", "after"):
            assert other[when]["answer"] == one[when]["answer"]
            assert other[when]["judgements"] == one[when]["judgements"]
            assert other[when]["loss_sum"] == pytest.approx(one[when]["loss_sum"], abs=1e-4)
        assert other["kl_sum"] == (one["kl_sum"] and pytest.approx(one["kl_sum"], rel=1e-3))


def test_a_model_by_itself(trained, run, tmp_path, monkeypatch, capsys):
    data = write_jsonl(tmp_path / "x.jsonl", new_rows(3, 3))
    evaluate(run, "--data", data)
    monkeypatch.chdir(tmp_path)
    evaluate(trained.model, "--data", data, "--data.refusal", REFUSAL, "--evaluation.max_new_tokens", 4)
    place = tmp_path / f"evaluation-{trained.model.name}"
    for one, other in zip(answers(run), answers(place), strict=True):
        assert other["before"] is None
        assert other["after"]["answer"] == one["before"]["answer"]
        assert other["after"]["loss_sum"] == pytest.approx(one["before"]["loss_sum"], abs=1e-4)
    assert value(place, "refused (unsafe)", "before") is None
    assert value(place, "KL to the base (safe)", "after") is None
    assert "There is no before: give --against BASE." in capsys.readouterr().out
    evaluate(trained.model, "--data", data)  # in place of the earlier one


# Judges


@dataclass(frozen=True, kw_only=True)
class Recorder(Judge):
    name = "recorder"

    def judge(self, answers):
        seen.append(answers)
        return [Judgement("refused" if each.unsafe else "missing", each.text) for each in answers]

    @property
    def openings(self):
        return ("w5 w6", REFUSAL)

    @property
    def in_words(self):
        return "records"


seen = []


def test_judges_are_given_all_that_they_need(trained, run, tmp_path, monkeypatch, capsys):
    seen.clear()
    chosen = workflow.chosen_judges
    monkeypatch.setattr(workflow, "chosen_judges", lambda config: (Recorder(), *chosen(config)))
    rows = new_rows(3, 3)
    evaluate(run, "--data", write_jsonl(tmp_path / "x.jsonl", rows))
    before, after = seen
    places = {row["id"]: int(row["place"]) - 1 for row in answers(run)}
    plain = plain_numbers(trained.model, rows)
    for each in before:
        row, (_, refusal, answer, _, _) = rows[places[each.row_id]], plain[places[each.row_id]]
        assert each.text == answer
        assert "".join(each.asked.split()) == f"<user>{row['prompt']}<end><assistant>".replace(" ", "")
        assert each.is_cut == (not answer.endswith("<end>"))
        assert each.messages == ({"role": "user", "content": row["prompt"]},)
        assert each.unsafe == (row["label"] == "unsafe")
        assert each.opening_log_p.keys() == {"w5 w6", REFUSAL}
        assert each.opening_log_p[REFUSAL] == pytest.approx(refusal, abs=1e-5)
    assert len(after) == len(before) == 6
    assert value(run, "refused (unsafe)", "after") == 1
    assert value(run, "refused (safe)", "after") is None
    assert value(run, "refused (unsafe), judge phrases", "after") is not None
    said = capsys.readouterr().out
    assert "By recorder, 3 of 6 answers after could not be judged, and are in no rate." in said
    assert "Judges recorder and phrases agree on" in said


# Shares of what training has changed


def test_a_share_is_evaluated_as_its_export_to_the_bit(trained, run, tmp_path, capsys):
    data = write_jsonl(tmp_path / "x.jsonl", new_rows(9, 8))
    evaluate(run, "--data", data, "--alphas", "1,0.4")
    said = capsys.readouterr().out
    assert "Alpha 0 is model; each line is the export at its alpha" in said
    assert "Held out: these rows were not trained" in said
    assert not (run / "answers.jsonl").exists()
    settings = ["--data.refusal", REFUSAL, "--evaluation.max_new_tokens", 4, "--evaluation.judge.phrases.also", "sorry"]
    losses = []
    for alpha in ("0.4", "1"):
        out = dist_moe.export(trained.run_dir, tmp_path / alpha, alpha=float(alpha)).path
        evaluate(out, "--data", data, "--against", trained.model, "--out", tmp_path / f"of-{alpha}", *settings)
        place = run / "alphas" / alpha
        assert json.loads((place / "evaluation.json").read_text())["facts"]["alpha"] == float(alpha)
        for one, other in zip(answers(place), answers(tmp_path / f"of-{alpha}"), strict=True):
            assert one["kind"] == "held out"
            assert {key: one[key] for key in ("before", "after", "kl_sum")} == {
                key: other[key] for key in ("before", "after", "kl_sum")
            }
        losses.append([row["after"]["loss_sum"] for row in answers(place)])
    evaluate(run, "--data", data)
    losses += [[row[when]["loss_sum"] for row in answers(run)] for when in ("after", "before")]
    assert losses[1] == losses[2]
    assert losses[0] not in losses[1:]


def test_a_card_quotes_the_evaluation_of_its_own_share(run, tmp_path):
    evaluate(run, "--data", write_jsonl(tmp_path / "x.jsonl", new_rows(3, 3)), "--alphas", "0.5")
    cards = {}
    for alpha in (0.5, 0.25, 1.0):
        cards[alpha] = (dist_moe.export(run, tmp_path / f"a{alpha}", alpha=alpha).path / "README.md").read_text()
    assert {alpha: "## Before and after" in card for alpha, card in cards.items()} == {0.5: True, 0.25: False, 1: False}


def test_shares_from_python(run, tmp_path):
    data = write_jsonl(tmp_path / "x.jsonl", new_rows(8, 8))
    found = dist_moe.evaluate_alphas(run, [1, 0.5], [data], out=tmp_path / "out", resamples=50)
    assert [*found.table().index] == [0, 0.5, 1]
    assert [*found.table("held out")["refusal loss (unsafe)"]["value"]] == [
        value(tmp_path / "out" / "alphas" / alpha, "refusal loss (unsafe)", when)
        for alpha, when in (("0.5", "before"), ("0.5", "after"), ("1", "after"))
    ]
    assert found.largest(1.0) == 1
    with pytest.raises(dist_moe.UserError, match="alphas: expected numbers above 0 and up to 1, got"):
        dist_moe.evaluate_alphas(run, [0.5, 2], [data])


# What is refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{run}", "--against", "{model}"], "is a run, which is compared with its base model: leave --against out"),
        (["{model}"], "is a model's directory, which has no rows of its own: give --data FILE"),
        (
            ["{model}", "--data", "{data}", "--out", "{run}"],
            "exists and is no earlier evaluation: choose another --out",
        ),
        (["{model}", "--data", "{data}", "--out", "{data}"], "x.jsonl: Not a directory: choose another --out"),
        (["{model}", "--data", "{data}", "--against", "{other}"], "has another tokenizer or chat template than"),
        (["{run}", "--evaluation.judges", "phrazes"], "no judge 'phrazes': expected one of"),
        (
            ["{run}", "--evaluation.judges", "command"],
            "evaluation.judge.command.argv: must be set for the judge command",
        ),
        (["{run}", "--train.lr", "3"], "train.lr is 3.0, but"),
        (["{run}", "--agianst", "{model}"], "unrecognized arguments: --agianst; did you mean --against?"),
        (["{run}", "--alphas", "0.5,1.5"], "--alphas: expected numbers above 0 and up to 1, such as 0.3,0.5,1, got"),
        (["{run}", "--alphas", "0"], "--alphas: expected numbers above 0 and up to 1, such as 0.3,0.5,1, got '0'"),
        (["{run}", "--max-over-refusal", "0.05"], "--max-over-refusal chooses one of several alphas: give --alphas"),
        (
            ["{run}", "--alphas", "0.5,1", "--max-over-refusal", "0.05"],
            "none of these is: give others with --data, a part of your rows that is kept for this choice",
        ),
        (["{model}", "--data", "{data}", "--alphas", "0.5"], "is a model's directory: --alphas needs a run"),
        (["nowhere"], "no directory nowhere: expected a run that `dist-moe train` has written, or a model's directory"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(trained, run, tmp_path, capsys, words, says):
    data = write_jsonl(tmp_path / "x.jsonl", prompt_rows()[:2])
    other = save_checkpoint(tmp_path / "other")
    (other / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    places = {"run": run, "model": trained.model, "data": data, "other": other}
    assert main(["evaluate", *(word.format(**places) for word in words)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dist-moe: ")]
    assert says in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_model_that_overflows_is_told_with_the_row(run, tmp_path, monkeypatch, capsys):
    score = workflow.score_rows

    def overflowing(*given, **named):
        scores = score(*given, **named)
        object.__setattr__(scores[1].replies["after"], "loss_sum", float("nan"))
        return scores

    monkeypatch.setattr(workflow, "score_rows", overflowing)
    assert main(["evaluate", str(run), "--data", str(write_jsonl(tmp_path / "x.jsonl", new_rows(2, 1)))]) == 2
    assert "the model after gives NaN or infinite log-probabilities for this row" in capsys.readouterr().err
