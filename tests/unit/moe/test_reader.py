"""What is read of a model directory is what plain transformers reads, whatever else lies in it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dist_moe.cli.main import main
from dist_moe.errors import UserError
from dist_moe.moe.bank import expert_weights
from dist_moe.moe.discover import find_moe_layers
from dist_moe.moe.layout import hub_layout
from dist_moe.moe.load import empty_model, fill
from dist_moe.moe.summary import describe
from dist_moe.store import MaskStore
from dist_moe.weights.directory import INDEX, model_hash, read_tensors, weight_files
from dist_moe.weights.export import export_checkpoint
from dist_moe.weights.layout import Place
from dist_moe.weights.verify import verify_checkpoint
from tests.checkpoint import prompt_rows, save_checkpoint, write_config, write_jsonl
from tests.tiny import E, L
from tests.unit.weights.conftest import contents, make_trained


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("reader") / "model")


@pytest.fixture
def base(clean: Path, tmp_path: Path) -> Path:
    shutil.copytree(clean, tmp_path / "model")
    return tmp_path / "model"


def loaded(path: Path) -> dict[str, torch.Tensor]:
    """All weights as this package loads them."""
    model = empty_model(path)
    layers = find_moe_layers(model)
    fill(model, layers, path, [range(E)] * len(layers))
    assert all(
        layer.experts.get_parameter(name) is not None for layer in layers for name in expert_weights(layer.experts)
    )
    return model.state_dict()


def require_as_transformers(path: Path) -> dict[str, torch.Tensor]:
    expected, found = AutoModelForCausalLM.from_pretrained(path).state_dict(), loaded(path)
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
    return expected


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def edit_index(path: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((path / INDEX).read_text())
    change(index["weight_map"])
    (path / INDEX).write_text(json.dumps(index))


def stale(path: Path, name: str) -> None:
    """A file that has every tensor's name, and other values."""
    shards = [load_file(path / shard) for shard in weight_files(path).shards]
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v + 1 for shard in shards for k, v in shard.items()}, path / name, metadata={"format": "pt"})


def in_subfolders(path: Path) -> None:
    for number, file in enumerate(sorted(path.glob("*.safetensors"))):
        folder = path / f"part{number % 2}" / "weights"
        folder.mkdir(parents=True, exist_ok=True)
        file.rename(folder / file.name)
    places = {file.name: str(file.relative_to(path)) for file in path.rglob("*.safetensors")}
    edit_index(path, lambda weights: weights.update({name: places[file] for name, file in weights.items()}))


LEFTOVERS = (
    "a.safetensors",
    "model-00099-of-00099.safetensors",
    "zz.safetensors",
    "value_head.safetensors",
    "adapter_model.safetensors",
    "consolidated.safetensors",
    "model.fp16.safetensors",
    "part9/model.safetensors",
    "original/model-00001-of-00001.safetensors",
)


def test_reader_leftovers_are_not_there(clean: Path, base: Path, tmp_path: Path) -> None:
    """Loading, hash, description, export and verification are those of the directory without them."""
    for name in LEFTOVERS:
        stale(base, name)
    assert equal(require_as_transformers(base), AutoModelForCausalLM.from_pretrained(clean).state_dict())
    assert model_hash(base) == model_hash(clean)
    assert describe(base) == describe(clean)
    union_LE = np.zeros((L, E), bool)
    for path, out in ((clean, tmp_path / "of-clean"), (base, tmp_path / "of-base")):
        key = "model.layers.1.mlp.experts.3.up_proj.weight"
        export_checkpoint(path, [(Place(key), read_tensors(path)[key].bytes()[::-1].copy() & 0xBF)], out, "card")
    assert contents(tmp_path / "of-base") == contents(tmp_path / "of-clean")
    union_LE[1, 3] = True
    assert verify_checkpoint(hub_layout(base), tmp_path / "of-base", union_LE).violations == []
    for name in LEFTOVERS:
        stale(tmp_path / "of-base", name)
    seen = verify_checkpoint(hub_layout(base), tmp_path / "of-base", union_LE)
    assert (seen.violations, seen.unread, seen.changed_experts) == ([], sorted(LEFTOVERS), {(1, 3)})


