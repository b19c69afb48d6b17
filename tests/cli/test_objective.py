"""Terms of the objective through the commands: what they need is there, or refused in one line."""

import json

import pytest

from dist_moe.cli.main import main
from dist_moe.errors import UserError
from dist_moe.workflows import train_given
from tests.checkpoint import prompt_rows, write_jsonl


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_pairs_of_answers_are_trained_beside_each_label_with_its_weight(fresh, capsys):
    rows = [row | ({"rejected": "w1 w2 w3"} if row["label"] == "unsafe" else {}) for row in prompt_rows()]
    write_jsonl(fresh.data, rows)
    assert main(["analyze", "--config", str(fresh.config)]) == 0
    weights = {"cross_entropy": 0, "dpo": 2, "refusals": 0.5, "kl_to_base": 3}
    settings = [word for name, value in weights.items() for word in (f"--train.objective.{name}.weight", str(value))]
    assert main(["train", "--config", str(fresh.config), "--train.lr", "1e-2", "--train.epochs", "2", *settings]) == 0
    for line in lines(fresh.run_dir):
        terms = line["terms"]
        assert set(terms) == {"dpo", "kl_to_base", "refusals"}
        assert terms["dpo"]["tokens"] == 8  # pairs: the unsafe rows of a batch
        assert line["num_rows"] == 16
        assert line["loss"] == pytest.approx(sum(weights[name] * term["mean"] for name, term in terms.items()))
    first, last = (lines(fresh.run_dir)[i]["terms"]["dpo"]["mean"] for i in (0, -1))
    assert last < first
    capsys.readouterr()


@pytest.mark.parametrize("term", ["router_drift", "router_consistency"])
def test_a_model_without_a_routers_logits_is_refused_by_the_term(trained, tmp_path, monkeypatch, capsys, term):
    def refuse(model, why):
        raise UserError(f"model.layers.0: has hash-routed layers, which {why}")

    monkeypatch.setattr(train_given, "require_routers", refuse)
    command = ["train", "--config", str(trained.config), "--run-dir", str(tmp_path / "run"), "--train.mode", "update"]
    more = ["--train.masks", str(trained.masks), f"--train.objective.{term}.weight", "1"]
    assert main([*command, *more]) == 2
    said = capsys.readouterr().err
    assert f"which train.objective.{term} has no logits of: set its weight to 0" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
