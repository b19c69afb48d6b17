"""Where a row's `span`, a marked piece of its text, lies among its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from dist_moe.errors import UserError, shown


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


def span_tokens(
    span: str, texts: Sequence[str], ids: Sequence[Sequence[int]], backend: Tokenizer, source: str
) -> tuple[int, int]:
    """The tokens that have a character of `span`, as a half-open range of the tokens of all texts together.

    Args:
        texts: parts of one text, which are tokenised apart; the span may reach over their boundaries.
        ids: the tokens of each part.
        backend: see `untrimmed`.

    Raises:
        UserError: the span is not in the text exactly once, or no token has a character of it.
    """
    start = _only_place(span, "".join(texts), source)
    stop = start + len(span)
    inside = []
    at = num_before = 0
    for text, its_ids in zip(texts, ids, strict=True):
        encoding = backend.encode(text, add_special_tokens=False)
        assert encoding.ids == list(its_ids)
        offsets = ((at + first, at + last) for first, last in encoding.offsets)
        inside += [num_before + i for i, (first, last) in enumerate(offsets) if first < stop and start < last]
        at += len(text)
        num_before += len(its_ids)
    if not inside:
        raise UserError(f"{source}: `span` {shown(span)} has no token: the tokenizer drops all its characters")
    return min(inside), max(inside) + 1


def _only_place(span: str, text: str, source: str) -> int:
    start = text.find(span)
    if start < 0:
        raise UserError(
            f"{source}: `span` {shown(span)} is not in this row: expected a piece of the prompt or the response, "
            "letter for letter as the chat template writes it"
        )
    if text.find(span, start + 1) >= 0:
        raise UserError(
            f"{source}: `span` {shown(span)} is more than once in this row, as the chat template writes it: "
            "make it longer, until it is there only once"
        )
    return start
