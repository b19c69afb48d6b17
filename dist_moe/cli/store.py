"""`dist-moe store ...` and `dist-moe import`: their arguments, and what they call."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_store_commands(commands: Any) -> None:
    """Add both to the subparsers of `dist-moe`."""
    store = commands.add_parser("store", help="check, repair, merge, copy or compare mask stores")
    actions = store.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = actions.add_parser("check", help="every file against its digest; status 1 if damaged or incomplete")
    action.add_argument("stores", nargs="+", metavar="STORE", help="directory or URL")
    action = actions.add_parser("repair", help="restore what follows from the prompt counts, as a new store")
    action.add_argument("store", type=Path, metavar="STORE", help="damaged store, which stays as it is")
    action.add_argument("--out", type=Path, help="the new store (default: STORE.repaired)")
    action = actions.add_parser("merge", help="join stores with parts of one analysis")
    action.add_argument("stores", nargs="+", metavar="STORE", help="parts, as directories or URLs")
    action.add_argument("--out", type=Path, required=True, help="the new store")
    action = actions.add_parser("copy", help="the same bytes elsewhere, each file compared with its digest")
    action.add_argument("store", metavar="STORE", help="directory or URL")
    action.add_argument("place", metavar="PLACE", help="new directory or URL, where nothing is yet")
    action = actions.add_parser("diff", help="facts, batches and experts in which two stores differ; status 1 if any")
    action.add_argument("first", metavar="STORE", help="directory or URL")
    action.add_argument("second", metavar="STORE", help="directory or URL")
    action.add_argument("--json", action="store_true", help="one JSON object")
    command = commands.add_parser("import", help="what an older pickle is; to a table or mask store; runs nothing")
    command.add_argument("file", type=Path, help="sft_dataset_*.pkl, batch_data_*.pkl, or an activation table")
    command.add_argument("--out", type=Path, help="NAME.parquet or NAME.csv for a table, NAME.zarr for a mask store")
    command.add_argument("--table", choices=["experts", "risk"], help="each batch's list, or risk_diff of all experts")
    command.add_argument("--threshold", type=float, help="of a mask store: risk_diff above which an expert is unsafe")
    command.add_argument("--top-k", type=int, help="of a mask store: at most this many experts a batch")


def run_import(args: argparse.Namespace) -> int:
    """Run `dist-moe import`, and return the exit status."""
    from dist_moe.workflows.import_pickle import import_pickle

    return import_pickle(args.file, args.out, print, table=args.table, threshold=args.threshold, top_k=args.top_k)


def run_store(args: argparse.Namespace) -> int:
    """Run the action of `dist-moe store`, and return the exit status."""
    from dist_moe.workflows import store

    if args.action == "check":
        return store.check_stores(args.stores, print)
    if args.action == "repair":
        return store.repair_store(args.store, args.out, print)
    if args.action == "merge":
        return store.merge_stores(args.stores, args.out, print)
    if args.action == "copy":
        return store.copy_to(args.store, args.place, print)
    return store.diff_stores(args.first, args.second, print, as_json=args.json)
