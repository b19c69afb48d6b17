"""The configuration: precedence, strict types, one-line errors with file, line and key, and the round trip."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_moe.config import Config, load_config, save_config
from dist_moe.config.schema import (
    AnalysisConfig,
    BatchConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    TrainConfig,
)
from dist_moe.errors import UserError

REPOSITORY = Path(__file__).parents[3]
MINIMAL = "run_dir: runs/a\nmodel:\n  path: m\ndata:\n  paths: [a.jsonl, b.csv]\n"
EXPECTED = Config(
    run_dir=Path("runs/a"), model=ModelConfig(path=Path("m")), data=DataConfig(paths=(Path("a.jsonl"), Path("b.csv")))
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def test_minimal_file_gives_the_defaults(file: Path) -> None:
    file.write_text(MINIMAL)
    assert load_config(file) == EXPECTED


def test_command_line_alone(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--run_dir", "runs/a", "--model.path=m", "--data.paths", "a.jsonl", "b.csv"]
    assert load_config(None, arguments) == EXPECTED


def test_defaults_then_file_then_command_line(file: Path) -> None:
    file.write_text(MINIMAL + "train:\n  lr: 3e-4\n  epochs: 7\n  eps: 1e-6\nengine: local\n")
    config = load_config(
        file, ["--train.lr", "2e-5", "--engine", "deepspeed", "--overwrite", "--train.betas", "0", ".5"]
    )
    assert config == replace(
        EXPECTED,
        train=TrainConfig(lr=2e-5, epochs=7, eps=1e-6, betas=(0.0, 0.5)),
        engine="deepspeed",
        overwrite=True,
    )
    assert config.train.max_norm == 1.0


def test_command_line_supplies_what_the_file_lacks(file: Path) -> None:
    file.write_text("model:\n  path: m\ndata:\n  paths: [a.jsonl, b.csv]\n")
    assert load_config(file, ["--run-dir", "runs/a"]) == EXPECTED


def test_yaml_values_mean_what_they_say(file: Path) -> None:
    file.write_text(
        "run_dir: 2030-01-31T10:00:00\nmodel: {path: no}\ndata:\n  paths: [yes]\n  refusal: on\n"
        "train:\n  lr: 1e-5\n  weight_decay: 1\n  masks: null\nanalysis:\n# all of it commented out\n"
    )
    config = load_config(file)
    assert config.run_dir == Path("2030-01-31T10:00:00")
    assert (config.model.path, config.data.paths, config.data.refusal) == (Path("no"), (Path("yes"),), "on")
    assert (config.train.lr, config.train.weight_decay, config.train.masks) == (1e-5, 1.0, None)
    assert isinstance(config.train.weight_decay, float)
    assert config.analysis == AnalysisConfig()


def test_relative_paths_stay_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "run.yaml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("elsewhere/run.yaml")).model.path.resolve() == tmp_path / "m"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train: {lrr: 1}", "{file}:6: unknown key `train.lrr`; did you mean train.lr?"),
        ("lr: 1", "{file}:6: unknown key `lr`; did you mean train.lr?"),
        ("training: {lr: 1}", "{file}:6: unknown key `training`; did you mean train?"),
        ("zzz: 1", "{file}:6: unknown key `zzz`; the top-level keys are run_dir, model, data,"),
        ("1: 1", "{file}:6: unknown key `1`"),
        ("micro_batch_tokens: 1", "did you mean analysis.micro_batch_tokens or evaluation.micro_batch_tokens"),
        ("train:\n  epochs: 1\n  lr: '1e-5'", "{file}:8: train.lr: expected a valid number, got '1e-5'"),
        ("train: {epochs: 1.5}", "{file}:6: train.epochs: expected a valid integer, got 1.5"),
        ("seed: true", "{file}:6: seed: expected a valid integer, got True"),
        ("overwrite: 1", "{file}:6: overwrite: expected a valid boolean, got 1"),
        ("engine: locale", "{file}:6: engine: expected 'auto', 'local', 'deepspeed' or 'fsdp', got 'locale'"),
        ("train: {lr: }", "{file}:6: train.lr: expected a valid number, got None"),
        ("train: {betas: [0.9]}", "{file}:6: train.betas[1]: expected a value here too, got [0.9]"),
        ("train: {betas: [0.9, 1.0]}", "{file}:6: train.betas[1]: expected less than 1, got [0.9, 1.0]"),
        ("train: {masks: [a]}", "{file}:6: train.masks: expected a valid string, got ['a']"),
        ("train: 3", "{file}:6: train: expected a section with settings below it, got 3"),
        ("train: {lr: 0}", "{file}:6: train.lr: expected greater than 0, got 0"),
        ("train: {lr: .nan}", "{file}:6: train.lr: expected"),
        ("train: {lr: .inf}", "{file}:6: train.lr: expected less than inf, got inf"),
        ("train: {micro_batch_size: 0}", "train.micro_batch_size: expected greater than or equal to 1, got 0"),
        ("train: {max_norm: -1}", "{file}:6: train.max_norm: expected greater than or equal to 0, got -1"),
        ("analysis: {top_k: 0}", "{file}:6: analysis.top_k: expected greater than or equal to 1, got 0"),
        ("analysis: {threshold: 1}", "{file}:6: analysis.threshold: expected less than 1, got 1"),
        ("batches: {batch_size: 1}", "{file}:6: batches.batch_size: expected greater than or equal to 2, got 1"),
        ("batches: {safe_ratio: 1}", "{file}:6: batches.safe_ratio: expected less than 1, got 1"),
        ("batches: {safe_ratio: 0.01}", "batches.safe_ratio 0.01 of batches.batch_size 16 gives 0 safe and 16 unsafe"),
        ("batches: {batch_size: 4, safe_ratio: 0.9}", "batches.batch_size 4 gives 4 safe and 0 unsafe rows"),
        ("data.max_length: 7", "{file}:6: data.max_length: expected greater than or equal to 8, got 7"),
        ("model.path: n", "{file}:6: model.path is given twice"),
        ("seed: 1\nseed: 2", '{file}:7: not valid YAML: found duplicate key "seed"'),
        ("seed: [1", "{file}:7: not valid YAML: "),
        ("seed: \x01", "{file}: not valid YAML: "),
        ("seed: 1\n---\nseed: 2", "{file}:7: not valid YAML: but found another document"),
        ("seed: !!python/object/apply:os.getcwd []", "{file}:6: not valid YAML: could not determine a constructor"),
    ],
)
def test_errors_name_file_line_and_key(file: Path, line: str, message: str) -> None:
    file.write_text(MINIMAL + line + "\n")
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert message.format(file=file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the config file is empty; expected at least data.paths, model.path, run_dir"),
        ("# nothing\n", "the config file is empty"),
        ("- a\n", "expected settings as `key: value`, got a list at the top"),
        ("run_dir", "got a str at the top"),
        ("run_dir: a\ndata: {paths: [a]}\n", "has no `model.path`, which is required: add it to the file or pass"),
        ("model: {path: a}\n", "has no `data.paths`"),
        ("data: {paths: []}\n", "data.paths: expected at least 1 item"),
        ("data: {paths: a}\n", "data.paths: expected a list, got 'a'"),
    ],
)
def test_whole_file_errors(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone.yaml: cannot read the config file: No such file"):
        load_config(tmp_path / "gone.yaml")
    with pytest.raises(UserError, match="cannot read the config file: Is a directory"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("run_dir: caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(tmp_path / "latin.yaml")


def test_nothing_given_names_a_missing_key() -> None:
    with pytest.raises(UserError, match=r"there is no `data.paths`, which is required"):
        load_config(None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--train.lr", "nan"], "command line: train.lr: expected"),
        (["--batches.batch-size", "1"], "command line: batches.batch_size: expected greater than or equal to 2, got 1"),
        (["--batches.safe-ratio", "0.001"], "batches.safe_ratio 0.001"),
        (["--data.paths"], "command line: data.paths: expected at least 1 item"),
    ],
)
def test_command_line_values_are_checked_too(file: Path, overrides: list[str], message: str) -> None:
    file.write_text(MINIMAL)
    with pytest.raises(UserError) as caught:
        load_config(file, overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--train.lrr", "3"], "command line: unknown key `train.lrr`; did you mean train.lr?"),
        (["--train.lr", "x"], "command line: train.lr: expected a number, got x"),
        (["--train.lr=x"], "command line: train.lr: expected a number, got x"),
        (["--train.lr", "-inf"], "command line: train.lr: expected greater than 0, got -inf"),
        (["--train.lr"], "command line: train.lr: expected one value, got 0"),
        (["--train.lr", "1", "2"], "command line: train.lr: expected one value, got 2: ['1', '2']"),
        (["--train.epochs", "1.5"], "command line: train.epochs: expected a whole number, got 1.5"),
        (["--engine", "locale"], "command line: engine: expected 'auto', 'local'"),
        (["--overwrite", "maybe"], "command line: overwrite: expected true or false, got maybe"),
        (["--run-dir", ""], "command line: run_dir: expected text that is not blank, got ''"),
        (["stray", "--seed", "1"], "command line: unexpected argument 'stray'"),
        (["--"], "command line: unknown key ``"),
    ],
)
def test_bad_arguments_are_one_line(file: Path, overrides: list[str], message: str) -> None:
    file.write_text(MINIMAL)
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        load_config(file, overrides)
    assert message in str(caught.value)


def test_what_the_command_line_can_say(file: Path) -> None:
    file.write_text(MINIMAL + "overwrite: true\ntrain: {activation_checkpointing: true, micro_batch_size: 4}\n")
    flags = ["--no-overwrite", "--train.no-activation-checkpointing"]
    values = ["--train.micro-batch-size", "None", "--seed", "1", "--seed", "2", "--data.refusal=--no, I won't"]
    config = load_config(file, flags + values)
    assert (config.overwrite, config.train.activation_checkpointing, config.seed) == (False, False, 2)
    assert config.train.micro_batch_size is None
    assert config.data.refusal == "--no, I won't"


@pytest.mark.parametrize("word", ["None", "null"])
def test_the_command_line_can_unset_what_the_file_sets(file: Path, word: str) -> None:
    set_there = "  revision: v1\n"
    train = "train: {deepspeed_config: ds.json, micro_batch_size: 4}\n"
    file.write_text(MINIMAL.replace("  path: m\n", "  path: m\n" + set_there) + train)
    keys = ("train.deepspeed_config", "train.micro_batch_size", "model.revision")
    config = load_config(file, [each for key in keys for each in (f"--{key}", word)])
    assert (config.train.deepspeed_config, config.train.micro_batch_size, config.model.revision) == (None, None, None)


letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from("\x85\u2028\r\n\t :#'\"")
words = st.text(letters, min_size=1, max_size=12)
paths = st.builds(Path, st.text(letters, max_size=12))
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
decay = st.floats(min_value=0, max_value=1, exclude_max=True)
configs = st.builds(
    Config,
    run_dir=paths,
    model=st.builds(ModelConfig, path=paths),
    data=st.builds(
        DataConfig,
        paths=st.lists(paths, min_size=1, max_size=3).map(tuple),
        refusal=words,
        max_length=st.integers(8, 2**31 - 1),
        chat_template=st.none() | paths,
    ),
    batches=st.builds(BatchConfig, batch_size=st.just(10), safe_ratio=st.floats(0.1, 0.9)),
    train=st.builds(
        TrainConfig,
        masks=st.none() | words,
        lr=positive,
        eps=positive,
        betas=st.tuples(decay, decay),
        epochs=st.integers(1, 2**31 - 1),
    ),
    evaluation=st.builds(EvaluationConfig, judges=st.lists(words, min_size=1, max_size=3).map(tuple)),
    seed=st.integers(0, 2**31 - 1),
    overwrite=st.booleans(),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs)
def test_saved_config_loads_back_equal(config: Config, file: Path) -> None:
    save_config(config, file)
    assert load_config(file) == config


@pytest.mark.parametrize(
    "text", ["\x85", "a\u2028b", "a\u2029", "no", "1e-5", "2030-01-31", "a: b # c", " \r\n\t", "拒绝。"]
)
def test_text_that_yaml_could_misread_loads_back_equal(text: str, file: Path) -> None:
    config = replace(EXPECTED, data=replace(EXPECTED.data, refusal=text))
    save_config(config, file)
    assert load_config(file) == config


def test_saved_config_is_readable_in_every_script(file: Path) -> None:
    save_config(replace(EXPECTED, data=replace(EXPECTED.data, refusal="拒绝。")), file)
    assert "  refusal: 拒绝。\n" in file.read_text(encoding="utf-8")


def test_saved_config_names_every_setting_in_order(file: Path) -> None:
    save_config(EXPECTED, file)
    lines = file.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines if line[0] not in " -"] == [
        *("run_dir", "model", "data", "batches", "analysis", "train", "parallel", "checkpoint", "evaluation"),
        *("engine", "seed", "overwrite", "rehash"),
    ]
    assert "  lr: 1e-05" in lines


def test_config_room_loads_neither_torch_nor_transformers() -> None:
    heavy = {"torch", "transformers", "pandas", "scipy", "zarr", "tyro"}
    code = f"import sys, dist_moe.config.load; print({heavy} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
