"""Pictures of numbers: lines over steps, changes with their intervals, and a plane of two measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from dist_moe.report.page.svg import WIDTH, Scale, element, figure, path, text, tick_labels

LEFT, RIGHT = 48.0, WIDTH - 8.0
LETTER = 6.4
"""Width of one, about."""


@dataclass(frozen=True, slots=True)
class Line:
    """A curve with its name, and with a band if its values have ends."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Ends:
    """A value and its interval; without one there are no ends."""

    value: float
    low: float | None
    high: float | None


def line_chart(
    key: str,
    title: str,
    description: str,
    lines: Sequence[Line],
    x_label: str,
    *,
    zero: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Curves over whole numbers, told apart by dashes and colours.

    Args:
        key: its address in the page.
        title: what it shows.
        description: the same for who cannot see it, with the ends of the curves.
        lines: the curves; a name for each if there are several.
        x_label: what goes to the right.
        zero: whether the values' axis begins at 0.
        marks: places at which something has changed, each with its name.
    """
    names = [line.name for line in lines if len(lines) > 1]
    top = 10.0 + 16.0 * len(names)
    bottom = top + 150.0
    x = Scale.around([value for line in lines for value in line.x], LEFT, RIGHT)
    y = Scale.around(
        [value for line in lines for values in (line.y, line.low, line.high) for value in values],
        bottom,
        top,
        zero=zero,
    )
    parts = [*_grid(y), *_bottom_axis(x, bottom, x_label, whole=True)]
    for place, name in marks:
        parts.append(path([(x(place), top), (x(place), bottom)], class_="mark"))
        parts.append(text(name, x(place) + 3, top + 9, class_="small"))
    for index, line in enumerate(lines):
        points = [(x(a), y(b)) for a, b in zip(line.x, line.y, strict=True)]
        if line.low:
            ends = [*zip(line.x, line.high, strict=True), *reversed([*zip(line.x, line.low, strict=True)])]
            parts.append(path([(x(a), y(b)) for a, b in ends], class_=f"band s{index % 5}"))
        if len(points) == 1:
            parts.append(element("circle", cx=points[0][0], cy=points[0][1], r=3, class_=f"dot s{index % 5}"))
        parts.append(path(points, class_=f"line s{index % 5}"))
    for index, name in enumerate(names):
        at = 10.0 + 16.0 * index
        parts.append(path([(LEFT, at), (LEFT + 30, at)], class_=f"line s{index % 5}"))
        parts.append(text(name, LEFT + 36, at + 4))
    return figure(key, title, description, (WIDTH, bottom + 36), parts)


def _grid(y: Scale) -> list[Markup]:
    ticks = y.ticks()
    parts = []
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        parts.append(path([(LEFT, y(tick)), (RIGHT, y(tick))], class_="grid"))
        parts.append(text(label, LEFT - 5, y(tick) + 4, text_anchor="end"))
    return parts


def _bottom_axis(
    x: Scale, at: float, label: str, *, whole: bool = False, shown: Callable[[float], str] | None = None
) -> list[Markup]:
    ticks = x.ticks(whole=whole)
    labels = [shown(tick) for tick in ticks] if shown else tick_labels(ticks)
    parts = [path([(x.start, at), (x.end, at)], class_="axis")]
    for tick, words in zip(ticks, labels, strict=True):
        parts.append(path([(x(tick), at), (x(tick), at + 4)], class_="axis"))
        anchor = "end" if x(tick) > x.end - LETTER * len(words) / 2 else "middle"
        parts.append(text(words, x(tick), at + 16, text_anchor=anchor))
    return [*parts, text(label, (x.start + x.end) / 2, at + 31, text_anchor="middle")]


def percent(share: float) -> str:
    """Of a tick."""
    return f"{100 * share:.0f} %"


def change_chart(
    key: str, title: str, description: str, rows: Sequence[tuple[str, Ends | None, Ends | None]], label: str
) -> Markup:
    """Shares before (hollow circles) and after (filled squares), one above the other, with their intervals.

    Args:
        key: its address in the page.
        title: what it shows.
        description: the same for who cannot see it.
        rows: name, before, after.
        label: what the shares are.
    """
    x = Scale(0.0, 1.0, 10.0, WIDTH - 14.0)
    parts = [
        *_point(Ends(0.02, None, None), x, 9.0, is_after=False),
        text("before", x(0.02) + 9, 13.0),
        *_point(Ends(0.25, None, None), x, 9.0, is_after=True),
        text("after; lines are 95 % intervals", x(0.25) + 9, 13.0),
    ]
    at = 34.0
    parts += [path([(x(tick), 20.0), (x(tick), 24.0 + 40 * len(rows))], class_="grid") for tick in x.ticks()]
    for name, before, after in rows:
        parts.append(text(cut(name, 52), x.start, at, class_="name"))
        for ends, below, is_after in ((before, 10.0, False), (after, 19.0, True)):
            if ends is not None:
                parts += _point(ends, x, at + below, is_after=is_after)
        at += 40.0
    parts += _bottom_axis(x, at - 10.0, label, shown=percent)
    return figure(key, title, description, (WIDTH, at + 26.0), parts)


def _point(ends: Ends, x: Scale, at: float, *, is_after: bool) -> list[Markup]:
    series = "s0" if is_after else "s1"
    parts = []
    if ends.low is not None and ends.high is not None:
        parts.append(path([(x(ends.low), at), (x(ends.high), at)], class_=f"line solid {series}"))
    if is_after:
        parts.append(element("rect", x=x(ends.value) - 4, y=at - 4, width=8, height=8, class_=f"dot {series}"))
    else:
        parts.append(element("circle", cx=x(ends.value), cy=at, r=4, class_=f"hollow {series}"))
    return parts


def plane_chart(
    key: str, title: str, description: str, points: Sequence[tuple[str, Ends, Ends]], labels: tuple[str, str]
) -> Markup:
    """Shares against shares, with intervals both ways; each point has the number of its place in the list, from 1.

    Args:
        key: its address in the page.
        title: what it shows.
        description: the same for who cannot see it.
        points: name, what goes to the right, what goes up.
        labels: of both axes.
    """
    top, bottom = 24.0, 24.0 + WIDTH - 70.0
    x, y = Scale(0.0, 1.0, LEFT, RIGHT), Scale(0.0, 1.0, bottom, top)
    parts = []
    for tick in y.ticks():
        parts.append(path([(LEFT, y(tick)), (RIGHT, y(tick))], class_="grid"))
        parts.append(path([(x(tick), top), (x(tick), bottom)], class_="grid"))
        parts.append(text(percent(tick), LEFT - 5, y(tick) + 4, text_anchor="end"))
    parts += _bottom_axis(x, bottom, labels[0], shown=percent)
    parts.append(text(labels[1], 4.0, 12.0))
    for index, (_, right, up) in enumerate(points):
        series = f"s{index % 5}"
        for low, high, is_up in ((right.low, right.high, False), (up.low, up.high, True)):
            if low is not None and high is not None:
                ends = [(x(right.value), y(end)) if is_up else (x(end), y(up.value)) for end in (low, high)]
                parts.append(path(ends, class_=f"line solid thin {series}"))
    for index, ((name, right, up), (across, down)) in enumerate(zip(points, _labels(points, x, y), strict=True)):
        series, place = f"s{index % 5}", (x(right.value), y(up.value))
        parts.append(path([place, (across, down)], class_="leader"))
        mark = [element("title", name), element("circle", cx=place[0], cy=place[1], r=4, class_=f"dot {series}")]
        mark.append(text(str(index + 1), across, down + 4, text_anchor="middle", class_="name"))
        parts.append(element("g", *mark))
    return figure(key, title, description, (WIDTH, bottom + 36.0), parts)


def _labels(points: Sequence[tuple[str, Ends, Ends]], x: Scale, y: Scale) -> list[tuple[float, float]]:
    """Where the points' numbers have room, each near its point."""
    found: list[tuple[float, float]] = []
    around = [(a * far, b * far) for far in (13, 22, 31, 40) for a, b in ((1, -1), (1, 1), (-1, -1), (-1, 1), (1, 0))]
    for _, right, up in points:
        places = [(x(right.value) + a, y(up.value) + b) for a, b in around]
        inside = [each for each in places if x.start < each[0] < x.end and y.end - 8 < each[1] < y.start]
        free = [each for each in inside if all(abs(each[0] - a) > 12 or abs(each[1] - b) > 12 for a, b in found)]
        found.append((free or inside or places)[0])
    return found


def cut(words: str, most: int) -> str:
    """As much as there is room for."""
    return words if len(words) <= most else f"{words[: most - 1]}…"


def thinned(x: Sequence[float], y: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """At most so many points: means over pieces of equal length."""
    if len(x) <= most:
        return [*x], [*y]
    edges = [round(place * len(x) / most) for place in range(most + 1)]
    pieces = [*pairwise(edges)]
    return tuple([sum(values[a:b]) / (b - a) for a, b in pieces] for values in (x, y))  # type: ignore[return-value]
