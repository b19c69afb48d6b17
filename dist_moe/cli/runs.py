"""`dist-moe count|analyze|train|evaluate|checkpoint|demo`: their arguments, and the functions that they call.

Some of them may run as one of many processes. A `UserError` then reaches all ranks, and rank 0 prints it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

from dist_moe import __version__
from dist_moe.cli.arguments import count, fraction, index, names, path, rates, share, shares, suite, text
from dist_moe.cli.call import Call
from dist_moe.cli.process import print_end
from dist_moe.errors import UserError

if TYPE_CHECKING:
    from dist_moe.config.schema import Config
    from dist_moe.evaluation.harness import Tasks
    from dist_moe.parallel.comm import Comm


def add_run_commands(commands: Any) -> None:
    """Add them to the subparsers of `dist-moe`."""
    add_configured(
        commands,
        "count",
        "run the model on all prompts and count which experts their tokens are routed to",
        _count,
        ("model", "data", "batches", "analysis"),
    )
    add_configured(
        commands,
        "analyze",
        "find each batch's unsafe experts: count, then select",
        _analyze,
        ("model", "data", "batches", "analysis"),
    )
    add_configured(
        commands,
        "train",
        "train each batch's unsafe experts, and nothing else",
        _train,
        ("model", "data", "batches", "train", "parallel", "checkpoint", "evaluation"),
    )
    command = commands.add_parser(
        "evaluate",
        help="before and after of a run, or a model by itself: refusals, losses, divergence, with intervals",
        description="Answers and scores rows with a run's base model and its trained experts, or with a model, always "
        "without a mask; docs/evaluation.md says what each number means. Settings of `evaluation`, and for a model's "
        "directory of `data` and `model` too, may stand on the command line: --evaluation.max_new_tokens 64.",
    )
    command.add_argument("path", metavar="MODEL_OR_RUN", type=path, help="a run, or a model's directory")
    command.add_argument("--data", type=path, nargs="+", default=[], help="files of rows, instead of the run's own")
    command.add_argument(
        "--suite",
        metavar="NAME=FILE",
        type=suite,
        nargs="+",
        default=[],
        help="files of published suites, beside those of --data; docs/judges.md lists the names",
    )
    command.add_argument(
        "--alphas",
        metavar="A,A,...",
        type=shares,
        default=(),
        help="of a run: evaluate base + A * (trained - base) for each A (above 0, up to 1), in one table: refusals of "
        "unsafe and of safe prompts, without another training",
    )
    command.add_argument(
        "--max-over-refusal",
        metavar="SHARE",
        type=share,
        help="with --alphas: name the largest of them at which so many safe prompts are refused at most, by the upper "
        "end of the interval. Give rows for this choice that are neither trained nor reported later",
    )
    command.add_argument(
        "--silence",
        metavar="STORE",
        type=text,
        help="compare a model's directory with itself without the experts of a mask store: no token is routed to them",
    )
    command.add_argument(
        "--batches", metavar="B", type=index, nargs="+", default=(), help="with --silence: of these batches only"
    )
    command.add_argument(
        "--harness",
        metavar="TASK,TASK,...",
        type=names,
        help="measure capabilities beside, by lm-evaluation-harness: mmlu,gsm8k,truthfulqa_mc2. It loads the model, or "
        "the run's export, itself, and downloads what its tasks need (pip install 'moe-repair[harness]')",
    )
    command.add_argument(
        "--harness-include", metavar="DIRECTORY", type=path, help="with --harness: further tasks, as its YAML files"
    )
    command.add_argument(
        "--harness-limit", metavar="N", type=count, help="with --harness: at most N rows of each task, for a trial"
    )
    command.add_argument("--against", metavar="BASE", type=path, help="a model that is the before of a model")
    command.add_argument("--out", type=path, help="directory of the results, instead of the run's or evaluation-NAME")
    command.add_argument("--ep-size", type=count, help="ranks that share experts, instead of evaluation.ep_size")
    command.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by the deepspeed launcher; not used
    command.take_settings("evaluation", usage="MODEL_OR_RUN [--data FILE ...] [--SETTING VALUE ...]")
    command.set_defaults(run_command=_evaluate)
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
    command = commands.add_parser("checkpoint", help="verify a run's checkpoints and print what they contain")
    command.add_argument("action", choices=["show"], help="verify every byte, then print the contents")
    command.add_argument("path", type=path, help="run directory, or one checkpoint in it")
    command.set_defaults(run_command=_checkpoint)
    command = commands.add_parser("demo", help="run the whole pipeline on a small model that is made on the spot")
    command.add_argument(
        "--out", type=path, default=Path("runs/demo"), help="directory to write everything to (default: %(default)s)"
    )
    command.add_argument("--fast", action="store_true", help="a smaller demo that takes about a minute")
    command.set_defaults(run_command=_demo)


def add_configured(
    commands: Any, name: str, what: str, work: Callable[[Config, Comm, Call], object], sections: tuple[str, ...]
) -> argparse.ArgumentParser:
    """Add a command that reads a configuration, and may run as one of many processes."""
    further = (
        "Settings come from the YAML file; those given on the command line, as --data.max_length 512, override it."
    )
    command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}. {further}")
    command.add_argument(
        "--config", type=path, required=True, help="YAML file of the run; `dist-moe config init` writes one"
    )
    command.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by the deepspeed launcher; not used
    command.take_settings("", *sections)
    command.set_defaults(
        run_command=lambda call: _on_all_ranks(call, lambda comm: work(_config(call, name, comm), comm, call))
    )
    return command


def _config(call: Call, name: str, comm: Comm) -> Config:
    from dist_moe.config.load import load_config, settings_of
    from dist_moe.parallel.launch import together

    with together(comm) as same:
        same |= {"command": name, **_versions()}
        config = load_config(call.args.config, call.settings)
        same |= settings_of(config)
    return config


def _on_all_ranks(call: Call, work: Callable[[Comm], object]) -> int:
    call.output.outlive_reader()
    from dist_moe.parallel.launch import process_group

    with process_group() as comm:
        try:
            work(comm)
        except UserError as error:
            if comm.rank == 0:
                print_end("dist-moe", f"error: {error}")
            # leaving the block waits for all ranks, so that no launcher ends the first one before it has spoken
            return 2
    return 0


def _versions() -> dict[str, str]:
    """Versions of what computes; importing it would take seconds."""
    libraries = ("torch", "transformers", "deepspeed")
    return {"dist_moe": __version__, "python": python_version()} | {name: version(name) for name in libraries}


def _count(config: Config, comm: Comm, call: Call) -> None:
    from dist_moe.workflows.count import count

    count(config, comm)


def _analyze(config: Config, comm: Comm, call: Call) -> None:
    from dist_moe.workflows.analyze import analyze

    analyze(config, comm)


def _train(config: Config, comm: Comm, call: Call) -> None:
    from dist_moe.workflows.train import train

    train(config, comm, call.launcher)


def _evaluate(call: Call) -> int:
    call.args.parser.refuse([word for word in call.settings if word.startswith("--") and not _is_setting(word)])
    return _on_all_ranks(call, lambda comm: _evaluate_on(call, comm))


def _is_setting(word: str) -> bool:
    """Whether it may override one of the configuration; others are options that there are not."""
    return "." in word.partition("=")[0] or word.partition("=")[0] in ("--seed", "--rehash")


def _evaluate_on(call: Call, comm: Comm) -> None:
    from dist_moe.parallel.launch import together
    from dist_moe.workflows.evaluate import evaluate

    args = call.args
    data = [*args.data, *args.suite]
    with together(comm) as same:
        same |= {"command": "evaluate", "--ep-size": args.ep_size, "--data": [str(file) for file in data]}
        same |= {"--against": str(args.against), "the settings": call.settings, **_versions()}
        same |= {"--harness": args.harness, "--harness-limit": args.harness_limit}
        same |= {"--silence": args.silence, "--batches": list(args.batches)}
        same |= {"--alphas": args.alphas, "--max-over-refusal": args.max_over_refusal}
    evaluate(
        args.path,
        data,
        comm,
        against=args.against,
        out=args.out,
        ep_size=args.ep_size,
        alphas=args.alphas,
        max_over_refusal=args.max_over_refusal,
        silence=args.silence,
        batches=args.batches,
        tasks=_tasks(args),
        settings=call.settings,
    )


def _tasks(args: argparse.Namespace) -> Tasks | None:
    from dist_moe.evaluation.harness import Tasks

    if args.harness is None:
        for option in ("include", "limit"):
            if getattr(args, f"harness_{option}") is not None:
                raise UserError(f"--harness-{option} says how tasks are run: give --harness TASK,TASK,...")
        return None
    return Tasks(names=args.harness, include=args.harness_include, limit=args.harness_limit)


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


def _checkpoint(call: Call) -> int:
    from dist_moe.report.checkpoint import checkpoint_lines
    from dist_moe.workflows.checkpoint import checkpoints

    for found in checkpoints(call.args.path):
        for line in checkpoint_lines(found):
            print(line)
    return 0


def _demo(call: Call) -> int:
    call.output.outlive_reader()
    from dist_moe.demo.run import run_demo

    run_demo(call.args.out, fast=call.args.fast)
    return 0
