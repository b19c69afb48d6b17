"""Elements of SVG, scales with round ticks, and the frame of a picture that is read aloud too."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

Value = str | int | float

WIDTH = 360
"""Of most pictures, in units of which a letter has about 6: what a phone shows without making it smaller."""


def element(name: str, *children: str | Markup, **attributes: Value) -> Markup:
    """`<name attribute="value">children</name>`. `_` of an attribute's name is `-`; one at its end is left out."""
    words = [f' {key.rstrip("_").replace("_", "-")}="{escape(number(value))}"' for key, value in attributes.items()]
    inside = "".join(map(str, map(escape, children)))
    return Markup(f"<{name}{''.join(words)}>{inside}</{name}>" if inside else f"<{name}{''.join(words)}/>")


def number(value: Value) -> str:
    """A coordinate, to a hundredth."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def text(content: str, x: float, y: float, **attributes: Value) -> Markup:
    """Words at a place."""
    return element("text", content, x=x, y=y, **attributes)


def path(points: Iterable[tuple[float, float]], **attributes: Value) -> Markup:
    """A line through points."""
    return element("path", d="M" + "L".join(f"{number(x)} {number(y)}" for x, y in points), **attributes)


def figure(
    key: str, title: str, description: str, size: tuple[float, float], parts: Iterable[Markup], *, css: str = ""
) -> Markup:
    """A picture with its title above it.

    Args:
        key: its address in the page, unlike any other.
        title: what it shows.
        description: what there is to see, for who cannot see it.
        size: width and height, in the picture's own units.
        parts: its elements.
        css: classes. `own-size`: it is not made smaller, but scrolls where it has no room.
    """
    told = [element("title", title, id=f"{key}-title"), element("desc", description, id=f"{key}-desc")]
    sizes: dict[str, Value] = {"width": size[0], "height": size[1]} if "own-size" in css else {}
    drawn = element(
        "svg",
        *told,
        *parts,
        id=key,
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
        viewBox=f"0 0 {number(size[0])} {number(size[1])}",
        **sizes,
    )
    if "own-size" in css:
        drawn = Markup('<div class="scroll" tabindex="0" role="region" aria-label="{}">{}</div>').format(title, drawn)
    return Markup('<figure class="{}"><figcaption>{}</figcaption>{}</figure>').format(css, title, drawn)


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to places."""

    low: float
    high: float
    start: float
    """Place of `low`."""
    end: float

    @classmethod
    def around(cls, values: Iterable[float], start: float, end: float, *, zero: bool = False) -> Scale:
        """From the smallest to the largest value, or from 0; never empty."""
        known = [*values, *([0.0] if zero else [])]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        if low == high:
            low, high = low - 0.5 * (not zero), high + 0.5
        return cls(low, high, start, end)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 5, *, whole: bool = False) -> list[float]:
        """At most so many round values: multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * (1 - 1e-9))
        step = max(step, 1.0) if whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [place * step for place in range(first, last + 1)]


def tick_labels(ticks: list[float]) -> list[str]:
    """Of a scale's ticks: with the digits that the scale needs, all written in one way."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) if ticks and ticks[0] else 1.0
    largest = max(map(abs, ticks), default=0.0)
    if 0 < largest < 1e-3 or largest >= 1e6:
        return [f"{tick:.1e}".replace("e-0", "e-").replace("e+0", "e") if tick else "0" for tick in ticks]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{tick:,.{digits}f}" if tick else "0" for tick in ticks]


def cells(levels_YX: np.ndarray, prefix: str, *, inset: float = 0.0) -> list[Markup]:
    """Unit squares, a path for each level, neighbours in a row as one piece; -1 is no square.

    Args:
        levels_YX: whole numbers.
        prefix: of the class of a level's path.
        inset: how much smaller each square is at each side; then neighbours are apart.
    """
    pieces: dict[int, list[str]] = {}
    height = number(1 - 2 * inset)
    for y, levels_X in enumerate(levels_YX.tolist()):
        x = 0
        while x < len(levels_X):
            level, first = levels_X[x], x
            x += 1
            while not inset and x < len(levels_X) and levels_X[x] == level:
                x += 1
            if level >= 0:
                width = number(x - first - 2 * inset)
                place = f"M{number(first + inset)} {number(y + inset)}"
                pieces.setdefault(level, []).append(f"{place}h{width}v{height}h-{width}z")
    return [element("path", d="".join(squares), class_=f"{prefix}{level}") for level, squares in sorted(pieces.items())]
