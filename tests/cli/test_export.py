"""`dist-moe export`, `apply` and `verify` as a person types them."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM

from dist_moe.cli.main import main
from dist_moe.stats.names import expert_name
from dist_moe.store.counts import Counts
from dist_moe.store.read import MaskStore
from dist_moe.weights.directory import model_hash
from dist_moe.workflows.verify import by_names
from tests.checkpoint import save_checkpoint
from tests.cli.test_bad_input import refused
from tests.evaluations import value


def run(*argv: object) -> int:
    return main([str(a) for a in argv])


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A directory with `direct`, the run's export, and `delta`, its delta."""
    root = tmp_path_factory.mktemp("exported")
    assert run("export", trained.run_dir, "--out", root / "direct") == 0
    assert run("export", trained.run_dir, "--delta", "--out", root / "delta") == 0
    return root


def test_apply_gives_the_direct_export_card_included(trained, exported, tmp_path):
    assert run("apply", trained.model, exported / "delta", "--out", tmp_path / "applied") == 0
    assert contents(tmp_path / "applied") == contents(exported / "direct")


def test_an_export_is_verified_without_torch_and_transformers(trained, exported):
    """The names of its tensors tell their experts; so each flipped bit is named as modules would name it."""
    words = ["verify", str(trained.model), str(exported / "direct"), "--masks", str(trained.masks)]
    code = (
        f"import sys\nfrom dist_moe.cli.main import main\nassert main({words!r}) == 0\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'scipy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_names_of_a_base_that_was_not_loaded_do_not_count(trained):
    """Of such a base nobody has compared the tensors with a model."""
    store = MaskStore.open(trained.masks)
    assert by_names(trained.model, store) is not None
    store.provenance = {name: fact for name, fact in store.provenance.items() if name != "micro_batch_tokens"}
    assert by_names(trained.model, store) is None


def test_export_with_links_gives_the_same_files(trained, exported, tmp_path):
    before = contents(trained.model)
    assert run("export", trained.run_dir, "--link", "--out", tmp_path / "linked") == 0
    assert contents(tmp_path / "linked") == contents(exported / "direct")
    assert contents(trained.model) == before


def test_a_delta_tells_what_it_was_made_from(trained, exported):
    store = MaskStore.open(trained.masks)
    with safe_open(exported / "delta", "np") as stream:
        facts = json.loads(stream.metadata()["facts"])
        names = list(stream.keys())
    assert facts["model_hash"] == model_hash(trained.model)
    assert facts["masks_digest"] == store.digest
    assert facts["union"] == np.argwhere(store.union()).tolist()
    assert str(trained.root) not in json.dumps(facts)
    assert len(names) == 3 * facts["num_trained_experts"]
    assert (exported / "delta").stat().st_size < sum(f.stat().st_size for f in trained.model.glob("*.safetensors"))


def test_the_card_tells_the_runs_facts(trained, exported):
    store = MaskStore.open(trained.masks)
    card = (exported / "direct" / "README.md").read_text()
    for words in (
        f"| Base model | model, hash `{model_hash(trained.model)}` |",
        f"| Data | 16 safe and 16 unsafe prompts, hash `{store.provenance['data_hash']}` |",
        "| Batches | 2: hacking 1, weapons 1 |",
        "| Mode | route, fill natural, scope all |",
        "| Steps | 4 |",
        f"| Masks | digest `{store.digest}` |",
        f"| Experts open to training | {store.union().sum()}, ",
    ):
        assert words in card
    assert "Before and after" not in card


def test_the_card_shows_the_evaluation_until_the_experts_are_others(trained, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(trained.run_dir, run_dir)
    assert run("evaluate", run_dir) == 0
    assert run("export", run_dir, "--out", tmp_path / "evaluated") == 0
    before, after = (
        value(run_dir, "refusal loss (unsafe)", when, by="category", name="weapons") for when in ("before", "after")
    )
    card = (tmp_path / "evaluated" / "README.md").read_text()
    (line,) = [line for line in card.splitlines() if line.startswith("| weapons | ")]
    assert f" | {before:.3f} → {after:.3f} [" in line
    assert run("train", "--config", trained.config, "--run-dir", run_dir, "--overwrite", "--train.epochs", "1") == 0
    assert run("export", run_dir, "--out", tmp_path / "other") == 0
    assert "Before and after" not in (tmp_path / "other" / "README.md").read_text()


def test_a_share_of_the_change_is_applied_told_and_verified(trained, exported, tmp_path, capsys):
    out, delta = tmp_path / "half", tmp_path / "delta"
    assert run("export", trained.run_dir, "--alpha", "0.5", "--out", out) == 0
    assert run("export", trained.run_dir, "--alpha", "0.5", "--delta", "--out", delta) == 0
    assert "trained experts with 0.5 of their change" in capsys.readouterr().out
    assert run("apply", trained.model, delta, "--out", tmp_path / "applied") == 0
    assert contents(tmp_path / "applied") == contents(out)
    assert "| Share of their change | 0.5: base + 0.5 (trained - base) |" in (out / "README.md").read_text()
    with safe_open(delta, "np") as stream:
        assert json.loads(stream.metadata()["facts"])["alpha"] == 0.5
    assert run("verify", trained.model, out, "--masks", trained.masks) == 0
    old, new, half = ({k: v for f in path.glob("*.safetensors") for k, v in load_file(f).items()}
                      for path in (trained.model, exported / "direct", out))  # fmt: skip
    for name, before in old.items():
        wide = before.astype(np.float64)
        assert (half[name] == ((new[name] - wide) * 0.5 + wide).astype(np.float32)).all()
    assert sum((half[name] != before).any() for name, before in old.items()) > 0


def test_all_and_nothing_of_the_change(trained, exported, tmp_path):
    for alpha, expected in (("1", exported / "direct"), ("0", trained.model)):
        assert run("export", trained.run_dir, "--alpha", alpha, "--out", tmp_path / alpha) == 0
        for file in expected.glob("*.safetensors"):
            assert (tmp_path / alpha / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("alpha", ["-0.1", "1.5", "half", "nan"])
def test_a_share_that_is_none(trained, tmp_path, capsys, alpha):
    line = refused(capsys, tmp_path, "export", trained.run_dir, f"--alpha={alpha}", "--out", tmp_path / "out")
    assert f"--alpha: expected a number from 0 to 1, got '{alpha}'" in line


def test_verify_lists_the_changed_experts_by_layer(trained, exported, capsys):
    capsys.readouterr()
    assert run("verify", trained.model, exported / "direct", "--masks", trained.masks) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  L")]
    index = json.loads((trained.run_dir / "experts" / "index.json").read_text())
    trained_experts = sorted(expert for part in index["files"].values() for expert in part["experts"])
    assert [name for line in lines for name in line] == [expert_name(*pair) for pair in trained_experts]
    assert len(lines) == len({layer for layer, _ in trained_experts})


def test_verify_without_masks_says_what_has_moved(trained, exported, tmp_path, capsys):
    capsys.readouterr()
    assert run("verify", trained.model, exported / "direct", "--top", 3, "--json", tmp_path / "moved.json") == 0
    said = capsys.readouterr().out
    index = json.loads((trained.run_dir / "experts" / "index.json").read_text())
    trained_experts = sorted(expert for part in index["files"].values() for expert in part["experts"])
    found = json.loads((tmp_path / "moved.json").read_text())
    assert [[each["layer"], each["expert"]] for each in found["experts"]] == trained_experts
    assert all(0 < each["size"]["relative"] < 1 for each in found["experts"])
    assert found["tensors"] == found["settings"] == found["files"] == []
    assert f"Experts that have moved: {len(trained_experts)} of 24" in said
    assert "The 3 that have moved most:" in said
    assert "Other tensors that have moved: 0 of" in said


def test_verify_sets_each_experts_change_against_its_share_of_tokens(trained, exported, tmp_path, capsys):
    """Against sums over prompts, and weights as plain transformers loads them."""
    counts = trained.run_dir / "counts.zarr"
    capsys.readouterr()
    words = ("verify", trained.model, exported / "direct", "--counts", counts, "--csv", tmp_path / "x.csv")
    assert run(*words) == 0
    said = capsys.readouterr().out
    with (tmp_path / "x.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    store = Counts.open(counts)
    counts_PLE, tokens_P, unsafe_P = store.prompt_counts[:], store.prompt_tokens[:], store.prompts["unsafe"].to_numpy()
    shares = {
        name: counts_PLE[arm_P].sum(0) / tokens_P[arm_P].sum()
        for name, arm_P in (("unsafe", unsafe_P), ("safe", ~unsafe_P))
    }
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (trained.model, exported / "direct"))
    relative = np.zeros(shares["safe"].shape)
    for layer in range(relative.shape[0]):
        one, other = (model.model.layers[layer].mlp.experts for model in (before, after))
        for expert in range(relative.shape[1]):
            weights = [
                [getattr(of, name)[expert].detach().double().numpy().ravel() for name in ("gate_up_proj", "down_proj")]
                for of in (one, other)
            ]
            flat = [np.concatenate(each) for each in weights]
            relative[layer, expert] = np.linalg.norm(flat[1] - flat[0]) / np.linalg.norm(flat[0])
    assert len(lines) == relative.size
    for line in lines:
        at = int(line["layer"]), int(line["expert"])
        assert float(line["relative"]) == pytest.approx(relative[at], rel=1e-6)
        assert float(line["a_unsafe_n"]) == pytest.approx(shares["unsafe"][at])
        assert float(line["a_safe_n"]) == pytest.approx(shares["safe"][at])
    expected = spearmanr(relative.ravel(), shares["unsafe"].ravel()).statistic
    assert f"of unsafe prompts' tokens: over all {expected:+.2f} (24 experts)" in said


def test_verify_ends_with_status_1_on_a_changed_configuration(trained, exported, tmp_path, capsys):
    shutil.copytree(exported / "direct", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": 1}))
    assert run("verify", trained.model, tmp_path / "out", "--masks", trained.masks) == 1
    assert "VIOLATION config.json: changed" in capsys.readouterr().out


def test_apply_to_another_base_names_both_hashes(trained, exported, tmp_path, capsys):
    other = save_checkpoint(tmp_path / "other", seed=1)
    line = refused(capsys, tmp_path, "apply", other, exported / "delta", "--out", tmp_path / "out")
    assert model_hash(other)[:12] in line
    assert model_hash(trained.model)[:12] in line


@pytest.mark.parametrize("command", ["export", "apply"])
def test_an_out_that_exists(trained, exported, tmp_path, capsys, command):
    (tmp_path / "out").write_text("mine")
    argv = {
        "export": ("export", trained.run_dir, "--delta", "--out", tmp_path / "out"),
        "apply": ("apply", trained.model, exported / "delta", "--out", tmp_path / "out"),
    }
    assert "out exists" in refused(capsys, tmp_path, *argv[command])
    assert (tmp_path / "out").read_text() == "mine"


def test_a_damaged_delta(trained, exported, tmp_path, capsys):
    data = bytearray((exported / "delta").read_bytes())
    data[-1] ^= 1
    (tmp_path / "delta").write_bytes(data)
    line = refused(capsys, tmp_path, "apply", trained.model, tmp_path / "delta", "--out", tmp_path / "out")
    assert "delta is damaged" in line


def test_a_delta_of_another_kind(trained, tmp_path, capsys):
    shard = min(trained.model.glob("*.safetensors"))
    line = refused(capsys, tmp_path, "apply", trained.model, shard, "--out", tmp_path / "out")
    assert f"{shard} is not a delta" in line
