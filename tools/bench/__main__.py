"""Speed and size against what one would use otherwise, side by side in one run.

    python -m tools.bench                        minutes; on CUDA where there is one
    python -m tools.bench --small                seconds: does it run
    python -m tools.bench --rows step --experts 128 --hidden 2048 --dtype bfloat16

Times of one machine say little, so the numbers to read are ratios: each contender of a row has ours at its side once a
round, in an order that changes. All rows are measured in several launches, each a fresh process. The table shows the
smallest ratio, the median of the launches' medians with the interval in which a second run's is to be expected, and
the largest. A median over its goal is SHORT, else PASS; why it is SHORT stands below, in numbers of the same run. The
exit status is 0 either way. Before the clock starts, contenders must agree on what they compute. With `--out FILE` the
numbers are kept, and a later run with `--previous FILE` says of each row whether its median lies in that interval.
Rows:

- experts   all layers' experts, forward and backward, also to their inputs, on the routing of a real forward pass;
            against transformers' "grouped_mm" with whole trainable tensors, and with frozen ones (no weight gradients)
- step      one training step, against a hand-written floor (goal: ours / floor <= 1.00), a compact union of trained
            experts with torch's AdamW (<= 0.92 in mode update, 0.62 in mode route), and the usual way: whole expert
            tensors, gradients times the mask, torch's AdamW; with the peak memory of each, measured in a process of
            its own
- larger    the same step against floor and peer with the same goals, in a model with experts of four times the size
- ranks     the step on several ranks, each a process, against copies of the floor that do not communicate (<= 1.10
            in mode update, 1.15 in mode route), the compact union with DDP, and the expert parallelism of transformers
            and of DeepSpeed (<= 0.68, 0.52); with collectives, bytes sent, and the memory of the rank with most; and
            the counted goals: bytes sent over those of the allowed pairs (<= 1), bytes of optimizer state a parameter
            (<= 12, in float32 8), balance of state (<= 1.05) and of rows of experts (<= 1.10), peak memory (<= 1.05 of
            weights, 16 B a trained parameter and the floor's activations)
- counted   the counted goals alone, on 4 ranks
- tap       forward passes with counting against ones without (<= 1.02)
- permutation   the labels of a batch of 16 prompts permuted, for all experts at once, against a loop over labelings
- store     a mask store as an analysis writes it, and one with 100,000 masks: writing, bits a mask cell (<= 1.1), files
            (hundreds), opening it and reading one batch's mask with no page of it in memory (<= 5 ms)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch
import tyro

from tools.bench.launches import measure_all
from tools.bench.markdown import markdown
from tools.bench.record import RecordError, beside, read, write
from tools.bench.setup import SMALL, Options
from tools.bench.table import columns, table


def parse(arguments: Sequence[str]) -> Options:
    return tyro.cli(
        Options, args=arguments, description=__doc__, default=SMALL if "--small" in arguments else Options()
    )


def main() -> None:
    options = parse(sys.argv[1:])
    try:
        previous = None if options.previous is None else read(options.previous, asdict(options))
    except RecordError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    if options.out is not None and not options.out.parent.is_dir():
        print(f"--out {options.out}: {options.out.parent} is no directory; name a file in one", file=sys.stderr)
        raise SystemExit(2)
    if options.launches < 2:
        print(f"--launches {options.launches}: an interval needs 2 or more", file=sys.stderr)
        raise SystemExit(2)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    print(describe(options), flush=True)
    results = measure_all(options)
    print((markdown if options.markdown else table)(results))
    if previous is not None:
        header = (f"beside {options.previous}", "then (interval)", "now", "this run's median")
        print("\n" + columns([header, *beside(previous, results)]))
    if options.out is not None:
        write(options.out, asdict(options), results)


def describe(options: Options) -> str:
    """What ran on what, in two lines."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    o = options
    return (
        f"torch {torch.__version__} on {device}, {o.dtype}; ratios are ours / other\n"
        f"{o.launches} launches of {o.repetitions} rounds; "
        f"{o.layers} layers, H {o.hidden}, I {o.intermediate}, E {o.experts}, k {o.top_k}, {o.tokens} positions, "
        f"{o.padding:.0%} of them padding, {o.num_trained} trained experts a batch, {o.batches} masks\n"
    )


if __name__ == "__main__":
    main()
