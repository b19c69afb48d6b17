"""`dist-moe evaluate --harness`: a table of lm-evaluation-harness in an evaluation.

The harness is no dependency of the tests. Here a stand-in is run in its place: a program that takes the same words and
writes results in the same form. What the real one (0.4.13) has written of a tiny model and a local task is in
lm_eval_results.json, shortened.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest

import dist_moe
from dist_moe.cli.main import main
from dist_moe.evaluation.harness import Tasks, capabilities
from dist_moe.evaluation.record import read_evaluation
from tests.checkpoint import prompt_rows, write_jsonl

RECORDED = Path(__file__).with_name("lm_eval_results.json")
STAND_IN = '''
"""A stand-in for lm-evaluation-harness: its accuracy is a number made of the model's bytes."""
import hashlib, json, pathlib, sys

words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
model = dict(pair.split("=") for pair in words["--model_args"].split(","))
weights = b"".join(file.read_bytes() for file in sorted(pathlib.Path(model["pretrained"]).glob("*.safetensors")))
with open({log!r}, "a") as stream:
    stream.write(json.dumps(words) + "\\n")
if "broken" in words["--tasks"]:
    sys.exit("ValueError: Tasks not found: broken")
values = {{"alias": "a", "acc,none": int(hashlib.sha256(weights).hexdigest()[:4], 16) / 65536, "acc_stderr,none": 0.25}}
out = pathlib.Path(words["--output_path"])
found = {{"results": {{name: values for name in words["--tasks"].split(",")}}, "lm_eval_version": "0.4.13"}}
found["n-samples"] = {{name: {{"original": 24, "effective": 5}} for name in found["results"]}}
out.with_name(f"{{out.stem}}_2026-11-27.json").write_text(json.dumps(found))
'''


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The words that the stand-in has been called with so far."""
    package, log = tmp_path / "packages" / "lm_eval", tmp_path / "asked.jsonl"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN.format(log=str(log)))
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=":")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "lm_eval", raising=False)
    return lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def data(tmp_path):
    return str(write_jsonl(tmp_path / "x.jsonl", prompt_rows(num_safe=2, categories=("hacking",), per_category=2)))


def score(path):
    """What the stand-in says of a model."""
    weights = b"".join(file.read_bytes() for file in sorted(path.glob("*.safetensors")))
    return int(hashlib.sha256(weights).hexdigest()[:4], 16) / 65536


def test_two_models_side_by_side_and_what_the_harness_was_asked(trained, data, tmp_path, capsys, asked):
    other, out = shutil.copytree(trained.model, tmp_path / "other"), tmp_path / "out"
    (tmp_path / "tasks").mkdir()
    shard = max(other.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    words = ["--harness", "a,b", "--harness-include", str(tmp_path / "tasks"), "--harness-limit", "5"]
    words += ["--against", str(trained.model), "--data", data, "--out", str(out)]
    assert main(["evaluate", str(other), *words]) == 0
    found = read_evaluation(out).capabilities
    assert (found.version, found.tasks, found.limit) == ("0.4.13", ["a", "b"], 5)
    assert [(line.task, line.metric, line.num_rows) for line in found.lines] == [("a", "acc", 5), ("b", "acc", 5)]
    for line in found.lines:
        assert (line.before.value, line.after.value) == (score(trained.model), score(other))
        assert line.after.standard_error == 0.25
    said = capsys.readouterr().out
    assert "Capabilities, by lm-evaluation-harness 0.4.13: a, b; only the first 5 rows of each task" in said
    assert f"{score(trained.model):.3f} ± 0.250" in said
    before, after = asked()
    assert after["--model_args"] == f"pretrained={other},dtype=auto"
    assert before["--model_args"] == f"pretrained={trained.model},dtype=auto"
    assert (after["--include_path"], after["--limit"], after["--tasks"]) == (str(tmp_path / "tasks"), "5", "a,b")


def test_of_a_run_its_export_is_handed_over(trained, data, tmp_path, asked):
    run, out = shutil.copytree(trained.run_dir, tmp_path / "run"), tmp_path / "export"
    dist_moe.export(run, out)
    found = dist_moe.evaluate(run, [data], harness=["a"]).evaluation.capabilities
    (line,) = found.lines
    assert (line.before.value, line.after.value) == (score(trained.model), score(out))
    assert score(trained.model) != score(out)
    assert not [path for path in run.iterdir() if path.name.startswith(".harness")]


def test_what_the_real_harness_has_written_is_read():
    found = capabilities(Tasks(names=("tiny_choice",)), None, json.loads(RECORDED.read_text()))
    assert found.version == "0.4.13"
    assert [(line.task, line.metric, line.num_rows) for line in found.lines] == [
        ("tiny_choice", "acc", 24),
        ("tiny_choice", "acc_norm", 24),
    ]
    for line in found.lines:
        assert 0 <= line.after.value <= 1
        assert 0 < line.after.standard_error < 0.2
        assert line.before is None


def test_a_harness_that_fails_leaves_the_evaluation(trained, data, tmp_path, capsys, asked):
    out = tmp_path / "out"
    assert main(["evaluate", str(trained.model), "--data", data, "--out", str(out), "--harness", "broken"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "--harness broken: lm_eval failed" in last
    assert "Tasks not found: broken" in last
    assert read_evaluation(out).capabilities is None


def test_what_is_refused_before_any_work(trained, data, tmp_path, capsys, asked, monkeypatch):
    model = [str(trained.model), "--data", data, "--out", str(tmp_path / "out")]
    cases = [
        ([*model, "--harness", "a", "--silence", str(trained.masks)], "leave --alphas and --silence out"),
        ([*model, "--harness", "a", "--harness-include", str(tmp_path / "no")], "--harness-include: no directory"),
        ([*model, "--harness-limit", "3"], "--harness-limit says how tasks are run: give --harness TASK"),
        ([*model, "--harness", "a,,b"], "expected names with commas between them, got 'a,,b'"),
    ]
    for words, says in cases:
        assert main(["evaluate", *words]) == 2
        assert says in capsys.readouterr().err
    monkeypatch.setattr("dist_moe.evaluation.harness.PROGRAM", "no_such_harness")
    assert main(["evaluate", *model, "--harness", "a"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].endswith("lm-evaluation-harness is not installed: pip install 'moe-repair[harness]'")
    assert not (tmp_path / "out").exists()
    assert asked() == []
