"""An export is the base but for the trained experts' bytes; copies and links do no harm to the base."""

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dist_moe.errors import UserError
from dist_moe.weights.directory import read_tensors
from dist_moe.weights.export import export_checkpoint
from dist_moe.weights.layout import Place
from tests.forks import start_fork
from tests.unit.weights.conftest import contents, make_trained


def export_killed_at_the_second_change(base, out):
    def changes():
        name, tensor = min(read_tensors(base).items())
        yield Place(name), tensor.bytes()
        os.kill(os.getpid(), signal.SIGKILL)

    export_checkpoint(base, changes(), out, "card")


@pytest.mark.parametrize("link", [False, True])
def test_loaded_weights_are_the_trained_ones_and_the_bases(trained, tmp_path, link):
    out = tmp_path / "out"
    before = contents(trained.base)
    export_checkpoint(trained.base, trained.changes(), out, "card", link=link)
    base, new = (AutoModelForCausalLM.from_pretrained(path) for path in (trained.base, out))
    for name, weight in base.named_parameters():
        expected = weight.detach().clone()
        for (layer, expert), rows in trained.rows.items():
            for weight_name, row in rows.items():
                if name == f"model.layers.{layer}.mlp.experts.{weight_name}":
                    expected[expert] = row
        assert torch.equal(new.get_parameter(name), expected), name
    assert contents(trained.base) == before


def test_all_other_files_are_copied(trained, tmp_path):
    base, out = trained.base, tmp_path / "out"
    (base / "README.md").write_text("the base's card")
    (base / "LICENSE").write_text("its license")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    for pickled in ("pytorch_model.bin", "consolidated.00.pth"):
        (base / pickled).write_bytes(b"runs code when it is read")
    export_checkpoint(base, (), out, "our card")
    old, new = contents(base), contents(out)
    for pickled in ("pytorch_model.bin", "consolidated.00.pth"):
        del old[pickled]
    assert new.pop("README.md") == b"our card"
    assert new.pop("BASE_README.md") == old.pop("README.md")
    assert new == old


def test_a_copy_shares_nothing_with_the_base(trained, tmp_path):
    export_checkpoint(trained.base, trained.changes(), tmp_path / "out", "card")
    assert {file.stat().st_nlink for file in (tmp_path / "out").rglob("*") if file.is_file()} == {1}


def test_only_shards_without_changes_are_linked(tmp_path):
    trained, out = make_trained(tmp_path, fused=False), tmp_path / "out"
    changes = list(trained.changes())
    export_checkpoint(trained.base, changes, out, "card", link=True)
    tensors = read_tensors(trained.base)
    changed = {tensors[place.name].file.name for place, _ in changes}
    shared = {file.name for file in trained.base.iterdir() if file.samefile(out / file.name)}
    assert shared == {file.name for file in trained.base.glob("*.safetensors")} - changed
    assert shared
    assert changed


def test_links_of_a_base_of_symbolic_links(trained, tmp_path):
    """As a download cache lays a model out."""
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "main"
    shutil.move(trained.base, blobs)
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("..", "..", "blobs", blob.name))
    export_checkpoint(snapshot, (), tmp_path / "out", "card", link=True)
    expected = contents(blobs)
    found = contents(tmp_path / "out")
    assert found.pop("README.md") == b"card"
    assert found == expected
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM])
def test_no_link_to_be_had(trained, tmp_path, monkeypatch, number):
    def refuse(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match="leave --link out"):
        export_checkpoint(trained.base, (), tmp_path / "elsewhere" / "out", "card", link=True)
    assert not any((tmp_path / "elsewhere").iterdir())


def test_an_existing_directory_is_left_alone(trained, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("keep")
    with pytest.raises(UserError, match="out exists"):
        export_checkpoint(trained.base, (), out, "card")
    assert contents(out) == {"mine": b"keep"}


def test_a_killed_export_leaves_nothing_that_looks_finished(trained, tmp_path):
    place = tmp_path / "place"
    out = place / "out"
    job = start_fork(tmp_path, export_killed_at_the_second_change, trained.base, out)
    assert job.status() == -signal.SIGKILL
    (left,) = place.iterdir()
    assert left.name.startswith(".out.partial-")
    assert list(left.glob("*.safetensors"))
    assert not (left / "config.json").exists()
    export_checkpoint(trained.base, trained.changes(), out, "card")
    assert AutoModelForCausalLM.from_pretrained(out).config.num_experts == 8
