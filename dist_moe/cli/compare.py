"""`dist-moe compare`: its arguments, and the function that it calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dist_moe.cli.arguments import count, fraction, path, rates, text
from dist_moe.cli.call import Call
from dist_moe.cli.ranks import add_configured

if TYPE_CHECKING:
    from dist_moe.config.schema import Config
    from dist_moe.parallel.comm import Comm


def add_compare_command(commands: Any) -> None:
    """Add it to the subparsers of `dist-moe`."""
    command = add_configured(
        commands,
        "compare",
        "variants of a run, each trained from several seeds and evaluated on the same held-out rows, in one table",
        _compare,
        ("model", "data", "batches", "analysis", "train", "parallel", "checkpoint", "evaluation"),
    )
    command.add_argument("--held-out", type=path, nargs="+", required=True, help="files of rows to evaluate on")
    command.add_argument(
        "--variants",
        metavar="VARIANT",
        type=text,
        nargs="+",
        required=True,
        help="each RULE or RULE,train.SETTING=VALUE,...: a rule of selection, or full (full fine-tuning) or "
        "router_only, and settings of its training; the first is what the others are compared with",
    )
    command.add_argument("--num-seeds", type=count, default=3, help="how many, from `seed` on (default: %(default)s)")
    command.add_argument(
        "--lrs",
        metavar="LR,LR,...",
        type=rates,
        help="choose each variant's learning rate from these, by the validation loss on a part of the training rows; "
        "a variant that names its train.lr keeps it",
    )
    command.add_argument(
        "--validation", type=fraction, default=0.2, help="share of the training rows for --lrs (default: %(default)s)"
    )


def _compare(config: Config, comm: Comm, call: Call) -> None:
    from dist_moe.parallel.launch import together
    from dist_moe.workflows.compare import Rates, compare

    args = call.args
    with together(comm) as same:
        same |= {
            "--held-out": list(map(str, args.held_out)),
            "--variants": args.variants,
            "--num-seeds": args.num_seeds,
            "--lrs": args.lrs,
            "--validation": args.validation,
        }
    chosen = None if args.lrs is None else Rates(args.lrs, args.validation)
    compare(config, comm, args.held_out, args.variants, args.num_seeds, chosen)
