"""`dist-moe evaluate`: its arguments, and the function that it calls."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from dist_moe.cli.arguments import count, index, names, path, share, shares, suite, text
from dist_moe.cli.call import Call
from dist_moe.cli.ranks import accept_local_rank, on_all_ranks, versions
from dist_moe.errors import UserError

if TYPE_CHECKING:
    from dist_moe.evaluation.harness import Tasks
    from dist_moe.parallel.comm import Comm


def add_evaluate_command(commands: Any) -> None:
    """Add it to the subparsers of `dist-moe`."""
    command = commands.add_parser(
        "evaluate",
        help="before and after of a run, or a model by itself: refusals, losses, divergence, with intervals",
        description="Answers and scores rows with a run's base model and its trained experts, or with a model, always "
        "without a mask; docs/evaluation.md says what each number means. Settings of `evaluation`, and for a model's "
        "directory of `data` and `model` too, may stand on the command line: --evaluation.max_new_tokens 64.",
    )
    command.add_argument(
        "path", metavar="MODEL_OR_RUN", type=path, help="a run, or a model: a directory or OWNER/NAME[@REVISION]"
    )
    command.add_argument("--data", type=path, nargs="+", default=[], help="files of rows, instead of the run's own")
    command.add_argument(
        "--suite",
        metavar="NAME=FILE",
        type=suite,
        nargs="+",
        default=[],
        help="files of published suites, beside those of --data; docs/judges.md lists the names",
    )
    _add_alphas(command)
    _add_silence(command)
    _add_harness(command)
    command.add_argument("--against", metavar="BASE", type=path, help="a model that is the before of a model")
    command.add_argument("--out", type=path, help="directory of the results, instead of the run's or evaluation-NAME")
    command.add_argument("--ep-size", type=count, help="ranks that share experts, instead of evaluation.ep_size")
    accept_local_rank(command)
    command.take_settings("evaluation", usage="MODEL_OR_RUN [--data FILE ...] [--SETTING VALUE ...]")
    command.set_defaults(run_command=_evaluate)


def _add_alphas(command: argparse.ArgumentParser) -> None:
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


def _add_silence(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--silence",
        metavar="STORE",
        type=text,
        help="compare a model's directory with itself without the experts of a mask store: no token is routed to them",
    )
    command.add_argument(
        "--batches", metavar="B", type=index, nargs="+", default=(), help="with --silence: of these batches only"
    )


def _add_harness(command: argparse.ArgumentParser) -> None:
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


def _evaluate(call: Call) -> int:
    call.args.parser.refuse([word for word in call.settings if word.startswith("--") and not _is_setting(word)])
    return on_all_ranks(call, lambda comm: _evaluate_on(call, comm))


def _is_setting(word: str) -> bool:
    """Whether it may override one of the configuration; others are options that there are not."""
    return "." in word.partition("=")[0] or word.partition("=")[0] in ("--seed", "--rehash")


def _evaluate_on(call: Call, comm: Comm) -> None:
    from dist_moe.parallel.launch import together
    from dist_moe.workflows.evaluate import evaluate
    from dist_moe.workflows.evaluation_request import EvaluationRequest

    args = call.args
    data = [*args.data, *args.suite]
    with together(comm) as same:
        same |= {"command": "evaluate", "--ep-size": args.ep_size, "--data": [str(file) for file in data]}
        same |= {"--against": str(args.against), "the settings": call.settings, **versions()}
        same |= {"--harness": args.harness, "--harness-limit": args.harness_limit}
        same |= {"--silence": args.silence, "--batches": list(args.batches)}
        same |= {"--alphas": args.alphas, "--max-over-refusal": args.max_over_refusal}
    request = EvaluationRequest(
        path=args.path,
        data=data,
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
    evaluate(request, comm)


def _tasks(args: argparse.Namespace) -> Tasks | None:
    from dist_moe.evaluation.harness import Tasks

    if args.harness is None:
        for option in ("include", "limit"):
            if getattr(args, f"harness_{option}") is not None:
                raise UserError(f"--harness-{option} says how tasks are run: give --harness TASK,TASK,...")
        return None
    return Tasks(names=args.harness, include=args.harness_include, limit=args.harness_limit)
