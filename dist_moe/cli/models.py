"""`dist-moe export|apply|inspect-model|families`: their arguments, and the functions that they call."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from dist_moe.cli.arguments import path, share, text
from dist_moe.cli.call import Call
from dist_moe.errors import UserError


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
    command.add_argument(
        "--base-routers",
        action="store_true",
        help="leave routers that were trained as they are in the base: what the trained experts do without them",
    )
    command.add_argument(
        "--push",
        metavar="OWNER/NAME",
        type=text,
        help="also push the checkpoint, once it is verified, to this new repository of the Hugging Face hub, which "
        "will be private",
    )
    command.add_argument("--public", action="store_true", help="with --push: everybody can see the repository")
    command.set_defaults(run_command=_export)
    command = commands.add_parser(
        "apply", help="apply a delta to its base model: writes the checkpoint that export would write"
    )
    command.add_argument("base", type=path, help="base model that the delta was made from: a directory or OWNER/NAME")
    command.add_argument("delta", type=path, help="file that `dist-moe export --delta` wrote")
    command.add_argument("--out", type=path, required=True, help="new directory for the checkpoint")
    command.set_defaults(run_command=_apply)
    command = commands.add_parser("inspect-model", help="print a model's MoE layers, experts, routing and sizes")
    command.add_argument("model", type=path, help="a directory, or OWNER/NAME[@REVISION] of the Hugging Face hub")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run_command=_inspect_model)
    command = commands.add_parser("families", help="test which model types work with the installed transformers")
    command.add_argument("types", nargs="*", metavar="TYPE", help="model types to test (default: all)")
    command.add_argument("--json", action="store_true", help="print a JSON array with one object for each model type")
    command.set_defaults(run_command=_families)


def _export(call: Call) -> int:
    call.output.outlive_reader()
    from dist_moe.workflows.export import export, export_delta

    args = call.args
    if args.push is not None:
        if args.delta:
            raise UserError("--push is for a checkpoint: leave --delta out")
        from dist_moe.workflows.push import export_and_push

        how = {"link": args.link, "alpha": args.alpha, "base_routers": args.base_routers}
        export_and_push(args.run, args.out, args.push, private=not args.public, **how)
        return 0
    if args.public:
        raise UserError("--public is for a push: give --push OWNER/NAME")
    if args.delta:
        export_delta(args.run, args.out, alpha=args.alpha, base_routers=args.base_routers)
    else:
        export(args.run, args.out, link=args.link, alpha=args.alpha, base_routers=args.base_routers)
    return 0


def _apply(call: Call) -> int:
    call.output.outlive_reader()
    from dist_moe.workflows.export import apply

    apply(call.args.base, call.args.delta, call.args.out)
    return 0


def _inspect_model(call: Call) -> int:
    from dist_moe.moe.summary import describe
    from dist_moe.report.model import table
    from dist_moe.weights.fetched import model_directory
    from dist_moe.weights.model_dir import check_model_dir

    path = model_directory(call.args.model, "model")
    check_model_dir(path)
    summary = describe(path)
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
