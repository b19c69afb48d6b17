"""How the rows of a run become tokens: the tokenizer of a model directory, its chat template, and what is asked of
both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from dist_moe.config.schema import Config, DataConfig
from dist_moe.data.encode import EncodedSet, encode, pad_token_id, tokenizer_hash
from dist_moe.data.encoded import EncodedRows
from dist_moe.data.rows import Prompt, PromptSet, read_prompts
from dist_moe.errors import UserError, refused_by_library, shown
from dist_moe.weights.configuration import read_config, read_generation_config
from dist_moe.weights.model_dir import check_model_dir

COPY_AGAIN = "copy or download the checkpoint again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """All that the tokens of a row depend on beside the row."""

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    """Jinja text; None: the tokenizer's own."""
    today: date
    variables: dict[str, Any]
    max_length: int
    end_ids: tuple[int, ...]
    """Token ids that end an answer: that of the tokenizer, and those in the checkpoint's settings."""
    num_ids: int
    """The model has embeddings for so many."""
    most_positions: object
    """The model's max_position_embeddings, if it names a number."""
    place: Path
    """The model directory."""

    @classmethod
    def of(cls, config: Config, *, weights: bool = True) -> Encoding:
        """Read it from the model directory, which without `weights` needs none.

        Raises:
            UserError: something of the tokenizer, the template or the model's configuration cannot be used.
        """
        path, data = config.model.path, config.data
        check_model_dir(path, weights=weights)
        today, template, variables = _template_date(data), _chat_template(data), _template_variables(data)
        # before the tokenizer, which reads config.json too and would be blamed for it
        model = read_config(path, weights=weights)
        tokenizer = read_tokenizer(path)
        text = model.get_text_config()
        return cls(
            tokenizer=tokenizer,
            template=template,
            today=today,
            variables=variables,
            max_length=data.max_length,
            end_ids=_end_ids(path, model, tokenizer),
            num_ids=text.vocab_size,
            most_positions=getattr(text, "max_position_embeddings", None),
            place=path,
        )

    def encode(self, prompts: Sequence[Prompt]) -> EncodedSet:
        """As `dist_moe.data.encode.encode` does."""
        return encode(
            prompts,
            self.tokenizer,
            self.max_length,
            self.template,
            today=self.today,
            end_ids=self.end_ids,
            variables=self.variables,
        )

    @property
    def hash(self) -> str:
        """Of the tokenizer and the template in use."""
        return tokenizer_hash(self.tokenizer, self.template)

    @property
    def pad_id(self) -> int:
        found = pad_token_id(self.tokenizer)
        return found if found < self.num_ids else 0

    def check_ids(self, prompts: Sequence[Prompt], rows: EncodedRows) -> None:
        """Refuse token ids for which the model has no embedding.

        Raises:
            UserError: names the first row with one.
        """
        for prompt, row in zip(prompts, rows, strict=True):
            largest = max(row.prompt_ids + row.response_ids + row.inference_ids)
            if largest >= self.num_ids:
                raise UserError(
                    f"{prompt.source}: the token {shown(self.tokenizer.convert_ids_to_tokens(largest))} has id "
                    f"{largest}, but the model has ids up to {self.num_ids - 1} (vocab_size): {self.place} holds the "
                    "tokenizer of another model"
                )


def read_encoded(data: DataConfig, encoding: Encoding) -> tuple[PromptSet, EncodedSet]:
    """The rows of `data.paths`, and their tokens.

    Raises:
        UserError: a row cannot be used.
    """
    prompts = read_prompts(data.paths, data.refusal)
    encoded = encoding.encode(prompts.prompts)
    encoding.check_ids(prompts.prompts, encoded.rows)
    return prompts, encoded


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
