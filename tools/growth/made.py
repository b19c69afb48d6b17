"""Made-up inputs of any number of batches: rows with pairs, files of rows, stores of counts and masks, lines of
metrics, evaluated rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from dist_moe.data.batches import BatchPlan, plan_batches
from dist_moe.data.rows import Message, Prompt
from dist_moe.demo.base_model import train_tokenizer
from dist_moe.demo.corpus import Row
from dist_moe.evaluation.rows import EvaluatedRow, Outcome
from dist_moe.judges import Judgement
from dist_moe.rules.threshold_top_k import ThresholdTopK
from dist_moe.selection.choose import mask_plan, selected
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.evidence import Population
from dist_moe.stats.settings import StatisticsConfig
from dist_moe.store import Counts, CountsPlan, StoreWriter
from dist_moe.store.plan import HASHES

NUM_LAYERS, NUM_EXPERTS, TOP_K = 8, 32, 4
BATCH_SIZE, NUM_CATEGORIES = 16, 14
UNTESTED = StatisticsConfig(permutations=0)
RULE = ThresholdTopK(threshold=0.1, top_k=20)


def prompts(num_batches: int, rows_per_pair: int = 1) -> list[Prompt]:
    """As many safe and unsafe rows as the batches take; each pair id is on so many rows of both labels."""
    found = []
    for i in range(num_batches * BATCH_SIZE // 2):
        category = f"category {i // (BATCH_SIZE // 2) % NUM_CATEGORIES}"
        for unsafe in (False, True):
            name = f"{'u' if unsafe else 's'}{i:08}"
            messages = (Message("user", f"prompt {name}"),)
            pair = f"pair {i % (num_batches * BATCH_SIZE // 2 // rows_per_pair)}"
            found.append(Prompt(name, messages, "answer", unsafe, category if unsafe else None, "rows.jsonl:1", pair))
    return found


def rows_file(path: Path, num_batches: int) -> Path:
    """A file of as many rows as the batches take, of 40 words each."""
    generator, words = np.random.default_rng(0), np.array([f"word{i}" for i in range(1000)])
    with path.open("w") as stream:
        for i in range(num_batches * BATCH_SIZE):
            prompt, response = (" ".join(words[generator.integers(0, len(words), 20)]) for _ in range(2))
            row = {"prompt": f"{prompt} {i}", "response": response, "label": ("safe", "unsafe")[i % 2]}
            stream.write(json.dumps(row | ({"category": f"category {i % NUM_CATEGORIES}"} if i % 2 else {})) + "\n")
    return path


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(Row(f"word{i} word{i + 1}", "word", "safe", "") for i in range(999))


@cache
def plan(num_batches: int) -> BatchPlan:
    return plan_batches(prompts(num_batches), BATCH_SIZE, 0.5, 0)


def routing(
    num_prompts: int, seed: int, num_layers: int = NUM_LAYERS, num_experts: int = NUM_EXPERTS, top_k: int = TOP_K
) -> RoutingCounts:
    """Counts of prompts with a taste of their own: each layer deals its tokens to experts."""
    generator = np.random.default_rng([seed, num_prompts])
    tokens_P = generator.integers(16, 65, num_prompts)
    share_PLE = generator.dirichlet(np.full(num_experts, 2.0), (num_prompts, num_layers))
    wanted_PLE = np.floor(share_PLE * top_k * tokens_P[:, None, None]).astype(np.int64)
    return RoutingCounts(np.minimum(wanted_PLE, tokens_P[:, None, None]), tokens_P, top_k)


def stores(folder: Path, num_batches: int) -> Path:
    """counts.zarr and masks.zarr in a folder; returns the path of the masks."""
    index = plan(num_batches).index
    facts = {"num_experts": NUM_EXPERTS, "experts_per_token": TOP_K, "counted_tokens": "content"}
    layers = tuple(f"layers.{layer}.mlp" for layer in range(NUM_LAYERS))
    provenance = dict.fromkeys(HASHES, "made up") | {"seed": 0}
    counts_plan = CountsPlan(index=index, **facts, layer_names=layers, provenance=provenance)
    return write(folder, counts_plan, lambda batches: routing(index.of(batches).num_prompts, batches.start))


def other_stores(folder: Path, like: Path) -> Path:
    """Stores of the same batches, in which every expert has the counts of its neighbour."""
    counts = Counts.open(like.parent / "counts.zarr")
    names = ("index", "num_experts", "experts_per_token", "counted_tokens", "layer_names")
    facts = {name: getattr(counts, name) for name in names}

    def neighbours(batches: range) -> RoutingCounts:
        found = counts.of_batches(batches, tables=())
        return replace(found, counts_PLE=np.roll(found.counts_PLE, 1, axis=2))

    return write(folder, CountsPlan(**facts, provenance=counts.provenance | {"seed": 1}), neighbours)


def write(folder: Path, counts_plan: CountsPlan, counted: Callable[[range], RoutingCounts]) -> Path:
    folder.mkdir(parents=True)
    writer = StoreWriter(folder / "counts.zarr", counts_plan, sync=False)
    for batches in writer.missing:
        writer.write(batches, counted(batches))
    writer.seal()
    counts = Counts.open(folder / "counts.zarr")
    nothing = Population(np.zeros((1, 1), np.int64), np.zeros((1, 1)), np.zeros(1))
    masks = StoreWriter(folder / "masks.zarr", mask_plan(counts, RULE, UNTESTED), sync=False)
    for batches in masks.missing:
        masks.write(batches, selected(counts, batches, RULE, UNTESTED, nothing, progress=False))
    masks.seal()
    return folder / "masks.zarr"


def metrics(path: Path, num_batches: int, order: list[int]) -> Path:
    """A line for each step of one epoch."""
    index = plan(num_batches).index
    with path.open("w") as stream:
        for step, batch in enumerate(order, 1):
            line = {
                "step": step, "batch": batch, "batch_id": index.ids[batch], "category": index.categories[batch],
                "mask_revision": 0, "mask_hash": "0" * 64, "loss": 1.0, "grad_norm": 1.0, "num_active": 9,
                "terms": {"cross_entropy": {"mean": 1.0, "tokens": 100}}, "num_stepped": 9, "lr": 1e-5,
                "audited": False, "trains": "experts", "weight": 1.0, "num_tokens": 500, "num_loss_tokens": 100,
                "num_rows": BATCH_SIZE,
            }  # fmt: skip
            stream.write(json.dumps(line) + "\n")
    return path


def evaluated(num_batches: int) -> list[EvaluatedRow]:
    """The rows of all batches, judged before and after: most unsafe ones are refused after, some of both kinds change
    back."""
    index, generator = plan(num_batches).index, np.random.default_rng(0)

    def outcome(refuses: bool) -> Outcome:
        judged = {"phrases": Judgement("refused" if refuses else "complied", "")}
        loss, log_p = generator.normal(20, 3), generator.normal(-2, 1)
        return Outcome(loss_sum=loss, refusal_log_p=log_p, answer="", num_tokens=9, ended=True, judgements=judged)

    found = []
    for place, (batch, unsafe) in enumerate(zip(index.batch_of_P.tolist(), index.unsafe_P.tolist(), strict=True)):
        before, after = generator.random(2) < ((0.2, 0.8) if unsafe else (0.1, 0.15))
        row = EvaluatedRow(
            id=f"{place:08}", file="rows.jsonl", place="1", label="unsafe" if unsafe else "safe",
            category=index.categories[batch], prompt=f"{place:016x}", pair_id=None, kind="trained", batch=batch,
            like=None, num_loss_tokens=10, kl_sum=None if unsafe else 0.1, before=outcome(bool(before)),
            after=outcome(bool(after)),
        )  # fmt: skip
        found.append(row)
    return found
