"""Help has every setting that a command reads, and is quick: it loads nothing large."""

import json
import subprocess
import sys
from typing import get_args

import pytest

from dist_moe.cli.main import command_tree, main
from dist_moe.cli.settings import FILE, as_stored, shown_settings
from dist_moe.cli.verify import TRAINS
from dist_moe.config.describe import described
from dist_moe.ranges import Trains
from tests.unit.store.example import write_example

LIGHT = {"torch", "transformers", "zarr", "deepspeed", "numpy", "pandas", "scipy", "pydantic", "ruamel"} | {
    "annotated_types"
}
"""What takes more time to import than a command may take to show its help."""
HEAVY = {"torch", "transformers", "deepspeed", "scipy", "datasets"}
READ = {
    "count": ("model", "data", "batches", "analysis"),
    "analyze": ("model", "data", "batches", "analysis"),
    "train": ("model", "data", "batches", "train", "parallel", "checkpoint", "evaluation"),
    "config show": ("model", "data", "batches", "analysis", "train", "parallel", "checkpoint", "evaluation"),
}


def shown(capsys, *words):
    """The help of a command, on one line."""
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", READ)
def test_a_command_shows_the_settings_that_it_reads(command, capsys):
    text = shown(capsys, *command.split())
    assert text.startswith(f"usage: dist-moe {command} --config FILE [--SETTING VALUE ...]")
    assert "--config CONFIG" in text
    for setting in described():
        is_read = setting.section in ("", *READ[command])
        assert (f" --{setting.key} {setting.kind} {setting.help[:20]}" in text) == is_read, setting.key


def test_a_setting_has_its_kind_its_help_and_its_default(capsys):
    text = shown(capsys, "train")
    assert " --train.lr FLOAT Peak learning rate. (default: 1e-05) " in text
    assert (
        " --train.betas FLOAT FLOAT AdamW's decay rates of the first and second moment. (default: [0.9, 0.999]) "
        in text
    )
    assert " --train.schedule constant|linear|cosine Learning rate after the warm-up. " in text
    assert " --data.paths PATH ... Prompt files: " in text
    assert (
        " --run_dir PATH Directory for everything that this run writes: configuration, counts, masks, metrics, "
        "checkpoints, trained experts and evaluation. (required)" in text
    )


def test_help_shows_the_settings_as_they_are_defined():
    """settings.json is read where nothing of the definitions has been imported, as in the processes below."""
    assert json.loads(FILE.read_bytes()) == json.loads(json.dumps(as_stored()))


def test_a_module_that_the_file_does_not_know_is_asked(monkeypatch, tmp_path):
    stale = json.loads(FILE.read_bytes())
    stale["settings"] = stale["settings"][:1]
    monkeypatch.setattr("dist_moe.cli.settings.REGISTRIES", ())
    monkeypatch.setattr("dist_moe.cli.settings.FILE", tmp_path / "settings.json")
    for modules, number in (([], 1), (["rules.other"], len(described()))):
        (tmp_path / "settings.json").write_text(json.dumps(stale | {"modules": modules}))
        assert len(shown_settings()) == number


def test_what_verify_takes_is_what_a_run_can_train():
    assert get_args(Trains) == TRAINS


def test_other_commands_show_no_settings(capsys):
    assert "--train.lr" not in shown(capsys, "export")


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        ("--help", LIGHT),
        *((f"{command} --help", LIGHT) for command in [*READ, "evaluate", "compare", "inspect", "verify"]),
        ("--print-completion bash", LIGHT),
        ("train --config nowhere.yaml", LIGHT),
        *((f"{command} nowhere", HEAVY) for command in ("inspect", "store check", "checkpoint show", "select")),
        ("verify nowhere nowhere --masks nowhere", HEAVY),
        ("config init", {"torch", "transformers", "deepspeed"}),
    ],
)
def test_help_and_what_is_like_it_load_nothing_large(words, heavy):
    assert loaded(words.split(), heavy) == "[]"


@pytest.mark.parametrize("view", ["summary", "layers", "growth"])
def test_views_that_are_shown_first_take_no_pandas(tmp_path, view):
    path = write_example(tmp_path / "masks.zarr")
    assert loaded(["inspect", str(path), view], HEAVY | {"pandas", "pyarrow", "zarr"}) == "['zarr']"


def loaded(words, heavy):
    """Which of some packages a command has loaded."""
    code = (
        "import sys\nfrom dist_moe.cli.main import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        f"print(sorted({{m.split('.')[0] for m in sys.modules}} & {heavy!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()[-1]


def test_importing_the_package_loads_nothing_but_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import dist_moe\n"
        "found = {m.split('.')[0] for m in set(sys.modules) - before} - {'dist_moe'} - sys.stdlib_module_names\n"
        "print(sorted(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_every_command_has_help(capsys):
    (commands,) = (action for action in command_tree()._actions if action.dest == "command")
    for name in commands.choices:
        assert f"usage: dist-moe {name}" in shown(capsys, name)
