"""`dist-moe report` as a person types it: at each stage of a run, and what it refuses."""

import json
import shutil

import pytest

import dist_moe
from dist_moe.artefacts import write_sealed
from dist_moe.cli.main import main
from dist_moe.store import MaskStore
from tests.pages import Page


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """The trained run with an evaluation of its own rows; a copy that may be changed."""
    place = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(trained.run_dir, place)
    assert main(["evaluate", str(place), "--evaluation.max_new_tokens", "4"]) == 0
    return place


def report(*words):
    return main(["report", *map(str, words)])


def read(place):
    return Page(place.read_text(encoding="utf-8"))


def test_a_whole_run(evaluated, trained, tmp_path, capfd):
    assert main(["export", str(evaluated), "--out", str(tmp_path / "model")]) == 0
    assert report(evaluated, "--export", tmp_path / "model") == 0
    assert "Report: " in capfd.readouterr().out
    found = read(evaluated / "report.html")
    document = json.loads((evaluated / "evaluation.json").read_text())
    (group,) = [each for each in document["groups"] if (each["by"], each["kind"]) == ("all", "trained")]
    line = found.table("All trained rows").line("refusal loss (unsafe)")
    measure = group["measures"]["refusal loss (unsafe)"]
    assert line["after"].startswith(f"{measure['after']['value']:.3f} (")
    assert line["change"].startswith(f"{measure['change']['value']:+.3f} (")
    steps = [json.loads(line) for line in (evaluated / "metrics.jsonl").read_text().splitlines()]
    assert f"Holds: {len(steps)} of {len(steps)} steps" in found.text
    assert "0 differences are outside the union" in found.text
    assert MaskStore.open(trained.masks).digest[:16] in found.text
    prompts = [json.loads(line)["prompt"] for line in trained.data.read_text().splitlines()]
    assert set(found.quotes) & set(prompts)
    answers = [json.loads(line) for line in (evaluated / "answers.jsonl").read_text().splitlines()]
    assert {row["after"]["answer"] for row in answers} & set(found.quotes)


def test_again_it_replaces_its_own_page_only(evaluated, tmp_path, capfd):
    assert report(evaluated, "--out", tmp_path / "a.html") == 0
    first = (tmp_path / "a.html").read_bytes()
    assert dist_moe.write_report(evaluated, out=tmp_path / "a.html") == tmp_path / "a.html"
    assert (tmp_path / "a.html").read_bytes() == first
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    assert report(evaluated, "--out", tmp_path / "mine.html") == 2
    assert "exists, and is no report of dist-moe: choose another --out" in capfd.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"


def test_each_stage_says_what_comes_next(evaluated, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    (run / "evaluation.json").unlink()
    assert report(run) == 0
    assert f"It was not evaluated: dist-moe evaluate {run} --data" in read(run / "report.html").text
    shutil.rmtree(run / "experts")
    assert report(run) == 0
    assert "Training has not ended; the same command goes on" in read(run / "report.html").text
    (run / "metrics.jsonl").unlink()
    (run / "train.yaml").unlink()
    assert report(run) == 0
    said = read(run / "report.html").text
    assert f"Nothing was trained: dist-moe train --config {run}/analyze.yaml" in said
    shutil.rmtree(run / "masks.zarr")
    assert report(run) == 0
    assert "No experts were selected: dist-moe analyze --config" in read(run / "report.html").text


def test_an_evaluation_of_other_experts_is_not_shown(evaluated, tmp_path, trained):
    run = tmp_path / "run"
    shutil.copytree(trained.run_dir, run)
    for name in ("evaluation.json", "answers.jsonl"):
        shutil.copy(evaluated / name, run / name)
    index = json.loads((evaluated / "evaluation.json").read_text())
    index["facts"]["experts_digest"] = "0" * 64
    values = {key: value for key, value in index.items() if key not in ("format", "version", "sha256")}
    write_sealed(run / "evaluation.json", index["format"], index["version"], values)
    assert report(run) == 0
    found = read(run / "report.html")
    assert "is of other trained experts than these, and is not shown" in found.text
    assert "Before and after" not in [title for _, title in found.headings]


def test_shares_of_the_change_are_found(evaluated, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    for alpha in ("0.5", "1"):
        (run / "alphas" / alpha).mkdir(parents=True)
        for name in ("evaluation.json", "answers.jsonl"):
            shutil.copy(evaluated / name, run / "alphas" / alpha / name)
    assert report(run) == 0
    table = read(run / "report.html").table("Shares of the change")
    assert [line[0] for line in table.lines[1:]] == ["1 alpha 0", "2 alpha 0.5", "3 alpha 1"]


def test_masks_that_are_gone_are_told(evaluated, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    shutil.rmtree(run / "masks.zarr")
    assert report(run) == 0
    assert "The masks that it was trained with" in read(run / "report.html").text


def test_prompts_that_have_changed_are_not_shown(evaluated, trained, tmp_path):
    kept = trained.data.read_bytes()
    try:
        trained.data.write_text(json.dumps({"prompt": "other", "response": "r", "label": "safe"}) + "\n")
        assert report(evaluated, "--out", tmp_path / "a.html") == 0
    finally:
        trained.data.write_bytes(kept)
    assert "The prompts' texts are not at hand" in read(tmp_path / "a.html").text


def test_what_is_refused(evaluated, tmp_path, capfd):
    def said(*words):
        assert report(*words) == 2
        return capfd.readouterr().err.strip().removeprefix("dist-moe: error: ")

    assert said(tmp_path / "none").startswith(f"no run directory {tmp_path / 'none'}: expected one that")
    (tmp_path / "empty").mkdir()
    assert said(tmp_path / "empty").startswith(f"{tmp_path / 'empty'} has nothing to report: expected the results of")
    (tmp_path / "cmp" / "seed-0").mkdir(parents=True)
    assert said(tmp_path / "cmp").endswith("`dist-moe compare` has not ended there")
    assert "Is a directory" in said(evaluated, "--out", tmp_path)
    (tmp_path / "cmp" / "comparison.json").write_text("{}")
    assert "expected a JSON object with format 'dist_moe comparison'" in said(tmp_path / "cmp")
    run = tmp_path / "run"
    shutil.copytree(evaluated, run, ignore=shutil.ignore_patterns("report.html"))
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": "x"}\n')
    number = len((run / "metrics.jsonl").read_text().splitlines())
    assert said(run).startswith(f"{run / 'metrics.jsonl'}:{number}: step is 'x'")
    (run / "metrics.jsonl").write_text('{"step": NaN}\n')
    assert said(run).startswith(f"{run / 'metrics.jsonl'}:1: not valid JSON: NaN")
    assert not (run / "report.html").exists()
    assert not list(run.glob(".report.html*"))
    (run / ".publishing-train").mkdir()
    assert "its results are being replaced" in said(run)
