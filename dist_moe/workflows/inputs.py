"""Reads what analysis, training and evaluation all start from: prompts, tokens, batches, and hashes of their
sources."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from dist_moe.config.schema import Config, DataConfig
from dist_moe.data.batches import BatchPlan, plan_batches
from dist_moe.data.encode import EncodedSet, encode, pad_token_id, tokenizer_hash
from dist_moe.data.index import BatchIndex
from dist_moe.data.rows import Prompt, PromptSet, read_prompts
from dist_moe.data.tokens import Encoded, tokens_hash
from dist_moe.errors import UserError, refused_by_library, shown
from dist_moe.model.model import check_model_dir
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.report.data import batch_lines, data_lines
from dist_moe.store.origin import NO_WEIGHTS
from dist_moe.weights.configuration import read_config, read_generation_config
from dist_moe.weights.directory import has_weights
from dist_moe.weights.identity import shared_model_hash

log = logging.getLogger(__name__)

COPY_AGAIN = "copy or download the checkpoint again"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs(TokenRows):
    """The inputs of a run: rows, and the batches that they are in; the same on all ranks."""

    plan: BatchPlan
    """Which of the prompts are in which batch."""
    model_hash: str
    """Hash of the model."""

    @property
    def batches(self) -> BatchIndex:
        return self.plan.index

    def rows(self, batches: int | range) -> list[Encoded]:
        """The encoded rows of one batch or of consecutive batches; the safe rows of each batch come first."""
        return [self.encoded.rows[i] for i in self.plan.taken_P[self.batches.rows(batches)]]


def read_inputs(config: Config, comm: Comm, *, weights: bool = True) -> Inputs:
    """Read and check everything but the weights, and log what the user should know of the data. Called by all ranks.

    Without `weights`, the model directory needs none, and `model_hash` is `NO_WEIGHTS` if it has none.

    Raises:
        UserError: on all ranks: something is wrong on one of them, or differs between two.
    """
    with together(comm) as same:
        rows = read_token_rows(config, weights=weights)
        batches = config.batches
        plan = plan_batches(rows.prompts.prompts, batches.batch_size, batches.safe_ratio, config.seed)
        for line in batch_lines(plan):
            log.info(line)
        same |= {**rows.facts, "the batches' hash": sha256(" ".join(plan.index.ids).encode()).hexdigest()}
    path = config.model.path
    if weights or all(comm.gather(has_weights(path))):
        model_hash = shared_model_hash(path, comm, rehash=config.rehash)
    else:
        model_hash = NO_WEIGHTS
    known = {field.name: getattr(rows, field.name) for field in fields(TokenRows)}
    return Inputs(**known, plan=plan, model_hash=model_hash)


def read_token_rows(config: Config, *, weights: bool = True) -> TokenRows:
    """Read the rows of `data.paths` and turn them into tokens, on one rank; log what the user should know of them.

    Without `weights`, the model directory needs none.

    Raises:
        UserError: something of the data, the tokenizer or the model's configuration cannot be used.
    """
    path, data = config.model.path, config.data
    check_model_dir(path, weights=weights)
    today, template, variables = _template_date(data), _chat_template(data), _template_variables(data)
    prompts = read_prompts(data.paths, data.refusal)
    model = read_config(
        path, weights=weights
    )  # before the tokenizer, which reads config.json too and would be blamed for it
    tokenizer = read_tokenizer(path)
    end_ids = _end_ids(path, model, tokenizer)

    def encoded_as(some: Sequence[Prompt]) -> EncodedSet:
        return encode(some, tokenizer, data.max_length, template, today=today, end_ids=end_ids, variables=variables)

    encoded = encoded_as(prompts.prompts)
    num_ids = model.get_text_config().vocab_size
    _check_ids(prompts, encoded, tokenizer, path, num_ids)
    most_positions = getattr(model.get_text_config(), "max_position_embeddings", None)
    for line in data_lines(data, prompts, encoded.findings, most_positions):
        log.info(line)
    pad_id = pad_token_id(tokenizer)
    return TokenRows(
        tokenizer=tokenizer,
        prompts=prompts,
        encoded=encoded,
        encode=encoded_as,
        pad_id=pad_id if pad_id < num_ids else 0,
        end_ids=end_ids,
        tokenizer_hash=tokenizer_hash(tokenizer, template),
        tokens_hash=tokens_hash(encoded.rows),
    )


def tokenizer_hash_of(path: Path, data: DataConfig) -> str:
    """`TokenRows.tokenizer_hash` of another model's directory with the same settings."""
    check_model_dir(path)
    return tokenizer_hash(read_tokenizer(path), _chat_template(data))


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory.

    Raises:
        UserError: it cannot be read, or the directory has none (transformers would then make one of a few tokens).
    """
    advice = f"{COPY_AGAIN}, with its tokenizer files"
    with refused_by_library(f"model.path: the tokenizer of {path} cannot be read", advice):
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    others = [name for kind, name in tokenizer.vocab_files_names.items() if kind != "tokenizer_file"]
    files = ["tokenizer.json"], others
    if not any(names and all((path / name).is_file() for name in names) for names in files):
        raise UserError(f"model.path: {path} has no tokenizer: expected a tokenizer.json beside config.json; {advice}")
    return tokenizer


def _chat_template(data: DataConfig) -> str | None:
    file = data.chat_template
    if file is None:
        return None
    if not file.is_file():
        raise UserError(f"data.chat_template: no file {file}")
    with refused_by_library(f"data.chat_template: {file} cannot be read", "expected a Jinja file, UTF-8 text"):
        return file.read_text(encoding="utf-8")


def _template_date(data: DataConfig) -> date:
    try:
        return date.fromisoformat(data.template_date)
    except ValueError as error:
        raise UserError(
            f"data.template_date is {shown(data.template_date)}: expected a day of the calendar, such as 2025-01-31"
        ) from error


def _template_variables(data: DataConfig) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    for each in data.template_kwargs:
        name, equals, value = (part.strip() for part in each.partition("="))
        if not equals or not name.isidentifier():
            raise UserError(
                f"data.template_kwargs: expected name=value, such as enable_thinking=false, got {shown(each)}"
            )
        if name in variables:
            raise UserError(f"data.template_kwargs: {shown(name)} is given twice")
        try:
            variables[name] = json.loads(value, parse_constant=str)
        except (ValueError, RecursionError):
            if value in ("True", "False", "None"):  # as text it would be true
                raise UserError(
                    f'data.template_kwargs: {shown(each)}: write true, false or null, or "{value}" for text'
                ) from None
            variables[name] = value
    return variables


def _end_ids(path: Path, model: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    named = (read_generation_config(path) or GenerationConfig.from_model_config(model)).eos_token_id
    ids = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return tuple(sorted(ids - {None}))


def _check_ids(
    prompts: PromptSet, encoded: EncodedSet, tokenizer: PreTrainedTokenizerBase, path: Path, num_ids: int
) -> None:
    """Refuse token ids for which the model has no embedding."""
    for prompt, row in zip(prompts.prompts, encoded.rows, strict=True):
        largest = max(row.prompt_ids + row.response_ids + row.inference_ids)
        if largest >= num_ids:
            raise UserError(
                f"{prompt.source}: the token {shown(tokenizer.convert_ids_to_tokens(largest))} has id {largest}, but "
                f"the model has ids up to {num_ids - 1} (vocab_size): {path} holds the tokenizer of another model"
            )
