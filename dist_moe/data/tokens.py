"""From prompts to token ids, and from rows of ids to padded tensors.

A row is rendered twice by the chat template, as text: up to where the model starts to answer, and with the answer. The
two parts are tokenised apart, so the boundary lies where it lies at inference, when the answer's tokens follow a prompt
that is already tokenised. The response includes what the template writes after it (the end-of-turn token).
Legend: R rows, S padded length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal

import torch
from jinja2 import TemplateError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dist_moe.data.rows import Prompt
from dist_moe.data.spans import span_tokens, untrimmed
from dist_moe.errors import UserError

IGNORED = -100

CountedTokens = Literal["prompt", "completion", "all", "span"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row; `response_ids` is empty where the row has no response. `unsafe` is the row's label."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    unsafe: bool = False
    span: tuple[int, int] | None = None
    """The tokens of the row's marked text, a half-open range of `prompt_ids + response_ids`. None: there are none."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """How many rows of more than `max_length` tokens lost the start of the prompt, the end of the response, and, with
    either, tokens of their span.
    """

    num_prompts_cut: int
    num_responses_cut: int
    num_spans_cut: int
    max_length: int


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """Rows in the order of the prompts."""

    rows: tuple[Encoded, ...]
    truncation: Truncation


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Right-padded rows, [R, S] each. A rank without rows holds one dummy token, which is attended but not live."""

    input_ids: Tensor
    """int64"""
    attention_mask: Tensor
    """int64, 0 at padding"""
    labels: Tensor
    """int64, the response's ids, -100 elsewhere; not shifted (the model shifts)"""
    is_completion: Tensor
    """bool, at the response's tokens"""
    live: Tensor
    """bool, at the rows' own tokens: neither padding nor the dummy"""
    is_unsafe: Tensor
    """bool, at all positions of unsafe rows"""
    in_span: Tensor
    """bool, at the tokens of the rows' spans"""

    def counted(self, which: CountedTokens) -> Tensor:
        """[R, S] bool: the tokens whose routing counts. Never padding, never the dummy."""
        if which == "all":
            return self.live
        if which == "span":
            return self.in_span
        return self.live & (self.is_completion if which == "completion" else ~self.is_completion)

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(*(getattr(self, name).to(device, non_blocking=True) for name in self.__slots__))


def encode(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, max_length: int, chat_template: str | None
) -> EncodedSet:
    """Token ids of each prompt and response, at most `max_length` together.

    A longer row first loses the start of its prompt, down to one token, then the end of its response.
    Raises UserError where there is no chat template, where it refuses a row, where a row's text with the answer
    does not start with its text without, and where a row's span is not in its text exactly once.
    """
    template = _template(tokenizer, chat_template)
    texts = [_render(prompt, tokenizer, template) for prompt in prompts]
    prompt_ids = _token_ids([text for text, _ in texts], tokenizer)
    response_ids = _token_ids([text for _, text in texts], tokenizer)
    backend = untrimmed(_backend(tokenizer)) if any(prompt.span for prompt in prompts) else None
    rows = []
    num_prompts_cut = num_responses_cut = num_spans_cut = 0
    for prompt, text, before, after in zip(prompts, texts, prompt_ids, response_ids, strict=True):
        if not before:
            raise UserError(
                f"{prompt.source}: the chat template renders this prompt to no token; see data.chat_template"
            )
        num_kept = max(1, min(len(before), max_length - len(after)))
        row = Encoded(tuple(before[-num_kept:]), tuple(after[: max_length - num_kept]), prompt.unsafe)
        if prompt.span is not None and backend is not None:
            start, stop = span_tokens(prompt.span, text, (before, after), backend, prompt.source)
            num_lost, num_left = len(before) - num_kept, num_kept + len(row.response_ids)
            left = max(start - num_lost, 0), min(stop - num_lost, num_left)
            num_spans_cut += left != (start - num_lost, stop - num_lost)
            row = replace(row, span=left if left[0] < left[1] else None)
        num_prompts_cut += len(row.prompt_ids) < len(before)
        num_responses_cut += len(row.response_ids) < len(after)
        rows.append(row)
    return EncodedSet(tuple(rows), Truncation(num_prompts_cut, num_responses_cut, num_spans_cut, max_length))


