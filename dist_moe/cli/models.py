"""`dist-moe export|apply|verify|inspect-model|families`: their arguments, and the functions that they call."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, get_args

from dist_moe.cli.arguments import count, path, share, text
from dist_moe.cli.call import Call
from dist_moe.files import require_writable, write_json_atomic, write_text_atomic
from dist_moe.ranges import Trains

TOP = 20
"""Experts and tensors that `verify` lists where no masks are given."""


def add_model_commands(commands: Any) -> None:
    """Add them to the subparsers of `dist-moe`."""
    command = commands.add_parser(
        "export", help="write a trained run as a Hugging Face checkpoint, or as a small delta"
    )
    command.add_argument("run", type=path, help="run directory in which training has finished")
    command.add_argument(
        "--out", type=path, required=True, help="new directory for the checkpoint, or new file for the delta"
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument(
        "--link",
        action="store_true",
        help="hard-link unchanged checkpoint shards instead of copying them: saves disk space, but the base model and "
        "the export then share these files",
    )
    form.add_argument("--delta", action="store_true", help="write one safetensors file with the trained experts only")
    command.add_argument(
        "--alpha",
        metavar="A",
        type=share,
        default=1.0,
        help="export base + A * (trained - base) of each trained expert, with A from 0 (the base) to 1 (default: "
        "%(default)s); `dist-moe evaluate --alphas` shows what an A does",
    )
    command.set_defaults(run_command=_export)
    command = commands.add_parser(
        "apply", help="apply a delta to its base model: writes the checkpoint that export would write"
    )
    command.add_argument("base", type=path, help="directory of the base model that the delta was made from")
    command.add_argument("delta", type=path, help="file that `dist-moe export --delta` wrote")
    command.add_argument("--out", type=path, required=True, help="new directory for the checkpoint")
    command.set_defaults(run_command=_apply)
    command = commands.add_parser(
        "verify",
        help="prove, byte by byte, that only the masks' experts differ from the base; without masks, say which experts "
        "of any fine-tuned model have moved",
        description="With --masks, compares a model with its base byte by byte: the exit status is 1 if anything but "
        "the masks' experts differs. Without masks, says of a model that any trainer has made from the base which "
        "experts have moved and how far, and what else has: the exit status is then 0, whatever it is.",
    )
    command.add_argument("base", type=path, help="directory of the base model")
    command.add_argument("model", type=path, help="directory of the exported, or otherwise fine-tuned, model")
    command.add_argument(
        "--masks",
        type=text,
        default=[],
        action="append",
        help="mask store of the run; give the option once for each store if the run had several (train.revisions)",
    )
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
    command.add_argument(
        "--trains",
        choices=get_args(Trains),
        help="with masks: the run's setting train.trains, which says what dense weights may differ (default: none)",
    )
    command.set_defaults(run_command=_verify)
    command = commands.add_parser("inspect-model", help="print a model's MoE layers, experts, routing and sizes")
    command.add_argument("model", type=path, help="directory of the model")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run_command=_inspect_model)
    command = commands.add_parser("families", help="test which model types work with the installed transformers")
    command.add_argument("types", nargs="*", metavar="TYPE", help="model types to test (default: all)")
    command.add_argument("--json", action="store_true", help="print a JSON array with one object for each model type")
    command.set_defaults(run_command=_families)


def _export(call: Call) -> int:
    call.output.outlive_reader()
    from dist_moe.workflows.export import export, export_delta

    if call.args.delta:
        export_delta(call.args.run, call.args.out, alpha=call.args.alpha)
    else:
        export(call.args.run, call.args.out, link=call.args.link, alpha=call.args.alpha)
    return 0


def _apply(call: Call) -> int:
    call.output.outlive_reader()
    from dist_moe.workflows.export import apply

    apply(call.args.base, call.args.delta, call.args.out)
    return 0


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
    from dist_moe.workflows.export import verify

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


def _inspect_model(call: Call) -> int:
    from dist_moe.model.model import check_model_dir
    from dist_moe.moe.summary import describe
    from dist_moe.report.model import table

    check_model_dir(call.args.model)
    summary = describe(call.args.model)
    lines = [json.dumps(asdict(summary), indent=2)] if call.args.json else table(summary)
    for line in lines:
        print(line)
    return 0


def _families(call: Call) -> int:
    from dist_moe.report.families import table
    from dist_moe.workflows.families import families

    rows = families(call.args.types)
    lines = [json.dumps([row.record() for row in rows], indent=1)] if call.args.json else table(rows)
    for line in lines:
        print(line)
    return 0
