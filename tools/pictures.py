"""Draw the pictures of docs/how-it-works.md. They are SVG, and follow the reader's dark or light colours.

    python -m tools.pictures            rewrite docs/how-*.svg

`tests/unit/tools/test_pictures.py` says when a picture is not what this file draws.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
STYLE = """
  .page { fill: #ffffff } text { fill: #1f2430; font: 14px system-ui, sans-serif }
  .small { font-size: 12px; fill: #565d6d } .title { font-weight: 600 } .box { fill: #eef1f7; stroke: #8a93a6 }
  .trained { fill: #f6b26b; stroke: #9c5a00 }
  .trained-text { fill: #3a2200 } .line { fill: none; stroke: #565d6d; stroke-width: 1.5 } .tip { fill: #565d6d }
  .dropped { stroke-dasharray: 4 4; opacity: .65 } .frame { fill: none; stroke: #8a93a6 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #1e2129 } text { fill: #e6e9f0 } .small { fill: #a9b1c2 } .box { fill: #2c313d; stroke: #6d7687 }
    .trained { fill: #c9771e; stroke: #f6b26b } .trained-text { fill: #1b1000 } .line { stroke: #a9b1c2 }
    .tip { fill: #a9b1c2 } .frame { stroke: #6d7687 }
  }
"""


def picture(width: int, height: int, title: str, *parts: str) -> str:
    """A whole file; `title` is what a screen reader says."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{escape(title, quote=True)}">\n<style>{STYLE}</style>\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0,0 L8,4 L0,8 z"/></marker></defs>\n'
        f'<rect class="page" width="{width}" height="{height}" rx="8"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    """Words at a place; `kind` is a class of STYLE."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    """A box with round corners."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" class="{kind}"/>'


def arrow(path: str, kind: str = "") -> str:
    """A line with a tip at its end."""
    return f'<path d="{path}" class="line {kind}" marker-end="url(#tip)"/>'


def expert(x: float, y: float, name: str, *, trained: bool) -> str:
    """A square with a number, coloured if the expert is trained."""
    kind = "trained" if trained else "box"
    return box(x, y, 40, 34, kind) + text(x + 20, y + 22, name, "trained-text" if trained else "")


def flow() -> str:
    """From prompts to a checkpoint."""
    stages = (
        ("count", "which experts", "tokens go to", "counts.zarr"),
        ("select", "each batch's", "unsafe experts", "masks.zarr"),
        ("train", "only those, each", "on its batch", "experts/"),
        ("evaluate", "before and after,", "without a mask", "evaluation.json"),
        ("export", "and verify", "every byte", "a checkpoint"),
    )
    parts = [text(52, 76, "prompts"), text(52, 96, "safe | unsafe", "small"), arrow("M 98 80 H 118")]
    for i, (name, first, second, file) in enumerate(stages):
        x = 122 + i * 148
        parts += [box(x, 40, 122, 80), text(x + 61, 62, name, "title"), text(x + 61, 84, first, "small")]
        parts += [text(x + 61, 102, second, "small"), text(x + 61, 144, file, "small")]
        if i < len(stages) - 1:
            parts.append(arrow(f"M {x + 124} 80 H {x + 144}"))
    parts += [arrow("M 627 154 C 627 206 479 206 479 156"), arrow("M 645 154 C 645 260 331 260 331 156", "dropped")]
    parts += [text(557, 174, "weak batches again,", "small"), text(418, 186, "or with new masks", "small")]
    return picture(862, 246, "prompts, count, select, train, evaluate, export; weak batches are trained again", *parts)


def mask() -> str:
    """One batch's mask on one layer, in both modes."""
    parts = []
    for left, mode, note in (
        (20, "mode update: routing is not changed", "every chosen expert is active"),
        (450, "mode route, fill natural", "of its choice, a token keeps what is in the mask"),
    ):
        route = left > 400
        parts += [text(left + 196, 34, mode, "title"), text(left + 196, 56, note, "small")]
        for i in range(8):
            parts.append(expert(left + i * 49, 160, str(i), trained=i in (2, 5, 6)))
        for place, name, chosen in ((75, "token A", (1, 2)), (196, "token B", (5, 6)), (330, "token C", (4, 7))):
            x = left + place
            parts += [box(x - 34, 76, 68, 28), text(x, 95, name)]
            for each in chosen:
                dropped = route and name == "token A" and each == 1
                parts.append(arrow(f"M {x} 104 L {left + each * 49 + 20} 156", "dropped" if dropped else ""))
    parts += [box(20, 222, 18, 18, "trained"), text(46, 236, "in the batch's mask: trained", "small", "start")]
    parts += [box(240, 222, 18, 18), text(266, 236, "frozen: works, keeps its bits", "small", "start")]
    parts += [text(450, 226, "A loses expert 1, which is not in the mask. C has chosen none", "small", "start")]
    parts += [text(450, 243, "of the mask's experts: it keeps its choice, and trains none.", "small", "start")]
    return picture(862, 256, "one layer of eight experts, three of them in the batch's mask, in both modes", *parts)


def parallel() -> str:
    """Four GPUs, two of which share a copy of the experts, and the owners of the optimizer state."""
    parts = []
    owned = {0: (1,), 1: (6,), 2: (3,), 3: ()}
    for rank in range(4):
        x = 20 + rank * 210
        first = 0 if rank % 2 == 0 else 4
        parts += [box(x, 50, 192, 190, "frame"), text(x + 96, 74, f"GPU {rank}", "title")]
        parts += [text(x + 96, 98, "dense weights, frozen", "small")]
        for i in range(4):
            number = first + i
            parts.append(expert(x + 10 + i * 44, 112, str(number), trained=number in (1, 3, 6)))
        words = f"state of expert {owned[rank][0]}" if owned[rank] else "no state"
        parts.append(box(x + 20, 190, 152, 34, "trained" if owned[rank] else "box"))
        parts.append(text(x + 96, 212, words, "trained-text" if owned[rank] else "small"))
    for left in (0, 2):
        x = 20 + left * 210
        parts += [text(x + 201, 34, f"copy {left // 2} of the layer: two GPUs share its experts", "small")]
        parts += [arrow(f"M {x + 188} 158 H {x + 214}"), arrow(f"M {x + 214} 166 H {x + 188}")]
        parts += [text(x + 201, 182, "tokens", "small")]
    parts += [arrow("M 110 224 C 110 290 540 290 540 228", "dropped"), arrow("M 560 224 C 560 310 90 310 90 228")]
    parts += [
        text(325, 316, "gradients of expert 1 go to the owner of its optimizer state, new weights come back", "small")
    ]
    return picture(862, 332, "four GPUs, two copies of the experts, one owner of each trained expert's state", *parts)


def bits() -> str:
    """Sets of weights, one in another, and what each of them may do."""
    rows = (
        ("attention, embeddings, norms, routers, shared experts", "keep every bit", "box"),
        ("experts that are in no mask", "keep every bit", "box"),
        (
            "experts of the union, that are in other batches' masks",
            "keep every bit in this step, moments included",
            "box",
        ),
        ("experts of this batch's mask", "may change: weights, moments, step count", "trained"),
    )
    parts = [text(30, 36, "In one step of training", "title", "start")]
    for i, (what, may, kind) in enumerate(rows):
        x, y = 30 + i * 22, 52 + i * 44
        parts += [box(x, y, 812 - i * 22, 36, kind)]
        words = "trained-text" if kind == "trained" else ""
        parts += [text(x + 14, y + 23, what, words, "start"), text(828, y + 23, may, words, "end")]
    parts += [
        text(
            30,
            262,
            "After a run, and in the exported checkpoint, the last two may differ from the base model.",
            "small",
            "start",
        )
    ]
    parts += [text(30, 282, "verify compares all bytes: one bit elsewhere, and it fails.", "small", "start")]
    return picture(
        862, 298, "nested sets of weights: only the experts of the batch's mask may change in a step", *parts
    )


PICTURES: dict[str, Callable[[], str]] = {"flow": flow, "mask": mask, "parallel": parallel, "bits": bits}


def main() -> None:
    for name, draw in PICTURES.items():
        (DOCS / f"how-{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
