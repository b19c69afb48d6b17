"""`dist-moe verify`: its arguments, and the functions that it calls."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from dist_moe.cli.arguments import count, path, text
from dist_moe.cli.call import Call
from dist_moe.files import require_writable, write_json_atomic, write_text_atomic

TRAINS = ("experts", "routers", "experts_and_routers", "experts_and_dense")
"""`dist_moe.ranges.Trains`, which takes a sixth of the time of a command's help to import."""
TOP = 20
"""Experts and tensors that are listed where no masks are given."""


def add_verify_command(commands: Any) -> None:
    """Add it to the subparsers of `dist-moe`."""
    command = commands.add_parser(
        "verify",
        help="prove, byte by byte, that only the masks' experts differ from the base; without masks, say which experts "
        "of any fine-tuned model have moved",
        description="With --masks, compares a model with its base byte by byte: the exit status is 1 if anything but "
        "the masks' experts differs. Without masks, says of a model that any trainer has made from the base which "
        "experts have moved and how far, and what else has: the exit status is then 0, whatever it is.",
    )
    command.add_argument("base", type=path, help="base model: a directory, or OWNER/NAME[@REVISION] of the hub")
    command.add_argument("model", type=path, help="exported, or otherwise fine-tuned, model: the same")
    command.add_argument(
        "--masks",
        type=text,
        default=[],
        action="append",
        help="mask store of the run; give the option once for each store if the run had several (train.revisions)",
    )
    _add_without_masks(command)
    command.add_argument(
        "--trains",
        choices=TRAINS,
        help="with masks: the run's setting train.trains, which says what dense weights may differ (default: none)",
    )
    command.set_defaults(run_command=_verify)


def _add_without_masks(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", type=path, metavar="FILE", help="without masks: write all that was found to a file")
    command.add_argument(
        "--counts",
        metavar="STORE",
        type=text,
        help="without masks: counts of the base (counts.zarr of a run): sets each expert's change against its share "
        "of tokens",
    )
    command.add_argument(
        "--csv",
        type=path,
        metavar="FILE",
        help="without masks: write a line for each expert, with --counts its share too",
    )
    command.add_argument(
        "--top",
        type=count,
        metavar="N",
        help=f"without masks: list the N experts and tensors that have moved most (default: {TOP})",
    )


def _verify(call: Call) -> int:
    args = call.args
    if not args.masks:
        if args.trains is not None:
            args.parser.error("--trains is for a verification with --masks")
        return _difference(call)
    for option in ("json", "csv", "counts", "top"):
        if getattr(args, option) is not None:
            args.parser.error(f"--{option} is for a verification without --masks")
    from dist_moe.report.verification import verification_lines
    from dist_moe.workflows.verify import verify

    seen = verify(args.base, args.model, args.masks, args.trains or "experts")
    for line in verification_lines(seen):
        print(line)
    return 0 if seen.holds else 1


def _difference(call: Call) -> int:
    args = call.args
    for file in filter(None, (args.json, args.csv)):
        require_writable(file)
    from dist_moe.report.difference import difference_lines, experts_frame, use_lines
    from dist_moe.workflows.export import difference, routing_of

    found = difference(args.base, args.model)
    frame = experts_frame(found, None if args.counts is None else routing_of(args.counts, args.base))
    if args.json is not None:
        write_json_atomic(args.json, asdict(found))
    if args.csv is not None:
        write_text_atomic(args.csv, frame.to_csv(index=False, lineterminator="\n"))
    for line in difference_lines(found, args.top or TOP):
        print(line)
    for line in use_lines(frame) if args.counts is not None else ():
        print(line)
    return 0
