#!/usr/bin/env python
"""Look into a mask store: which experts are unsafe, for which batches and categories.

    python tools/inspect_masks.py runs/olmoe/masks.zarr                    counts per batch and layer, origin
    python tools/inspect_masks.py runs/olmoe/masks.zarr batch 3            one batch's unsafe experts
    python tools/inspect_masks.py runs/olmoe/masks.zarr expert 8 42        one expert over all batches (or: L08_E42)
    python tools/inspect_masks.py runs/olmoe/masks.zarr overlap            Jaccard matrices, experts of many categories
    python tools/inspect_masks.py runs/olmoe/masks.zarr overlap 3 4        what two batches share
    python tools/inspect_masks.py runs/olmoe/masks.zarr category hacking   which experts answer for a category
    python tools/inspect_masks.py runs/olmoe/masks.zarr aggregated         unsafe experts over all prompts
    python tools/inspect_masks.py runs/olmoe/masks.zarr check              compare every file with its digest

A batch is named by its index or its id. Each view takes --json (everything) or --csv (the main table). The store is
only read; neither torch nor the model is needed.
"""

import argparse
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from dist_moe.errors import UserError
from dist_moe.risk.names import parse_expert_name
from dist_moe.store import MaskStore, views


class Parser(argparse.ArgumentParser):
    """argparse that ends with one line, like every other error of a user."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"inspect_masks.py: error: {message}; see --help\n")


def view_of(store: MaskStore, words: Sequence[str]) -> views.View:
    match words:
        case [] | ["summary"]:
            return views.summary(store)
        case ["batch", key]:
            return views.batch(store, key)
        case ["expert", layer, expert] if layer.isdecimal() and expert.isdecimal():
            return views.expert(store, int(layer), int(expert))
        case ["expert", name]:
            return views.expert(store, *parse_expert_name(name))
        case ["overlap"]:
            return views.overlap(store)
        case ["overlap", first, second]:
            return views.overlap_of_two(store, first, second)
        case ["category", name]:
            return views.category(store, name)
        case ["aggregated"]:
            return views.aggregated(store)
        case ["check"]:
            return views.check(store)
    raise UserError(
        f"no view {' '.join(words)!r}: expected summary, batch N, expert L E, overlap [A B], category NAME, aggregated "
        "or check"
    )


def as_text(view: views.View) -> str:
    facts = flat(view.facts)
    width = max(map(len, facts))
    parts = ["\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())]
    for title, table in view.tables.items():
        text = table.to_string(index=False, float_format="{:.4f}".format) if len(table) else "(none)"
        parts.append(f"{title}\n{text}")
    return "\n\n".join(parts)


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as one level: `{"provenance": {"seed": 0}}` -> `{"provenance.seed": "0"}`."""
    lines: dict[str, str] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            lines |= flat(value, f"{prefix}{name}.")
        else:
            lines[prefix + name] = f"{value:.4f}" if isinstance(value, float) else str(value)
    return lines


def as_json(view: views.View) -> str:
    tables = {title: table.to_dict(orient="records") for title, table in view.tables.items()}
    return json.dumps({"facts": view.facts, "tables": tables}, indent=2, allow_nan=False)


def as_csv(view: views.View) -> str:
    return next(iter(view.tables.values())).to_csv(index=False, lineterminator="\n").removesuffix("\n")


def main() -> int:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `inspect_masks.py ... | head` ends quietly
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="the mask store, a directory such as masks.zarr")
    parser.add_argument("view", nargs="*", help="one of the views above, with its arguments; default: summary")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const=as_json, help="facts and all tables as JSON")
    form.add_argument("--csv", dest="form", action="store_const", const=as_csv, help="the main table as CSV")
    parser.set_defaults(form=as_text)
    arguments = parser.parse_intermixed_args()
    try:
        print(arguments.form(view_of(MaskStore.open(arguments.store), arguments.view)))
    except UserError as error:
        print(f"inspect_masks.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
