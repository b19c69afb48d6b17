"""Model directories that are not what they should be, through every command that reads one."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.bad_inputs.harness import Case, Change, check, ids

INSPECT = "inspect-model model"
CONFIG, GENERATION, INDEX = "config.json", "generation_config.json", "model.safetensors.index.json"


def write(name: str, content: str | bytes) -> Change:
    return lambda: Path("model", name).write_bytes(content.encode() if isinstance(content, str) else content)


def edit(name: str, **values: Any) -> Change:
    def change() -> None:
        file = Path("model", name)
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def without(name: str, key: str) -> Change:
    def change() -> None:
        file = Path("model", name)
        content = json.loads(file.read_text())
        del content[key]
        file.write_text(json.dumps(content))

    return change


def in_its_place(name: str, make: Callable[[Path], object]) -> Change:
    def change() -> None:
        Path("model", name).unlink()
        make(Path("model", name))

    return change


def weight_map(change: Callable[[dict[str, Any]], object]) -> Change:
    def edit_it() -> None:
        file = Path("model", INDEX)
        index = json.loads(file.read_text())
        change(index["weight_map"])
        file.write_text(json.dumps(index))

    return edit_it


def named(file: object) -> Change:
    return weight_map(lambda weights: weights.update({"lm_head.weight": file}))


def leave_out(weights: dict[str, str]) -> None:
    """The file of an expert, so that nothing leads to it."""
    file = weights[EXPERT]
    for name in [name for name, its in weights.items() if its == file]:
        del weights[name]


def shard() -> Path:
    return min(Path("model").glob("model-*.safetensors"))


def header(change: Callable[[dict[str, Any]], object]) -> Change:
    """Rewrite one shard's header; its data stays."""

    def rewrite() -> None:
        data = shard().read_bytes()
        length = int.from_bytes(data[:8], "little")
        content = json.loads(data[8 : 8 + length])
        entries = {name: entry for name, entry in content.items() if name != "__metadata__"}
        result = change(entries)
        new = result if isinstance(result, bytes) else json.dumps(entries).encode()
        shard().write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])

    return rewrite


def first(**values: Any) -> Change:
    return header(lambda entries: next(iter(entries.values())).update(values))


def twice(entries: dict[str, Any]) -> bytes:
    name, entry = next(iter(entries.items()))
    return json.dumps(entries).encode()[:-1] + f', "{name}": {json.dumps(entry)}}}'.encode()


def cut(size: int) -> Change:
    return lambda: shard().write_bytes(shard().read_bytes()[:size])


def length(number: int) -> Change:
    return lambda: shard().write_bytes(struct.pack("<Q", number) + shard().read_bytes()[8:])


EXPERT, DENSE = "model.layers.1.mlp.experts.2.up_proj.weight", "model.layers.1.self_attn.k_proj.weight"


def tensor(name: str, change: Callable[[dict[str, torch.Tensor], str], object]) -> Change:
    def rewrite() -> None:
        file = Path("model", json.loads(Path("model", INDEX).read_text())["weight_map"][name])
        tensors = load_file(file)
        change(tensors, name)
        save_file(tensors, file, metadata={"format": "pt"})

    return rewrite


def value(number: float) -> Callable[[dict[str, torch.Tensor], str], object]:
    return lambda tensors, name: tensors[name].view(-1)[3:4].fill_(number)


def cast(dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor], str], object]:
    return lambda tensors, name: tensors.update({name: tensors[name].to(dtype)})


