"""`dist-moe plan`: its arguments, and the function that it calls."""

from __future__ import annotations

import argparse
import re
from typing import Any

from dist_moe.cli.arguments import count, path, text
from dist_moe.cli.call import Call
from dist_moe.errors import shown

SECTIONS = ("model", "data", "batches", "analysis", "train", "parallel", "checkpoint")


def add_plan_command(commands: Any) -> None:
    """Add it to the subparsers of `dist-moe`."""
    what = "say what a run needs before it is started: memory of each GPU, settings that make it fit, time, disk"
    command = commands.add_parser(
        "plan", help=what, description=f"{what[0].upper()}{what[1:]}. Reads shapes and masks, and no weights."
    )
    command.add_argument("--config", type=path, help="YAML file of the run; without it every setting has its default")
    command.add_argument(
        "--model", type=text, help="another model: a directory, a config.json, or a known name such as deepseek-v3"
    )
    command.add_argument("--nodes", type=count, default=1, metavar="N", help="number of nodes (default: %(default)s)")
    command.add_argument(
        "--gpus-per-node", type=count, default=1, metavar="N", help="GPUs of each node (default: %(default)s)"
    )
    command.add_argument("--gpu", type=gigabytes, metavar="80GB", help="memory of each GPU (default: all usual sizes)")
    command.add_argument(
        "--union",
        type=percentage,
        metavar="10%",
        help="share of all experts that some batch trains (default: of the run's masks; 10%% where there are none)",
    )
    command.add_argument(
        "--batch-experts", type=count, metavar="N", help="experts that one batch trains, without masks (default: top_k)"
    )
    command.add_argument(
        "--row-tokens", type=count, metavar="N", help="tokens of the longest row (default: data.max_length)"
    )
    command.add_argument(
        "--answer-tokens", type=count, metavar="N", help="tokens of it that are trained (default: all of them)"
    )
    command.add_argument(
        "--tokens-per-second",
        type=rate,
        metavar="R",
        help="tokens a second of all GPUs together (default: of the steps that the run has done)",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.take_settings("", *SECTIONS, usage="[--config FILE] [--model MODEL] [options] [--SETTING VALUE ...]")
    command.set_defaults(run_command=_plan)


def gigabytes(word: str) -> int:
    """A GPU's memory, as 80, 80GB or 80G."""
    found = re.fullmatch(r"([1-9][0-9]{0,3})(?:GB?)?", word.strip(), re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a number of GB, such as 80GB, got {shown(word)}")
    return int(found.group(1))


def percentage(word: str) -> float:
    """A share of the experts above 0: 10%, or 0.1."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(%?)", word.strip())
    number = 0.0 if found is None else float(found.group(1)) / (100 if found.group(2) else 1)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and up to 100%, such as 10%, got {shown(word)}")
    return number


def rate(word: str) -> float:
    """Tokens a second, above 0."""
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", word) is None or float(word) == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, such as 9000, got {shown(word)}")
    return float(word)


def _plan(call: Call) -> int:
    from dist_moe.report.plan import plan_json, plan_lines
    from dist_moe.workflows.plan import Request, plan

    args = call.args
    found = plan(
        Request(
            config=args.config,
            settings=call.settings,
            model=args.model,
            num_nodes=args.nodes,
            gpus_per_node=args.gpus_per_node,
            gpu=args.gpu,
            union=args.union,
            batch_experts=args.batch_experts,
            row_tokens=args.row_tokens,
            answer_tokens=args.answer_tokens,
            tokens_per_second=args.tokens_per_second,
        )
    )
    for line in [plan_json(found)] if args.json else plan_lines(found):
        print(line)
    return 0
