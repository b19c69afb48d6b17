"""Before and after of a trained run: what `dist-moe evaluate` and launch/evaluate.py run, in order."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from dist_moe.config.schema import Config
from dist_moe.errors import UserError
from dist_moe.evaluation.record import Evaluation
from dist_moe.evaluation.score import score_rows
from dist_moe.files import require_writable
from dist_moe.model.model import MoEModel, load_model
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.parallel.mesh import Mesh
from dist_moe.report.evaluation import MEASURES, before_after, score_frame
from dist_moe.training.save import load_experts
from dist_moe.weights.facts import Arms
from dist_moe.workflows.inputs import Inputs, read_inputs
from dist_moe.workflows.run_lock import run_lock
from dist_moe.workflows.trained_run import TrainedRun, result_settings

log = logging.getLogger(__name__)


def evaluate(run_dir: Path, data: tuple[Path, ...], comm: Comm, ep_size: int | None = None) -> None:
    """Score the run's own prompts, or those in `data`, with the base and with the trained experts, without a mask.

    Every rank of `comm` takes a part of the rows; `ep_size` of them share experts (None: as the run's configuration
    says). The first rank writes.
    """
    with together(comm):
        TrainedRun.open(run_dir)  # a directory that is none is not made one
    with run_lock(run_dir, comm):  # what is written is of the experts that are there then
        _evaluate(run_dir, data, comm, ep_size)


def _evaluate(run_dir: Path, data: tuple[Path, ...], comm: Comm, ep_size: int | None) -> None:
    with together(comm) as same:
        run = TrainedRun.open(run_dir)
        config = run.config
        config.evaluation.ep_size = ep_size or config.evaluation.ep_size
        if data:
            config.data.paths = data
        if comm.rank == 0:
            require_writable(run.dir.evaluation)
        same["the trained experts' digest"] = run.experts.digest
    inputs = read_inputs(config, comm)
    mesh = Mesh.of(comm, config.evaluation.ep_size, "evaluation.ep_size")
    with together(comm):
        _require_inputs_fit(run, inputs, is_training_data=not data)
        model = load_model(config.model, mesh.ep)
    for line in model.describe():
        log.info(line)
    before = _score(config, inputs, model, comm, "before")
    with together(comm):
        load_experts(run.experts, model.layers)
    after = _score(config, inputs, model, comm, "after")
    with together(comm):
        if comm.rank == 0:
            _conclude(run, inputs, before, after)


def _require_inputs_fit(run: TrainedRun, inputs: Inputs, *, is_training_data: bool) -> None:
    """What is scored belongs to the run."""
    config, file = run.config, run.dir.experts
    _require_same(f"{config.model.path} is not the model", inputs.model_hash, run.facts.model_hash, file)
    _require_same("the tokenizer or chat template is not that", inputs.tokenizer_hash, run.facts.tokenizer_hash, file)
    if is_training_data:
        _require_same("data.paths are not the prompts", inputs.prompts.data_hash, run.facts.data_hash, file)


def _conclude(run: TrainedRun, inputs: Inputs, before: pd.DataFrame, after: pd.DataFrame) -> None:
    """Show the tables, and write them down."""
    tables = {by or "all": before_after(before, after, by) for by in ("batch", "category", None)}
    for name, table in tables.items():
        log.info(f"Before and after, by {name}:" if name != "all" else "Before and after, all rows:")
        log.info(table.to_string(float_format="{:.3f}".format, na_rep="-"))
    num_unsafe = int(before["unsafe"].sum())
    trained_on = inputs.prompts.data_hash == run.facts.data_hash
    if trained_on:
        log.info(
            "These are the prompts of the training itself, not held out: this says nothing of other prompts (--data)"
        )
    Evaluation(
        experts_digest=run.experts.digest,
        model_hash=inputs.model_hash,
        tokenizer_hash=inputs.tokenizer_hash,
        data_hash=inputs.prompts.data_hash,
        trained_on=trained_on,
        prompts=Arms(safe=len(before) - num_unsafe, unsafe=num_unsafe),
        settings=json.loads(json.dumps({**result_settings(run.config), "evaluation": asdict(run.config.evaluation)})),
        **{name: _records(table) for name, table in tables.items()},
    ).write(run.dir.evaluation)
    log.info(f"Evaluation: {run.dir.evaluation}")


def _require_same(what: str, here: str, there: str, experts: Path) -> None:
    if here != there:
        raise UserError(f"{what} that {experts} was trained from: hash {here[:12]}, expected {there[:12]}; restore it")


def _score(config: Config, inputs: Inputs, model: MoEModel, comm: Comm, when: str) -> pd.DataFrame:
    rows = inputs.rows(range(len(inputs.batches)))
    quiet = comm.rank != 0 or not log.isEnabledFor(logging.INFO)
    with tqdm(total=len(rows), desc=f"Scoring {when}", unit="row", disable=quiet) as bar:
        scores = score_rows(
            model,
            rows,
            decode=lambda ids: str(inputs.tokenizer.decode(ids, skip_special_tokens=True)),
            refusals=[config.data.refusal.lower(), *(p.lower() for p in config.evaluation.refusal_phrases)],
            max_new_tokens=config.evaluation.max_new_tokens,
            micro_batch_tokens=config.evaluation.micro_batch_tokens,
            pad_id=inputs.pad_id,
            eos_ids=inputs.end_ids,
            comm=comm,
            progress=bar.update,
        )
    return score_frame(scores, inputs.batches)


def _records(table: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    return {
        str(key): {
            measure: {when: _number(line[measure, when]) for when in ("before", "after")} for measure in MEASURES
        }
        for key, line in table.iterrows()
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
