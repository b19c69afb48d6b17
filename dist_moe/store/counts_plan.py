"""The plan of a counts store: what it will contain, known before counting."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from dist_moe.stats.counts import RoutingCounts
from dist_moe.store.facts import arm_facts
from dist_moe.store.layout import COUNTS, Kind, encode_texts, prompt_array
from dist_moe.store.plan import StorePlan, require_arrays, require_kinds
from dist_moe.store.zarr_arrays import ArraySpec, plain, sharded

ALWAYS = {"counts": ("int32", 3), "tokens": ("int64", 1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class CountsPlan(StorePlan[RoutingCounts]):
    """Plan of a counts store. Its results are the counts of the prompts of some batches."""

    kind: ClassVar[Kind] = COUNTS
    tables: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Further measurements by name: NumPy type ("float32" or "int32"), and 3 for [P, L, E] or 1 for [P]."""
    template_P: np.ndarray | None = None
    """int [P]: number of prompt tokens that belong to the chat template alone; None: none, or unknown."""

    def require_sound(self) -> None:
        assert self.template_P is None or self.template_P.shape == self.index.unsafe_P.shape
        require_kinds(self.tables)

    @property
    def own_attributes(self) -> dict[str, Any]:
        return {"tables": sorted(self.tables)}

    @property
    def own_arrays(self) -> dict[str, np.ndarray]:
        index, template_P = self.index, self.template_P
        return {
            **({} if index.cluster_P is None else {"prompt_clusters": index.cluster_P}),
            **({} if index.pair_P is None else {"prompt_pairs": index.pair_P}),
            **({} if template_P is None else {"prompt_template_tokens": template_P.astype(np.int32)}),
            "prompt_ids": encode_texts(index.prompt_ids),
            "prompt_unsafe": index.unsafe_P,
            "prompt_batch": index.batch_of_P.astype(np.int32),
        }

    @property
    def specs(self) -> dict[str, ArraySpec]:
        most_prompts = int(self.index.sizes_B.max())
        return {
            prompt_array(name): (sharded if ndim == 3 else plain)(
                dtype, (len(self.index), most_prompts, *self.shape_BLE[1:ndim]), self.rows_per_file
            )
            for name, (dtype, ndim) in (*ALWAYS.items(), *sorted(self.tables.items()))
        }

    def values(self, batches: range, results: RoutingCounts) -> dict[str, np.ndarray]:
        here = self.index.of(batches)
        assert results.experts_per_token == self.experts_per_token
        assert results.counts_PLE.shape == (here.num_prompts, *self.shape_BLE[1:])
        require_arrays(results.tables, self.tables, results.counts_PLE.shape)
        assert results.tokens_P.max(initial=0) <= np.iinfo(np.int32).max
        specs, arrays = self.specs, {}
        for name, values in {"counts": results.counts_PLE, "tokens": results.tokens_P, **results.tables}.items():
            spec = specs[prompt_array(name)]
            padded = np.zeros((len(batches), *spec.shape[1:]), spec.dtype)
            padded[here.batch_of_P, here.place_P] = values
            arrays[prompt_array(name)] = padded
        return arrays

    def cut(self, results: RoutingCounts, batches: range) -> RoutingCounts:
        assert results.num_prompts == self.index.num_prompts
        return results.of(self.index.rows(batches))

    @property
    def needed_to_seal(self) -> tuple[str, ...]:
        return (prompt_array("tokens"),)

    def sealed_attributes(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        tokens_BS = stored[prompt_array("tokens")]
        there_BS = np.arange(tokens_BS.shape[1]) < self.index.sizes_B[:, None]
        seed = int(self.provenance.get("seed", 0))
        return {"arms": arm_facts(self.index, tokens_BS[there_BS], self.template_P, seed)}
