"""Print what is in a mask store: which experts were selected for which batches and categories, and how they compare.

    dist-moe inspect runs/olmoe/masks.zarr                    summary: origin, experts per batch and per layer
    dist-moe inspect runs/olmoe/masks.zarr batch 3            the unsafe experts of one batch
    dist-moe inspect runs/olmoe/masks.zarr expert 8 42        one expert in all batches (layer 8, expert 42; or L08_E42)
    dist-moe inspect runs/olmoe/masks.zarr layers             experts per layer; share of routing slots a mask leaves
    dist-moe inspect runs/olmoe/masks.zarr overlap            Jaccard matrices; experts that many categories share
    dist-moe inspect runs/olmoe/masks.zarr overlap 3 4        experts that two batches share
    dist-moe inspect runs/olmoe/masks.zarr categories         all categories: sizes, similarity of their batches
    dist-moe inspect runs/olmoe/masks.zarr category hacking   how often each expert is selected in a category
    dist-moe inspect runs/olmoe/masks.zarr growth             how the union of all masks grows with more batches
    dist-moe inspect runs/olmoe/masks.zarr aggregated         unsafe experts when all prompts are pooled
    dist-moe inspect runs/olmoe/masks.zarr diff runs/b/masks.zarr         how another store differs
    dist-moe inspect runs/olmoe/masks.zarr diff threshold=0.02 top_k=20   what other parameters would select
    dist-moe inspect runs/olmoe/masks.zarr diff name=lowest               what another rule would select
    dist-moe inspect runs/olmoe/masks.zarr prefill            tokens: generated only: prompts against answers
    dist-moe inspect runs/olmoe/masks.zarr check              compare every file with its checksum
    dist-moe inspect runs/olmoe/masks.zarr plots --out DIR    write plots as PNG and SVG (needs matplotlib)

A store is a directory, or a URL that fsspec can read. A batch is given by its index or its id. Routing rates are
computed from the counts that the masks were selected from: counts.zarr in the same directory, or --counts. Nothing is
written to the store, and neither torch nor the model is needed. The exit status is 0, or 2 for invalid arguments or a
damaged store.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dist_moe.cli.arguments import path, text
from dist_moe.cli.call import Call
from dist_moe.errors import UserError

if TYPE_CHECKING:
    from dist_moe.report.views import View
    from dist_moe.store import MaskStore


def add_inspect_command(commands: Any) -> None:
    """Add it to the subparsers of `dist-moe`."""
    command = commands.add_parser(
        "inspect",
        help="print what is in a mask store: tables, comparisons, plots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("store", type=text, help="mask store: a directory such as masks.zarr, or a URL")
    command.add_argument(
        "view", nargs="*", type=text, help="one of the views above with its arguments (default: summary)"
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as JSON")
    form.add_argument("--csv", action="store_true", help="print the main table as CSV")
    command.add_argument("--out", type=path, help="directory to write the plots to")
    command.add_argument(
        "--counts",
        type=text,
        help="counts store that the masks were selected from (default: counts.zarr in the directory of the mask store)",
    )
    command.intermixes()
    command.set_defaults(run_command=_inspect)


def _inspect(call: Call) -> int:
    args = call.args
    from dist_moe.report import views
    from dist_moe.store import MaskStore

    store = MaskStore.open_whole(args.store)
    store.counts_place = args.counts or store.counts_place
    if (args.view == ["plots"]) != (args.out is not None):
        raise UserError("plots need both the view plots and --out DIR")
    if args.out is not None:
        call.output.outlive_reader()
        from dist_moe.report.plots import write_plots

        for picture in write_plots(store, args.out):
            print(picture)
        return 0
    form = views.as_json if args.json else views.as_csv if args.csv else views.as_text
    print(form(view_of(store, args.view)))
    return 0


def once(pairs: Iterable[list[str]]) -> dict[str, str]:
    """Names and values; a name that is given twice is an error."""
    values: dict[str, str] = {}
    for name, value in pairs:
        if name in values:
            raise UserError(f"{name} is given twice")
        values[name] = value
    return values


def view_of(store: MaskStore, words: Sequence[str]) -> View:
    """The view that the arguments ask for."""
    from dist_moe.report import views
    from dist_moe.stats.names import parse_expert_name
    from dist_moe.store import MaskStore

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
            return views.diff(store, MaskStore.open_whole(other))
        case ["prefill"]:
            return views.prefill(store)
        case ["check"]:
            return views.check(store)
    raise UserError(
        f"no view {' '.join(words)!r}: expected summary, batch N, expert L E, layers, overlap [A B], categories, "
        "category NAME, growth, aggregated, diff STORE, diff PARAMETER=VALUE, prefill, check or plots --out DIR"
    )
