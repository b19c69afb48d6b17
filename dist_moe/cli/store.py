"""`dist-moe store ...` and `dist-moe import`: their arguments, and the functions that they call."""

from __future__ import annotations

from typing import Any

from dist_moe.cli.arguments import count, path, text, threshold
from dist_moe.cli.call import Call


def add_store_commands(commands: Any) -> None:
    """Add both to the subparsers of `dist-moe`."""
    store = commands.add_parser("store", help="check, copy, compare or export stores")
    actions = store.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = actions.add_parser("check", help="compare every file with its checksum; exit status 1 if one is damaged")
    action.add_argument("stores", nargs="+", type=text, metavar="STORE", help="directory or URL")
    action = actions.add_parser("copy", help="copy a store, comparing every file with its checksum")
    action.add_argument("store", type=text, metavar="STORE", help="directory or URL")
    action.add_argument("place", type=text, metavar="PLACE", help="new directory or URL to copy to")
    action = actions.add_parser(
        "diff", help="print the attributes, batches and experts in which two stores differ; exit status 1 if any do"
    )
    action.add_argument("first", type=text, metavar="STORE", help="directory or URL")
    action.add_argument("second", type=text, metavar="STORE", help="directory or URL")
    action.add_argument("--json", action="store_true", help="print one JSON object")
    action = actions.add_parser(
        "export", help="write a mask store's lists, masks and tables as older scripts expect them (Parquet and .npz)"
    )
    action.add_argument("store", type=text, metavar="STORE", help="mask store: directory or URL")
    action.add_argument("place", type=path, metavar="DIRECTORY", help="new directory; `dist-moe import` reads it back")
    store.set_defaults(run_command=_store)
    command = commands.add_parser("import", help="what an older analysis is; to a table, or to counts and masks")
    command.add_argument(
        "file",
        type=path,
        help="sft_dataset_*.pkl, batch_data_*.pkl, an activation table, or what store export has written",
    )
    command.add_argument("--out", type=path, help="NAME.parquet, NAME.csv, or a new run directory")
    command.add_argument("--table", choices=["experts", "risk"], help="each batch's list, or risk_diff of all experts")
    command.add_argument("--threshold", type=threshold, help="of the masks: risk_diff above which an expert is unsafe")
    command.add_argument("--top-k", type=count, help="of the masks: at most this many experts a batch")
    command.set_defaults(run_command=_import)


def _import(call: Call) -> int:
    args = call.args
    if args.out is not None:
        call.output.outlive_reader()
    from dist_moe.workflows.import_pickle import import_pickle

    return import_pickle(args.file, args.out, table=args.table, threshold=args.threshold, top_k=args.top_k)


def _store(call: Call) -> int:
    args = call.args
    if args.action not in ("check", "diff"):
        call.output.outlive_reader()
    from dist_moe.workflows import store

    if args.action == "check":
        return store.check_stores(args.stores)
    if args.action == "copy":
        return store.copy_to(args.store, args.place)
    if args.action == "export":
        return store.export_structure(args.store, args.place)
    return store.diff_stores(args.first, args.second, as_json=args.json)
