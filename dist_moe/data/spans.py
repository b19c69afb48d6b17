"""From characters of a text to the tokens that have them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from tokenizers import Tokenizer

from dist_moe.errors import UserError, shown

Range = tuple[int, int]


def untrimmed(backend: Tokenizer) -> Tokenizer:
    """A copy whose offsets are all of a token's characters, for use without special tokens.

    Post-processors of byte-level tokenizers cut a token's blanks off its offsets; they change no id but special ones.
    """
    copy = Tokenizer.from_str(backend.to_str())
    copy.encode_special_tokens = backend.encode_special_tokens
    copy.post_processor = None
    copy.no_padding()
    copy.no_truncation()
    return copy


def tokens_with(characters: Range, offsets: Sequence[Range]) -> Range:
    """The tokens that have one of these characters, as a half-open range; empty where the tokenizer drops them all.

    `offsets` are the tokens' characters, in the order of the text. A token that the tokenizer puts before a character,
    as a dummy prefix, has that character's offsets, and so goes with it.
    """
    start, stop = characters
    first = bisect_right(offsets, start, key=lambda offset: offset[1])
    return first, max(first, bisect_left(offsets, stop, key=lambda offset: offset[0]))


def joined(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """The same positions as non-empty ranges that do not touch, in order."""
    out: list[Range] = []
    for start, stop in sorted(ranges):
        if out and start <= out[-1][1]:
            out[-1] = out[-1][0], max(stop, out[-1][1])
        elif start < stop:
            out.append((start, stop))
    return tuple(out)


def cut(ranges: Sequence[Range], first: int, stop: int) -> tuple[Range, ...]:
    """What is left of ranges when only the positions from `first` up to `stop` are, counted from `first`."""
    clipped = [(max(a, first) - first, min(b, stop) - first) for a, b in ranges]
    return tuple((a, b) for a, b in clipped if a < b)


def span_place(span: str, text: str, source: str) -> Range:
    """The characters of a row's `span` in its text.

    Raises:
        UserError: it is not there exactly once.
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
