"""The boundary between prompt and answer: for tokenizers of each kind and templates like the real ones.

What is expected is written by hand as text, and compared with tokenizers' own ids and offsets.
"""

import re

import pytest

from dist_moe.data.encode import encode
from dist_moe.data.rows import Message, Prompt
from dist_moe.data.tokens import collate
from dist_moe.errors import UserError
from tests.unit.data import chat_templates, tokenizers_of_each_kind

USER, ANSWER = "How do I bake a cake?", "Mix flour, eggs and sugar"
ALL = [(kind, name) for kind in tokenizers_of_each_kind.KINDS for name in chat_templates.KINDS]


@pytest.fixture(scope="module")
def tokenizer_of():
    made = {kind: tokenizers_of_each_kind.made(kind) for kind in tokenizers_of_each_kind.KINDS}
    return made.__getitem__


def row(response=ANSWER, user=USER, before=()):
    return Prompt("i", (*before, Message("user", user)), response, True, None, "rows.jsonl:4")


def encoded(prompt, tokenizer, template, **settings):
    found = encode([prompt], tokenizer, 1024, template, **settings)
    return found.rows[0], found.findings


def whole_text(tokenizer, template, response=ANSWER, user=USER):
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": response}]
    return tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)


def by_character(tokenizer, text):
    """Each token of a text as transformers gives it: id, first character, and the one after its last."""
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [(i, a, b) for i, (a, b) in zip(out["input_ids"], out["offset_mapping"], strict=True)]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_the_answer_and_the_token_that_ends_its_turn_are_trained(kind, name, tokenizer_of):
    tokenizer, form = tokenizer_of(kind), chat_templates.KINDS[name]
    found, findings = encoded(row(), tokenizer, form.template, end_ids=(tokenizer.eos_token_id,))
    text = whole_text(tokenizer, form.template).replace(re.search(r"\d{4}-\d\d-\d\d|$", "")[0], "")
    if findings.date_asked:
        text = re.sub(r"\d{4}-\d\d-\d\d", "2025-01-01", text)
    start = text.index(form.header + ANSWER) + len(form.header)
    stop = start + len(ANSWER)
    assert text[stop:] == form.end + form.after
    tokens = by_character(tokenizer, text)
    answer = [i for i, a, b in tokens if a < stop and start < b]
    before = [i for i, a, b in tokens if b <= start]
    end = form.end.strip()
    ends = [tokenizer.convert_tokens_to_ids(end)] if end else []
    batch = collate([found], pad_id=0)
    assert batch.input_ids[batch.labels != -100].tolist() == answer + ends
    assert batch.labels[batch.labels != -100].tolist() == answer + ends
    assert list(found.prompt_ids) == before
    between = [i for i, a, b in tokens if stop <= a and b <= len(text) - len(form.after) and i not in ends]
    assert list(found.response_ids) == answer + between + ends if ends else answer
    assert findings.endless == (not ends)
    assert findings.changed == findings.lost == 0


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_up_to_the_boundary_the_tokens_are_those_of_inference_or_it_is_said(kind, name, tokenizer_of):
    tokenizer, form = tokenizer_of(kind), chat_templates.KINDS[name]
    found, findings = encoded(row(), tokenizer, form.template)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": USER}],
        chat_template=form.template,
        add_generation_prompt=True,
        tokenize=False,
    )
    if findings.date_asked:
        asked = re.sub(r"\d{4}-\d\d-\d\d", "2025-01-01", asked)
    assert list(found.inference_ids) == tokenizer(asked, add_special_tokens=False)["input_ids"]
    if not findings.straddling:
        assert findings.other_prompts == (found.inference_ids != found.prompt_ids)
    if form.asked is None and (kind, name) != ("byte_level", "llama 3"):  # GPT-2's rule splits line ends before a word
        assert findings.straddling == findings.other_prompts == 0
    if form.asked is not None and form.asked.strip() != form.header.strip():
        assert findings.other_prompts == 1
        assert "in the place of" in findings.other_prompt


