"""A callback for transformers' Trainer that counts routing in the middle of anybody's training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dist_moe.config.load import load_config, save_config
from dist_moe.config.schema import Config
from dist_moe.errors import UserError
from dist_moe.files import atomic_directory, require_absent
from dist_moe.measure.collect import count_rows
from dist_moe.measure.parts import ROWS_AT_ONCE
from dist_moe.model.tapped import Tapped, tapped
from dist_moe.parallel.comm import Comm, GroupComm, SoloComm
from dist_moe.parallel.launch import together
from dist_moe.rules import RULES
from dist_moe.stats.counts import RoutingCounts, concatenate
from dist_moe.stats.table import risk_table
from dist_moe.store import write_store
from dist_moe.store.origin import IN_TRAINING
from dist_moe.workflows.count import counts_plan
from dist_moe.workflows.inputs import Inputs, read_inputs
from dist_moe.workflows.model_place import from_hub
from dist_moe.workflows.run_dir import RunDir

log = logging.getLogger(__name__)


class RoutingCallback(TrainerCallback):
    """What `dist_moe.RoutingCallback` gives; its docstring says what it does."""

    def __init__(
        self,
        config: Config | str | Path,
        out: str | Path,
        *,
        steps: Sequence[int] = (),
        at_evaluation: bool = False,
    ) -> None:
        self.config = config if isinstance(config, Config) else load_config(config)
        self.out, self.steps, self.at_evaluation = Path(out), frozenset(steps), at_evaluation
        self._inputs: Inputs | None = None
        self._last: int | None = None
        analysis = self.config.analysis
        if analysis.tokens == "generated":
            raise UserError("analysis.tokens is generated: RoutingCallback counts the tokens of given rows: choose all")
        if "gradients" in RULES.find(analysis.rule).needs:
            raise UserError(f"analysis.rule = {analysis.rule} needs gradients, which RoutingCallback does not measure")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            self._count(kwargs["model"], args.device, state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.at_evaluation:
            self._count(kwargs["model"], args.device, state.global_step)

    def _count(self, module: PreTrainedModel, device: torch.device, step: int) -> None:
        if step == self._last:
            return  # a step that is evaluated, too
        world = dist.group.WORLD if dist.is_initialized() else None
        comm: Comm = SoloComm(device) if world is None else GroupComm(world, device)
        place = self.out / f"step-{step:06d}"
        with together(comm):
            require_absent(place)
        if self._inputs is None:
            self.config = from_hub(self.config, comm, weights=False)
            inputs = read_inputs(self.config, comm, weights=False)
            self._inputs = replace(inputs, model_hash=IN_TRAINING)
        with tapped(module, comm) as model:
            self._write(place, model, self._inputs, step)
        self._last = step
        log.info(f"Counts after step {step}: {RunDir(place).counts}")

    def _write(self, place: Path, model: Tapped, inputs: Inputs, step: int) -> None:
        config, comm = self.config, model.in_step
        assert config.analysis.tokens != "generated"
        rows, found = inputs.rows(range(len(inputs.batches))), list[RoutingCounts]()
        for first in range(0, len(rows), ROWS_AT_ONCE):
            found.append(
                count_rows(
                    model,
                    rows[first : first + ROWS_AT_ONCE],
                    tokens=config.analysis.tokens,
                    micro_batch_tokens=config.analysis.micro_batch_tokens,
                    pad_id=inputs.pad_id,
                    comm=comm,
                    gates=config.analysis.gates,
                )
            )
        index = inputs.batches
        passes = {
            "dtype": str(model.module.dtype).removeprefix("torch."),
            "micro_batch_tokens": config.analysis.micro_batch_tokens,
            "rows_alone": model.rows_alone,
            "step": step,
        }
        with together(comm):
            counts = concatenate(found)
            risk_table(counts, index.unsafe_P, index.batch_of_P, len(index), index.names)  # for its error
            if comm.rank == 0:
                with atomic_directory(place) as run:
                    write_store(
                        run / RunDir(run).counts.name, counts_plan(config, inputs, passes, model.module), counts
                    )
                    save_config(config, RunDir(run).resolved("count"))
