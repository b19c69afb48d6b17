"""A new rule needs no other file: configuration, help, statistics, card and inspection take it from its object."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from dist_moe.store import MaskStore
from tests.checkpoint import prompt_rows, save_checkpoint, write_config, write_jsonl

ROOT = Path(__file__).parents[2]
ANALYSIS = """analysis:
  rule: even_experts
  least: 0.01
  statistics: {permutations: 20, resamples: 5, null_draws: 2}
batches: {batch_size: 8}
"""


COMMANDS = """import sys, tests.cli.own_rule
from dist_moe.cli.main import main
for command in sys.argv[1].split(" then "):
    assert main(command.split()) == 0, command
"""
INSPECT = """import runpy, sys, tests.cli.own_rule
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(code, *words):
    """What it prints, in a process in which only this rule's module is imported before it."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=240, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_rule_of_ones_own_goes_through_all_commands(tmp_path):
    model = save_checkpoint(tmp_path / "model")
    data = write_jsonl(tmp_path / "prompts.jsonl", prompt_rows(8, per_category=4))
    out, runs = tmp_path / "out", tmp_path / "run"
    config = write_config(tmp_path / "run.yaml", model, data, runs, ANALYSIS)
    masks = runs / "masks.zarr"
    commands = (
        f"analyze --config {config}",
        f"train --config {config}",
        f"export {runs} --out {out}",
        f"verify {model} {out} --masks {masks}",
    )
    run(COMMANDS, " then ".join(commands))

    store = MaskStore.open(masks)
    assert store.selection_rule == {"name": "even_experts", "least": 0.01}
    even_E = np.arange(store.counts.risk_diff.shape[2]) % 2 == 0
    assert (store.masks[:] == (store.counts.risk_diff[:] > 0.01) & even_E).all()
    assert {"null_mean", "stability"} <= set(store.statistic_names)
    card = (out / "README.md").read_text()
    assert "control: experts of even number with a risk_diff above 0.01" in card
    assert "**This is a control.**" in card

    summary, diff = (
        json.loads(run(INSPECT, "tools/inspect_masks.py", masks, *words, "--json"))["facts"]
        for words in ((), ("diff", "name=even_experts", "least=0.02"))
    )
    assert summary["selection_rule"] == store.selection_rule
    assert diff["second"] == {"name": "even_experts", "least": 0.02}


def test_its_parameter_is_a_setting_with_help():
    help_text = " ".join(run(COMMANDS, "analyze --help").split())
    assert (
        "--analysis.least FLOAT Only experts with a larger risk_diff are selected. Read by even_experts. (default: 0.0)"
        in help_text
    )
    assert "|even_experts|" in help_text


def test_no_other_file_has_a_list_of_rules():
    """Where two rules are named in one file of the package, there is a list of them."""
    from dist_moe.rules import RULES

    for file in sorted((ROOT / "dist_moe").rglob("*.py")):
        if "rules" not in file.relative_to(ROOT / "dist_moe").parts:
            text = file.read_text()
            named = [name for name in RULES if f'"{name}"' in text or f"'{name}'" in text]
            assert len(named) < 2, f"{file}: {named}"
