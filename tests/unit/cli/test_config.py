"""`dist-moe config`: a file to start from, what a configuration comes to, how two differ."""

import re

import pytest

from dist_moe.cli.main import main
from dist_moe.config.describe import described
from dist_moe.config.load import load_config, settings_of
from dist_moe.config.settings import SETTINGS

MINIMAL = "run_dir: runs/a\nmodel: {path: models/a}\ndata: {paths: [a.jsonl]}\n"


@pytest.fixture
def start(tmp_path, capsys):
    path = tmp_path / "new.yaml"
    assert main(["config", "init", "--out", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: fill in run_dir, model.path and data.paths\n"
    return path


def test_a_new_file_has_every_setting_with_its_help_and_default(start):
    text = start.read_text()
    words = " ".join(re.sub(r"^ *# ", "", text, flags=re.MULTILINE).split())
    for each in described():
        assert " ".join(each.help.split()) in words, each.key
    all_given = start.with_name("all.yaml")
    all_given.write_text(re.sub(r"^( *)#(\w)", r"\1\2", text, flags=re.MULTILINE))
    settings = settings_of(load_config(all_given))
    assert settings.keys() == SETTINGS.keys() == {each.key for each in described()}
    assert settings == settings_of(load_config(start))  # as it is, only what is required is given
    assert "\n  #lr: 1e-05\n" in text


def test_the_required_settings_are_first_and_the_only_ones_given(start):
    lines = [line for line in start.read_text().splitlines() if not line.lstrip().startswith("#")]
    given = [line.strip().partition(":")[0] for line in lines if line.partition(":")[2]]
    assert given == ["run_dir", "path", "paths"]
    assert [line for line in lines if line][:3] == ['run_dir: "runs/my-run"', "model:", '  path: "models/my-model"']


def test_without_a_name_the_file_is_printed(start, capsys):
    assert main(["config", "init"]) == 0
    assert capsys.readouterr().out == start.read_text()


def test_each_value_is_shown_with_where_it_comes_from(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL + "train:\n  lr: 1e-4\n  epochs: 3\n")
    assert main(["config", "show", "--config", str(path), "--train.lr", "2e-4", "--no-overwrite"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    found = {key: tuple(part.strip() for part in line.rsplit("# ", 1)) for key, line in lines.items()}
    assert found.keys() == SETTINGS.keys()
    assert found["train.lr"] == ("0.0002", "command line")
    assert found["overwrite"] == ("false", "command line")
    assert found["train.epochs"] == ("3", f"{path}:6")
    assert found["data.paths"] == ('["a.jsonl"]', f"{path}:3")
    assert found["train.max_norm"] == ("1.0", "default")


def test_two_files_differ_in_what_is_named(tmp_path, capsys):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(MINIMAL + "train: {lr: 1e-4}\n")
    two.write_text(MINIMAL + "seed: 3\ntrain: {lr: 1e-3, epochs: 1}\n")  # epochs as by default
    assert main(["config", "diff", str(one), str(two)]) == 1
    assert sorted(capsys.readouterr().out.splitlines()) == ["seed: 0 -> 3", "train.lr: 0.0001 -> 0.001"]
    assert main(["config", "diff", str(one), str(one)]) == 0
    assert capsys.readouterr().out == "no setting differs\n"
