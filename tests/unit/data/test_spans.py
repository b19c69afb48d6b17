"""Spans: which tokens have a character of a marked piece of text, against the bytes of each token."""

from collections.abc import Callable
from itertools import accumulate

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dist_moe.data.encode import encode
from dist_moe.data.rows import Message, Prompt
from dist_moe.data.tokens import Encoded, collate
from dist_moe.errors import UserError
from tests.unit.data.conftest import TEMPLATE

PROMPT = 'Translate: "naïve  café 🙂🤖, 世界!" please,  again 🤖 now '
RESPONSE = "Nein, ich möchte   das nicht 🤷🏽‍♀️ tun."
SPECIAL = ["<unk>", "<bos>", "<eos>", "<|user|>", "<|assistant|>"]
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
BYTE_OF = {chr(byte): byte for byte in VISIBLE} | {chr(256 + i): byte for i, byte in enumerate(HIDDEN)}
"""GPT-2's letters for bytes."""
SPANS = [
    "naïve  café 🙂🤖, 世界",
    "aïv",
    "🙂",
    "界",
    "  café",
    "please, ",
    " again 🤖",
    "ich möchte",
    "🤷🏽‍♀️",
    " tun.",
    "now <eos><|assistant|>Nein",
    RESPONSE,
    "<bos>",
]


def byte_level(backend: Tokenizer) -> trainers.Trainer:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False)


def trimmed(backend: Tokenizer) -> trainers.Trainer:
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return byte_level(backend)


def byte_fallback(backend: Tokenizer) -> trainers.Trainer:
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    return trainers.BpeTrainer(vocab_size=310, special_tokens=special, limit_alphabet=30, show_progress=False)


def unigram(backend: Tokenizer) -> trainers.Trainer:
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    return trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=SPECIAL, show_progress=False)


KINDS = {
    "byte_level": (models.BPE(), byte_level),
    "trimmed": (models.BPE(), trimmed),
    "byte_fallback": (models.BPE(byte_fallback=True, unk_token="<unk>"), byte_fallback),
    "unigram": (models.Unigram(), unigram),
}