def test_reader_the_commands_with_and_without_leftovers(clean: Path, tmp_path: Path) -> None:
    """analyze, train, export and verify as typed: masks, trained experts and the export are the same."""
    rows = write_jsonl(tmp_path / "prompts.jsonl", prompt_rows())
    stores = []
    for kind in ("clean", "dirty"):
        root = tmp_path / kind
        shutil.copytree(clean, root / "model")
        if kind == "dirty":
            for name in LEFTOVERS:
                stale(root / "model", name)
        write_config(root / "run.yaml", root / "model", rows, root / "run")
        for command in ("analyze", "train"):
            assert main([command, "--config", str(root / "run.yaml")]) == 0
        assert main(["export", str(root / "run"), "--out", str(root / "out")]) == 0
        assert (
            main(["verify", str(root / "model"), str(root / "out"), "--masks", str(root / "run" / "masks.zarr")]) == 0
        )
        stores.append(MaskStore.open(str(root / "run" / "masks.zarr")))
    first, second = stores
    assert first.masks[:].any()
    assert (first.masks[:] == second.masks[:]).all()
    assert (first.counts.risk_diff[:] == second.counts.risk_diff[:]).all()
    assert first.provenance["model_hash"] == second.provenance["model_hash"]
    exports = [
        AutoModelForCausalLM.from_pretrained(tmp_path / kind / "out").state_dict() for kind in ("clean", "dirty")
    ]
    assert equal(*exports)
    assert not equal(exports[1], AutoModelForCausalLM.from_pretrained(clean).state_dict())
    assert weight_files(tmp_path / "dirty" / "out") == weight_files(clean)


def test_reader_shards_in_subfolders(clean: Path, base: Path, tmp_path: Path) -> None:
    in_subfolders(base)
    assert not list(base.glob("*.safetensors"))
    assert equal(require_as_transformers(base), AutoModelForCausalLM.from_pretrained(clean).state_dict())
    assert describe(base) == describe(clean)
    for link in (False, True):
        out = tmp_path / f"out{link}"
        export_checkpoint(
            base, [(Place(k), t.bytes()) for k, t in list(read_tensors(base).items())[:1]], out, "card", link=link
        )
        assert weight_files(out) == weight_files(base)
        assert equal(require_as_transformers(out), AutoModelForCausalLM.from_pretrained(clean).state_dict())
        assert verify_checkpoint(hub_layout(base), out, np.zeros((L, E), bool)).violations == []


def test_reader_trained_experts_go_to_shards_in_subfolders(tmp_path: Path) -> None:
    trained = make_trained(tmp_path, fused=False)
    in_subfolders(trained.base)
    export_checkpoint(trained.base, trained.changes(), tmp_path / "out", "card")
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for (layer, expert), rows in trained.rows.items():
        for name, row in rows.items():
            assert torch.equal(weights[f"model.layers.{layer}.mlp.experts.{name}"][expert], row)


def test_reader_one_file_before_an_index(base: Path, tmp_path: Path) -> None:
    """transformers takes model.safetensors, and neither index nor shards exist for it."""
    stale(base, "model.safetensors")
    expected = require_as_transformers(base)
    assert weight_files(base).names == ("model.safetensors",)
    export_checkpoint(base, (), tmp_path / "out", "card")
    assert not (tmp_path / "out" / INDEX).exists()
    assert equal(require_as_transformers(tmp_path / "out"), expected)
    assert verify_checkpoint(hub_layout(base), tmp_path / "out", np.zeros((L, E), bool)).violations == []


