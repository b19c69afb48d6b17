"""Turns prompts and responses into token ids, in the same way as inference does, and marks what is trained.

The text of a row, with its answer, is tokenised once and split where the answer begins. Trained are the tokens with a
character of the answer, and the special token after it, which ends the turn. What the template writes before the answer
is prompt; what it writes between the answer and that token is read but not trained; what follows is left out.
docs/design.md says why.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from hashlib import sha256
from typing import Any

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from dist_moe.data.encoded import EncodedRows
from dist_moe.data.places import Rendered, num_common, rendered
from dist_moe.data.rows import Prompt
from dist_moe.data.spans import cut, joined, span_place, tokens_with, untrimmed
from dist_moe.data.template import DAY, ChatTemplate, template_text
from dist_moe.data.tokens import Encoded
from dist_moe.errors import UserError, refused_by_library, shown

ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Findings:
    """What encoding found, mostly as numbers of rows; the console reports it."""

    max_length: int
    prompts_cut: int
    """Longer than `max_length` tokens: the prompt lost its start."""
    responses_cut: int
    """The response lost its end."""
    spans_cut: int
    """The span lost tokens."""
    straddling: int
    """A token has characters both of the answer and of the text before it."""
    other_prompts: int
    """The tokens before the answer differ from those of the prompt tokenised alone, and not only by a straddling token.
    """
    changed: int
    """The template writes another answer than the row has."""
    endless: int
    """No token ends the turn of the answer."""
    lost: int
    """The template leaves out a message or changes it, so that it does not count as content."""
    date_asked: bool
    """The template asked for the date."""
    other_prompt: str | None
    """For the first row of `other_prompts`: the text before the answer in training, against that in inference."""
    example: str | None
    """The first row with a response, its trained part between >>> and <<<."""


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """Encoded rows in the order of the prompts, and what was found."""

    rows: EncodedRows
    findings: Findings


def encode(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    chat_template: str | None = None,
    *,
    today: date = DAY,
    end_ids: Collection[int] = (),
    variables: Mapping[str, Any] | None = None,
) -> EncodedSet:
    """Token ids of each prompt and response, at most `max_length` tokens together.

    A longer row first loses the start of its prompt, down to one token, then the end of its response.

    Args:
        prompts: the rows.
        tokenizer: of the model.
        max_length: maximum number of tokens of a row.
        chat_template: Jinja text; None: the tokenizer's own.
        today: the date that the template sees.
        end_ids: ids that may end an answer, in addition to the tokenizer's special tokens.
        variables: further variables of the template.

    A row's rejected answer is a row of its own beside it, and counts as one in the findings.

    Raises:
        UserError: there is no chat template, it fails on a row or does not write its answer, the tokenizer fails, or
            the span of a row does not occur in its text exactly once.
    """
    template = ChatTemplate(tokenizer, chat_template, today, variables)
    encoder = _Encoder(tokenizer, max_length, end_ids)
    rows: list[Encoded] = []
    for start in range(0, len(prompts), ROWS_AT_ONCE):
        chosen = prompts[start : start + ROWS_AT_ONCE]
        rows += encoder.rows(chosen, [rendered(prompt, template) for prompt in chosen])
    pairs = [i for i, prompt in enumerate(prompts) if prompt.rejected is not None]
    worse = [replace(prompts[i], response=prompts[i].rejected, span=None, rejected=None) for i in pairs]
    for start in range(0, len(pairs), ROWS_AT_ONCE):
        part = worse[start : start + ROWS_AT_ONCE]
        for i, row in zip(pairs[start:], encoder.rows(part, [rendered(each, template) for each in part]), strict=False):
            rows[i] = replace(rows[i], rejected=row)
    names = ("prompts_cut", "responses_cut", "spans_cut", "straddling", "other_prompts", "changed", "endless", "lost")
    findings = Findings(
        max_length=max_length,
        date_asked=template.date_asked,
        other_prompt=encoder.other_prompt,
        example=encoder.example,
        **{name: encoder.numbers[name] for name in names},
    )
    return EncodedSet(EncodedRows.of(rows), findings)


class _Encoder:
    """Encodes rows with one tokenizer, and collects findings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, end_ids: Collection[int]) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.backend = untrimmed(_backend(tokenizer))
        added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.ends = ({*tokenizer.all_special_ids, *added} - {tokenizer.unk_token_id}) | set(end_ids)
        self.numbers: Counter[str] = Counter()
        self.other_prompt: str | None = None
        self.example: str | None = None

    def rows(self, prompts: Sequence[Prompt], texts: Sequence[Rendered]) -> list[Encoded]:
        with refused_by_library(
            f"{self.tokenizer.name_or_path}: the tokenizer cannot encode the text of the rows",
            "copy the checkpoint's tokenizer files again, or take another tokenizer.json",
        ):
            whole = self.backend.encode_batch([text.text for text in texts], add_special_tokens=False)
            # Only ids are read of these, so no offsets are made.
            alone = self.backend.encode_batch_fast([text.asked for text in texts], add_special_tokens=False)
        return [
            self._row(prompt, text, encoding, of_prompt.ids)
            for prompt, text, encoding, of_prompt in zip(prompts, texts, whole, alone, strict=True)
        ]

    def _row(self, prompt: Prompt, text: Rendered, encoding: Encoding, alone_ids: list[int]) -> Encoded:
        ids, offsets = encoding.ids, encoding.offsets
        first = last = end = len(ids)
        if text.answer is not None:
            first, last, end = self._answer(text.answer, ids, offsets)
            if first == last:
                raise UserError(f"{prompt.source}: the response has no token: the tokenizer drops all its characters")
            self._note(prompt, text, ids, offsets, alone_ids, (first, last, end))
        if not first or not alone_ids:
            raise UserError(
                f"{prompt.source}: the chat template renders this prompt to no token; see data.chat_template"
            )
        self.numbers["lost"] += text.num_lost > 0
        num_kept = max(1, min(first, self.max_length - (end - first)))
        start, stop = first - num_kept, first - num_kept + min(end - first + num_kept, self.max_length)
        self.numbers["prompts_cut"] += start > 0
        self.numbers["responses_cut"] += stop < end
        content = [tokens_with(message, offsets) for message in text.messages]
        kept, fed = tuple(ids[start:first]), tuple(alone_ids[-self.max_length :])
        return Encoded(
            kept,
            tuple(ids[first:stop]),
            prompt.unsafe,
            span=self._span(prompt, text.text[: offsets[end - 1][1]], offsets, (start, stop)),
            content=cut(joined([(a, min(b, first)) for a, b in content]), start, stop),
            gap=next(iter(cut([(last, end - 1)], start, stop)), None),
            alone_ids=None if fed == kept else fed,
        )

    def _answer(
        self, answer: tuple[int, int], ids: Sequence[int], offsets: Sequence[tuple[int, int]]
    ) -> tuple[int, int, int]:
        """First token of the answer, end of its last one, and end of its turn."""
        first, last = tokens_with(answer, offsets)
        if first < last and offsets[first][0] < answer[0] and ids[first] in self.ends:
            first += 1  # a special token that swallows blanks after it is the template's all the same
        if first < last and offsets[last - 1][1] > answer[1] and ids[last - 1] in self.ends:
            return first, last - 1, last  # and so is one that swallows blanks before it
        end = next((i + 1 for i in range(last, len(ids)) if ids[i] in self.ends), last)
        self.numbers["endless"] += end == last
        return first, last, end

    def _span(
        self, prompt: Prompt, text: str, offsets: Sequence[tuple[int, int]], kept: tuple[int, int]
    ) -> tuple[int, int] | None:
        if prompt.span is None:
            return None
        start, stop = tokens_with(span_place(prompt.span, text, prompt.source), offsets)
        if start == stop:
            raise UserError(
                f"{prompt.source}: `span` {shown(prompt.span)} has no token: the tokenizer drops all its characters"
            )
        left = cut([(start, stop)], *kept)
        self.numbers["spans_cut"] += left != ((start - kept[0], stop - kept[0]),)
        return left[0] if left else None

    def _note(
        self,
        prompt: Prompt,
        text: Rendered,
        ids: list[int],
        offsets: Sequence[tuple[int, int]],
        alone_ids: list[int],
        places: tuple[int, int, int],
    ) -> None:
        """Collect findings about a row with an answer."""
        assert text.answer is not None
        first, last, end = places
        straddles = first < len(ids) and offsets[first][0] < text.answer[0]
        self.numbers["straddling"] += straddles
        self.numbers["changed"] += text.is_changed
        if ids[:first] != alone_ids and not (straddles and text.text[: text.answer[0]] == text.asked):
            self.numbers["other_prompts"] += 1
            if self.other_prompt is None:
                self.other_prompt = _difference(text.text[: text.answer[0]], text.asked)
        if self.example is None:
            parts = ids[:first], ids[first:last], ids[last : end - 1], ids[max(end - 1, last) : end], ids[end:]
            self.example = f"{prompt.source}: {_marked(*(str(self.tokenizer.decode(part)) for part in parts))}"


