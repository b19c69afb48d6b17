"""Rows as token ids, and from rows of ids to padded tensors. How a row becomes ids: `dist_moe.data.encode`.

Legend: R rows, S padded length.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import torch
from torch import Tensor

IGNORED = -100

CountedTokens = Literal["content", "prompt", "completion", "all", "span"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row. All ranges are half-open, in positions of `prompt_ids + response_ids`, after what was cut off."""

    prompt_ids: tuple[int, ...]
    """What stands before the answer."""
    response_ids: tuple[int, ...]
    """The answer and the token that ends its turn; empty where the row has no response."""
    unsafe: bool = False
    """The row's label."""
    span: tuple[int, int] | None = None
    """The tokens of the row's marked text. None: there are none."""
    content: tuple[tuple[int, int], ...] = ()
    """The prompt's tokens with a character of its messages' own texts; in order, and they do not touch."""
    gap: tuple[int, int] | None = None
    """What the template writes between the answer and the token that ends its turn: it is not trained."""
    alone_ids: tuple[int, ...] | None = None
    """The prompt tokenised alone, as inference feeds it. None: the same as `prompt_ids`."""

    @property
    def inference_ids(self) -> tuple[int, ...]:
        """What the model is given when it is to answer."""
        return self.prompt_ids if self.alone_ids is None else self.alone_ids

    @property
    def num_content(self) -> int:
        """How many of the prompt's tokens are content; the others are the template's."""
        return sum(stop - start for start, stop in self.content)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Right-padded rows, [R, S] each. A rank without rows holds one dummy token, which is attended but not live."""

    input_ids: Tensor
    """int64"""
    attention_mask: Tensor
    """int64, 0 at padding"""
    labels: Tensor
    """int64, the ids that are trained, -100 elsewhere; not shifted (the model shifts)"""
    is_completion: Tensor
    """bool, at the tokens of the answer and at the one that ends its turn"""
    is_prompt: Tensor
    """bool, at the prompt's tokens"""
    live: Tensor
    """bool, at the rows' own tokens: neither padding nor the dummy"""
    is_unsafe: Tensor
    """bool, at all positions of unsafe rows"""
    in_content: Tensor
    """bool, at the prompt's tokens with a character of its messages"""
    in_span: Tensor
    """bool, at the tokens of the rows' spans"""

    def counted(self, which: CountedTokens) -> Tensor:
        """[R, S] bool: the tokens whose routing counts. Never padding, never the dummy."""
        of = {
            "content": self.in_content,
            "prompt": self.is_prompt,
            "completion": self.is_completion,
            "all": self.live,
            "span": self.in_span,
        }
        return of[which]

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(*(getattr(self, name).to(device, non_blocking=True) for name in self.__slots__))


def collate(rows: Sequence[Encoded], pad_id: int) -> TokenBatch:
    """The rows, right-padded to the longest. No rows: one dummy row of one token, so that every rank has a forward."""
    width = max((len(row.prompt_ids) + len(row.response_ids) for row in rows), default=1)
    shape = (max(len(rows), 1), width)
    input_ids = torch.full(shape, pad_id)
    is_prompt, is_completion, in_content, in_span, is_unsafe = torch.zeros(5, *shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        start, end = len(row.prompt_ids), len(row.prompt_ids) + len(row.response_ids)
        input_ids[i, :end] = torch.tensor(row.prompt_ids + row.response_ids)
        is_prompt[i, :start] = True
        is_completion[i, start:end] = True
        is_unsafe[i] = row.unsafe
        for places, ranges in (
            (in_content, row.content),
            (in_span, () if row.span is None else (row.span,)),
        ):
            for first, stop in ranges:
                places[i, first:stop] = True
    live = is_prompt | is_completion
    for i, row in enumerate(rows):
        if row.gap is not None:
            is_completion[i, slice(*row.gap)] = False
    attended = live if rows else torch.ones_like(live)
    return TokenBatch(
        input_ids,
        attended.to(torch.int64),
        input_ids.masked_fill(~is_completion, IGNORED),
        is_completion=is_completion,
        is_prompt=is_prompt,
        live=live,
        is_unsafe=is_unsafe,
        in_content=in_content,
        in_span=in_span,
    )


def collate_prompts(rows: Sequence[Encoded], pad_id: int) -> tuple[Tensor, Tensor]:
    """At least one row's prompts as inference feeds them, left-padded: ids int64 [R, S], and bool where they are."""
    width = max(len(row.inference_ids) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    live = torch.zeros_like(input_ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        input_ids[i, width - len(row.inference_ids) :] = torch.tensor(row.inference_ids)
        live[i, width - len(row.inference_ids) :] = True
    return input_ids, live


def tokens_hash(rows: Iterable[Encoded]) -> str:
    """sha256 of all that rows say of tokens: their ids, where the answer begins and ends, what is content and span."""
    total = sha256()
    for row in rows:
        ids = [row.prompt_ids, row.response_ids, row.alone_ids]
        total.update(json.dumps([*ids, row.content, row.span, row.gap]).encode() + b"\n")
    return total.hexdigest()