DAMAGED = ("model-00001-of", "not a complete safetensors file", "copy or download it again")
CONFIGS = [
    ("empty", write(CONFIG, ""), ("not readable as JSON",)),
    ("cut", write(CONFIG, '{"model_type": "qwen3_moe",'), ("not readable as JSON",)),
    ("not text", write(CONFIG, b"\xff\xfe\x00"), ("not readable as JSON",)),
    ("deep", write(CONFIG, "[" * 100_000), ("not readable as JSON",)),
    ("a list", write(CONFIG, "[1]"), ("expected a JSON object", "[1]")),
    ("null", write(CONFIG, "null"), ("expected a JSON object",)),
    ("a directory", in_its_place(CONFIG, Path.mkdir), ("no config.json",)),
    ("a link to nothing", in_its_place(CONFIG, lambda path: path.symlink_to("nothing")), ("no config.json",)),
    ("no model type", without(CONFIG, "model_type"), ("model_type is None",)),
    ("model type null", edit(CONFIG, model_type=None), ("model_type is None",)),
    ("model type a list", edit(CONFIG, model_type=["qwen3_moe"]), ("model_type is ['qwen3_moe']",)),
    ("model type unknown", edit(CONFIG, model_type="qwen99_moe"), ("'qwen99_moe' is not supported",)),
    (
        "custom code",
        edit(CONFIG, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}),
        ("'own' is not supported", "auto_map"),
    ),
    ("no language model", edit(CONFIG, model_type="vit"), ("'vit' is not supported", "causal language model")),
    ("dense", edit(CONFIG, model_type="llama"), ("'llama'",)),
    ("no dtype of floating point", edit(CONFIG, dtype="int8"), ("config.json", "int8")),
    ("unknown dtype", edit(CONFIG, dtype="float31"), ("config.json", "float31")),
    ("quantized", edit(CONFIG, quantization_config={"quant_method": "fp8"}), ("FP8", "not quantized")),
    ("weights named outside", edit(CONFIG, transformers_weights="../x.safetensors"), ("outside of its directory",)),
    ("weights named that are pickled", edit(CONFIG, transformers_weights="x.bin"), ("NAME.safetensors",)),
    ("weights named that are no text", edit(CONFIG, transformers_weights=3), ("NAME.safetensors", "3")),
    (
        "weights named that are not there",
        edit(CONFIG, transformers_weights="x.safetensors"),
        ("no *.safetensors file",),
    ),
    ("a layer too few", edit(CONFIG, num_hidden_layers=2), ("model.layers.2.", "num_hidden_layers: 2")),
    ("a layer too many", edit(CONFIG, num_hidden_layers=4), ("model.layers.3.mlp.experts", "missing")),
    ("a billion layers", edit(CONFIG, num_hidden_layers=10**9), ("num_hidden_layers is 1000000000",)),
    ("1001 layers", edit(CONFIG, num_hidden_layers=1001), ("num_hidden_layers is 1001",)),
    ("more experts", edit(CONFIG, num_local_experts=9), ("experts.8.", "missing")),
    ("fewer experts", edit(CONFIG, num_local_experts=7), ("7 experts",)),
    ("a billion experts", edit(CONFIG, num_local_experts=10**9), ("experts",)),
    ("top-k above the experts", edit(CONFIG, num_experts_per_tok=9), ("9 experts", "1 to 8")),
    ("top-k 0", edit(CONFIG, num_experts_per_tok=0), ("0 experts", "1 to 8")),
    ("top-k -1", edit(CONFIG, num_experts_per_tok=-1), ("-1 experts", "1 to 8")),
    ("another vocabulary", edit(CONFIG, vocab_size=127), ("(128, 32)", "(127, 32)")),
    ("another width", edit(CONFIG, hidden_size=64), ("expected",)),
]
NUMBERS = [
    (f"{name} {shown}", edit(CONFIG, **{name: number}), ("model/",))
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "head_dim")
    for shown, number in (("null", None), ("0", 0), ("-1", -1), ("text", "many"), ("1.5", 1.5), ("list", [1]))
    if (name, number) not in (("head_dim", None), ("num_attention_heads", None))
]
NUMBERS += [
    (f"num_local_experts {shown}", edit(CONFIG, num_local_experts=number), ("model",))
    for shown, number in (("null", None), ("0", 0), ("-1", -1), ("text", "many"), ("1.5", 1.5), ("list", [1]))
]
NUMBERS += [
    (f"num_experts_per_tok {shown}", edit(CONFIG, num_experts_per_tok=number), (CONFIG,))
    for shown, number in (("null", None), ("text", "many"), ("1.5", 1.5), ("true", True))
]
GENERATIONS = [
    ("empty", write(GENERATION, ""), ("not readable as JSON",)),
    ("a list", write(GENERATION, "[]"), ("expected a JSON object",)),
    ("broken", write(GENERATION, "{"), ("not readable as JSON",)),
    ("an end of text", edit(GENERATION, eos_token_id="<end>"), ("eos_token_id", "<end>")),
]
INDEXES = [
    ("empty", write(INDEX, ""), ("not readable as JSON",)),
    ("broken", write(INDEX, "{"), ("not readable as JSON",)),
    ("a list", write(INDEX, "[]"), ("expected a JSON object",)),
    ("a directory", in_its_place(INDEX, Path.mkdir), ("no *.safetensors file", INDEX)),
    ("without weight_map", without(INDEX, "weight_map"), ("weight_map",)),
    ("without metadata", without(INDEX, "metadata"), ("metadata",)),
    ("metadata a list", edit(INDEX, metadata=[]), ("metadata",)),
    ("weight_map a list", edit(INDEX, weight_map=["x"]), ("weight_map",)),
    ("weight_map empty", edit(INDEX, weight_map={}), ("weight_map",)),
    ("a number for a file", named(3), ("names 3",)),
    ("null for a file", named(None), ("names None",)),
    ("a list for a file", named(["x.safetensors"]), ("names ['x.safetensors']",)),
    ("no text for a file", named(""), ("names ''",)),
    ("a pickle for a file", named("pytorch_model.bin"), ("names 'pytorch_model.bin'",)),
    ("a file above", named("../model-1.safetensors"), ("outside of its directory",)),
    ("a file above by a way round", named("x/../../model/m.safetensors"), ("outside of its directory",)),
    ("an absolute file", named("/tmp/model-1.safetensors"), ("outside of its directory",)),
    ("a file that is not there", named("model-9.safetensors"), ("model-9.safetensors", "does not exist")),
    ("a directory for a file", named("d.safetensors"), ("d.safetensors", "does not exist")),
    ("a name that is too long", named("x" * 5000 + ".safetensors"), ("does not exist",)),
    ("a name that is no name", named("\ud800\0.safetensors"), ("does not exist",)),
    ("an expert's file left out", weight_map(leave_out), ("model.layers.1.mlp", "missing")),
]
SHARDS = [
    ("empty", cut(0), DAMAGED),
    ("five bytes", cut(5), DAMAGED),
    ("cut in its header", cut(50), DAMAGED),
    ("cut in its data", cut(-1), DAMAGED),
    ("longer", lambda: shard().write_bytes(shard().read_bytes() + b"\0"), DAMAGED),
    ("a huge length", length(2**62), DAMAGED),
    ("length 0", length(0), DAMAGED),
    ("header a list", header(lambda entries: b"[]"), DAMAGED),
    ("header not JSON", header(lambda entries: b"{"), DAMAGED),
    ("header not text", header(lambda entries: b'{"\xff": 1}'), DAMAGED),
    ("unknown type", first(dtype="F31"), DAMAGED),
    ("type a number", first(dtype=3), DAMAGED),
    ("shape that does not fit", first(shape=[3]), DAMAGED),
    ("shape negative", first(shape=[-1]), DAMAGED),
    ("shape too large", first(shape=[2**62, 2**62]), DAMAGED),
    ("shape text", first(shape="x"), DAMAGED),
    ("offsets negative", first(data_offsets=[-4, 0]), DAMAGED),
    ("offsets beyond the end", first(data_offsets=[0, 10**9]), DAMAGED),
    ("offsets the wrong way round", first(data_offsets=[8, 0]), DAMAGED),
    ("offsets overlapping", header(lambda e: [x.update(next(iter(e.values()))) for x in e.values()] and None), DAMAGED),
    ("offsets missing", header(lambda entries: next(iter(entries.values())).pop("data_offsets") and None), DAMAGED),
    ("a tensor twice", header(twice), ("model-00001-of", "occurs twice")),
    ("metadata a number", header(lambda entries: entries.update({"__metadata__": {"x": 1}})), DAMAGED),
    ("not there", lambda: shard().unlink(), ("model-00001-of", "does not exist")),
    ("a directory", lambda: in_its_place(shard().name, Path.mkdir)(), ("model-00001-of", "does not exist")),
    ("a link to itself", lambda: in_its_place(shard().name, lambda p: p.symlink_to(p.name))(), ("does not exist",)),
]
TENSORS = [
    ("an expert missing", tensor(EXPERT, lambda tensors, name: tensors.pop(name)), (EXPERT, "missing")),
    ("an expert of int8", tensor(EXPERT, cast(torch.int8)), (EXPERT, "I8", "cannot be trained")),
    ("an expert of bool", tensor(EXPERT, cast(torch.bool)), (EXPERT, "BOOL", "cannot be trained")),
    ("an expert of F8", tensor(EXPERT, cast(torch.float8_e4m3fn)), (EXPERT, "F8_E4M3", "cannot be trained")),
    ("a dense weight of F8", tensor(DENSE, cast(torch.float8_e5m2)), (DENSE, "F8_E5M2", "cannot be trained")),
    (
        "an expert of another shape",
        tensor(EXPERT, lambda tensors, name: tensors.update({name: torch.zeros(3, 3)})),
        (EXPERT, "(3, 3)"),
    ),
    (
        "a dense weight of another shape",
        tensor(DENSE, lambda tensors, name: tensors.update({name: torch.zeros(3, 3)})),
        (DENSE, "(3, 3)", "(16, 32)"),
    ),
    (
        "a value head among the weights",
        tensor(DENSE, lambda tensors, name: tensors.update({"v_head.weight": torch.zeros(3)})),
        ("v_head.weight", "belongs to no weight"),
    ),
]
CASES = [
    Case(f"{kind}: {name}", change, INSPECT, says)
    for kind, rows in {
        "config": CONFIGS,
        "config, a number": NUMBERS,
        "generation": GENERATIONS,
        "index": INDEXES,
        "shard": SHARDS,
        "tensor": TENSORS,
    }.items()
    for name, change, says in rows
]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_reader_checkpoints(copy, capsys, case):
    Path("model", "d.safetensors").mkdir()
    check(case, capsys)


