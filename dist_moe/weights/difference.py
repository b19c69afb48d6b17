"""What differs between a base and any model that was fine-tuned from it, by whatever trainer: which experts have moved,
and how far, and what else.

The two may be stored in other shards, in other data types, and with a layer's experts in one tensor or in many: other
tensors are found by the model's weight that they become, and experts by layer and number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dist_moe.errors import UserError
from dist_moe.files import hash_file
from dist_moe.weights.changes import trained_places
from dist_moe.weights.configuration import GENERATION
from dist_moe.weights.directory import CONFIG, StoredTensor, read_json
from dist_moe.weights.layout import HubLayout, OtherTensor
from dist_moe.weights.moved import Difference, MovedExpert, MovedTensor, Part, Reshaped, Setting
from dist_moe.weights.other_files import read_files, unread_weights
from dist_moe.weights.sizes import Size, Sum, comparable
from dist_moe.weights.values import read_tensor

RESIZED = ("embedding", "output layer")
"""Parts whose tensors have a row a token, and so more or fewer where tokens were added or taken away."""


def difference(base: HubLayout, model: HubLayout) -> Difference:
    """Compare two model directories tensor by tensor; of their weights, never more than an expert's is in memory.

    Raises:
        UserError: they have other numbers of layers or experts, or experts of other shapes.
    """
    _require_same_shape(base, model)
    experts, layers = _experts(base, model)
    found = _Others(base, model)
    return Difference(
        base=str(base.path),
        model=str(model.path),
        num_layers=base.num_layers,
        num_experts=base.num_experts,
        experts=experts,
        layers=layers,
        tensors=found.moved,
        parts={name: Part(num_tensors=number, size=total.size) for name, (number, total) in found.parts.items()},
        reshaped=found.reshaped,
        only_base=found.only_base,
        only_model=found.only_model,
        dtypes=dict(sorted((found.dtypes + _expert_dtypes(base, model)).items())),
        settings=[*_settings(base.path, model.path)],
        files=_files(base.path, model.path),
        unread=unread_weights(model.path),
    )


def _require_same_shape(base: HubLayout, model: HubLayout) -> None:
    for what, before, after in (
        ("MoE layers", base.num_layers, model.num_layers),
        ("experts in a layer", base.num_experts, model.num_experts),
        ("weights of an expert", base.expert_shapes, model.expert_shapes),
    ):
        if before != after:
            raise UserError(
                f"{model.path} is no fine-tuned {base.path}: {what}: {after}, expected {before}: give the model's base"
            )


def _experts(base: HubLayout, model: HubLayout) -> tuple[list[MovedExpert], list[Size]]:
    moved, layers = [], []
    for layer in range(base.num_layers):
        sums, total = [Sum() for _ in range(base.num_experts)], Sum()
        _add_layer(base, model, layer, sums)
        for expert, of_expert in enumerate(sums):
            total.include(of_expert)
            if of_expert.size.num_changed:
                moved.append(MovedExpert(layer=layer, expert=expert, size=of_expert.size))
        layers.append(total.size)
    return moved, layers


def _add_layer(base: HubLayout, model: HubLayout, layer: int, sums: list[Sum]) -> None:
    if base.shapes_of(layer) == model.shapes_of(layer):
        for place, (_, expert) in trained_places(base, [(layer, expert) for expert in range(base.num_experts)]):
            sums[expert].add_stored(place.of(base.stored), place.of(model.stored))
        return
    for expert, of_expert in enumerate(sums):
        after = model.read_expert(layer, expert)
        for name, before in base.read_expert(layer, expert).items():
            of_expert.add(before, after[name])


def _expert_dtypes(base: HubLayout, model: HubLayout) -> Counter[str]:
    found: Counter[str] = Counter()
    for layer in range(base.num_layers):
        before, after = (
            "/".join(sorted({layout.stored[name].dtype for name in layout.shapes_of(layer)}))
            for layout in (base, model)
        )
        if before != after:
            found[f"{before} -> {after}"] += len(base.shapes_of(layer))
    return found


class _Others:
    """The tensors that hold no expert's weights."""

    def __init__(self, base: HubLayout, model: HubLayout) -> None:
        self.moved: list[MovedTensor] = []
        self.reshaped: list[Reshaped] = []
        self.only_base: list[str] = []
        self.only_model: list[str] = []
        self.parts: dict[str, tuple[int, Sum]] = {}
        self.dtypes: Counter[str] = Counter()
        before, after = base.others(), model.others()
        for weight in sorted(self._without_converted(base, model, before, after)):
            shown = before.get(weight) or after[weight]
            one = before.get(weight) or before.get(base.tied.get(weight, ""))
            other = after.get(weight) or after.get(model.tied.get(weight, ""))
            if one is None or other is None:
                (self.only_base if other is None else self.only_model).append(shown.name)
            else:
                self._compare(shown.name, shown.part, one.stored, other.stored)

    def _without_converted(
        self, base: HubLayout, model: HubLayout, before: dict[str, OtherTensor], after: dict[str, OtherTensor]
    ) -> set[str]:
        """Compare what one directory has as the model's weights, and the other as tensors that become them. Returns the
        names of all other weights."""
        left = before.keys() | after.keys()
        for layout, tensors, whole in ((base, before, after), (model, after, before)):
            for group in layout.converted:
                if tensors.keys() & {*group.weights} or not whole.keys() >= {*group.weights}:
                    continue
                stored = {name: read_tensor(layout.stored[name]) for name in group.names}
                weights = {weight: read_tensor(whole[weight].stored) for weight in group.weights}
                for name, made in layout.dense_to_hub(weights).items():
                    own, pair = Sum(), (stored[name], made)
                    own.add(*(pair if layout is base else pair[::-1]))
                    self._add(name, whole[group.weights[0]].part, own)
                left -= {*group.names, *group.weights}
        return left

    def _compare(self, name: str, part: str, before: StoredTensor, after: StoredTensor) -> None:
        if before.dtype != after.dtype:
            self.dtypes[f"{before.dtype} -> {after.dtype}"] += 1
        if before.shape != after.shape or not comparable(before, after):
            num_rows = _num_common_rows(part, before, after)
            shown = (f"{tensor.dtype} {list(tensor.shape)}" for tensor in (before, after))
            self.reshaped.append(
                Reshaped(name=name, part=part, before=next(shown), after=next(shown), num_compared=num_rows)
            )
            if not num_rows:
                return
            before, after = before.rows(slice(0, num_rows)), after.rows(slice(0, num_rows))
        own = Sum()
        own.add_stored(before, after)
        self._add(name, part, own)

    def _add(self, name: str, part: str, own: Sum) -> None:
        number, total = self.parts.setdefault(part, (0, Sum()))
        total.include(own)
        self.parts[part] = number + 1, total
        if own.size.num_changed:
            self.moved.append(MovedTensor(name=name, part=part, size=own.size))


def _num_common_rows(part: str, before: StoredTensor, after: StoredTensor) -> int:
    """Rows, of a token each, that two tensors both have; 0 where rows are no tokens'."""
    alike = part in RESIZED and before.shape[1:] == after.shape[1:] and comparable(before, after)
    return min(before.shape[0], after.shape[0]) if alike and before.shape and after.shape else 0


def _settings(base: Path, model: Path) -> Iterator[Setting]:
    for file in (CONFIG, GENERATION):
        before, after = (_flat(read_json(path / file)) if (path / file).is_file() else {} for path in (base, model))
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                yield Setting(file=file, key=key, before=before.get(key), after=after.get(key))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _files(base: Path, model: Path) -> list[str]:
    names = {name for path in (base, model) for name in read_files(path)} - {CONFIG, GENERATION}

    def contents(file: Path) -> str | None:
        return hash_file(file) if file.is_file() else None

    return sorted(name for name in names if contents(base / name) != contents(model / name))
