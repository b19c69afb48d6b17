"""Makes artefacts with correct digests and wrong contents, which the package itself never writes."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from dist_moe.store.layout import root_digest, sums_text
from dist_moe.store.zarr_arrays import METADATA, array_metadata, encode_file, plain


def first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """A change of a tensor's first value."""

    def apply(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return apply


def drop_one(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[max(tensors)]


def edit(path: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file, but not the digest in it."""
    document = json.loads(Path(path).read_text())
    change(document)
    Path(path).write_text(json.dumps(document))


def reseal(path: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file, and write the digest of its new contents into it."""
    document = json.loads(Path(path).read_text())
    document.pop("sha256")
    change(document)
    document["sha256"] = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    Path(path).write_text(json.dumps(document))


def retensor(folder: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of the first shard, and write its new digest into the index."""
    file = Path(folder, "experts-00000.safetensors")
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file)
    facts = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "num_bytes": file.stat().st_size}
    reseal(f"{folder}/index.json", lambda document: document["files"][file.name].update(facts))


def redense(folder: str, change: Callable[[dict[str, torch.Tensor]], object], *, told: bool = False) -> None:
    """Change the dense weights, and write their new digest into the index; with `told` also their types and shapes."""
    file = Path(folder, "dense.safetensors")
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file)
    facts: dict[str, Any] = {}
    if told:
        facts["tensors"] = {
            name: {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)} for name, t in tensors.items()
        }
    redigest_dense(folder, facts)


def redigest_dense(folder: str, facts: dict[str, Any]) -> None:
    """Write the digest of the file of dense weights, and other facts of it, into the index."""
    file = Path(folder, "dense.safetensors")
    facts = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "num_bytes": file.stat().st_size} | facts
    reseal(f"{folder}/index.json", lambda document: document["dense"].update(facts))


def reroot(store: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a store's attributes, and write the digest of the changed store."""
    path = Path(store, "zarr.json")
    root = json.loads(path.read_text())
    change(root["attributes"])
    complete = root["attributes"]["complete"]
    complete["digest"] = root_digest(root, complete["arrays"])
    path.write_text(json.dumps(root))


def refile(store: str, array: str, files: dict[str, bytes]) -> None:
    """Replace the files of a store's array, and update all digests up to the root."""
    folder = Path(store, array)
    sums = dict(reversed(line.split("  ", 1)) for line in (folder / "SHA256SUMS").read_text().splitlines())
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.sha256(data).hexdigest()
    text = sums_text(sums)
    (folder / "SHA256SUMS").write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    reroot(store, lambda attributes: attributes["complete"]["arrays"].update({array: digest}))


def rearray(store: str, array: str, values: np.ndarray) -> None:
    """Replace the values of a store's array, with their type and shape."""
    spec, folder = plain(values.dtype, values.shape), Path(store, array)
    shutil.rmtree(folder / "c")
    lines = [line for line in (folder / "SHA256SUMS").read_text().splitlines(keepends=True) if "  c/" not in line]
    (folder / "SHA256SUMS").write_text("".join(lines))
    refile(store, array, {METADATA: array_metadata(spec), spec.file(0): encode_file(spec, values)})


def retext(store: str, array: str, text: str) -> None:
    """Replace the bytes of an array of texts."""
    rearray(store, array, np.frombuffer(text.encode(), np.uint8))


def redelta(path: str, change: Callable[[dict[str, torch.Tensor], dict[str, str]], object]) -> None:
    """Change the tensors or metadata of a delta, and write the digest of its new contents."""
    file = Path(path)
    with safetensors.safe_open(file, "pt") as stream:
        metadata = dict(stream.metadata())
    tensors = safetensors.torch.load_file(file)
    metadata["digest"] = "0" * 64
    change(tensors, metadata)
    safetensors.torch.save_file(tensors, file, metadata)
    data = file.read_bytes()
    file.write_bytes(data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1))


def write(path: str, data: bytes | str) -> None:
    Path(path).write_bytes(data.encode() if isinstance(data, str) else data)


def flip(path: str, at: int = -1) -> None:
    """Flip one bit of a file."""
    data = bytearray(Path(path).read_bytes())
    data[at] ^= 1
    Path(path).write_bytes(data)


def cut(path: str, size: int = -1) -> None:
    """Truncate a file."""
    Path(path).write_bytes(Path(path).read_bytes()[:size])


def directory(path: str) -> None:
    """Replace a file by a directory."""
    Path(path).unlink()
    Path(path).mkdir()
