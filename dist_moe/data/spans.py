"""Maps ranges of characters to the tokens that contain them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from tokenizers import Tokenizer

from dist_moe.errors import UserError, shown

Range = tuple[int, int]


def untrimmed(backend: Tokenizer) -> Tokenizer:
    """A copy of the tokenizer whose offsets cover all characters of a token; for use without special tokens.

    The post-processors of byte-level tokenizers cut blanks off the offsets. They change no ids but those of special
    tokens.
    """
    copy = Tokenizer.from_str(backend.to_str())
    copy.encode_special_tokens = backend.encode_special_tokens
    copy.post_processor = None
    copy.no_padding()
    copy.no_truncation()
    return copy


def tokens_with(characters: Range, offsets: Sequence[Range]) -> Range:
    """The tokens that contain one of these characters, as a half-open range; empty if the tokenizer drops all of them.

    `offsets` are the character ranges of the tokens, in the order of the text. A token that the tokenizer inserts
    before a character (a dummy prefix) has that character's offsets, and so is included with it.
    """
    start, stop = characters
    first = bisect_right(offsets, start, key=lambda offset: offset[1])
    return first, max(first, bisect_left(offsets, stop, key=lambda offset: offset[0]))


def joined(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """The same positions as non-empty ranges in order that do not touch."""
    out: list[Range] = []
    for start, stop in sorted(ranges):
        if out and start <= out[-1][1]:
            out[-1] = out[-1][0], max(stop, out[-1][1])
        elif start < stop:
            out.append((start, stop))
    return tuple(out)


def cut(ranges: Sequence[Range], first: int, stop: int) -> tuple[Range, ...]:
    """The parts of ranges between `first` and `stop`, relative to `first`."""
    clipped = [(max(a, first) - first, min(b, stop) - first) for a, b in ranges]
    return tuple((a, b) for a, b in clipped if a < b)


def span_place(span: str, text: str, source: str) -> Range:
    """The character range of a row's `span` in its text.

    Raises:
        UserError: it does not occur exactly once.
    """
    start = text.find(span)
    if start < 0:
        raise UserError(
            f"{source}: `span` {shown(span)} is not in this row: expected a piece of the prompt or the response, "
            "letter for letter as the chat template writes it"
        )
    if text.find(span, start + 1) >= 0:
        raise UserError(
            f"{source}: `span` {shown(span)} occurs more than once in this row, as the chat template writes it: "
            "make it longer, so that it occurs only once"
        )
    return start, start + len(span)
