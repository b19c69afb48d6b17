"""Tokenizers and chat templates that cannot be used, or are of another model."""

import json
from pathlib import Path

import pytest

from dist_moe.cli.main import main
from tests.bad_inputs.harness import Case, check, ids, nothing

ANALYZE = "analyze --config run.yaml --run-dir new"
TEMPLATE = f"{ANALYZE} --data.chat_template t.jinja"
TOKENIZER, SETTINGS, GENERATION = (
    Path("model") / name for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
)
OWN = Path("model/chat_template.jinja")


def written(path, text):
    return lambda: Path(path).write_text(text, encoding="utf-8")


def changed(path, change):
    """The JSON file with a change made in place."""

    def do():
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return do


def without_files():
    for path in (TOKENIZER, SETTINGS, OWN, Path("model/special_tokens_map.json")):
        path.unlink(missing_ok=True)


def no_template():
    OWN.unlink(missing_ok=True)
    changed(SETTINGS, lambda content: content.pop("chat_template", None))()


def more_words(content):
    words = content["model"]["vocab"]
    content["model"]["vocab"] = {**words, "w1": 5000}


TOKENIZERS = [
    Case("no tokenizer file at all", without_files, ANALYZE, ("model has no tokenizer", "expected a tokenizer.json")),
    Case("no tokenizer.json", TOKENIZER.unlink, ANALYZE, ("tokenizer of model cannot be read", "tokenizer files")),
    Case("tokenizer.json empty", written(TOKENIZER, ""), ANALYZE, ("tokenizer of model cannot be read",)),
    Case("tokenizer.json no JSON", written(TOKENIZER, "{oops"), ANALYZE, ("tokenizer of model cannot be read",)),
    Case("tokenizer.json a list", written(TOKENIZER, "[]"), ANALYZE, ("tokenizer of model cannot be read",)),
    Case("tokenizer.json of another schema", written(TOKENIZER, '{"a": 1}'), ANALYZE, ("tokenizer of model",)),
    Case("tokenizer.json cut", lambda: TOKENIZER.write_bytes(b"{1"), ANALYZE, ("cannot be read",)),
    Case("tokenizer.json not UTF-8", lambda: TOKENIZER.write_bytes(b"\xff\xfe{}"), ANALYZE, ("cannot be read",)),
    Case(
        "tokenizer.json of a kind that nobody knows",
        changed(TOKENIZER, lambda content: content["model"].update(type="Telepathy")),
        ANALYZE,
        ("tokenizer of model cannot be read",),
    ),
    Case(
        "tokenizer.json without a model",
        changed(TOKENIZER, lambda content: content.pop("model")),
        ANALYZE,
        ("tokenizer of model cannot be read",),
    ),
    Case("tokenizer settings no JSON", written(SETTINGS, "{"), ANALYZE, ("tokenizer of model cannot be read",)),
    Case("tokenizer settings a list", written(SETTINGS, "[1]"), ANALYZE, ("tokenizer of model cannot be read",)),
    Case(
        "an id beyond the embedding",
        changed(TOKENIZER, more_words),
        ANALYZE,
        ("prompts.jsonl:", "'w1' has id 5000", "ids up to 127", "tokenizer of another model"),
    ),
    Case(
        "a word without a token",
        changed(TOKENIZER, lambda content: content["model"].update(unk_token="none of these", vocab={"a": 0})),
        ANALYZE,
        ("tokenizer",),
    ),
    Case("no chat template", no_template, ANALYZE, ("has no chat template", "data.chat_template")),
    Case(
        "its own template no Jinja",
        written(OWN, "{% for %}"),
        ANALYZE,
        ("model: the chat template is not valid Jinja",),
    ),
    Case("its own template not UTF-8", lambda: OWN.write_bytes(b"\xe9"), ANALYZE, ("cannot be read",)),
    Case("generation settings no JSON", written(GENERATION, "{"), ANALYZE, ("generation_config.json",)),
    Case("generation settings a list", written(GENERATION, "[]"), ANALYZE, ("generation_config.json",)),
    Case(
        "an end that is no token",
        written(GENERATION, '{"eos_token_id": "<end>"}'),
        ANALYZE,
        ("eos_token_id is '<end>'", "expected a token's number"),
    ),
    Case("ends that are no tokens", written(GENERATION, '{"eos_token_id": [1, 2.5]}'), ANALYZE, ("eos_token_id",)),
]
BODIES = {
    "an undefined function": ("{{ today() }}", ("fails on this row", "'today' is undefined")),
    "a division by zero": ("{{ 1 / 0 }}", ("fails on this row", "ZeroDivisionError")),
    "a type that does not fit": ("{{ messages + 1 }}", ("fails on this row", "TypeError")),
    "an endless recursion": (
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        ("this row", "Recursion"),
    ),
    "an exception of its own": ("{{ raise_exception('No system role') }}", ("TemplateError: No system role",)),
    "an attribute of nothing": ("{{ messages[9].content }}", ("fails on this row",)),
    "a filter that is not there": ("{{ messages | shout }}", ("the chat template is not valid Jinja", "shout")),
    "a test that is not there": ("{{ 1 is shouted }}", ("the chat template is not valid Jinja", "shouted")),
    "a loop that is not closed": ("{% for m in messages %}", ("the chat template is not valid Jinja",)),
    "an unknown tag": ("{% shout %}", ("the chat template is not valid Jinja", "shout")),
    "a file to include": ("{% include 'other.jinja' %}", ("fails on this row",)),
    "a forbidden attribute": ("{{ ''.__class__.__mro__ }}", ("fails on this row", "SecurityError")),
    "a range without an end": ("{% for i in range(10 ** 12) %}x{% endfor %}", ("fails on this row",)),
    "a keyword that is none": ("{{ messages[0].content.split(sep=1, no=2) }}", ("fails on this row", "TypeError")),
    "nothing": ("", ("does not write the answer",)),
    "nothing but blanks": ("{{ '  ' }}", ("does not write the answer",)),
    "no prompt": ("{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}", ("to no token",)),
    "the prompt only": ("{{ messages[0].content }}", ("does not write the answer", "data.chat_template")),
    "a text of one word": ("w1", ("does not write the answer",)),
    "the answer first": ("{% for m in messages | reverse %}{{ m.content }} {% endfor %}", ("chat template",)),
    "a date without a form": ("{{ strftime_now() }}", ("fails on this row", "TypeError")),
    "a date of a number": ("{{ strftime_now(3) }}", ("fails on this row", "TypeError")),
}
TEMPLATES = [
    Case(f"a template with {name}", written("t.jinja", body), TEMPLATE, says) for name, (body, says) in BODIES.items()
]
SETTINGS_OF_TEMPLATES = [
    Case("a template that is not there", nothing, TEMPLATE, ("data.chat_template: no file t.jinja",)),
    Case("a template that is a directory", lambda: Path("t.jinja").mkdir(), TEMPLATE, ("no file t.jinja",)),
    Case(
        "a template that is not UTF-8",
        lambda: Path("t.jinja").write_bytes(b"caf\xe9"),
        TEMPLATE,
        ("data.chat_template: t.jinja cannot be read", "UTF-8"),
    ),
    *(
        Case(f"a template's date {day}", nothing, f"{ANALYZE} --data.template_date {day}", ("template_date", "day"))
        for day in ("today", "2025-13-01", "2025-02-30", "01.02.2025", "2025")
    ),
    *(
        Case(f"a template's variables {words}", nothing, f"{ANALYZE} --data.template_kwargs {words}", says)
        for words, says in {
            "enable_thinking": ("data.template_kwargs: expected name=value", "'enable_thinking'"),
            "=false": ("data.template_kwargs: expected name=value", "'=false'"),
            "think-ing=1": ("data.template_kwargs: expected name=value",),
            "a=1 a=2": ("data.template_kwargs: 'a' is given twice",),
            "a=False": ("data.template_kwargs: 'a=False': write true, false or null",),
            "enable_thinking=false": ("asks for no variable 'enable_thinking'", "it asks for none"),
            "messages=1": ("asks for no variable 'messages'",),
            "add_generation_prompt=true": ("asks for no variable 'add_generation_prompt'",),
            "tokenize=true": ("asks for no variable 'tokenize'",),
        }.items()
    ),
    Case(
        "a template's variable of another name",
        written("t.jinja", "{% for m in messages %}{{ m.content }} <end>{% endfor %}{{ enable_thinking }}"),
        f"{TEMPLATE} --data.template_kwargs enable_thinkin=false",
        ("asks for no variable 'enable_thinkin'; it asks for enable_thinking",),
    ),
    Case(
        "training with other variables than the masks",
        written("t.jinja", "{% for m in messages %}{{ m.content }} <end>{% endfor %}{{ effort }}"),
        "train --config run.yaml --run-dir new --train.masks run/masks.zarr --data.chat_template t.jinja "
        "--data.template_kwargs effort=low",
        ("was made from other tokenizer", "data.chat_template"),
    ),
    Case(
        "training on another day than the masks",
        written("t.jinja", "{% for m in messages %}{{ strftime_now('w%d') }} {{ m.content }} <end>{% endfor %}"),
        "train --config run.yaml --run-dir new --train.masks run/masks.zarr --data.chat_template t.jinja",
        ("was made from other tokenizer", "data.chat_template"),
    ),
    Case(
        "training on shorter rows than the masks",
        nothing,
        "train --config run.yaml --run-dir new --train.masks run/masks.zarr --data.max_length 10",
        ("was made from other tokens", "data.template_date and data.max_length", "run the analysis again"),
    ),
]
CASES = [*TOKENIZERS, *TEMPLATES, *SETTINGS_OF_TEMPLATES]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_tokenizers(copy, capsys, case):
    check(case, capsys)


def test_rows_longer_than_the_models_positions_are_mentioned(copy, capsys):
    main(f"{ANALYZE} --analysis.threshold 0.99 --analysis.statistics.permutations 0".split())
    assert "data.max_length = 1024 is above the model's max_position_embeddings = 128" in capsys.readouterr().out