DIRECTORIES = [
    Case("directory: not there", lambda: shutil.rmtree("model"), INSPECT, ("model.path", "no directory")),
    Case("directory: a file", lambda: (shutil.rmtree("model"), Path("model").touch()), INSPECT, ("no directory",)),
    Case("directory: empty", lambda: (shutil.rmtree("model"), Path("model").mkdir()), INSPECT, ("no config.json",)),
    Case("directory: a name too long", lambda: None, f"inspect-model {'x' * 5000}", ("File name too long",)),
    Case("directory: a name that is none", lambda: None, "inspect-model a\0b", ("no directory",)),
    Case(
        "directory: pickled weights only",
        lambda: (
            [file.rename(file.with_suffix(".bin")) for file in Path("model").glob("*.safetensors")]
            + [Path("model", INDEX).unlink()]
        ),
        INSPECT,
        ("no *.safetensors", "pickled"),
    ),
    Case(
        "directory: shards without an index",
        lambda: Path("model", INDEX).unlink(),
        INSPECT,
        ("no *.safetensors", "model.safetensors or model.safetensors.index.json"),
    ),
]


@pytest.mark.parametrize("case", DIRECTORIES, ids=ids(DIRECTORIES))
def test_reader_directories(copy, capsys, case):
    check(case, capsys)


