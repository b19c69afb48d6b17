"""Goals on several ranks that are counted and not timed, so every machine gives the same: bytes sent, optimizer state,
balance, and with them the peak memory. They are counted from tensors, and from transformers' own routing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dist_moe.parallel.comm import GroupComm
from tools.bench.memory import Parts, optimizer_goal, owned_goal, peak_goal
from tools.bench.pairs import bytes_of_pairs, pairs_BLE, sent_goal, tokens_goal
from tools.bench.processes import on_ranks
from tools.bench.rank_contenders import FLOOR, OURS, Contender
from tools.bench.setup import Mode, Options, Setup
from tools.bench.timing import Count
from tools.bench.traffic import Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One rank's."""

    sent: float
    """Bytes of ours, in a step on each batch."""
    pairs_BLE: np.ndarray
    """Of this rank's tokens."""
    held_LE: np.ndarray
    """The experts that are here."""
    ours: Parts
    floor: Parts


def counted_goals(
    num_ranks: int, options: Options, mode: Mode, our_peaks: Sequence[int], floor_peaks: Sequence[int]
) -> list[Count]:
    """`our_peaks` and `floor_peaks`: bytes, of each rank."""
    ranks = on_ranks(num_ranks, options.threads, count, options, mode)
    row, setup = f"step on {num_ranks} ranks, {mode}", Setup(options)
    held_RLE = torch.from_numpy(np.stack([rank.held_LE for rank in ranks]))
    assert held_RLE.sum(0).eq(1).all(), "an expert is not on exactly one rank"
    owner_LE = held_RLE.long().argmax(0)
    pairs_RBLE = torch.from_numpy(np.stack([rank.pairs_BLE for rank in ranks]))
    row_bytes = options.hidden * getattr(torch, options.dtype).itemsize
    of_pairs = sum(
        bytes_of_pairs(pairs_RBLE[:, batch], owner_LE, mask_LE.any(1), row_bytes)
        for batch, mask_LE in enumerate(setup.masks_BLE)
    )
    parts = [rank.ours for rank in ranks]
    peaks = [
        peak_goal(row, ours, rank.ours, floor, rank.floor)
        for ours, floor, rank in zip(our_peaks, floor_peaks, ranks, strict=True)
    ]
    return [
        sent_goal(row, sum(rank.sent for rank in ranks), of_pairs),
        optimizer_goal(row, parts, setup.num_union, options.dtype == "float32"),
        owned_goal(row, parts),
        tokens_goal(row, pairs_RBLE.sum(0), owner_LE, num_ranks),
        max(peaks, key=lambda each: each.value),
    ]


def count(comm: GroupComm, options: Options, mode: Mode) -> Counted:
    """On one rank: steps of ours on all batches, and one of the floor."""
    ours, floor = (Contender(name, options, mode, comm) for name in (OURS, FLOOR))
    pairs = pairs_BLE(ours.setup, mode)  # before any weight moves
    floor.step(0)
    with Traffic(comm.rank, comm.size) as traffic:
        for batch in range(options.batches):
            ours.step(batch)
    held_LE = np.zeros((options.layers, options.experts), np.bool_)
    for layer in ours.step.step.model.layers:
        held_LE[layer.index, layer.local] = True
    return Counted(
        sent=traffic.num_bytes,
        pairs_BLE=pairs.numpy(),
        held_LE=held_LE,
        ours=Parts.of(ours.step),
        floor=Parts.of(floor.step),
    )