def trained(model: models.Model, prepare: Callable[[Tokenizer], trainers.Trainer]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    trainer = prepare(backend)
    backend.train_from_iterator(["the café, the world again, ich möchte nicht das tun", PROMPT, RESPONSE] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", chat_template=TEMPLATE
    )


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return trained(*KINDS[request.param])


def row(span: str | None, prompt: str = PROMPT, response: str | None = RESPONSE) -> Prompt:
    return Prompt("i", (Message("user", prompt),), response, True, None, "rows.jsonl:4", span=span)


def tokens_with(span: str, text: str, ids: tuple[int, ...], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """By the definition: the tokens with a byte of the span's."""
    start = text.encode().index(span.encode())
    stop = start + len(span.encode())
    pieces = [bytes_of(token, tokenizer) for token in tokenizer.convert_ids_to_tokens(list(ids))]
    assert b"".join(pieces) == text.encode()
    ends = list(accumulate(map(len, pieces)))
    return [i for i, (first, end) in enumerate(zip([0, *ends], ends, strict=False)) if first < stop and start < end]


def bytes_of(token: str, tokenizer: PreTrainedTokenizerFast) -> bytes:
    if token in SPECIAL:
        return token.encode()
    if isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        return bytes(BYTE_OF[character] for character in token)
    if token.startswith("<0x"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


@pytest.mark.parametrize("span", SPANS)
def test_the_tokens_are_those_with_a_byte_of_the_span(kind: PreTrainedTokenizerFast, span: str) -> None:
    (found,) = encode([row(span)], kind, 1024, None).rows
    assert found.span is not None
    ids, text = found.prompt_ids + found.response_ids, f"<bos><|user|>{PROMPT}<eos><|assistant|>{RESPONSE}<eos>"
    expected = tokens_with(span, text, ids, kind)
    assert list(range(*found.span)) == expected
    assert 0 < len(expected) < len(ids)
    assert span in kind.decode(list(ids[slice(*found.span)]))


def test_a_span_may_reach_from_the_prompt_into_the_response(kind: PreTrainedTokenizerFast) -> None:
    (found,) = encode([row("now <eos><|assistant|>Nein")], kind, 1024, None).rows
    assert found.span is not None
    assert found.span[0] < len(found.prompt_ids) < found.span[1]


def test_wordpiece_drops_blanks_and_changes_letters() -> None:
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "na": 1, "##ive": 2, "cafe": 3, "world": 4}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(strip_accents=True, lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", chat_template=template)

    def span_of(span: str) -> tuple[int, int] | None:
        return encode([row(span, "Naïve  Café\u200b", "World")], tokenizer, 1024, None).rows[0].span

    assert [span_of(span) for span in ("Naïve", "ïv", "ïve  C", "é", "  C", "Café\u200b World")] == [
        (0, 2),
        (1, 2),
        (1, 3),
        (2, 3),
        (2, 3),
        (2, 4),
    ]
    with pytest.raises(UserError, match=r"rows.jsonl:4: `span` '\\u200b' has no token"):
        span_of("\u200b")


@pytest.mark.parametrize("response", [None, "x"])
def test_rows_without_a_span_have_none(tokenizer: PreTrainedTokenizerFast, response: str | None) -> None:
    rows = encode([row(None, "ab", "cd"), row("ab", "ab", response)], tokenizer, 1024, None).rows
    assert rows[0].span is None
    assert rows[1].span is not None


def test_errors_name_the_line(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        UserError, match=r"^rows.jsonl:4: `span` 'Ab' is not in this row: expected a piece of the prompt"
    ):
        encode([row("Ab", "ab", "cd")], tokenizer, 1024, None)
    with pytest.raises(UserError, match=r"^rows.jsonl:4: `span` 'ab' occurs more than once .*: make it longer"):
        encode([row("ab", "ab", "cabd")], tokenizer, 1024, None)
    with pytest.raises(UserError, match="occurs more than once"):  # "aa" is in "aaa" at two places
        encode([row("aa", "aaa", "b")], tokenizer, 1024, None)
    with pytest.raises(UserError, match="is not in this row"):
        encode([row("cd", "ab", None)], tokenizer, 1024, None)
    with pytest.raises(UserError, match=r"`span` 'x{57}\.\.\.' is not"):
        encode([row("x" * 100, "ab", "cd")], tokenizer, 1024, None)


# prompt "abcd<eos>" and response "wxyz<eos>", a token a letter
@pytest.mark.parametrize(
    ("span", "max_length", "left", "num_cut"),
    [
        ("bc", 10, (1, 3), 0),
        ("bc", 9, (0, 2), 0),
        ("bc", 8, (0, 1), 1),
        ("bc", 7, None, 1),
        ("d<eos>wx", 6, (0, 3), 1),
        ("d<eos>wx", 3, (0, 3), 1),
        ("d<eos>wx", 2, (0, 2), 1),
        ("yz", 6, (3, 5), 0),
        ("yz", 5, (3, 5), 0),
        ("yz", 4, (3, 4), 1),
        ("yz", 3, None, 1),
    ],
)
def test_truncation_moves_and_cuts_spans(
    tokenizer: PreTrainedTokenizerFast, span: str, max_length: int, left: tuple[int, int] | None, num_cut: int
) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    encoded = encode([row(span, "abcd", "wxyz"), row(None)], tokenizer, max_length, template)
    assert encoded.rows[0].span == left
    assert encoded.findings.spans_cut == num_cut
    if left is not None:
        ids = encoded.rows[0].prompt_ids + encoded.rows[0].response_ids
        text = tokenizer.decode(list(ids[slice(*left)]))
        assert text in span
        assert (text == span) == (num_cut == 0)


def test_only_tokens_of_spans_are_counted() -> None:
    batch = collate([Encoded((5, 6, 7), (8,), span=(2, 4)), Encoded((9,), ()), Encoded((1, 2), (3, 4), span=(0, 1))], 0)
    assert batch.counted("span").long().tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert not collate([], 0).counted("span").any()
