"""Rows as tokens, and the batches that they are in: made once, and kept in a file of the run directory.

Making them takes about 0.3 ms a row, so minutes for 10,000 batches, at each start of each rank. What is kept is used by
every later `count` and `train` of the same bytes, tokenizer, settings, library versions and code; if anything of that
differs, or the file is damaged, rows are made anew. Ids stay on disk until a batch is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import overload

import jinja2
import numpy as np
import tokenizers
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

import dist_moe.data
from dist_moe.config.schema import Config, DataConfig
from dist_moe.data.batches import BatchPlan, plan_batches
from dist_moe.data.encode import EncodedSet, Findings
from dist_moe.data.encoded import EncodedRows
from dist_moe.data.index import BatchIndex
from dist_moe.data.rows import Prompt, PromptSet, read_prompts
from dist_moe.data.sources import sources_hash
from dist_moe.data.tokens import tokens_hash
from dist_moe.errors import UserError
from dist_moe.files import hash_file, write_bytes_atomic
from dist_moe.version import __version__
from dist_moe.weights.directory import KEPT_HASH
from dist_moe.workflows.encoding import Encoding, read_encoded

SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Files of a model directory that can say something of its tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DealtRows:
    """Rows, their tokens and their batches."""

    prompts: PromptSet
    encoded: EncodedSet
    tokens_hash: str
    plan: BatchPlan


def made_rows(config: Config, encoding: Encoding) -> DealtRows:
    """Read, encode and deal all rows of `data.paths`.

    Raises:
        UserError: a row cannot be used, or there are too few.
    """
    prompts, encoded = read_encoded(config.data, encoding)
    batches = config.batches
    plan = plan_batches(prompts.prompts, batches.batch_size, batches.safe_ratio, config.seed)
    return DealtRows(prompts=prompts, encoded=encoded, tokens_hash=tokens_hash(encoded.rows), plan=plan)


def rows_key(config: Config, encoding: Encoding) -> str | None:
    """SHA-256 of all that `made_rows` depends on; None: a file of rows cannot be read."""
    sources = sources_hash(config.data.paths)
    if sources is None:
        return None
    code = sorted(Path(*dist_moe.data.__path__).rglob("*.py"))
    found = (file for file in encoding.place.iterdir() if file.suffix in SMALL and file.is_file())
    small = sorted(file for file in found if file.name != KEPT_HASH)  # which comes when weights have been hashed
    facts = {
        "sources": sources,
        "refusal": config.data.refusal,
        "tokenizer": encoding.hash,
        "files": [[file.name, hash_file(file)] for file in small],
        "today": encoding.today.isoformat(),
        "variables": encoding.variables,
        "max_length": encoding.max_length,
        "end_ids": encoding.end_ids,
        "num_ids": encoding.num_ids,
        "batches": asdict(config.batches),
        "seed": config.seed,
        "versions": [__version__, *(module.__version__ for module in (transformers, tokenizers, jinja2))],
        "code": [hash_file(file) for file in code],
    }
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def keep_rows(path: Path, key: str, rows: DealtRows) -> None:
    """Write them, in the place of other ones.

    Raises:
        UserError: the file cannot be written.
    """
    index, encoded = rows.plan.index, rows.encoded.rows
    assert index.cluster_P is not None  # rows are read from files
    assert index.pair_P is not None
    facts = {
        "key": key,
        "num_prompts": len(rows.prompts.prompts),
        "data_hash": rows.prompts.data_hash,
        "notes": rows.prompts.notes,
        "findings": asdict(rows.encoded.findings),
        "tokens_hash": rows.tokens_hash,
        "left_over_safe": rows.plan.left_over_safe,
        "left_over_unsafe": rows.plan.left_over_unsafe,
    }
    arrays = {
        "table": encoded.table_NK,
        "content": encoded.content_C2,
        "ids": np.asarray(encoded.ids_T[:]),
        "starts": index.starts_B1,
        "unsafe": index.unsafe_P,
        "cluster": index.cluster_P,
        "pair": index.pair_P,
        "taken": np.array(rows.plan.taken_P, np.int64),
        "names": np.frombuffer(json.dumps([index.ids, index.categories, index.prompt_ids]).encode(), np.uint8),
    }
    said = json.dumps(facts)
    write_bytes_atomic(path, save(arrays, {"facts": _digest(said, arrays) + said}))


def kept_rows(path: Path, key: str, data: DataConfig) -> DealtRows | None:
    """What `keep_rows` has written; None: nothing with this key, or it is damaged."""
    try:
        stream = safe_open(path, "numpy")
    except (FileNotFoundError, SafetensorError):
        return None
    sealed = (stream.metadata() or {}).get("facts", "")
    said, arrays = sealed[64:], {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    if sealed[:64] != _digest(said, arrays):
        return None
    facts = json.loads(said)
    if facts["key"] != key:
        return None
    ids, categories, prompt_ids = json.loads(arrays["names"].tobytes())
    index = BatchIndex(
        ids=tuple(ids),
        categories=tuple(categories),
        starts_B1=arrays["starts"],
        prompt_ids=tuple(prompt_ids),
        unsafe_P=arrays["unsafe"],
        cluster_P=arrays["cluster"],
        pair_P=arrays["pair"],
    )
    num_prompts = facts["num_prompts"]
    rows = EncodedRows(num_prompts, arrays["table"], arrays["content"], stream.get_slice("ids"))
    left = facts["left_over_safe"], facts["left_over_unsafe"]
    prompts = LaterPrompts(data, num_prompts, facts["data_hash"])
    return DealtRows(
        prompts=PromptSet(prompts, facts["data_hash"], tuple(facts["notes"])),
        encoded=EncodedSet(rows, Findings(**facts["findings"])),
        tokens_hash=facts["tokens_hash"],
        plan=BatchPlan(index, tuple(arrays["taken"].tolist()), *left),
    )


class LaterPrompts(Sequence[Prompt]):
    """The prompts of files, which are read when one is asked for."""

    def __init__(self, data: DataConfig, number: int, data_hash: str) -> None:
        self._data, self._number, self._hash = data, number, data_hash

    def __len__(self) -> int:
        return self._number

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | Sequence[Prompt]:
        return self._prompts[index]

    @cached_property
    def _prompts(self) -> Sequence[Prompt]:
        found = read_prompts(self._data.paths, self._data.refusal)
        if found.data_hash != self._hash:
            names = ", ".join(map(str, self._data.paths))
            raise UserError(f"data.paths: {names} changed while the command was starting: run it again")
        return found.prompts


def _digest(facts: str, arrays: Mapping[str, np.ndarray]) -> str:
    total = sha256(facts.encode())
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        total.update(arrays[name].tobytes())
    return total.hexdigest()