def _marked(before: str, answer: str, gap: str, turn_end: str, after: str) -> str:
    """A row's text on one line, shortened, with its trained part between >>> and <<<."""
    if len(answer) > 80:
        answer = f"{answer[:50]} ... {answer[-20:]}"
    trained = f">>>{answer}<<<{gap}>>>{turn_end}<<<{after}" if gap else f">>>{answer}{turn_end}<<<{after}"
    line = repr(f"{before[-60:]}{trained[:240]}")[1:-1]
    return f"{'...' if len(before) > 60 else ''}{line}"


def _difference(before: str, asked: str) -> str:
    """How two texts differ, after the part that they have in common."""
    if before == asked:
        return "the same text, which is split otherwise when an answer follows"
    same = num_common(before, asked)
    return (
        f"{shown(before[same:])} in the place of {shown(asked[same:])} "
        "(data.template_kwargs or data.chat_template can make them alike)"
    )


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's padding id, else its end-of-sequence id, else 0. No result depends on it."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> str:
    """SHA-256 of the fast tokenizer's serialised backend, its special tokens and the chat template in use.

    Padding and truncation are excluded: they are settings of the last call, not of the tokenizer.
    """
    backend = json.loads(_backend(tokenizer).to_str()) | {"padding": None, "truncation": None}
    state = [backend, tokenizer.special_tokens_map, template_text(tokenizer, chat_template)]
    return sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    if not tokenizer.is_fast:
        raise UserError(f"{tokenizer.name_or_path}: no fast tokenizer; model.path needs a tokenizer.json")
    return tokenizer.backend_tokenizer
