"""The map of all experts by their risk_diff over all prompts, with those that were trained in frames."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from dist_moe.report.page.blocks import details, joined, table
from dist_moe.report.page.svg import WIDTH, Scale, cells, element, figure, number, text

LEVELS = 5


@dataclass(frozen=True, slots=True)
class ExpertMap:
    """Arrays [L, E]."""

    risk_diff_LE: np.ndarray
    marked_LE: np.ndarray
    """bool: trained, or open to training."""
    mark: str
    """What these are called."""
    times_LE: np.ndarray
    """In how many masks each is."""
    num_batches: int


def heat_map(found: ExpertMap, key: str) -> Markup:
    """The picture, and the same as a table, from which a script reads what it shows under the pointer."""
    num_layers, num_experts = found.risk_diff_LE.shape
    size = float(np.clip((WIDTH - 76) / num_experts, 7, 26))
    left, top = 34.0, 6.0
    wide, high = size * num_experts, size * num_layers
    most = float(np.abs(found.risk_diff_LE).max()) or 1.0
    levels_LE = np.ceil(np.abs(found.risk_diff_LE) / most * LEVELS).astype(int) - 1  # exactly 0: no square
    above, below = (np.where(sign * found.risk_diff_LE > 0, levels_LE, -1) for sign in (1, -1))
    frames = "".join(f"M{e} {layer}h1v1h-1z" for layer, e in np.argwhere(found.marked_LE).tolist())
    grid = element(
        "g",
        element("rect", x=0, y=0, width=num_experts, height=num_layers, class_="ground"),
        *cells(above, "above level"),
        *cells(below, "below level", inset=0.22),
        element("path", d=frames or "M0 0", class_="frame"),
        transform=f"translate({number(left)} {number(top)}) scale({number(size)})",
    )
    parts = [grid, *_labels(found, size, left, top)]
    title = "risk_diff of every expert, all prompts pooled"
    description = (
        f"{num_layers} layers by {num_experts} experts. Values from {found.risk_diff_LE.min():+.4f} to "
        f"{found.risk_diff_LE.max():+.4f}. {int(found.marked_LE.sum())} experts are {found.mark}. "
        "The table below has every value."
    )
    picture = figure(key, title, description, (left + wide + 6, top + high + 34), parts, css="own-size heat")
    return joined([picture, _legend(found, most), _output(key), _values(found, key)])


def _labels(found: ExpertMap, size: float, left: float, top: float) -> list[Markup]:
    num_layers, num_experts = found.risk_diff_LE.shape
    high = size * num_layers
    layers = Scale(0, max(num_layers - 1, 1), top + size / 2, top + high - size / 2)
    experts = Scale(0, max(num_experts - 1, 1), left + size / 2, left + size * num_experts - size / 2)
    below = top + high
    parts = [text(str(each), left - 5, layers(each) + 4, text_anchor="end") for each in _ticks(num_layers, high / 14)]
    for each in _ticks(num_experts, size * num_experts / 28):
        parts += [text(str(each), experts(each), below + 14, text_anchor="middle")]
    parts.append(text("expert", left + size * num_experts / 2, below + 29, text_anchor="middle"))
    parts.append(
        text("layer", 0, 0, text_anchor="middle", transform=f"translate(10 {number(top + high / 2)}) rotate(-90)")
    )
    return parts


def _ticks(number_of: int, room: float) -> list[int]:
    """Numbers of layers or experts for which there is room, from 0 on, at round distances."""
    apart = next(each for each in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if number_of <= room * each)
    return [*range(0, number_of, apart)]


def _legend(found: ExpertMap, most: float) -> Markup:
    steps = [most * step / LEVELS for step in range(LEVELS + 1)]
    swatch = Markup('<svg class="swatch" viewBox="-0.1 -0.1 1.2 1.2" aria-hidden="true">{}</svg>')

    def drawn(css: str, inset: float = 0.0) -> Markup:
        return swatch.format(element("path", d=f"M{inset} {inset}h{1 - 2 * inset}v{1 - 2 * inset}h-{1 - 2 * inset}z",
                                     class_=css))  # fmt: skip

    ranges = [f"{low:.3f} to {high:.3f}" for low, high in pairwise(steps)]
    lines = [
        Markup("<li>{}{} {}</li>").format(drawn(f"above level{n}"), drawn(f"below level{n}", 0.22), words)
        for n, words in enumerate(ranges)
    ]
    frame = Markup("<li>{} {}</li>").format(drawn("frame"), found.mark)
    told = "Full squares: unsafe prompts use the expert more. Small squares: safe prompts use it more. By how much:"
    return Markup('<p class="small">{}</p><ul class="legend">{}{}</ul>').format(told, joined(lines), frame)


def _output(key: str) -> Markup:
    return Markup('<output class="under-pointer" data-of="{}" data-values="{}-values"></output>').format(key, key)


def _values(found: ExpertMap, key: str) -> Markup:
    head = ["layer", *map(str, range(found.risk_diff_LE.shape[1]))]
    lines = []
    for layer in range(len(found.risk_diff_LE)):
        row = zip(found.risk_diff_LE[layer], found.marked_LE[layer], found.times_LE[layer], strict=True)
        lines.append([str(layer), *(_value(value, marked, times) for value, marked, times in row)])
    caption = f"risk_diff of each expert (columns) in each layer (lines); ● {found.mark}"
    return details("Every value as a table", table(caption, head, lines, key=f"{key}-values", css="values"), css="big")


def _value(value: float, marked: bool, times: int) -> Markup | str:
    """With the number of masks that have the expert, for the script."""
    words = f"{value:+.4f}{' ●' if marked else ''}"
    return Markup('<data value="{}">{}</data>').format(int(times), words) if times else words
