"""A learning rate for each variant of a comparison, chosen on training rows: held-out rows are never looked at.

The training rows are divided by prompt. Each variant is trained on one part with each rate, from the comparison's first
seed, and evaluated on the other. All of it goes on where it was stopped.

    learning-rates/fitted.jsonl, validation.jsonl   the two parts
    learning-rates/seed-0/VARIANT,lr=RATE           a run for each
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from dist_moe.config.load import changed
from dist_moe.config.schema import Config
from dist_moe.data.rows import Prompt, read_prompts, row_of
from dist_moe.data.validation import divide
from dist_moe.errors import UserError
from dist_moe.evaluation.learning_rates import LEARNING_RATES, RULE, Choice, LearningRates, Tried
from dist_moe.evaluation.rows import Kind
from dist_moe.files import write_text_atomic, writing
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.report.comparison import learning_rate_lines
from dist_moe.workflows.variants import Variant, run_variant, variant_config

log = logging.getLogger(__name__)

PLACE = "learning-rates"
KIND: Kind = "held out"
"""Of the validation rows, for the runs that are trained on the others."""


def choose_rates(
    config: Config, comm: Comm, variants: Sequence[Variant], lrs: Sequence[float], share: float
) -> list[Variant]:
    """The variants with the learning rates that are chosen for them, in order; one that names its own keeps it.

    Args:
        config: of the comparison.
        comm: all ranks.
        variants: all of the comparison.
        lrs: the rates to try.
        share: of the training rows, for validation.

    Raises:
        UserError: on all ranks: the rows are too few, or a run fails. What is done already stays.
    """
    searched = [each for each in variants if not each.has_lr]
    place = config.run_dir / PLACE
    with together(comm):
        prompts = read_prompts(config.data.paths, config.data.refusal).prompts
        parts = divide(prompts, share, config.seed)
        files = place / "fitted.jsonl", place / "validation.jsonl"
        if comm.rank == 0:
            for file, rows in zip(files, (parts.fitted, parts.validation), strict=True):
                _write(file, rows)
    with together(comm):
        own = changed(config, ["--run-dir", str(place), "--data.paths", str(files[0])])
        for each in searched:
            variant_config(own, own.seed, each.at(lrs[0]))
        validation_hash = read_prompts((files[1],), config.data.refusal).data_hash
    choices = {each.name: _choice(own, comm, files[1], validation_hash, each, lrs, variants) for each in searched}
    found = LearningRates(
        rule=RULE,
        seed=config.seed,
        share=share,
        num_fitted=len(parts.fitted),
        num_validation=len(parts.validation),
        validation_hash=validation_hash,
        choices=choices,
    )
    with together(comm), writing(config.run_dir):
        if comm.rank == 0:
            found.write(config.run_dir / LEARNING_RATES)
    for line in learning_rate_lines(found):
        log.info(line)
    return [each if each.has_lr else each.at(choices[each.name].lr) for each in variants]


def _choice(
    config: Config,
    comm: Comm,
    validation: Path,
    validation_hash: str,
    variant: Variant,
    lrs: Sequence[float],
    variants: Sequence[Variant],
) -> Choice:
    tried = []
    for lr in lrs:
        run = run_variant(config, comm, [validation], validation_hash, config.seed, variant.at(lr), variants)
        with together(comm):
            found = Tried.of(lr, run.evaluation, KIND)
            if found is None:
                raise UserError(
                    f"{validation}: without rows that are like trained ones, there is no safe or no unsafe row with a "
                    "response to choose a learning rate by: give more rows, or a larger --validation"
                )
        tried.append(found)
    return Choice.of(tried)


def _write(file: Path, rows: Sequence[Prompt]) -> None:
    text = "".join(json.dumps(row_of(prompt), ensure_ascii=False) + "\n" for prompt in rows)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_text_atomic(file, text)
