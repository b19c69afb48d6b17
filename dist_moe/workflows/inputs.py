"""Reads what analysis, training and evaluation all start from: prompts, tokens, batches, and hashes of their
sources."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from dist_moe.config.schema import Config
from dist_moe.data.batches import BatchPlan
from dist_moe.data.encode import EncodedSet
from dist_moe.data.index import BatchIndex
from dist_moe.data.rows import Prompt, PromptSet
from dist_moe.data.tokens import Encoded, tokens_hash
from dist_moe.files import writing
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.report.data import batch_lines, data_lines
from dist_moe.store.origin import NO_WEIGHTS
from dist_moe.store.source import is_url
from dist_moe.weights.directory import has_weights
from dist_moe.weights.identity import shared_model_hash
from dist_moe.workflows.encoding import Encoding, read_encoded
from dist_moe.workflows.kept_rows import DealtRows, keep_rows, kept_rows, made_rows, rows_key
from dist_moe.workflows.run_dir import RunDir

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRows:
    """Rows as a model's tokenizer makes them; the same on all ranks."""

    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSet
    encoded: EncodedSet
    encode: Callable[[Sequence[Prompt]], EncodedSet]
    """How `encoded` was made, for other texts with these prompts."""
    pad_id: int
    end_ids: tuple[int, ...]
    """Token ids that end an answer: that of the tokenizer, and those in the checkpoint's settings."""
    tokenizer_hash: str
    tokens_hash: str

    @property
    def facts(self) -> dict[str, object]:
        """Values that must be the same on all ranks."""
        return {
            "the number of rows": len(self.prompts.prompts),
            "the data's hash": self.prompts.data_hash,
            "the tokenizer's hash": self.tokenizer_hash,
            "the tokens' hash": self.tokens_hash,
        }


@dataclass(frozen=True, slots=True)
class UnkeptRows:
    """Rows that the next start would have to make again."""

    key: str
    rows: DealtRows

    def keep(self, run: RunDir) -> None:
        """Keep them for later commands of this run."""
        keep_rows(run.rows, self.key, self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs(TokenRows):
    """The inputs of a run: rows, and the batches that they are in; the same on all ranks."""

    plan: BatchPlan
    """Which of the prompts are in which batch."""
    model_hash: str
    """Hash of the model."""
    unkept: UnkeptRows | None
    """What no file of the run directory holds yet."""

    @property
    def batches(self) -> BatchIndex:
        return self.plan.index

    @property
    def num_tokens(self) -> tuple[int, ...]:
        """[B]: tokens of each batch's rows."""
        taken_P = np.array(self.plan.taken_P)
        return tuple(np.add.reduceat(self.encoded.rows.num_tokens_R[taken_P], self.batches.starts_B1[:-1]).tolist())

    def rows(self, batches: int | range) -> list[Encoded]:
        """The encoded rows of one batch or of consecutive batches; the safe rows of each batch come first."""
        return [self.encoded.rows[i] for i in self.plan.taken_P[self.batches.rows(batches)]]


def read_inputs(config: Config, comm: Comm, *, weights: bool = True) -> Inputs:
    """Read and check everything but the weights, and log what the user should know of the data. Called by all ranks.

    Rows that an earlier command has kept are not made again. Without `weights`, the model directory needs
    none, and `model_hash` is `NO_WEIGHTS` if it has none.

    Raises:
        UserError: on all ranks: something is wrong on one of them, or differs between two.
    """
    with together(comm) as same:
        encoding = Encoding.of(config, weights=weights)
        key = rows_key(config, encoding)
        known = None if key is None else _known_rows(config, key)
        dealt = known or made_rows(config, encoding)
        rows = _token_rows(config, encoding, dealt.prompts, dealt.encoded, dealt.tokens_hash)
        for line in batch_lines(dealt.plan):
            log.info(line)
        ids = dealt.plan.index.ids
        same |= {**TokenRows(**rows).facts, "the batches' hash": sha256(" ".join(ids).encode()).hexdigest()}
    path = config.model.path
    if weights or all(comm.gather(has_weights(path))):
        model_hash = shared_model_hash(path, comm, rehash=config.rehash)
    else:
        model_hash = NO_WEIGHTS
    unkept = None if key is None or known is not None else UnkeptRows(key, dealt)
    return Inputs(**rows, plan=dealt.plan, model_hash=model_hash, unkept=unkept)


def _known_rows(config: Config, key: str) -> DealtRows | None:
    """What this run has kept, or the one whose masks are trained: all variants of a comparison have one count."""
    runs, masks = [config.run_dir], config.train.masks
    if masks is not None and not is_url(masks):
        runs.append(Path(masks).parent)
    found = (kept_rows(RunDir(run).rows, key, config.data) for run in runs)
    return next((rows for rows in found if rows is not None), None)


def keep_inputs(inputs: Inputs, config: Config, comm: Comm) -> None:
    """Keep the rows in the run directory, if none are there. Called by all ranks, once nothing can be refused."""
    run = RunDir(config.run_dir)
    with together(comm), writing(run.path):
        if comm.rank == 0 and inputs.unkept is not None:
            inputs.unkept.keep(run)


def read_token_rows(config: Config) -> TokenRows:
    """Read the rows of `data.paths` and turn them into tokens, on one rank; log what the user should know of them.

    Raises:
        UserError: something of the data, the tokenizer or the model's configuration cannot be used.
    """
    encoding = Encoding.of(config)
    prompts, encoded = read_encoded(config.data, encoding)
    return TokenRows(**_token_rows(config, encoding, prompts, encoded, tokens_hash(encoded.rows)))


def _token_rows(
    config: Config, encoding: Encoding, prompts: PromptSet, encoded: EncodedSet, tokens: str
) -> dict[str, Any]:
    """The fields of `TokenRows`; logs what the user should know of the rows."""
    for line in data_lines(config.data, prompts, encoded.findings, encoding.most_positions):
        log.info(line)
    return {
        "tokenizer": encoding.tokenizer,
        "prompts": prompts,
        "encoded": encoded,
        "encode": encoding.encode,
        "pad_id": encoding.pad_id,
        "end_ids": encoding.end_ids,
        "tokenizer_hash": encoding.hash,
        "tokens_hash": tokens,
    }