def test_reader_weights_that_the_configuration_names(base: Path, tmp_path: Path) -> None:
    stale(base, "other.safetensors")
    config = json.loads((base / "config.json").read_text())
    for name in ("other.safetensors", INDEX):
        stale(base, "model.safetensors")
        (base / "config.json").write_text(json.dumps(config | {"transformers_weights": name}))
        expected = require_as_transformers(base)
        out = tmp_path / f"out-{name}"
        export_checkpoint(base, (), out, "card")
        assert equal(require_as_transformers(out), expected)


def test_reader_of_two_tensors_of_one_name_the_later_file_counts(base: Path) -> None:
    """Whatever the index says: transformers takes only the names of the files from it."""
    name, shard = "lm_head.weight", json.loads((base / INDEX).read_text())["weight_map"]["lm_head.weight"]
    for file, value in (("aaa.safetensors", 1.0), ("zzz.safetensors", 2.0)):
        save_file({name: torch.full((128, 32), value)}, base / file, metadata={"format": "pt"})
    edit_index(base, lambda weights: weights.update({"x": "aaa.safetensors"}))
    assert require_as_transformers(base)[name].ne(1).all()
    assert read_tensors(base)[name].file.name == shard
    edit_index(base, lambda weights: weights.update({"y": "zzz.safetensors", name: "aaa.safetensors"}))
    assert require_as_transformers(base)[name].eq(2).all()


def test_reader_a_tensor_that_the_index_gives_elsewhere(base: Path) -> None:
    files = sorted(set(json.loads((base / INDEX).read_text())["weight_map"].values()))
    edit_index(base, lambda weights: weights.update(dict.fromkeys(list(weights)[10:20], files[0])))
    edit_index(base, lambda weights: weights.update({f"_{i}": file for i, file in enumerate(files)}))
    require_as_transformers(base)


def test_reader_a_download_cache_of_symbolic_links(clean: Path, base: Path, tmp_path: Path) -> None:
    shutil.move(base, tmp_path / "blobs")
    base.mkdir()
    for blob in (tmp_path / "blobs").iterdir():
        (base / blob.name).symlink_to(Path("..", "blobs", blob.name))
    assert equal(require_as_transformers(base), AutoModelForCausalLM.from_pretrained(clean).state_dict())
    assert model_hash(base) == model_hash(clean)