@pytest.mark.parametrize("kind", ["metaspace_always", "prepend", "unigram"])
def test_no_dummy_prefix_where_the_answer_begins(kind, tokenizer_of):
    """Alone, the answer would get a prefix of its own, as a first token or in one."""
    tokenizer = tokenizer_of(kind)
    template = "{% for m in messages %}<|{{ m.role }}|> {{ m.content }}</s>{% endfor %}"
    found, findings = encoded(row(), tokenizer, template)
    whole = tokenizer(whole_text(tokenizer, template), add_special_tokens=False)["input_ids"]
    assert list(found.prompt_ids + found.response_ids) == whole
    assert findings.straddling in (0, 1)


def test_a_token_with_characters_of_both_is_the_answers_and_is_counted(tokenizer):
    """The fixture's ">n" is one token."""
    found, findings = encoded(row("no"), tokenizer, None)
    assert tokenizer.convert_ids_to_tokens(list(found.response_ids)) == [">n", "o", "<eos>"]
    assert findings.straddling == 1
    assert encoded(row("yes"), tokenizer, None)[1].straddling == 0


def test_such_a_token_does_not_hide_that_the_template_asks_otherwise(tokenizer):
    template = (
        "{% for m in messages %}{{ m.role }}<{% if m.role == 'assistant' %}thought{% endif %}>{{ m.content }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant<>{% endif %}"
    )
    findings = encoded(row("no"), tokenizer, template)[1]
    assert findings.straddling == findings.other_prompts == 1
    assert findings.other_prompt.startswith("'thought>' in the place of '>'")


def test_a_template_that_trims_or_rewrites_the_answer(tokenizer_of):
    tokenizer = tokenizer_of("byte_level")
    qwen3, deepseek = chat_templates.KINDS["qwen3"].template, chat_templates.KINDS["deepseek"].template
    found, findings = encoded(row("\n\n Mix flour\n"), tokenizer, chat_templates.KINDS["llama 3"].template)
    assert tokenizer.decode(found.response_ids) == "Mix flour<|eot_id|>"
    assert findings.changed == 0
    thought = "<think>sugar</think>Mix flour"
    found, findings = encoded(row(thought), tokenizer, qwen3)
    assert tokenizer.decode(found.response_ids) == "<think>\nsugar\n</think>\n\nMix flour<|im_end|>"
    assert findings.changed == 1
    found, findings = encoded(row(thought), tokenizer, deepseek)
    assert tokenizer.decode(found.response_ids) == "Mix flour</s>"
    assert findings.changed == 1


def test_what_inference_is_given_is_not_trained(tokenizer_of):
    """The generation prompt opens the thought that the answer repeats."""
    tokenizer = tokenizer_of("byte_level")
    template = chat_templates.turns(chat_templates.CHATML, "<|im_start|>assistant\n<think>\n")
    found, findings = encoded(row("<think>\nsugar</think>Mix"), tokenizer, template)
    assert tokenizer.decode(found.response_ids) == "sugar</think>Mix<|im_end|>"
    assert findings.other_prompts == 0


@pytest.mark.parametrize("kind", tokenizers_of_each_kind.KINDS)
def test_with_the_templates_variable_the_boundary_is_where_inference_answers(kind, tokenizer_of):
    tokenizer, template = tokenizer_of(kind), chat_templates.QWEN3_SWITCHED
    found, findings = encoded(row(), tokenizer, template)
    assert found.prompt_ids != found.inference_ids
    assert findings.other_prompts == 1
    assert "data.template_kwargs" in findings.other_prompt
    found, findings = encoded(row(), tokenizer, template, variables={"enable_thinking": False})
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": USER}],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert asked.endswith("assistant\n<think>\n\n</think>\n\n")
    assert list(found.inference_ids) == tokenizer(asked, add_special_tokens=False)["input_ids"]
    if findings.other_prompts:  # GPT-2's rule splits line ends before a word
        assert kind == "byte_level"
        assert findings.other_prompt == "the same text, which is split otherwise when an answer follows"
    else:
        assert findings.straddling or found.prompt_ids == found.inference_ids


def test_words_of_the_answer_elsewhere_do_not_mislead(tokenizer_of):
    tokenizer, form = tokenizer_of("byte_level"), chat_templates.KINDS["qwen3"]
    for word in ("assistant", "user", "think", USER, "<|im_end|>"):
        found, _ = encoded(row(word), tokenizer, form.template)
        assert tokenizer.decode(found.response_ids) == f"{word}<|im_end|>"
        assert tokenizer.decode(found.prompt_ids).endswith(form.header)


