"""Before and after of a trained run: what `dist-moe evaluate` runs, in one process."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from dist_moe.config.schema import Config
from dist_moe.errors import UserError
from dist_moe.evaluation.score import score_rows
from dist_moe.evaluation.table import MEASURES, before_after, score_frame
from dist_moe.files import require_writable, write_json_atomic
from dist_moe.moe.model import MoEModel, load_model
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.launch import local_device
from dist_moe.training.save import load_experts, read_index
from dist_moe.workflows.console import Say
from dist_moe.workflows.inputs import Inputs, read_inputs
from dist_moe.workflows.run_dir import trained_run


def evaluate(run_dir: Path, data: tuple[Path, ...], say: Say) -> None:
    """Score the run's own prompts, or those in `data`, with the base and with the trained experts, without a mask."""
    run, config = trained_run(run_dir)
    require_writable(run.evaluation)
    if data:
        config.data.paths = data
    inputs = read_inputs(config, say)
    if read_index(run.experts)["model_hash"] != inputs.model_hash:
        raise UserError(f"{config.model.path} is not the model that {run.experts} was trained from: restore it")
    model = load_model(config.model, SoloComm(local_device()))
    for line in model.describe():
        say(line)
    before = _score(config, inputs, model, "before")
    load_experts(run.experts, model.layers)
    after = _score(config, inputs, model, "after")
    tables = {by or "all": before_after(before, after, by) for by in ("batch", "category", None)}
    for name, table in tables.items():
        say(f"Before and after, by {name}:" if name != "all" else "Before and after, all rows:")
        say(table.to_string(float_format="{:.3f}".format, na_rep="-"))
    write_json_atomic(run.evaluation, {name: _records(table) for name, table in tables.items()})
    say(f"Evaluation: {run.evaluation}")


def _score(config: Config, inputs: Inputs, model: MoEModel, when: str) -> pd.DataFrame:
    batches = inputs.plan.batches
    rows = [(i, row) for i, batch in enumerate(batches) for row in batch.rows]
    with tqdm(total=len(rows), desc=f"Scoring {when}", unit="row") as bar:
        scores = score_rows(
            model,
            [inputs.encoded.rows[row] for _, row in rows],
            decode=lambda ids: str(inputs.tokenizer.decode(ids, skip_special_tokens=True)),
            refusals=[config.data.refusal.lower(), *(p.lower() for p in config.evaluation.refusal_phrases)],
            max_new_tokens=config.evaluation.max_new_tokens,
            micro_batch_size=config.evaluation.micro_batch_size,
            pad_id=inputs.pad_id,
            eos_ids=inputs.end_ids,
            progress=bar.update,
        )
    return score_frame(
        scores,
        [i for i, _ in rows],
        [batches[i].category for i, _ in rows],
        [inputs.prompts.prompts[row].unsafe for _, row in rows],
    )


def _records(table: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    return {
        str(key): {
            measure: {when: _number(line[measure, when]) for when in ("before", "after")} for measure in MEASURES
        }
        for key, line in table.iterrows()
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
