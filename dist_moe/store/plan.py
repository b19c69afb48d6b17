"""What the plans of both kinds of stores share: attributes, and the grid of batches.

All results of batches are on one grid: a file of each array holds the same batches, so that whoever has their results
writes these files completely and no others. Equal input gives equal bytes, whoever writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from dist_moe.data.index import BatchIndex
from dist_moe.store.layout import Kind, batches_per_file, encode_texts
from dist_moe.store.zarr_arrays import ArraySpec, encode_file
from dist_moe.version import __version__

R = TypeVar("R")
HASHES = ("model_hash", "tokenizer_hash", "data_hash", "tokens_hash")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlan(Generic[R]):
    """What is known of a store before there is a result (of type R); the same for all that write the store together."""

    kind: ClassVar[Kind]
    index: BatchIndex
    """All batches, and the prompts in them."""
    num_experts: int
    """E."""
    experts_per_token: int
    """The model's k."""
    counted_tokens: str
    """The setting `analysis.tokens`."""
    layer_names: tuple[str, ...]
    """Module name of each of the L MoE layers."""
    provenance: Mapping[str, Any]
    """JSON values; at least the `HASHES`, and whatever else made the batches."""

    def __post_init__(self) -> None:
        assert set(HASHES) <= self.provenance.keys()
        self.require_sound()

    @property
    def shape_BLE(self) -> tuple[int, int, int]:
        """[B, L, E]."""
        return len(self.index), len(self.layer_names), self.num_experts

    @property
    def rows_per_file(self) -> int:
        """Number of batches that share a file."""
        return batches_per_file(len(self.index))

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the store's root, except those that are known only when it is completed."""
        return {
            "format": self.kind.format,
            "format_version": self.kind.version,
            "dist_moe_version": __version__,
            "counted_tokens": self.counted_tokens,
            "experts_per_token": self.experts_per_token,
            "num_experts": self.num_experts,
            "layer_names": list(self.layer_names),
            "provenance": dict(self.provenance),
            **self.own_attributes,
        }

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays that are known before there is a result; one file each."""
        texts = {"batch_ids": self.index.ids, "batch_categories": self.index.categories}
        return {name: encode_texts(text) for name, text in texts.items()} | self.own_arrays

    def files(self, index: int, results: R) -> dict[str, bytes]:
        """The files of one block of the grid: key within the store -> bytes.

        Raises:
            AssertionError: the results are not of these batches.
        """
        batches = range(index * self.rows_per_file, min((index + 1) * self.rows_per_file, len(self.index)))
        values, specs = self.values(batches, results), self.specs
        assert values.keys() == specs.keys()
        return {f"{name}/{spec.file(index)}": encode_file(spec, values[name]) for name, spec in specs.items()}

    def require_sound(self) -> None:
        """Assert that a plan of this kind is consistent."""

    @property
    def own_attributes(self) -> dict[str, Any]:
        """Further attributes of this kind."""
        raise NotImplementedError

    @property
    def own_arrays(self) -> dict[str, np.ndarray]:
        """Further arrays of one file of this kind."""
        raise NotImplementedError

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """Arrays of results, on the grid of batches."""
        raise NotImplementedError

    def values(self, batches: range, results: R) -> dict[str, np.ndarray]:
        """Contents of the arrays of results for consecutive batches; the results must be of these batches."""
        raise NotImplementedError

    def cut(self, results: R, batches: range) -> R:
        """The results of consecutive batches, from those of all."""
        raise NotImplementedError

    def sealed_attributes(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Attributes that are known when everything is written, from the arrays named in `needed_to_seal`."""
        return {}

    @property
    def needed_to_seal(self) -> tuple[str, ...]:
        """Arrays of results that are read again when the store is completed."""
        return ()


def require_kinds(kinds: Mapping[str, tuple[str, int]]) -> None:
    """Assert that each is a name with a NumPy type and a number of axes that a store can hold."""
    for name, (dtype, ndim) in kinds.items():
        assert name.isidentifier(), f"{name!r} cannot be the name of an array"
        assert dtype in ("float32", "int32"), f"{name} is {dtype}"
        assert ndim in (1, 3), f"{name} has {ndim} axes"


def require_arrays(
    arrays: Mapping[str, np.ndarray], kinds: Mapping[str, tuple[str, int]], shape: tuple[int, ...]
) -> None:
    """Assert that the arrays are those of `kinds`, of their types, and as long as `shape`."""
    found = {name: (values.dtype.name, values.shape) for name, values in arrays.items()}
    expected = {name: (dtype, shape[:ndim]) for name, (dtype, ndim) in kinds.items()}
    assert found == expected, f"{found} for {expected}"