VERIFY = "verify model base --masks run/masks.zarr"
READERS = {
    "analyze": ("analyze --config run.yaml --run-dir new", ("new",)),
    "train": ("train --config run.yaml --run-dir new --train.masks run/masks.zarr", ("new",)),
    "evaluate": ("evaluate run", ()),
    "export": ("export run --out out", ()),
    "export a delta": ("export run --delta --out new.safetensors", ()),
    "apply": ("apply model delta.safetensors --out out", ()),
    "verify the base": (VERIFY, ()),
    "verify the export": ("verify base model --masks run/masks.zarr", ()),
}
FAULTS = {
    "config": (write(CONFIG, "[]"), ("model/config.json",)),
    "index": (named("/x.safetensors"), ("outside of its directory",)),
    "shard": (cut(-1), DAMAGED),
    "no index": (lambda: Path("model", INDEX).unlink(), ("no *.safetensors file",)),
}
ALL = [
    Case(f"{command}: {fault}", change, argv, says, new)
    for command, (argv, new) in READERS.items()
    for fault, (change, says) in FAULTS.items()
]
"""Every command that reads a model has the same reader."""


@pytest.mark.parametrize("case", ALL, ids=ids(ALL))
def test_reader_every_command(copy, capsys, case):
    shutil.copytree("model", "base")
    check(case, capsys)


NOT_FINITE = [
    Case(f"{command}: {name} {number}", tensor(name, value(number)), argv, (name, "NaN or infinite"), ("new",))
    for command, argv in (("analyze", "analyze --config run.yaml --run-dir new"),)
    for name in (EXPERT, DENSE)
    for number in (float("nan"), float("inf"))
]


@pytest.mark.parametrize("case", NOT_FINITE, ids=ids(NOT_FINITE))
def test_reader_values(copy, capsys, case):
    check(case, capsys)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Not root, for whom every file is readable; commands take relative paths, so what is above need not be open."""
    if os.geteuid() != 0:
        yield
        return
    for place in (Path(), *Path().rglob("*")):
        os.chown(place, 65534, -1, follow_symlinks=False)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


UNREADABLE = [
    Case(f"unreadable: {name}", lambda name=name: Path("model", name).chmod(0), INSPECT, (f"model/{name}", "ermission"))
    for name in (CONFIG, GENERATION, INDEX, "model-00001-of-00011.safetensors")
]
UNREADABLE += [Case("unreadable: the directory", lambda: Path("model").chmod(0), INSPECT, ("model", "ermission"))]


@pytest.mark.parametrize("case", UNREADABLE, ids=ids(UNREADABLE))
def test_reader_unreadable(copy, capsys, case):
    copy.chmod(0o755)
    with ordinary_user():
        check(case, capsys)


@pytest.mark.parametrize("tokens", ["content", "generated"])
def test_reader_of_a_model_that_computes_nan(copy, capsys, tokens):
    """Each weight is finite, and no norm is. (NaN in attention would not do: in rows of fewer tokens than a processor's
    vector has numbers, torch's attention makes 0 of it.)"""
    config = json.loads(Path("model/config.json").read_text())
    config["rms_norm_eps"] = -1000.0
    argv = f"analyze --config run.yaml --run-dir new --analysis.tokens {tokens} --analysis.max_new_tokens 2"
    says = ("model.path", "NaN or infinite, for 32 of 32 prompts", "analysis.dtype")
    check(Case("rms_norm_eps", lambda: Path("model/config.json").write_text(json.dumps(config)), argv, says), capsys)
