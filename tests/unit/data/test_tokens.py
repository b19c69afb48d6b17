"""Token ids: the boundary between prompt and response, what is cut, and the masks of a padded batch."""

import copy
import logging
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from dist_moe.data.encode import encode, pad_token_id, tokenizer_hash
from dist_moe.data.rows import Message, Prompt
from dist_moe.data.tokens import Encoded, collate, tokens_hash
from dist_moe.errors import UserError

ENDED = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"


def prompt(response: str | None, text: str = "hi") -> Prompt:
    return Prompt("i", (Message("system", "S"), Message("user", text)), response, True, None, "rows.jsonl:4")


def texts(tokenizer: PreTrainedTokenizerFast, row: Encoded) -> tuple[str, str]:
    before, after = (tokenizer.decode(list(ids)) for ids in (row.prompt_ids, row.response_ids))
    assert isinstance(before, str)
    assert isinstance(after, str)
    return before, after


def test_rows_are_rendered_by_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode([prompt("yes"), prompt(None)], tokenizer, 1024, None)
    assert [texts(tokenizer, row) for row in encoded.rows] == [
        ("<bos><|system|>S<eos><|user|>hi<eos><|assistant|>", "yes<eos>"),
        ("<bos><|system|>S<eos><|user|>hi<eos><|assistant|>", ""),
    ]
    assert encoded.rows[0].prompt_ids[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in encoded.rows[0].prompt_ids[1:]
    assert encoded.rows[0].response_ids[-1] == tokenizer.eos_token_id
    assert (encoded.findings.prompts_cut, encoded.findings.responses_cut) == (0, 0)


def test_no_rows(tokenizer: PreTrainedTokenizerFast) -> None:
    assert [*encode([], tokenizer, 1024, None).rows] == []


def test_another_template_replaces_the_tokenizers_own(tokenizer: PreTrainedTokenizerFast) -> None:
    (row,) = encode([prompt("no")], tokenizer, 1024, ENDED).rows
    assert texts(tokenizer, row) == ("S<eos>hi<eos>", "no<eos>")


# the prompt "S<eos>hi<eos>" is 5 tokens, the response "answer<eos>" 7
@pytest.mark.parametrize(
    ("max_length", "before", "after", "cut"),
    [
        (12, "S<eos>hi<eos>", "answer<eos>", (0, 0)),
        (11, "<eos>hi<eos>", "answer<eos>", (1, 0)),
        (8, "<eos>", "answer<eos>", (1, 0)),
        (7, "<eos>", "answer", (1, 1)),
        (4, "<eos>", "ans", (1, 1)),
    ],
)
def test_the_prompts_start_is_cut_before_the_responses_end(
    tokenizer: PreTrainedTokenizerFast, max_length: int, before: str, after: str, cut: tuple[int, int]
) -> None:
    encoded = encode([prompt("answer")], tokenizer, max_length, ENDED)
    assert texts(tokenizer, encoded.rows[0]) == (before, after)
    assert (encoded.findings.prompts_cut, encoded.findings.responses_cut) == cut
    assert encoded.findings.max_length == max_length


def test_a_long_prompt_without_response_is_cut_and_counted(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("transformers").addHandler(caplog.handler)
    encoded = encode([prompt(None, text="x" * 50), prompt(None)], tokenizer, 40, "{{ messages[1]['content'] }}")
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert [len(row.prompt_ids) for row in encoded.rows] == [40, 2]
    assert encoded.findings.prompts_cut == 1
    assert caplog.text == ""  # nothing about the model's length of 32 tokens


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ 'a' if add_generation_prompt else 'b' }}{{ messages | length }}",
            "the chat template does not write the answer",
        ),
        ("{{ messages[0]['content'] }}", "the chat template does not write the answer"),
        (
            "{{ raise_exception('No system role') }}",
            "the chat template fails on this row (TemplateError: No system role)",
        ),
        ("{% if messages | length == 3 %}{{ messages[2]['content'] }}{% endif %}", "renders this prompt to no token"),
    ],
)
def test_templates_that_cannot_be_used(tokenizer: PreTrainedTokenizerFast, template: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        encode([prompt("no")], tokenizer, 1024, template)
    assert str(caught.value).startswith("rows.jsonl:4: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("own", [None, {"rag": "x", "tool_use": "y"}])
def test_no_template_names_the_setting(tokenizer: PreTrainedTokenizerFast, own: dict[str, str] | None) -> None:
    tokenizer.chat_template = own
    with pytest.raises(UserError, match=r"no chat template .*data\.chat_template"):
        encode([prompt("no")], tokenizer, 1024, None)
    assert encode([prompt("no")], tokenizer, 1024, "{% for m in messages %}{{ m['content'] }}{% endfor %}").rows


def test_collate_pads_on_the_right() -> None:
    batch = collate([Encoded((5, 6, 7), (8,)), Encoded((9,), ()), Encoded((1, 2), (3, 4))], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 0, 0, 0], [1, 2, 3, 4]]
    assert batch.live.long().tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert batch.labels.tolist() == [[-100, -100, -100, 8], [-100] * 4, [-100, -100, 3, 4]]
    assert batch.is_completion.long().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]]
    assert batch.counted("prompt").long().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]
    assert batch.counted("completion").long().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]]
    assert batch.counted("all").tolist() == batch.live.tolist()
    assert {batch.input_ids.dtype, batch.labels.dtype} == {torch.int64}
    assert {batch.is_completion.dtype, batch.live.dtype, batch.counted("prompt").dtype} == {torch.bool}