def collate(rows: Sequence[Encoded], pad_id: int) -> TokenBatch:
    """The rows, right-padded to the longest. No rows: one dummy row of one token, so that every rank has a forward."""
    if not rows:
        one = torch.ones(1, 1, dtype=torch.int64)
        no = torch.zeros(1, 1, dtype=torch.bool)
        return TokenBatch(pad_id * one, one, IGNORED * one, is_completion=no, live=no, is_unsafe=no, in_span=no)
    shape = (len(rows), max(len(row.prompt_ids) + len(row.response_ids) for row in rows))
    input_ids = torch.full(shape, pad_id)
    is_completion = torch.zeros(shape, dtype=torch.bool)
    live = torch.zeros(shape, dtype=torch.bool)
    in_span = torch.zeros(shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        start, end = len(row.prompt_ids), len(row.prompt_ids) + len(row.response_ids)
        input_ids[i, :end] = torch.tensor(row.prompt_ids + row.response_ids)
        is_completion[i, start:end] = True
        live[i, :end] = True
        if row.span is not None:
            in_span[i, slice(*row.span)] = True
    labels = input_ids.masked_fill(~is_completion, IGNORED)
    is_unsafe = torch.tensor([row.unsafe for row in rows])[:, None].expand(shape)
    return TokenBatch(input_ids, live.to(torch.int64), labels, is_completion, live, is_unsafe, in_span)


def collate_prompts(rows: Sequence[Encoded], pad_id: int) -> tuple[Tensor, Tensor]:
    """The prompts of at least one row, left-padded as decoding needs it: ids int64 [R, S], and bool where they are."""
    width = max(len(row.prompt_ids) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    live = torch.zeros_like(input_ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        input_ids[i, width - len(row.prompt_ids) :] = torch.tensor(row.prompt_ids)
        live[i, width - len(row.prompt_ids) :] = True
    return input_ids, live


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's padding id, else its end-of-sequence id, else 0: no result depends on it."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> str:
    """sha256 of the fast tokenizer's serialised backend, its special tokens and the chat template in use.

    Padding and truncation are left out: they are settings of the last call, not of the tokenizer.
    """
    backend = json.loads(_backend(tokenizer).to_str()) | {"padding": None, "truncation": None}
    state = [backend, tokenizer.special_tokens_map, _template(tokenizer, chat_template)]
    return sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    if not tokenizer.is_fast:
        raise UserError(f"{tokenizer.name_or_path}: no fast tokenizer; model.path needs a tokenizer.json")
    return tokenizer.backend_tokenizer


def _template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str:
    try:
        return tokenizer.get_chat_template(chat_template)
    except ValueError as error:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template (or no default one); "
            "name a Jinja file in data.chat_template"
        ) from error


def _render(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, str]:
    """Text up to where the model starts to answer, and the text from there on (empty without a response)."""
    messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
    before = _rendered(messages, prompt.source, tokenizer, template, add_generation_prompt=True)
    if prompt.response is None:
        return before, ""
    messages.append({"role": "assistant", "content": prompt.response})
    both = _rendered(messages, prompt.source, tokenizer, template, add_generation_prompt=False)
    if both == before or not both.startswith(before):
        raise UserError(
            f"{prompt.source}: the chat template's text with the answer does not continue its text for generation, so "
            "prompt and response have no boundary; name another template in data.chat_template"
        )
    return before, both.removeprefix(before)


def _rendered(
    messages: list[dict[str, str]],
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    add_generation_prompt: bool,
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise UserError(f"{source}: the chat template does not take this row: {error}") from error
    assert isinstance(text, str)  # tokenize=False
    return text


def _token_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    # verbose would warn of rows beyond the model's length, which `encode` is about to cut
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
