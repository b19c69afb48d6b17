"""Tables of a comparison's runs, against rates by hand."""

from __future__ import annotations

import pytest

from tests.unit.evaluation.made import outcome, row
from tools.results import main, read_runs, tables

JUDGES = ["phrases", "likelihood"]


def rows(unsafe, contrast, others, kl=0.5):
    """Held-out rows with these verdicts after training, a letter a prompt; the second judge always says refused."""
    made = [row(i, after=outcome(verdict, others={"likelihood": "r"})) for i, verdict in enumerate(unsafe)]
    for category, verdicts in (("contrast", contrast), ("chat", others)):
        made += [
            row(
                100 * len(category) + i,
                "safe",
                after=outcome(v, others={"likelihood": "r"}),
                category=category,
                kl_sum=kl,
            )
            for i, v in enumerate(verdicts)
        ]
    before = outcome("c", others={"likelihood": "c"})
    return [row_with(each, before) for each in made]


def row_with(each, before):
    return type(each)(**{name: getattr(each, name) for name in each.__slots__} | {"before": before})


RUNS = {
    "ours": [rows("rrrc", "rrcc", "cccc"), rows("rrcc", "rccc", "cccc")],
    "other": [rows("cccc", "cccc", "rccc", kl=0.0), rows("cccc", "cccc", "cccc", kl=0.0)],
}


def cells(lines, judge, title):
    """Variant -> column -> value, of one table."""
    start = lines.index(f"\nJudge {judge}, {title}:\n")
    heads = [head.strip() for head in lines[start + 1].strip("|").split("|")]
    found = {}
    for line in lines[start + 3 :]:
        if not line.startswith("|"):
            break
        name, *values = [cell.strip() for cell in line.strip("|").split("|")]
        found[name] = dict(zip(heads[1:], values, strict=True))
    return found


def test_the_tables_have_the_rates_of_each_part_by_each_judge():
    lines = list(tables(RUNS, JUDGES, "contrast", "ours"))
    found = cells(lines, "phrases", "refused")
    values = {name: {head: cell.split(" ")[0] for head, cell in row.items()} for name, row in found.items()}
    assert values["ours"] == {
        "unsafe": "62",  # 5 of 8: half to even
        "safe, contrast": "38",  # 3 of 8
        "safe, others": "0",
        "KL to the base, safe": "0.125",  # 0.5 over 4 tokens
        "judges agree": "33",  # 8 of 24: all that phrases calls refused
    }
    assert values["other"]["unsafe"] == "0"
    assert values["other"]["safe, others"] == "12"
    assert values["base"] == dict.fromkeys(["unsafe", "safe, contrast", "safe, others"], "0") | {
        "KL to the base, safe": "0.000",
        "judges agree": "100",
    }
    second = cells(lines, "likelihood", "refused")
    assert second["other"]["safe, contrast"].startswith("100 (")
    less = cells(lines, "phrases", "less ours")
    assert set(less) == {"base", "other"}
    assert less["other"]["unsafe"].startswith("-62 (")
    assert less["other"]["KL to the base, safe"] == "-0.125 (-0.125 to -0.125) *"


def test_no_runs_are_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}: no seed-*/VARIANT/evaluation.json there")


def test_only_variants_of_all_seeds_are_read(tmp_path, monkeypatch):
    for place in ("seed-0/a", "seed-0/b", "seed-10/a", "seed-2/a", "seed-2/b"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "evaluation.json").touch()
    read = []

    class Read:
        rows = (row(1), row(2, kind="trained"))
        facts = type("Facts", (), {"judges": [type("Judged", (), {"name": "phrases"})]})

    monkeypatch.setattr("tools.results.read_evaluation", lambda path: read.append(path.parent.name) or Read)
    runs, judges = read_runs(tmp_path)
    assert judges == ["phrases"]
    assert {name: [[each.id for each in rows] for rows in of_seeds] for name, of_seeds in runs.items()} == {
        "a": [["row1"]] * 3
    }
    assert read == ["seed-0", "seed-0", "seed-2", "seed-2", "seed-10"]


def test_another_reference_is_refused_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tools.results.read_runs", lambda directory: (RUNS, JUDGES))
    assert main([str(tmp_path), "--reference", "none"]) == 2
    assert "--reference none: the runs of all seeds are ours, other" in capsys.readouterr().err


@pytest.mark.parametrize("reference", ["ours", "other"])
def test_it_prints(reference, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tools.results.read_runs", lambda directory: (RUNS, JUDGES))
    assert main([str(tmp_path), "--reference", reference]) == 0
    assert f"less {reference}" in capsys.readouterr().out