def test_a_rejected_answer_is_a_row_after_the_others_where_pairs_are_asked_for() -> None:
    rows = [
        Encoded((5, 6), (7,), rejected=Encoded((5, 6), (8, 9), True), unsafe=True),
        Encoded((1,), (2,)),
        Encoded((3,), (4,), rejected=Encoded((3,), (9,))),
    ]
    alone = collate(rows, pad_id=0)
    assert not alone.is_rejected.any()
    assert (alone.pair == -1).all()
    assert torch.equal(alone.all_labels, alone.labels)
    batch = collate(rows, pad_id=0, pairs=True)
    assert batch.input_ids.tolist() == [[5, 6, 7, 0], [1, 2, 0, 0], [3, 4, 0, 0], [5, 6, 8, 9], [3, 9, 0, 0]]
    none = [-100] * 4
    own, worse = (
        [[-100, -100, 7, -100], [-100, 2, -100, -100], [-100, 4, -100, -100]],
        [[-100, -100, 8, 9], [-100, 9, -100, -100]],
    )
    assert batch.labels.tolist() == [*own, none, none]
    assert batch.all_labels.tolist() == [*own, *worse]
    assert batch.own.long().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [0] * 4]
    assert batch.live[3:].long().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.pair[:, 0].tolist() == [0, -1, 2, 0, 2]
    assert batch.is_unsafe[:, 0].tolist() == [True, False, False, True, False]


def test_a_rejected_answer_is_encoded_as_a_row_with_that_response(tokenizer: PreTrainedTokenizerFast) -> None:
    better = [replace(prompt("no"), span=None), prompt("hi")]
    plain = encode(better, tokenizer, 1024, None)
    paired = encode([better[0], replace(better[1], rejected="no")], tokenizer, 1024, None)
    assert tuple(paired.rows) == (
        plain.rows[0],
        replace(plain.rows[1], rejected=encode([prompt("no")], tokenizer, 1024).rows[0]),
    )
    assert tokens_hash(paired.rows) != tokens_hash(plain.rows)
    other = encode([better[0], replace(better[1], rejected="hi")], tokenizer, 1024, None)
    assert tokens_hash(paired.rows) != tokens_hash(other.rows)


def test_a_padding_id_that_is_also_a_token_hides_nothing() -> None:
    batch = collate([Encoded((2, 2), (2,)), Encoded((2,), ())], pad_id=2)
    assert batch.live.long().tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[-100, -100, 2], [-100, -100, -100]]


def test_rows_keep_their_label(tokenizer: PreTrainedTokenizerFast) -> None:
    assert [row.unsafe for row in encode([prompt("no")], tokenizer, 1024, None).rows] == [True]
    batch = collate([Encoded((5, 6), ()), Encoded((9,), (), unsafe=True)], pad_id=0)
    assert batch.is_unsafe.tolist() == [[False, False], [True, True]]
    assert collate([], pad_id=0).is_unsafe.tolist() == [[False]]


def test_no_rows_give_one_dummy_token_that_is_never_counted() -> None:
    batch = collate([], pad_id=3)
    assert (batch.input_ids.tolist(), batch.live.tolist(), batch.labels.tolist()) == ([[3]], [[False]], [[-100]])
    for which in ("prompt", "completion", "all"):
        assert not batch.counted(which).any()
    assert {batch.input_ids.dtype, batch.labels.dtype} == {torch.int64}
    assert {batch.is_completion.dtype, batch.live.dtype} == {torch.bool}


def test_moving_a_batch_moves_all_of_it() -> None:
    moved = collate([Encoded((1,), (2,))], pad_id=0).to("meta")
    values = [getattr(moved, name) for name in moved.__slots__]
    assert {value.device.type for value in values if isinstance(value, torch.Tensor)} == {"meta"}
    assert (moved.num_live, moved.num_rows) == (2, 1)  # known without asking the device
    assert moved.labels.shape == (1, 2)


def test_positions_that_predict_a_trained_token() -> None:
    better, worse = Encoded((1, 2), (3, 4)), Encoded((5, 6), (7,))
    rows = [replace(better, rejected=worse), Encoded((8,), (9,))]
    batch = collate(rows, pad_id=0, pairs=True)
    targets = batch.all_labels.roll(-1, 1).flatten()[batch.predicting]
    assert targets.tolist() == [3, 4, 9, 7]
    assert batch.input_ids.flatten()[batch.predicting].tolist() == [2, 3, 8, 6]
    assert batch.num_live == batch.live.sum() == 9
    assert collate([], pad_id=0).predicting.tolist() == []


def test_pad_id_falls_back_to_eos_then_0(tokenizer: PreTrainedTokenizerFast) -> None:
    assert pad_token_id(tokenizer) == tokenizer.eos_token_id
    tokenizer.pad_token = "!"
    assert pad_token_id(tokenizer) == tokenizer.vocab["!"]
    tokenizer.pad_token = tokenizer.eos_token = None
    assert pad_token_id(tokenizer) == 0


def test_hash_ignores_the_settings_of_the_last_call(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.pad_token = "!"
    before = tokenizer_hash(tokenizer)
    assert len(before) == 64
    tokenizer(["a", "bcd"], padding="longest", truncation=True, max_length=4, pad_to_multiple_of=4)
    assert tokenizer_hash(tokenizer) == before


def test_hash_tells_tokenizers_and_templates_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    added, special, own = (copy.deepcopy(tokenizer) for _ in range(3))
    added.add_tokens(["word"])
    special.pad_token = "!"
    own.chat_template = "other"
    hashes = [tokenizer_hash(each) for each in (tokenizer, added, special, own)]
    assert len(set(hashes)) == 4
    assert tokenizer_hash(tokenizer, "other") == hashes[3]
    assert tokenizer_hash(tokenizer, tokenizer.chat_template) == hashes[0]
