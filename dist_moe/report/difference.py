"""The lines that `dist-moe verify` prints where no masks are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pandas as pd

from dist_moe.errors import shown
from dist_moe.report.columns import columns
from dist_moe.stats.names import expert_name
from dist_moe.stats.ranks import rank_correlation
from dist_moe.weights.moved import Difference
from dist_moe.weights.sizes import Size

MOST_NAMES = 10
SIZES = ("relative", "max_abs", "num_changed")
USES = {
    "a_unsafe_n": "of unsafe prompts' tokens",
    "a_safe_n": "of safe prompts' tokens",
    "risk_diff": "of unsafe minus safe prompts' tokens (risk_diff)",
}
"""Columns of an expert's use, and what each is the share of."""
HEAD = ("relative", "largest", "values changed")


def difference_lines(found: Difference, top: int) -> Iterator[str]:
    """Totals, and the `top` experts and other tensors that have moved most."""
    num_all = found.num_layers * found.num_experts
    yield f"{found.model}, compared with {found.base}"
    layers = {moved.layer for moved in found.experts}
    yield f"Experts that have moved: {len(found.experts)} of {num_all}, in {len(layers)} of {found.num_layers} layers"
    if found.experts:
        yield from _experts(found, top)
    num_others = sum(part.num_tensors for part in found.parts.values())
    yield f"Other tensors that have moved: {len(found.tensors)} of {num_others}"
    if found.tensors:
        yield from _others(found, top)
    yield from _besides(found)
    if found.experts or found.tensors:
        yield (
            "Relative: |model - base| / |base|, Frobenius norms over all values of an expert, a tensor or a part. "
            "Where data types differ, the base is first rounded to the model's."
        )


def _experts(found: Difference, top: int) -> Iterator[str]:
    by_layer: dict[int, list[str]] = {}
    for moved in found.experts:
        by_layer.setdefault(moved.layer, []).append(str(moved.expert))
    lines = [
        [f"L{layer:02d}", str(len(by_layer[layer])), *_cells(found.layers[layer]), _cut(by_layer[layer], 16)]
        for layer in sorted(by_layer)
    ]
    yield columns(["layer", "moved", *HEAD, "experts"], lines, indent="  ")
    ranked = sorted(found.experts, key=lambda moved: -_rank(moved.size))
    yield f"The {min(top, len(ranked))} that have moved most:"
    yield columns(
        ["expert", *HEAD], [[expert_name(m.layer, m.expert), *_cells(m.size)] for m in ranked[:top]], indent="  "
    )


def _others(found: Difference, top: int) -> Iterator[str]:
    moved_in = Counter(tensor.part for tensor in found.tensors)
    lines = [
        [name, f"{moved_in[name]} of {part.num_tensors}", *_cells(part.size)]
        for name, part in found.parts.items()
        if moved_in[name]
    ]
    yield columns(["part", "moved", *HEAD], sorted(lines), indent="  ")
    ranked = sorted(found.tensors, key=lambda moved: -_rank(moved.size))
    yield f"The {min(top, len(ranked))} that have moved most:"
    yield columns(["tensor", *HEAD], [[m.name, *_cells(m.size)] for m in ranked[:top]], indent="  ")


def experts_frame(found: Difference, routing: pd.DataFrame | None) -> pd.DataFrame:
    """A line for each expert, moved or not: layer, expert, relative, max_abs, num_changed; with `routing`, which has a
    line for each expert too, its share of tokens: a_safe_n, a_unsafe_n, risk_diff."""
    still = Size(relative=0.0, max_abs=0.0, num_changed=0, num_values=0)
    sizes = {(moved.layer, moved.expert): moved.size for moved in found.experts}
    lines = [
        {"layer": layer, "expert": expert, **{name: getattr(size, name) for name in SIZES}}
        for layer in range(found.num_layers)
        for expert in range(found.num_experts)
        for size in [sizes.get((layer, expert), still)]
    ]
    frame = pd.DataFrame(lines)
    return frame if routing is None else frame.merge(routing[["layer", "expert", *USES]], on=["layer", "expert"])


def use_lines(frame: pd.DataFrame) -> Iterator[str]:
    """How far an expert's change and its share of tokens rise together."""
    known = frame.dropna(subset=["relative"])
    moved = known[known["num_changed"] > 0]
    yield "Change against use: rank correlation (Spearman) of the relative change with the share"
    for column, what in USES.items():
        cells = [f"{_correlation(some, column)} ({len(some)} experts)" for some in (known, moved)]
        yield f"  {what}: over all {cells[0]}, over those that have moved {cells[1]}"
    yield "Experts of a layer share its tokens, so they are no independent sample: no interval is given."


def _correlation(frame: pd.DataFrame, column: str) -> str:
    value = rank_correlation(frame["relative"].to_numpy(), frame[column].to_numpy())
    return "-" if value is None else f"{value:+.2f}"


def _besides(found: Difference) -> Iterator[str]:
    for each in found.reshaped:
        compared = f"; the first {each.num_compared} rows were compared" if each.num_compared else "; not compared"
        yield f"Other shape or type: {each.name}: {each.before} -> {each.after}{compared}"
    for what, names in (("the base", found.only_base), (found.model, found.only_model)):
        if names:
            yield f"Only in {what}: {_cut(names, MOST_NAMES)}"
    for change, number in found.dtypes.items():
        yield f"Other data type: {change}, {number} tensors"
    for setting in found.settings:
        yield f"{setting.file}: {setting.key}: {shown(setting.before)} -> {shown(setting.after)}"
    if found.files:
        yield f"Other files that differ: {_cut(found.files, MOST_NAMES)}"
    if found.unread:
        yield f"Not read by transformers, so not compared: {_cut(found.unread, MOST_NAMES)}"


def _cells(size: Size) -> list[str]:
    share = size.num_changed / max(size.num_values, 1)
    return [*(_number(value) for value in (size.relative, size.max_abs)), f"{share:.1%}"]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"


def _rank(size: Size) -> float:
    """What cannot be told in numbers goes first."""
    return float("inf") if size.relative is None else size.relative


def _cut(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
