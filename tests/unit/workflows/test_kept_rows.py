"""What is kept of rows is what making them again gives, and is used only for what it was made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from dist_moe.config.load import load_config
from dist_moe.config.schema import Config
from dist_moe.data import rows as rows_module
from dist_moe.errors import UserError
from dist_moe.workflows import kept_rows as module
from dist_moe.workflows.encoding import Encoding
from dist_moe.workflows.kept_rows import DealtRows, keep_rows, kept_rows, made_rows, rows_key
from tests.checkpoint import prompt_rows, save_checkpoint, write_config, write_jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Config:
    """Rows with pairs, rejected answers, a span, and one that is too long."""
    rows = prompt_rows(num_safe=20)
    for i in (0, 1):
        rows[i] |= {"pair_id": f"p{i}"}
        rows[20 + i] |= {"pair_id": f"p{i}", "rejected": "w1 w2 w3", "response": "w5"}
    rows[2] |= {"prompt": "w1 w2 w3 w4", "span": "w2 w3 w4"}
    rows[3] |= {"prompt": " ".join(["w4"] * 60)}
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    extra = "batches: {batch_size: 8}\n"
    found = load_config(write_config(tmp_path / "run.yaml", model, data, tmp_path / "run", extra))
    return replace(found, data=replace(found.data, max_length=40))


def key_of(config: Config) -> str:
    key = rows_key(config, Encoding.of(config))
    assert key is not None
    return key


def plain(rows: DealtRows) -> list[object]:
    """All that there is of rows, as plain values."""
    index = rows.plan.index
    arrays = [index.starts_B1, index.unsafe_P, index.cluster_P, index.pair_P]
    assert all(isinstance(array, np.ndarray) for array in arrays)
    return [
        *map(astuple, rows.prompts.prompts), rows.prompts.data_hash, rows.prompts.notes,
        *map(astuple, rows.encoded.rows), rows.encoded.findings, rows.tokens_hash,
        *((array.dtype, array.tolist()) for array in arrays if array is not None),
        index.ids, index.categories, index.prompt_ids, index.first,
        rows.plan.taken_P, rows.plan.left_over_safe, rows.plan.left_over_unsafe,
    ]  # fmt: skip


def test_what_is_kept_is_what_was_made(config: Config, tmp_path: Path) -> None:
    made, file = made_rows(config, Encoding.of(config)), tmp_path / "kept" / "rows.safetensors"
    assert made.encoded.findings.prompts_cut == 1
    assert sum(row.rejected is not None for row in made.encoded.rows) == 2
    keep_rows(file, key_of(config), made)
    found = kept_rows(file, key_of(config), config.data)
    assert found is not None
    assert plain(found) == plain(made_rows(config, Encoding.of(config)))


def test_no_prompt_is_read_until_one_is_asked_for(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, key = tmp_path / "rows.safetensors", key_of(config)
    keep_rows(file, key, made_rows(config, Encoding.of(config)))
    read = []
    monkeypatch.setattr(module, "read_prompts", lambda *args: read.append(1) or rows_module.read_prompts(*args))
    found = kept_rows(file, key, config.data)
    assert found is not None
    assert (len(found.prompts.prompts), read) == (36, [])
    assert found.prompts.prompts[0].id
    assert read == [1]


def test_prompts_that_change_meanwhile_are_refused(config: Config, tmp_path: Path) -> None:
    file, key = tmp_path / "kept", key_of(config)
    keep_rows(file, key, made_rows(config, Encoding.of(config)))
    found = kept_rows(file, key, config.data)
    assert found is not None
    write_jsonl(config.data.paths[0], prompt_rows(num_safe=21))
    with pytest.raises(UserError, match=r"rows\.jsonl changed while the command was starting: run it again"):
        found.prompts.prompts[0]


def edited(name: str, old: str, new: str) -> Callable[[Config], Config]:
    """The same configuration, for a model directory in which a text of a file is another."""

    def edit(config: Config) -> Config:
        folder = config.data.paths[0].parent / "edited"
        folder.mkdir()
        for file in config.model.path.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))
        return replace(config, model=replace(config.model, path=folder))

    return edit


def other_bytes(config: Config) -> Config:
    path = config.data.paths[0]
    path.write_text(path.read_text() + "\n")
    return config


def template(config: Config) -> Config:
    file = config.data.paths[0].parent / "template.jinja"
    file.write_text(Encoding.of(config).tokenizer.chat_template + " ")
    return replace(config, data=replace(config.data, chat_template=file))


CHANGES: dict[str, Callable[[Config], Config]] = {
    "a byte of the rows": other_bytes,
    "refusal": lambda config: replace(config, data=replace(config.data, refusal="w9")),
    "max_length": lambda config: replace(config, data=replace(config.data, max_length=39)),
    "template_date": lambda config: replace(config, data=replace(config.data, template_date="2024-01-01")),
    "chat_template": template,
    "batch_size": lambda config: replace(config, batches=replace(config.batches, batch_size=4)),
    "safe_ratio": lambda config: replace(config, batches=replace(config.batches, safe_ratio=0.25)),
    "seed": lambda config: replace(config, seed=1),
    "a word of the tokenizer": edited("tokenizer.json", '"w7"', '"v7"'),
    "a setting of the tokenizer": edited("tokenizer_config.json", "{", '{"split_special_tokens": true,'),
    "vocabulary of the model": edited("config.json", '"vocab_size": ', '"vocab_size": 9'),
}


@pytest.mark.parametrize("change", CHANGES)
def test_rows_of_anything_else_are_not_used(config: Config, tmp_path: Path, change: str) -> None:
    file, before = tmp_path / "kept", key_of(config)
    keep_rows(file, before, made_rows(config, Encoding.of(config)))
    other = CHANGES[change](config)
    assert key_of(other) != before
    assert kept_rows(file, key_of(other), other.data) is None


@pytest.mark.parametrize("what", ["__version__", "transformers", "code"])
def test_rows_of_another_version_are_not_used(config: Config, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(config)
    if what == "__version__":
        monkeypatch.setattr(module, "__version__", "0.0.0")
    elif what == "transformers":
        monkeypatch.setattr(module.transformers, "__version__", "0.0.0")
    else:
        (config.run_dir.parent / "other.py").write_text("")
        monkeypatch.setattr(module.dist_moe.data, "__path__", [str(config.run_dir.parent)])
    assert key_of(config) != before


def test_a_hash_that_is_kept_beside_the_weights_changes_nothing(config: Config) -> None:
    before = key_of(config)
    file = config.model.path / ".dist_moe_hash.json"
    file.write_text("{}")
    assert key_of(config) == before
    file.unlink()


def test_the_same_rows_are_the_same_bytes(config: Config, tmp_path: Path) -> None:
    for name in ("one", "two"):
        keep_rows(tmp_path / name, key_of(config), made_rows(config, Encoding.of(config)))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_damage_is_as_if_nothing_were_kept(config: Config, tmp_path: Path) -> None:
    file, key = tmp_path / "kept", key_of(config)
    keep_rows(file, key, made_rows(config, Encoding.of(config)))
    whole = file.read_bytes()
    assert kept_rows(tmp_path / "none", key, config.data) is None
    for place in range(len(whole) - 5000, len(whole), 271):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert kept_rows(file, key, config.data) is None
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    facts = header["__metadata__"]["facts"].encode()
    assert b"left_over_safe" in facts
    escaped = json.dumps(facts.decode())[1:-1].encode()
    assert escaped in whole
    other = escaped.replace(b'left_over_safe\\": ', b'left_over_safe\\":-', 1)
    file.write_bytes(whole.replace(escaped, other, 1))
    assert kept_rows(file, key, config.data) is None
    file.write_bytes(whole[:-1])
    assert kept_rows(file, key, config.data) is None
    file.write_bytes(b"")
    assert kept_rows(file, key, config.data) is None


def test_files_that_are_not_there_have_no_key(config: Config) -> None:
    config.data.paths[0].unlink()
    assert rows_key(config, Encoding.of(config)) is None