def rewrite(path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """Change one tensor in its shard, which is returned."""
    file = read_tensors(path)[name].file
    tensors = load_file(file)
    tensors[name] = change(tensors[name].clone())
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def put(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor.view(-1)[-1] = value
    return tensor


DENSE, EXPERT = "model.layers.1.self_attn.q_proj.weight", "model.layers.2.mlp.experts.5.down_proj.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [DENSE, EXPERT, "model.norm.weight", "model.embed_tokens.weight"])
def test_reader_a_value_that_is_not_finite(base: Path, name: str, value: float) -> None:
    file = rewrite(base, name, lambda tensor: put(tensor, value))
    with pytest.raises(UserError) as error:
        loaded(base)
    assert str(error.value).startswith(f"{file}: tensor {name} has a value that is NaN or infinite")


def test_reader_a_rank_looks_at_its_own_experts(base: Path) -> None:
    """All ranks together look at all: the rank with expert 5 refuses, one without it has nothing to say of it."""
    rewrite(base, EXPERT, lambda tensor: put(tensor, float("nan")))
    for experts, bad in (([0, 1, 2, 3], False), ([4, 5, 6, 7], True)):
        model = empty_model(base)
        layers = find_moe_layers(model)
        if bad:
            with pytest.raises(UserError, match=EXPERT):
                fill(model, layers, base, [experts] * L)
        else:
            fill(model, layers, base, [experts] * L)


def test_reader_a_value_that_its_new_type_cannot_hold(base: Path) -> None:
    rewrite(base, DENSE, lambda tensor: put(tensor, 1e6))
    model = empty_model(base, torch.float16)
    layers = find_moe_layers(model)
    with pytest.raises(UserError, match=r"q_proj\.weight: a value .* infinite as torch\.float16: .*model\.dtype"):
        fill(model, layers, base, [range(E)] * L)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", [DENSE, EXPERT])
def test_reader_a_type_that_cannot_be_trained(base: Path, name: str, dtype: torch.dtype) -> None:
    file = rewrite(base, name, lambda tensor: tensor.to(dtype))
    for read in (loaded, describe):
        with pytest.raises(UserError) as error:
            read(base)
        assert str(error.value).startswith(f"{file}: tensor {name} is of type ")
        assert "cannot be trained" in str(error.value)


def edit_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def test_reader_more_layers_than_the_configuration_says(base: Path) -> None:
    edit_config(base, num_hidden_layers=L - 1)
    for read in (loaded, describe):
        with pytest.raises(
            UserError, match=r"tensor model\.layers\.2\.\S+ \(and \d+ more\) belongs to no weight"
        ) as error:
            read(base)
        assert "num_hidden_layers: 2" in str(error.value)


@pytest.mark.parametrize("name", ["v_head.summary.weight", "model.layers.0.mlp.extra.weight", "lm_head.bias"])
def test_reader_a_tensor_of_no_weight(base: Path, name: str) -> None:
    file = read_tensors(base)[DENSE].file
    save_file(load_file(file) | {name: torch.zeros(2)}, file, metadata={"format": "pt"})
    for read in (loaded, describe):
        with pytest.raises(UserError, match="belongs to no weight of the model") as error:
            read(base)
        assert str(error.value).startswith(f"{file}: tensor {name} belongs")


@pytest.mark.parametrize("names", [
    ("model.layers.3.eh_proj.weight", "model.layers.3.mlp.experts.0.up_proj.weight"),
    ("mtp.layers.0.fc.weight",),
    ("model.mtp_layers.0.fc.weight",),
    ("model.rotary_emb.inv_freq",),
])  # fmt: skip
def test_reader_layers_that_predict_several_tokens_are_left_out_and_kept(
    base: Path, tmp_path: Path, names: tuple
) -> None:
    """Released checkpoints hold them, and no class of transformers has a place for them."""
    file = read_tensors(base)[DENSE].file
    save_file(load_file(file) | {name: torch.zeros(2) for name in names}, file, metadata={"format": "pt"})
    require_as_transformers(base)
    export_checkpoint(base, (), tmp_path / "out", "card")
    assert set(names) <= read_tensors(tmp_path / "out").keys()


def test_reader_a_dense_weight_of_another_shape_is_known_from_its_header(base: Path) -> None:
    file = rewrite(base, DENSE, lambda tensor: tensor[:-1].contiguous())
    with pytest.raises(UserError) as error:
        describe(base)
    assert str(error.value).startswith(f"{file}: tensor {DENSE} has shape (31, 32), expected (32, 32)")


def test_reader_an_adapter_that_transformers_would_load(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only with peft installed: without it, from_pretrained does not look at the file."""
    (base / "adapter_config.json").write_text("{}")
    assert main(["inspect-model", str(base)]) == 0
    monkeypatch.setattr("dist_moe.weights.model_dir.find_spec", lambda name: name)
    assert main(["inspect-model", str(base)]) == 2


def test_reader_a_trained_value_that_is_not_finite_is_not_exported(base: Path, tmp_path: Path) -> None:
    data = np.full(32 * 48, np.inf, np.float32).view(np.uint8)
    with pytest.raises(UserError, match=r"experts\.5\.down_proj\.weight: a trained value is NaN or infinite as F32"):
        export_checkpoint(base, [(Place(EXPERT), data)], tmp_path / "out", "card")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_reader_every_byte_that_is_read_is_in_the_hash(clean: Path, base: Path) -> None:
    hashes = {model_hash(base)}
    for name in ("config.json", *weight_files(base).shards):
        file = base / name
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if name != "config.json" else data + b"\n")
        hashes.add(model_hash(base))
        file.write_bytes(data)
    assert len(hashes) == 2 + len(weight_files(base).shards)
    assert model_hash(base) == model_hash(clean)
