#!/usr/bin/env python
"""Look into a mask store: which experts are unsafe, for which batches and categories.

    python tools/inspect_masks.py runs/olmoe/masks.zarr                    counts per batch and layer, origin
    python tools/inspect_masks.py runs/olmoe/masks.zarr batch 3            one batch's unsafe experts
    python tools/inspect_masks.py runs/olmoe/masks.zarr expert 8 42        one expert over all batches (or: L08_E42)
    python tools/inspect_masks.py runs/olmoe/masks.zarr layers             experts a layer; what is left of the routing
    python tools/inspect_masks.py runs/olmoe/masks.zarr overlap            Jaccard matrices, experts of many categories
    python tools/inspect_masks.py runs/olmoe/masks.zarr overlap 3 4        what two batches share
    python tools/inspect_masks.py runs/olmoe/masks.zarr categories         all categories: sizes, how alike batches are
    python tools/inspect_masks.py runs/olmoe/masks.zarr category hacking   which experts answer for a category
    python tools/inspect_masks.py runs/olmoe/masks.zarr growth             how the union grows with the batches
    python tools/inspect_masks.py runs/olmoe/masks.zarr aggregated         unsafe experts over all prompts
    python tools/inspect_masks.py runs/olmoe/masks.zarr diff runs/b/masks.zarr         what differs from another store
    python tools/inspect_masks.py runs/olmoe/masks.zarr diff threshold=0.02 top_k=20   what another rule would select
    python tools/inspect_masks.py runs/olmoe/masks.zarr diff name=lowest               likewise, by name
    python tools/inspect_masks.py runs/olmoe/masks.zarr prefill            reading the prompts against answering them
    python tools/inspect_masks.py runs/olmoe/masks.zarr recheck            rates and masks computed again from counts
    python tools/inspect_masks.py runs/olmoe/masks.zarr check              compare every file with its digest
    python tools/inspect_masks.py runs/olmoe/masks.zarr plots --out DIR    pictures, PNG and SVG (needs matplotlib)

A store is a directory, or a URL that fsspec knows. A batch is named by its index or its id. Each view takes --json
(everything) or --csv (the main table). The status is 0; 1 if recheck finds a difference; 2 for a wrong question or
store. The store is only read; neither torch nor the model is needed.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence

from dist_moe.cli.arguments import Parser, path, text
from dist_moe.cli.process import run_process
from dist_moe.cli.streams import Output
from dist_moe.errors import UserError
from dist_moe.report import views
from dist_moe.report.plots import write_plots
from dist_moe.select.stored import open_masks
from dist_moe.stats.names import parse_expert_name
from dist_moe.store import MaskStore


def once(pairs: Iterable[list[str]]) -> dict[str, str]:
    """Names and values; a name that is given twice is a mistake."""
    values: dict[str, str] = {}
    for name, value in pairs:
        if name in values:
            raise UserError(f"{name} is given twice")
        values[name] = value
    return values


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
        case ["layers"]:
            return views.layers(store)
        case ["categories"]:
            return views.categories(store)
        case ["growth"]:
            return views.growth(store)
        case ["diff", *changes] if changes and all("=" in change for change in changes):
            return views.diff_rule(store, once(change.split("=", 1) for change in changes))
        case ["diff", other]:
            return views.diff(store, open_masks(other))
        case ["prefill"]:
            return views.prefill(store)
        case ["recheck"]:
            return views.recheck(store)
        case ["check"]:
            return views.check(store)
    raise UserError(
        f"no view {' '.join(words)!r}: expected summary, batch N, expert L E, layers, overlap [A B], categories, "
        "category NAME, growth, aggregated, diff STORE, diff PARAMETER=VALUE, prefill, recheck, check or plots "
        "--out DIR"
    )


def main(output: Output) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=text, help="the mask store, a directory such as masks.zarr")
    parser.add_argument(
        "view", nargs="*", type=text, help="one of the views above, with its arguments; default: summary"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json", dest="form", action="store_const", const=views.as_json, help="facts and all tables as JSON"
    )
    form.add_argument("--csv", dest="form", action="store_const", const=views.as_csv, help="the main table as CSV")
    parser.set_defaults(form=views.as_text)
    parser.add_argument("--out", type=path, help="where plots writes its pictures")
    arguments = parser.parse_all()
    store = open_masks(arguments.store)
    if (arguments.view == ["plots"]) != (arguments.out is not None):
        raise UserError("pictures need both: the view plots and --out DIR")
    if arguments.out is not None:
        output.outlive_reader()
        for picture in write_plots(store, arguments.out):
            print(picture)
        return 0
    view = view_of(store, arguments.view)
    print(arguments.form(view))
    return 0 if arguments.view != ["recheck"] or view.facts["same"] else 1


if __name__ == "__main__":
    sys.exit(run_process(main, "inspect_masks.py"))