@pytest.mark.parametrize("kind", tokenizers_of_each_kind.KINDS)
@pytest.mark.parametrize("name", chat_templates.KINDS)
def test_content_is_the_tokens_of_the_messages(kind, name, tokenizer_of):
    tokenizer, form = tokenizer_of(kind), chat_templates.KINDS[name]
    before = (Message("user", "user"), Message("assistant", "Hello there"))
    found, findings = encoded(row(user=f" {USER}\n", before=before), tokenizer, form.template)
    turns = [{"role": m.role, "content": m.content} for m in (*before, Message("user", f" {USER}\n"))]
    text = tokenizer.apply_chat_template(
        [*turns, {"role": "assistant", "content": ANSWER}], chat_template=form.template, tokenize=False
    )
    text = re.sub(r"\d{4}-\d\d-\d\d", "2025-01-01", text)
    hello = text.index("Hello there")
    first = text.rindex("user", 0, hello)
    asked = text.index(USER)
    inside = {x for start, n in ((first, 4), (hello, 11), (asked, len(USER))) for x in range(start, start + n)}
    expected = [any(x in inside for x in range(a, b)) for _, a, b in by_character(tokenizer, text)]
    batch = collate([found], pad_id=0)
    assert batch.counted("content")[0].tolist() == expected[: batch.input_ids.shape[1]]
    assert found.num_content == sum(expected[: len(found.prompt_ids)])
    assert findings.lost == 0


def test_content_survives_truncation(tokenizer):
    template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    whole = encode([row("xyz", "abcd")], tokenizer, 1024, template).rows[0]
    assert whole.content == ((2, 6),)  # u : a b c d <eos> a : x y z <eos>
    lefts = [encode([row("xyz", "abcd")], tokenizer, n, template).rows[0].content for n in (12, 10, 9, 8)]
    assert lefts == [((1, 5),), ((0, 3),), ((0, 2),), ((0, 1),)]


def test_a_message_that_the_template_leaves_out_is_no_content_and_is_counted(tokenizer):
    system = (Message("system", "secret"),)
    template = "{% for m in messages if m.role != 'system' %}{{ m.content }}{{ eos_token }}{% endfor %}"
    found, findings = encoded(row("xyz", "abcd", before=system), tokenizer, template)
    assert found.content == ((0, 4),)
    assert findings.lost == 1


def test_templates_that_look_into_the_messages(tokenizer):
    """With marks in their place it would write something else."""
    template = "{% for m in messages %}{{ '!' if 'b' in m.content else '?' }}{{ m.content }}{{ eos_token }}{% endfor %}"
    found, _ = encoded(row("xyb", "abcd"), tokenizer, template)
    assert tokenizer.decode(found.response_ids) == "xyb<eos>"
    assert found.content == ((1, 5),)


def test_the_gap_before_the_end_of_the_turn_is_read_but_not_trained(tokenizer):
    template = "{% for m in messages %}{{ m.content }}|{{ eos_token }}\n{% endfor %}"
    found, _ = encoded(row("xyz", "abcd"), tokenizer, template)
    batch = collate([found], pad_id=0)
    decoded = [tokenizer.decode(batch.input_ids[0][mask[0]]) for mask in (batch.live, batch.is_completion)]
    assert decoded == ["abcd|<eos>\nxyz|<eos>", "xyz<eos>"]
    assert tokenizer.decode(batch.input_ids[0][batch.counted("prompt")[0]]) == "abcd|<eos>\n"
    assert batch.counted("all").all()
    short = encode([row("xyz", "abcd")], tokenizer, 5, template).rows[0]
    assert collate([short], 0).is_completion[0].tolist() == [False, True, True, True, False]


def test_the_example_shows_what_is_trained(tokenizer):
    _, findings = encoded(row("yes"), tokenizer, None)
    assert findings.example == "rows.jsonl:4: <bos><|user|>How do I bake a cake?<eos><|assistant|>>>>yes<eos><<<"
    _, findings = encoded(row("x" * 500), tokenizer, None)
    assert findings.example is not None
    assert len(findings.example) < 250


def test_an_answer_that_the_tokenizer_drops_is_refused(tokenizer_of):
    with pytest.raises(UserError, match=r"rows\.jsonl:4: the response has no token"):
        encoded(row("\u200b"), tokenizer_of("wordpiece"), chat_templates.KINDS["chatml"].template)
