"""Run configurations and DeepSpeed's JSON that are not what they should be."""

import json
import os
from pathlib import Path

import pytest

from tests.bad_inputs.harness import Case, check, ids

GOOD = "run_dir: new\nmodel: {path: model}\ndata: {paths: [prompts.jsonl]}\n"


def put(content: str | bytes, name: str = "bad.yaml"):
    data = content.encode() if isinstance(content, str) else content
    return lambda: Path(name).write_bytes(data)


def after_good(text: str):
    return put(GOOD + text)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
)
NO_YAML = "not valid YAML"
TEXTS = {
    "empty": (put(""), "the config file is empty"),
    "a comment": (put("# nothing\n"), "the config file is empty"),
    "a list": (put("- a\n"), "expected settings as `key: value`, got a list at the top"),
    "a text": (put("hello\n"), "got a str at the top"),
    "a number": (put("3\n"), "got a int at the top"),
    "JSON cut off": (put('{"run_dir": "a",'), NO_YAML),
    "tabs": (after_good("train:\n\tlr: 1\n"), f"bad.yaml:5: {NO_YAML}"),
    "wrong indentation": (after_good("train:\n  lr: 1\n epochs: 2\n"), f"bad.yaml:6: {NO_YAML}"),
    "quote left open": (after_good('engine: "local\n'), NO_YAML),
    "bracket left open": (after_good("train: {lr: 1\n"), NO_YAML),
    "key without colon": (after_good("engine\n"), NO_YAML),
    "key twice": (after_good("seed: 1\nseed: 2\n"), 'found duplicate key "seed"'),
    "key twice, dotted": (after_good("model.path: other\n"), "model.path is given twice"),
    "section twice": (after_good("model: {dtype: auto}\n"), 'found duplicate key "model"'),
    "two documents": (after_good("---\nseed: 1\n"), NO_YAML),
    "unknown alias": (after_good("seed: *x\n"), NO_YAML),
    "alias of itself": (after_good("train: &x {lr: *x}\n"), "more than 10,000 values"),
    "aliases of aliases": (put(GOOD + BOMB), "more than 10,000 values"),
    "merge of a text": (after_good("train: {<<: lr}\n"), NO_YAML),
    "merge of an unknown key": (after_good("train: {<<: {lrr: 1}}\n"), "unknown key `train.lrr`"),
    "tag that runs code": (after_good("seed: !!python/object/apply:os.getcwd []\n"), NO_YAML),
    "own tag": (after_good("seed: !mine 3\n"), NO_YAML),
    "binary": (after_good("data.refusal: !!binary aGVsbG8=\n"), "data.refusal: expected text, a number or a list"),
    "set": (after_good("train.betas: !!set {0.9, 0.99}\n"), "train.betas"),
    "NUL": (put(GOOD.encode() + b"seed: \0\n"), NO_YAML),
    "NUL, escaped": (put(GOOD.replace("new", '"a\\0b"')), "bad.yaml:1: run_dir: expected UTF-8 text without NUL"),
    "half of a surrogate pair": (put(GOOD.replace("new", '"a\\ud800"')), "bad.yaml:1: run_dir: expected UTF-8 text"),
    "control character": (after_good("seed: \x01\n"), NO_YAML),
    "Latin-1": (put("run_dir: caf\xe9\n".encode("latin-1")), "the config file is not UTF-8 text"),
    "UTF-16": (put(GOOD.encode("utf-16")), "the config file is not UTF-8 text"),
    "deep nesting": (after_good("train: " + "[" * 1500 + "]" * 1500 + "\n"), NO_YAML),
    "very many keys": (after_good("".join(f"k{i}: 1\n" for i in range(5100))), "more than 10,000 values"),
    "very large": (after_good("# " + "x" * 1_100_000), "has more than 1,000,000 characters"),
    "huge number": (after_good(f"seed: {'9' * 5000}\n"), NO_YAML),
    "key that is a list": (after_good("? [a, b]\n: 3\n"), "unknown key"),
    "key that is a number": (after_good("3: 3\n"), "unknown key `3`"),
    "key that is nothing": (after_good("? \n: 3\n"), "unknown key `None`"),
    "long key": (after_good(f"{'k' * 500}: 3\n"), "unknown key `kkk"),
    "no model": (put("run_dir: a\ndata: {paths: [a]}\n"), "has no `model.path`, which is required"),
    "no data": (put("run_dir: a\nmodel: {path: model}\n"), "has no `data.paths`"),
    "no run directory": (put("model: {path: model}\ndata: {paths: [a]}\n"), "has no `run_dir`"),
    "blank run directory": (put(GOOD.replace("new", '""')), "run_dir: expected text that is not blank, got ''"),
    "long run directory": (put(GOOD.replace("new", "d/" * 2100)), "run_dir: File name too long: 'd/d"),
    "long name of data": (put(GOOD.replace("prompts", "n" * 300)), "data.paths: File name too long: 'nnn"),
    "run directory of nothing": (put(GOOD.replace(" new", "")), "run_dir: expected"),
}
VALUES = {
    "train: 3": "train: expected a section with settings below it, got 3",
    "train: [lr]": "train: expected a section",
    "train: {lr: fast}": "train.lr: expected a valid number, got 'fast'",
    "train: {lr: '1e-5'}": "train.lr: expected a valid number, got '1e-5'",
    "train: {lr: true}": "train.lr: expected a valid number, got True",
    "train: {lr: null}": "train.lr: expected a valid number, got None",
    "train: {lr: [1]}": "train.lr: expected a valid number, got [1]",
    "train: {lr: {a: 1}}": "train.lr: expected a valid number, got {'a': 1}",
    "train: {lr: .nan}": "train.lr: expected",
    "train: {lr: .inf}": "train.lr: expected less than inf, got inf",
    "train: {lr: 1e400}": "train.lr: expected less than inf",
    "train: {lr: 0}": "train.lr: expected greater than 0, got 0",
    "train: {epochs: 1.5}": "train.epochs: expected a valid integer",
    "train: {epochs: 10000000000}": "train.epochs: expected less than 2147483648",
    "train: {epochs: '3'}": "train.epochs: expected a valid integer, got '3'",
    "train: {betas: 0.9}": "train.betas: expected a list, got 0.9",
    "train: {betas: [0.9]}": "train.betas[1]: expected a value here too, got [0.9]",
    "train: {betas: [0.9, 0.9, 0.9]}": "train.betas",
    "train: {betas: [0.9, x]}": "train.betas[1]: expected a valid number",
    "train: {mode: 1}": "train.mode: expected 'route' or 'update', got 1",
    "train: {activation_checkpointing: 1}": "train.activation_checkpointing: expected a valid boolean, got 1",
    "train: {activation_checkpointing: no}": "train.activation_checkpointing: expected a valid boolean, got 'no'",
    "train: {masks: ''}": "train.masks: expected",
    "train: {masks: [a]}": "train.masks: expected",
    "analysis: {threshold: .nan}": "analysis.threshold: expected",
    "analysis: {threshold: -2}": "analysis.threshold: expected greater than or equal to -1, got -2",
    "analysis: {top_k: 0}": "analysis.top_k: expected greater than or equal to 1, got 0",
    "analysis: {rule: best}": "analysis.rule: expected 'budget_per_layer'",
    "analysis: {rule: lowst}": "got 'lowst'; did you mean lowest?",
    "analysis: {statistics: 3}": "analysis.statistics: expected a section",
    "analysis: {statistics: {confidence: 1}}": "analysis.statistics.confidence: expected less than 1",
    "batches: {batch_size: 1}": "batches.batch_size: expected greater than or equal to 2",
    "data.refusal: ''": "data.refusal: expected",
    "data.refusal: 3": "data.refusal: expected a valid string, got 3",
    "data.max_length: 7": "data.max_length: expected greater than or equal to 8",
    "evaluation: {judges: no}": "evaluation.judges: expected a list, got 'no'",
    "evaluation: {judge: {phrases: {also: ['']}}}": "evaluation.judge.phrases.also: expected text that is not blank",
    "parallel: {placement: even}": "parallel.placement: expected 'balanced' or 'contiguous'",
    "checkpoint: {every: -1}": "checkpoint.every: expected greater than or equal to 0",
    "engine: gpu": "engine: expected 'auto'",
    "seed: -1": "seed: expected greater than or equal to 0",
    f"engine: {'e' * 2000}": "engine: expected 'auto'",
    f"data.chat_template: {'n' * 300}": "data.chat_template: File name too long: 'nnn",
    f"train: {{deepspeed_config: {'d/' * 2100}x}}": "train.deepspeed_config: File name too long",
    "train: {objective: 3}": "train.objective: expected a section",
    "train: {objective: {cross_entropy: 0}}": "train.objective.cross_entropy: expected a section",
    "train: {objective: {cross_entropy: {weight: -1}}}": (
        "train.objective.cross_entropy.weight: expected greater than or equal to 0, got -1"
    ),
    "train: {objective: {cross_entropy: {weight: .inf}}}": "train.objective.cross_entropy.weight: expected less than",
    "train: {objective: {kl_to_base: {rows: none}}}": "train.objective.kl_to_base.rows: expected 'all', 'safe' or",
    "train: {objective: {kl_to_bse: {weight: 1}}}": (
        "unknown key `train.objective.kl_to_bse`; did you mean train.objective.kl_to_base?"
    ),
    "train.objective.kl_to_bse.weight: 1": (
        "unknown key `train.objective.kl_to_bse.weight`; did you mean train.objective.kl_to_base.weight?"
    ),
    "overwritten: true": "unknown key `overwritten`; did you mean overwrite?",
    "lr: 1": "unknown key `lr`; did you mean train.lr?",
}
PLACES = {
    "a directory": (lambda: Path("bad.yaml").mkdir(), "cannot read the config file: Is a directory"),
    "a link to nothing": (lambda: Path("bad.yaml").symlink_to("gone"), "cannot read the config file: No such file"),
    "a link to itself": (lambda: Path("bad.yaml").symlink_to("bad.yaml"), "cannot read the config file: "),
    "a fifo": (lambda: os.mkfifo("bad.yaml"), "cannot read the config file: it is not a regular file"),
    "a device": (lambda: Path("bad.yaml").symlink_to("/dev/zero"), "it is not a regular file"),
}
CONFIGS = [
    *(Case(name, change, "train --config bad.yaml", ("bad.yaml", says)) for name, (change, says) in TEXTS.items()),
    *(Case(name, change, "train --config bad.yaml", ("bad.yaml", says)) for name, (change, says) in PLACES.items()),
    *(
        Case(f"value {line[:60]}", after_good(f"{line}\n"), "analyze --config bad.yaml", ("bad.yaml", says))
        for line, says in VALUES.items()
    ),
    Case(
        "value of two settings together",
        after_good("batches: {safe_ratio: 0.01}\n"),
        "analyze --config bad.yaml",
        ("batches.safe_ratio 0.01 of batches.batch_size 16 gives 0 safe and 16 unsafe rows",),
    ),
    Case(
        "no term of the objective has a weight",
        after_good("train: {objective: {cross_entropy: {weight: 0}}}\n"),
        "train --config bad.yaml",
        ("train.objective: every term has weight 0", "TERM.weight above 0 for one of answers, cross_entropy, "),
    ),
    Case(
        "a term over pairs without a pair",
        after_good("train: {objective: {dpo: {weight: 1}}}\n"),
        "train --config bad.yaml --run-dir run --overwrite",
        ("train.objective.dpo: no row has a `rejected` answer: add that column",),
    ),
    Case("resolved: broken", put("train: {", "run/train.yaml"), "export run --out out", ("run/train.yaml", NO_YAML)),
    Case("resolved: NUL", put(b"\0", "run/train.yaml"), "evaluate run", ("run/train.yaml", NO_YAML)),
]
DEEPSPEED = {
    "empty": ("", "not valid JSON"),
    "cut off": ('{"zero_optimization": {', "not valid JSON"),
    "a list": ("[]", "expected a JSON object"),
    "null": ("null", "expected a JSON object"),
    "NaN": ('{"communication_data_type": NaN}', "NaN is not a JSON number"),
    "key twice": ('{"wall_clock_breakdown": true, "wall_clock_breakdown": false}', "occurs twice in one object"),
    "not UTF-8": (b'{"a": "\xe9"}', "train.deepspeed_config is not UTF-8 text"),
    "deep nesting": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
    "long number": (f'{{"a": {"9" * 5000}}}', "a number has too many digits"),
    "a list as section": ('{"zero_optimization": [0]}', "zero_optimization: expected an object, got [0]"),
    "true as section": ('{"zero_optimization": true}', "zero_optimization: expected an object, got True"),
    "text as stage": ('{"zero_optimization": {"stage": "3"}}', "zero_optimization.stage is '3': expected 0, or 3"),
    "a list as stage": ('{"zero_optimization": {"stage": [3]}}', "zero_optimization.stage is [3]: expected 0, or 3"),
    "stage 2": ('{"zero_optimization": {"stage": 2}}', "zero_optimization.stage is 2"),
    "ours": ('{"optimizer": {"type": "Adam"}}', "'optimizer' is set by dist_moe"),
}
TRAIN = "train --config run.yaml --run-dir new --train.masks run/masks.zarr --train.deepspeed_config"
CONFIGS += [
    Case(f"DeepSpeed: {name}", put(text, "ds.json"), f"{TRAIN} ds.json", ("ds.json", says))
    for name, (text, says) in DEEPSPEED.items()
]
CONFIGS += [
    Case("DeepSpeed: no file", put(json.dumps({})), f"{TRAIN} gone.json", ("gone.json", "No such file")),
    Case("DeepSpeed: a directory", lambda: Path("ds.json").mkdir(), f"{TRAIN} ds.json", ("ds.json", "Is a directory")),
]


@pytest.mark.parametrize("case", CONFIGS, ids=ids(CONFIGS))
def test_configuration(copy, capsys, case):
    check(case, capsys)
