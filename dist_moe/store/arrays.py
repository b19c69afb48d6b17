"""From a plan and results to the arrays of a store, and to their files' bytes: pure functions.

Everything that is found for a batch lies on one grid: a file of each array holds the same batches, so that whoever has
their results writes those files whole and no others. Equal input gives equal bytes, whoever writes.
"""

from typing import Any

import numpy as np

from dist_moe import __version__
from dist_moe.store.contents import BatchResults, StorePlan
from dist_moe.store.layout import FORMAT, VERSION, batches_per_file, encode_texts, prompt_array, statistic_array
from dist_moe.store.zarr_arrays import ArraySpec, encode_file, plain, sharded


def attributes(plan: StorePlan) -> dict[str, Any]:
    """Those of the store's root, but the completeness marker."""
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "dist_moe_version": __version__,
        "selection_rule": dict(plan.selection_rule),
        "counted_tokens": plan.counted_tokens,
        "experts_per_token": plan.experts_per_token,
        "num_experts": plan.num_experts,
        "layer_names": list(plan.layer_names),
        "statistics": sorted(plan.statistics),
        "tables": sorted(plan.tables),
        "provenance": dict(plan.provenance),
    }


def plan_arrays(plan: StorePlan) -> dict[str, np.ndarray]:
    """Arrays that are known before anything was counted; each is one file."""
    kin, template_P = plan.kinship, plan.template_P
    return {
        **({} if kin is None else {"prompt_clusters": kin.cluster_P, "prompt_pairs": kin.pair_P}),
        **({} if template_P is None else {"prompt_template_tokens": template_P.astype(np.int32)}),
        "prompt_ids": encode_texts(plan.prompt_ids),
        "prompt_unsafe": plan.unsafe_P,
        "prompt_batch": plan.batch_of_P.astype(np.int32),
        "batch_ids": encode_texts(plan.batch_ids),
        "batch_categories": encode_texts(plan.categories),
    }


def result_specs(plan: StorePlan) -> dict[str, ArraySpec]:
    """Arrays of results, all on the grid of batches."""
    num_batches, num_layers, num_experts = shape_BLE = plan.shape_BLE
    rows = batches_per_file(num_batches)
    most_prompts = int(np.diff(plan.starts_B1).max())
    statistics = {
        statistic_array(name): (sharded if ndim == 3 else plain)(dtype, shape_BLE[:ndim], rows)
        for name, (dtype, ndim) in sorted(plan.statistics.items())
    }
    of_prompts = {
        prompt_array(name): (sharded if ndim == 3 else plain)(
            dtype, (num_batches, most_prompts, *shape_BLE[1:ndim]), rows
        )
        for name, (dtype, ndim) in (("counts", ("int32", 3)), ("tokens", ("int64", 1)), *sorted(plan.tables.items()))
    }
    return {
        "masks": plain(np.uint8, (num_batches, num_layers, -(-num_experts // 8)), rows),
        "risk_diff": sharded(np.float64, shape_BLE, rows),
        "a_safe_n": sharded(np.float64, shape_BLE, rows),
        "a_unsafe_n": sharded(np.float64, shape_BLE, rows),
        "batch_num_unsafe_experts": plain(np.int32, (num_batches,), rows),
        "batch_mask_hashes": plain(np.uint8, (num_batches, 32), rows),
        **of_prompts,
        **statistics,
    }


def result_files(plan: StorePlan, index: int, results: BatchResults) -> dict[str, bytes]:
    """The files of one step of the grid: key within the store -> bytes."""
    specs = result_specs(plan)
    rows = specs["masks"].rows_per_file
    batches = range(index * rows, index * rows + results.num_batches)
    assert results.num_batches == min(rows, len(plan.batch_ids) - batches.start)
    values = _values(plan, batches, results)
    assert values.keys() == specs.keys()
    return {f"{name}/{spec.file(index)}": encode_file(spec, values[name]) for name, spec in specs.items()}


def _values(plan: StorePlan, batches: range, results: BatchResults) -> dict[str, np.ndarray]:
    results.check(plan, batches)
    counts, risk, masks = results.counts, results.risk, results.masks
    specs = result_specs(plan)
    assert counts.tokens_P.max(initial=0) <= np.iinfo(np.int32).max
    first, last = plan.starts_B1[[batches.start, batches.stop]]
    batch_of_P = plan.batch_of_P[first:last]
    places = batch_of_P - batches.start, np.arange(first, last) - plan.starts_B1[batch_of_P]
    of_prompts = {}
    for name, values in {"counts": counts.counts_PLE, "tokens": counts.tokens_P, **counts.tables}.items():
        spec = specs[prompt_array(name)]
        padded = np.zeros((len(batches), *spec.shape[1:]), spec.dtype)
        padded[places] = values
        of_prompts[prompt_array(name)] = padded
    hashes = [np.frombuffer(bytes.fromhex(masks.hash(row)), np.uint8) for row in range(len(batches))]
    return {
        "masks": np.packbits(masks.masks_BLE, axis=-1),
        "risk_diff": risk.risk_diff_BLE,
        "a_safe_n": risk.a_safe_n_BLE,
        "a_unsafe_n": risk.a_unsafe_n_BLE,
        "batch_num_unsafe_experts": masks.num_experts_B.astype(np.int32),
        "batch_mask_hashes": np.stack(hashes),
        **of_prompts,
        **{statistic_array(name): values for name, values in results.statistics.items()},
    }
