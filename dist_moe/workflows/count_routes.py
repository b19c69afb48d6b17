"""`dist-moe count --routes` and `--requests`: counts from the routes that a server has recorded, without the model."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from dist_moe.config.schema import Config
from dist_moe.data.tokens import CountedTokens, Encoded, collate
from dist_moe.errors import UserError
from dist_moe.files import atomic_file, require_absent
from dist_moe.moe.discover import find_moe_layers, moe_shape
from dist_moe.moe.load import empty_model
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.routes.counting import RouteShape, require_tokens, routed
from dist_moe.routes.files import RouteFiles
from dist_moe.rules import RULES
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.table import risk_table
from dist_moe.workflows.count import count_by, counts_plan, stored, unfinished_store
from dist_moe.workflows.inputs import Inputs, read_inputs
from dist_moe.workflows.model_place import from_hub
from dist_moe.workflows.run_dir import RunDir

log = logging.getLogger(__name__)

UNRECORDED = {"gates": "the routing weights", "gradients": "the gradients"}
"""What rules may need and routes do not have."""


def count_routes(config: Config, comm: Comm, files: Sequence[Path]) -> None:
    """Write the counts store that `count` would, from files of routes; docs/servers.md describes them.

    Raises:
        UserError: on all ranks: something in the configuration, the data or the files is wrong, or they do not belong
            together.
    """
    config = from_hub(config, comm, weights=False)
    count_by(config, comm, lambda: _counted(config, comm, files))


def write_requests(config: Config, comm: Comm, out: Path) -> None:
    """Write a line for each prompt that is counted: its id, and the token ids to ask a server for the routes of.

    Raises:
        UserError: on all ranks: something in the configuration or the data is wrong, or `out` exists.
    """
    with together(comm):
        require_absent(out)
    config = from_hub(config, comm, weights=False)
    inputs = read_inputs(config, comm, weights=False)
    generated = config.analysis.tokens == "generated"
    with together(comm):
        if comm.rank == 0:
            with atomic_file(out) as partial, partial.open("w", encoding="utf-8") as stream:
                for name, row in _rows(inputs, range(len(inputs.batches))):
                    ids = row.inference_ids if generated else row.prompt_ids + row.response_ids
                    most = config.analysis.max_new_tokens if generated else 1
                    stream.write(json.dumps({"id": name, "prompt_token_ids": ids, "max_tokens": most}) + "\n")
            log.info(f"{out}: {inputs.batches.num_prompts} requests; docs/servers.md says how to ask a server")


def _counted(config: Config, comm: Comm, files: Sequence[Path]) -> Path:
    with together(comm):
        _require_recorded(config)
    inputs = read_inputs(config, comm, weights=False)
    with together(comm) as same:
        outline = empty_model(config.model.path, torch.float32, weights=False)
        shape = _route_shape(outline)
        found = RouteFiles.find(files, inputs.batches.prompt_ids)
        same["the routes' hashes"] = [fact["sha256"] for fact in found.facts]
        counted = replace(config, analysis=replace(config.analysis, gates=False))
        plan = counts_plan(counted, inputs, {"routes": list(found.facts)}, outline)
    others = f"; {found.num_others} records of other prompts are left out" if found.num_others else ""
    log.info(f"Routes of {len(found.places)} prompts, without routing weights{others}")
    run, tokens = RunDir(config.run_dir), config.analysis.tokens

    def counts_of(batches: range) -> RoutingCounts:
        measured = [_measured(found, name, row, tokens, shape) for name, row in _rows(inputs, batches)]
        arrays = {name: np.stack([each[name] for each in measured]) for name in measured[0]}
        tables = {name: arrays[name].astype(np.int32) for name in plan.tables}
        counts = RoutingCounts(arrays["counts"], arrays["tokens"], shape.experts_per_token, tables)
        index = inputs.batches.of(batches)
        risk_table(counts, index.unsafe_P, index.batch_of_P, len(index), index.names)  # for its error
        return counts

    try:
        return stored(run, plan, counts_of, comm)
    except UserError:  # of all ranks alike; the files have to be others, so nothing can go on from here
        if comm.rank == 0:
            shutil.rmtree(unfinished_store(run, plan), ignore_errors=True)
            with suppress(OSError):
                run.analysis.rmdir()
        raise


def _require_recorded(config: Config) -> None:
    """Refuse settings that ask for what routes do not have."""
    rule = RULES.find(config.analysis.rule)
    for need in sorted(rule.needs & UNRECORDED.keys()):
        raise UserError(
            f"analysis.rule = {rule.name} needs {UNRECORDED[need]}, which a server's routes do not have: choose "
            "another rule, or count with the model (`dist-moe count` without --routes)"
        )
    if config.analysis.part is not None:
        raise UserError("analysis.part splits the work of the model: leave it out with --routes, which needs no model")


def _route_shape(outline: PreTrainedModel) -> RouteShape:
    layers = find_moe_layers(outline)
    shape = moe_shape(outline, layers)
    return RouteShape(
        layer_names=shape.layer_names,
        num_decoder_layers=outline.config.get_text_config().num_hidden_layers,
        num_experts=shape.num_experts,
        num_scored=max(max(layer.router_shape[0], layer.num_experts + layer.num_null_experts) for layer in layers),
        experts_per_token=shape.top_k,
    )


def _rows(inputs: Inputs, batches: range) -> Iterator[tuple[str, Encoded]]:
    """Id and tokens of each prompt of consecutive batches."""
    return zip(inputs.batches.prompt_ids[inputs.batches.rows(batches)], inputs.rows(batches), strict=True)


def _measured(
    files: RouteFiles, name: str, row: Encoded, tokens: CountedTokens | Literal["generated"], shape: RouteShape
) -> dict[str, np.ndarray]:
    """What a store holds of one prompt: counts [L, E], number of counted tokens, and for `generated` both of the
    prompt."""
    record = files.places[name].read()
    of = routed(record, shape)
    if tokens == "generated":
        require_tokens(record, of, row.inference_ids, [len(row.inference_ids)])
        if of.num_answer is None:
            raise UserError(
                f"{of.where}: it does not say how long the answer is: give `token_ids` or `completion_tokens`"
            )
        end = of.num_prompt + max(of.num_answer - 1, 0)
        prompt, answer = np.arange(of.num_prompt), np.arange(of.num_prompt, end)
        prefill = {"prefill_counts": of.counts(prompt, shape), "prefill_tokens": np.array(len(prompt))}
        return {"counts": of.counts(answer, shape), "tokens": np.array(len(answer)), **prefill}
    require_tokens(record, of, row.prompt_ids + row.response_ids, [len(row.prompt_ids), row.num_tokens])
    counted = np.flatnonzero(collate([row], 0).counted(tokens)[0].numpy())
    return {"counts": of.prompt.counts(counted, shape), "tokens": np.array(len(counted))}
