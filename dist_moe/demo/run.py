"""The demo: all steps on a small real model, each with the command that a user would type.

The base model is made on the spot and answers everything. Three fairy-tale topics stand in for unsafe categories. After
the run the model should refuse these, and only the selected experts have changed.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from dist_moe.config.load import save_config
from dist_moe.config.schema import Config, DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from dist_moe.demo.base_model import make_base_model
from dist_moe.demo.corpus import build_corpus, write_rows
from dist_moe.errors import UserError
from dist_moe.files import writing

log = logging.getLogger(__name__)

INTERRUPTED = 130
"""Exit status of a command of ours that was interrupted."""
REPOSITORY = Path(__file__).resolve().parents[2]
MARKER = "made-by-dist-moe-demo"
"""A file in the demo's directory; a directory without it is not replaced."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much the demo does."""

    num_pretraining: int
    batches_per_category: int
    base_steps: int
    hidden_size: int
    num_layers: int
    epochs: int


FULL = Size(num_pretraining=6000, batches_per_category=2, base_steps=600, hidden_size=128, num_layers=4, epochs=8)
FAST = Size(num_pretraining=3000, batches_per_category=1, base_steps=300, hidden_size=96, num_layers=3, epochs=8)


def run_demo(out: Path, *, fast: bool) -> None:
    """Make a model and prompts under `out`, then analyze, train, export, verify, evaluate and inspect.

    Raises:
        UserError: `out` exists and is not an earlier demo, or the package is not in a checkout.
    """
    if not (REPOSITORY / "launch" / "train.py").is_file():
        raise UserError(
            f"the demo starts launch/train.py, which is not in {REPOSITORY}: run it in a checkout of dist_moe"
        )
    with _own_directory(out), writing(out):
        _run_stages(out, FAST if fast else FULL, fast=fast)


def _run_stages(out: Path, size: Size, *, fast: bool) -> None:
    started = time.monotonic()
    stages = Stages()
    stages.title("A base model, and prompts in three stand-in categories")
    inputs = Inputs(out)
    inputs.make(size)
    run, model = out / "run", out / "model"
    stages.title("Analysis: prompts -> masks")
    stages.launch("launch/analyze.py", inputs.config)
    stages.title("Training: only each batch's experts")
    stages.launch("launch/train.py", inputs.config)
    stages.title("The masks: which experts the unsafe prompts of each category use more")
    for view in ("summary", "overlap"):
        stages.command("dist-moe", "inspect", run / "masks.zarr", view)
    stages.title("Before and after, on prompts that neither analysis nor training has seen, without a mask")
    stages.command("dist-moe", "evaluate", run, "--data", inputs.held_out)
    stages.title("Export to a Hugging Face checkpoint, and proof that only the union's experts changed")
    stages.command("dist-moe", "export", run, "--out", model)
    stages.command("dist-moe", "verify", inputs.base, model, "--masks", run / "masks.zarr")
    update, page = out / "run-update", out / "report.html"
    if not fast:
        stages.title("The same experts in mode update, which leaves the routing as it is: the price of mode route")
        others = ("--run-dir", update, "--train.masks", run / "masks.zarr", "--train.mode", "update")
        stages.launch("launch/train.py", inputs.config, *others)
        stages.command("dist-moe", "evaluate", update, "--data", inputs.held_out)
    stages.title("All of it on one page")
    stages.command("dist-moe", "report", run, *(() if fast else (update,)), "--export", model, "--out", page)
    stages.title(f"Done in {time.monotonic() - started:.0f} s. Where everything lies:")
    for path, what in (
        (inputs.config, "the configuration: train again with the commands above, changed as you like"),
        (inputs.base, "the base model"),
        (inputs.prompts, "the prompts of analysis and training"),
        (run / "masks.zarr", "masks; counts.zarr beside them: dist-moe inspect"),
        (run / "metrics.jsonl", "one line a step, with the hash of the mask in force"),
        (run / "evaluation.json", "the same tables as numbers; every answer is in answers.jsonl beside it"),
        (model, "the repaired model: AutoModelForCausalLM.from_pretrained"),
        (page, "the page: open it in a browser"),
    ):
        log.info(f"  {path}  {what}")


class Inputs:
    """What a user would bring: where each thing lies in the demo's directory."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.prompts, self.held_out = out / "prompts.jsonl", out / "held-out.jsonl"
        self.base, self.config = out / "base", out / "run.yaml"

    def make(self, size: Size) -> None:
        """Write prompts, base model and configuration."""
        corpus = build_corpus(0, num_pretraining=size.num_pretraining, batches_per_category=size.batches_per_category)
        write_rows(corpus.prompts, self.prompts)
        write_rows(corpus.held_out, self.held_out)
        make_base_model(
            self.base,
            corpus,
            seed=0,
            steps=size.base_steps,
            hidden_size=size.hidden_size,
            num_layers=size.num_layers,
        )
        save_config(_config(self.out, self.base, self.prompts, size), self.config)


class Stages:
    """Runs commands, and shows them as they would be typed in the root of the repository."""

    def __init__(self) -> None:
        self.number = 0

    def title(self, text: str) -> None:
        self.number += 1
        log.info(f"\n== {self.number}. {text}")

    def launch(self, script: str, config: Path, *overrides: object) -> None:
        """Run on two ranks; on one if there is a single GPU."""
        num_ranks = 1 if torch.cuda.device_count() == 1 else 2
        self.command("deepspeed", "--quiet", "--num_gpus", num_ranks, script, "--config", config, *overrides)

    def command(self, program: str, *arguments: object) -> None:
        words = [str(a) for a in arguments]
        log.info(f"$ {shlex.join([program, *words])}")
        executable = [sys.executable] if program == "python" else [str(Path(sys.executable).with_name(program))]
        with subprocess.Popen([*executable, *_from_repository(words)]) as stage:
            try:
                status = stage.wait()
            except KeyboardInterrupt:
                stage.terminate()  # it clears up; a terminal has told it too
                stage.wait()
                raise
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        if status:
            raise UserError(f"this stage of the demo ended with status {status}; see its message above")


def _from_repository(words: Sequence[str]) -> list[str]:
    """Replace the repository's own scripts by their full paths, so that the demo works from any directory."""
    return [str(REPOSITORY / w) if w.startswith(("launch/", "tools/")) else w for w in words]


def _config(out: Path, base: Path, prompts: Path, size: Size) -> Config:
    return Config(
        run_dir=out / "run",
        model=ModelConfig(path=base),
        data=DataConfig(paths=(prompts,), max_length=128),
        train=TrainConfig(lr=3e-3, epochs=size.epochs),
        evaluation=EvaluationConfig(max_new_tokens=32),
        overwrite=True,  # a demo may be run again
    )


@contextmanager
def _own_directory(out: Path) -> Iterator[None]:
    """A new directory for the demo. An earlier demo stays beside it until this one is done; one that does not come to
    its end leaves the earlier one, if there was one, or what it has made, to be looked at, unless it was interrupted.

    Raises:
        UserError: there is something else at `out`, or it cannot be written.
    """
    earlier = out.with_name(f".{out.name}.earlier")
    with writing(out):
        if out.is_dir() and (out / MARKER).is_file():
            shutil.rmtree(earlier, ignore_errors=True)
            out.rename(earlier)
        elif os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"{out} exists and is not an earlier demo: choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).touch()
    try:
        yield
    except BaseException as error:  # an interrupt too; nothing is swallowed
        if earlier.exists() or isinstance(error, KeyboardInterrupt):
            shutil.rmtree(out, ignore_errors=True)
        if earlier.exists():
            earlier.rename(out)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
