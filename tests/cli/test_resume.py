"""A run that is stopped or killed goes on with the same bits; what does not belong to it is refused."""

import json

import pytest
from safetensors.torch import load_file

from dist_moe.cli.main import main
from dist_moe.stats.names import expert_name
from dist_moe.store.read import MaskStore

TIMES = ("seconds", "tokens_per_second")


def arguments(trained, run_dir, *more):
    """A run of 40 steps from the masks of `trained`."""
    settings = ("--train.epochs", "20", "--train.masks", str(trained.masks), "--run-dir", str(run_dir))
    return ["train", "--config", str(trained.config), *settings, *more]


def result(run_dir):
    """Trained experts and metrics of a finished run, without times."""
    experts = load_file(run_dir / "experts" / "experts-00000.safetensors")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {key: w.numpy().tobytes() for key, w in experts.items()}, [
        {key: value for key, value in line.items() if key not in TIMES} for line in lines
    ]


@pytest.fixture(scope="module")
def undisturbed(trained, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(arguments(trained, run_dir)) == 0
    assert not (run_dir / "checkpoints").exists()
    experts, metrics = result(run_dir)
    assert len(metrics) == 40
    assert experts
    return experts, metrics


def test_stop_file(trained, undisturbed, tmp_path, capsys):
    run_dir = tmp_path / "run"
    for step in (1, 2, 3):
        run_dir.mkdir(exist_ok=True)
        (run_dir / "STOP").touch()
        assert main(arguments(trained, run_dir)) == 0
        assert f"Stopped after step {step} of 40" in capsys.readouterr().out
        assert not (run_dir / "STOP").exists()
        assert not (run_dir / "experts").exists()
    assert main(arguments(trained, run_dir)) == 0
    assert "Resuming after step 3 of 40" in capsys.readouterr().out
    assert result(run_dir) == undisturbed


def test_a_run_ends_with_the_step_that_reaches_its_budget_of_tokens(trained, tmp_path, capsys):
    """A batch has 8 safe rows of 9 + 6 tokens and 8 unsafe ones of 9 + 4, so five reach 1,000. The learning rate falls
    over these five, and a stop costs no bit."""
    more = ("--train.max-tokens", "1000", "--train.schedule", "linear")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(arguments(trained, whole, *more)) == 0
    assert "Budget: 1,000 tokens, which 5 steps train" in capsys.readouterr().out
    experts, metrics = result(whole)
    assert [line["num_tokens"] for line in metrics] == [8 * 15 + 8 * 13] * 5
    assert [line["lr"] for line in metrics] == pytest.approx([1e-3 * (5 - done) / 5 for done in range(5)])
    assert [line["audited"] for line in metrics] == [True, False, False, False, True]
    parts.mkdir()
    for step in range(1, 5):
        (parts / "STOP").touch()
        assert main(arguments(trained, parts, *more)) == 0
        assert f"Stopped after step {step} of 5" in capsys.readouterr().out
    assert main(arguments(trained, parts, *more)) == 0
    assert result(parts) == (experts, metrics)


def test_a_run_goes_on_from_the_same_base_model_and_objective(trained, tmp_path, capsys):
    """The base that it is compared with is the checkpoint's, not what training has made of it."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ("--train.epochs", "3", "--train.lr", "1e-2", "--train.objective.kl_to_base.weight", "5")
    assert main(arguments(trained, whole, *more)) == 0
    parts.mkdir()
    for _ in range(3):
        (parts / "STOP").touch()
        assert main(arguments(trained, parts, *more)) == 0
    assert "Base model: frozen copies" in capsys.readouterr().out
    assert main(arguments(trained, parts, *more, "--train.objective.kl_to_base.rows", "all")) == 2
    assert "train.objective.kl_to_base.rows" in capsys.readouterr().err
    assert main(arguments(trained, parts, *more)) == 0
    assert ", kl_to_base " in capsys.readouterr().out
    assert result(parts) == result(whole)
    last = result(whole)[1][-1]
    assert last["terms"]["kl_to_base"]["mean"] > 0
    both = last["terms"]["cross_entropy"]["mean"] + 5 * last["terms"]["kl_to_base"]["mean"]
    assert last["loss"] == pytest.approx(both)


@pytest.fixture
def stopped(trained, tmp_path):
    """A run that was stopped twice, after steps 1 and 2."""
    run_dir = tmp_path / "run"
    for _ in range(2):
        run_dir.mkdir(exist_ok=True)
        (run_dir / "STOP").touch()
        assert main(arguments(trained, run_dir)) == 0
    return run_dir


@pytest.mark.parametrize("harm", ["flip", "cut", "lose", "no index"])
def test_a_damaged_checkpoint_is_passed_over_and_said(trained, undisturbed, stopped, capsys, harm):
    last = stopped / "checkpoints" / "step-00000002"
    file = last / ("index.json" if harm == "no index" else "experts-00000.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    if harm in ("lose", "no index"):
        file.unlink()
    else:
        file.write_bytes(data if harm == "flip" else data[:-1])
    capsys.readouterr()
    assert main(arguments(trained, stopped)) == 0
    out = capsys.readouterr().out
    assert f"{last}" in out
    assert "damaged; the previous one is used" in out
    assert "Resuming after step 1 of 40" in out
    assert result(stopped) == undisturbed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--train.lr", "0.5"), "train.lr is 0.001 there, 0.5 here"),
        (("--train.mode", "update"), "train.mode is route there, update here"),
        (("--checkpoint.resume", "never"), "metrics.jsonl exists"),
    ],
)
def test_a_run_of_other_settings_is_refused_and_left_as_it_is(trained, stopped, capsys, change, message):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    assert main([*arguments(trained, stopped), *change]) == 2
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_what_a_killed_start_was_writing_is_removed(trained, undisturbed, stopped):
    for name in ("metrics.jsonl", "train.yaml"):
        (stopped / f".{name}.partial-0a1b").touch()
    (stopped / "checkpoints" / ".step-00000003.partial-0a1b").mkdir()
    assert main(arguments(trained, stopped)) == 0
    assert not list(stopped.rglob(".*partial*"))
    assert result(stopped) == undisturbed


def test_overwrite_starts_anew(trained, undisturbed, stopped, capsys):
    assert main([*arguments(trained, stopped), "--overwrite"]) == 0
    assert "Resuming" not in capsys.readouterr().out
    assert not (stopped / "checkpoints").exists()
    assert result(stopped) == undisturbed


def test_show(trained, stopped, capsys):
    capsys.readouterr()
    assert main(["checkpoint", "show", str(stopped)]) == 0
    out = capsys.readouterr().out
    for step in (1, 2):
        file = stopped / "checkpoints" / f"step-0000000{step}" / "experts-00000.safetensors"
        num_experts = len(load_file(file)) // 4
        assert f"{file.parent}: after step {step}, complete; engine local, 1 replica(s) of 1 rank(s), placement " in out
        assert f"experts-00000.safetensors: {file.stat().st_size:,} bytes" in out
        index = json.loads((file.parent / "index.json").read_text())
        names = [expert_name(*expert) for expert in index["files"][file.name]["experts"]]
        assert len(names) == num_experts
        assert f"    stepped: {' '.join(sorted(names)[:12])}" in out
    assert f"rank 0 (replica 0, ep rank 0) owns {MaskStore.open(trained.masks).union().sum()} experts, " in out
    assert "  epoch 0, 1 of 2 batches done; masks r0; 16 rows, " in out
    assert "  epoch 0, 2 of 2 batches done; masks r0; 32 rows, " in out
    assert "  train.lr: 0.001" in out
    file.write_bytes(b"")
    assert main(["checkpoint", "show", str(stopped)]) == 2
    assert "the checkpoint is damaged" in capsys.readouterr().err
    assert main(["checkpoint", "show", str(stopped / "checkpoints" / "none")]) == 2
