"""Rows as token ids, and tensors of several rows, padded or packed. `dist_moe.data.encode` makes the ids.

Legend: R rows, S padded length; packed, R is 1, and S the number of all rows' tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

IGNORED = -100

CountedTokens = Literal["content", "prompt", "completion", "all", "span"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row. Ranges are half-open, in positions of `prompt_ids + response_ids`, after truncation."""

    prompt_ids: tuple[int, ...]
    """All tokens before the answer."""
    response_ids: tuple[int, ...]
    """The answer and the token that ends its turn; empty if the row has no response."""
    unsafe: bool = False
    """Label of the row."""
    span: tuple[int, int] | None = None
    """The tokens of the row's span; None if it has none."""
    content: tuple[tuple[int, int], ...] = ()
    """Prompt tokens with a character of a message's text: ranges in order that do not touch."""
    gap: tuple[int, int] | None = None
    """Tokens that the template writes between the answer and the token that ends its turn; they are not trained."""
    alone_ids: tuple[int, ...] | None = None
    """The prompt tokenised alone, as inference does; None if that equals `prompt_ids`."""
    rejected: Encoded | None = None
    """The same prompt with a worse answer than the response; None if the row has none."""

    @property
    def inference_ids(self) -> tuple[int, ...]:
        """The input of inference."""
        return self.prompt_ids if self.alone_ids is None else self.alone_ids

    @property
    def num_tokens(self) -> int:
        """Of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def num_content(self) -> int:
        """Number of prompt tokens that are content; the others belong to the template."""
        return sum(stop - start for start, stop in self.content)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows, each padded on the right, or packed: laid end to end in one row of the tensors. Every tensor but
    `predicting` is [R, S]. A rank without rows has one dummy token, which is not live."""

    input_ids: Tensor
    """int64"""
    labels: Tensor
    """int64: ids of the trained tokens, -100 elsewhere; not shifted, as the model shifts them. Nothing predicts a row's
    first token: it is -100."""
    is_completion: Tensor
    """bool: tokens of the answer, and the token that ends its turn."""
    is_prompt: Tensor
    """bool: tokens of the prompt."""
    live: Tensor
    """bool: tokens of the rows, neither padding nor the dummy."""
    is_unsafe: Tensor
    """bool: all positions of unsafe rows."""
    in_content: Tensor
    """bool: prompt tokens with a character of a message."""
    in_span: Tensor
    """bool: tokens of the rows' spans."""
    is_rejected: Tensor
    """bool: all positions of the sequences of rejected answers, which follow the rows if they were asked for."""
    rejected_labels: Tensor
    """int64: as `labels`, of rejected answers, which have no `labels`."""
    pair: Tensor
    """int64: at all positions of a row and of its rejected answer, the index of the row; -1 if it has none."""
    row: Tensor
    """int64: the index of the row that a position belongs to; rejected answers have indices of their own."""
    place: Tensor
    """int64: where in its row a position is."""
    predicting: Tensor
    """int64 [n]: the positions, of R * S, from which a token with one of `all_labels` is predicted, in order."""
    num_live: int
    """How many tokens are live. Both are made here, as a GPU would have to be waited for."""
    num_rows: int
    """How many rows there are, with those of rejected answers; the dummy is one."""
    is_packed: bool

    @property
    def inputs(self) -> dict[str, Any]:
        """The arguments of a model's forward pass.

        There is no attention mask: attention is causal, so that no token sees the padding on its right, and without a
        mask torch takes its fastest way. Of packed rows, transformers is given the places: where they begin anew, a
        row begins, whose tokens see no other row.
        """
        places = {"position_ids": self.place} if self.is_packed else {}
        return {"input_ids": self.input_ids, **places, "use_cache": False}

    @property
    def begins(self) -> Tensor:
        """bool: the first token of each row, the dummy and rejected answers included."""
        return self.place == 0

    @property
    def own(self) -> Tensor:
        """bool: tokens of the rows themselves, neither padding nor the dummy nor of a rejected answer's sequence."""
        return self.live & ~self.is_rejected

    @property
    def all_labels(self) -> Tensor:
        """`labels`, and those of rejected answers."""
        return self.labels.where(~self.is_rejected, self.rejected_labels)

    def counted(self, which: CountedTokens) -> Tensor:
        """bool [R, S]: the tokens whose routing is counted; never padding or the dummy."""
        of = {
            "content": self.in_content,
            "prompt": self.is_prompt,
            "completion": self.is_completion,
            "all": self.live,
            "span": self.in_span,
        }
        return of[which]

    def to(self, device: torch.device | str) -> TokenBatch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> TokenBatch:
        """A copy in pinned memory, from where `to` does not wait for a GPU."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> TokenBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return TokenBatch(**values | {name: function(tensor) for name, tensor in tensors.items()})


def collate(rows: Sequence[Encoded], pad_id: int, *, pairs: bool = False, packed: bool = False) -> TokenBatch:
    """Pad rows on the right to the longest or, `packed`, lay them end to end. No rows: one dummy row of one token, so
    that every rank has a forward pass to run. With `pairs`, the rejected answers follow the rows, as rows of their
    own."""
    paired = [i for i, row in enumerate(rows) if pairs and row.rejected is not None]
    num_own = max(len(rows), 1)
    rows = [*rows, *(worse for i in paired if (worse := rows[i].rejected) is not None)]
    lengths = [row.num_tokens for row in rows] or [1]
    shape, starts = _shape(lengths, packed=packed)
    row_T, place_T = _places(lengths, shape, starts)
    input_ids = torch.full_like(row_T, pad_id)
    is_prompt, is_completion, in_content, in_span, is_unsafe = torch.zeros(5, len(row_T), dtype=torch.bool)
    gaps = torch.zeros_like(is_prompt)
    for start, row in zip(starts, rows, strict=False):  # the dummy has no row
        input_ids[start : start + row.num_tokens] = torch.tensor(row.prompt_ids + row.response_ids)
        for places, ranges in (
            (is_prompt, ((0, len(row.prompt_ids)),)),
            (is_completion, ((len(row.prompt_ids), row.num_tokens),)),
            (in_content, row.content),
            (in_span, () if row.span is None else (row.span,)),
            (gaps, () if row.gap is None else (row.gap,)),
        ):
            for first, stop in ranges:
                places[start + first : start + stop] = True
    if rows:
        is_unsafe = torch.tensor([row.unsafe for row in rows])[row_T]
    live = is_prompt | is_completion
    is_completion &= ~gaps
    labels = input_ids.masked_fill(~is_completion | (place_T == 0), IGNORED)
    is_rejected = row_T >= num_own
    pair_of = torch.full((len(lengths),), -1)
    pair_of[paired] = torch.tensor(paired, dtype=torch.int64)
    pair_of[num_own:] = torch.tensor(paired, dtype=torch.int64)
    tensors = {
        "input_ids": input_ids,
        "labels": labels.masked_fill(is_rejected, IGNORED),
        "is_completion": is_completion,
        "is_prompt": is_prompt,
        "live": live,
        "is_unsafe": is_unsafe,
        "in_content": in_content,
        "in_span": in_span,
        "is_rejected": is_rejected,
        "rejected_labels": labels.masked_fill(~is_rejected, IGNORED),
        "pair": pair_of[row_T],
        "row": row_T,
        "place": place_T,
    }
    return TokenBatch(
        **{name: values_T.view(shape) for name, values_T in tensors.items()},
        predicting=torch.nonzero(labels[1:] != IGNORED).flatten(),
        num_live=int(live.sum()),
        num_rows=len(lengths),
        is_packed=packed,
    )


def _shape(lengths: Sequence[int], *, packed: bool) -> tuple[tuple[int, int], list[int]]:
    """The shape of the tensors, and where in them, flat, each row starts."""
    if packed:
        return (1, sum(lengths)), [0, *accumulate(lengths[:-1])]
    shape = len(lengths), max(lengths)
    return shape, [i * shape[1] for i in range(shape[0])]


def _places(lengths: Sequence[int], shape: tuple[int, int], starts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The row of each position, and where in its row it is, both flat; padding goes on counting."""
    first_R = torch.tensor(starts)
    total = shape[0] * shape[1]
    row_T = torch.repeat_interleave(torch.diff(first_R, append=torch.tensor([total])))
    return row_T, torch.arange(total) - first_R[row_T]


def collate_prompts(rows: Sequence[Encoded], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad the inference inputs of at least one row on the left: ids int64 [R, S], and bool [R, S] at real tokens."""
    width = max(len(row.inference_ids) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    live = torch.zeros_like(input_ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        input_ids[i, width - len(row.inference_ids) :] = torch.tensor(row.inference_ids)
        live[i, width - len(row.inference_ids) :] = True
    return input_ids, live


def tokens_hash(rows: Iterable[Encoded]) -> str:
    """SHA-256 of all that encoding decides: token ids, where answers begin and end, what is content and span."""
    total = sha256()
    for row in rows:
        ids = [row.prompt_ids, row.response_ids, row.alone_ids]
        worse = [] if row.rejected is None else [row.rejected.prompt_ids, row.rejected.response_ids, row.rejected.gap]
        total.update(json.dumps([*ids, row.content, row.span, row.gap, *worse]).encode() + b"\n")
    return total.hexdigest()
