"""Dockerfile, examples/kubernetes.yaml and skypilot.yaml: what is copied exists, commands parse, nobody is root."""

import re
import shlex
from pathlib import Path

from ruamel.yaml import YAML

from dist_moe.cli.main import command_tree
from dist_moe.config import load_config

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COPIED = [word for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()]


def example(name):
    return YAML(typ="safe").load(ROOT / "examples" / name)


def require_settings(words, tmp_path):
    (tmp_path / "run.yaml").write_text("run_dir: r\nmodel: {path: m}\ndata: {paths: [d]}\n")
    load_config(tmp_path / "run.yaml", words)


def test_the_container_has_what_the_commands_need_and_ends_without_root():
    assert {"constraints.txt", "pyproject.toml", "dist_moe", "launch", "ds_configs", "examples"} <= set(COPIED)
    assert all((ROOT / name).exists() for name in COPIED)
    assert re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[-1] != "0"
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert let_in == set(COPIED)


def test_the_container_takes_the_tested_versions():
    installs = re.findall(r"pip install [^\n]*", DOCKERFILE)
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in line for line in installs)
    python = re.search(r"^FROM python:(\d\.\d+)-", DOCKERFILE, re.MULTILINE)
    assert f"Python :: {python[1]}" in (ROOT / "pyproject.toml").read_text()


def test_the_containers_commands_are_ours(tmp_path):
    for line in re.findall(
        r"^#   docker run .*? (train|/opt/dist_moe/launch/train\.py) (.*?)(?:   .*)?$", DOCKERFILE, re.MULTILINE
    ):
        assert (ROOT / line[0].removeprefix("/opt/dist_moe/")).exists() or line[0] == "train"
        command_tree().parse_known_args(["train", *shlex.split(line[1])])


def test_a_pod_trains_without_root_and_saves_before_it_ends(tmp_path):
    pod = example("kubernetes.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["command"][:2] == ["deepspeed", "--num_gpus"]
    assert container["command"][2] == str(container["resources"]["limits"]["nvidia.com/gpu"])
    script = container["command"][3].removeprefix("/opt/dist_moe/")
    assert script.partition("/")[0] in COPIED
    assert (ROOT / script).is_file()
    assert container["args"][:2] == ["--config", "run.yaml"]
    require_settings(container["args"][2:], tmp_path)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_a_rented_machine_runs_commands_that_there_are(tmp_path):
    task = example("skypilot.yaml")
    ours = [line for line in task["run"].splitlines() if line.startswith(("dist-moe", "deepspeed"))]
    assert len(ours) == 3
    for line in ours:
        words = shlex.split(line)
        if words[0] == "dist-moe":
            command_tree().parse_known_args(words[1:])
            continue
        assert (ROOT / words[3]).is_file()
        assert (ROOT / words[5]).is_file()
        load_config(ROOT / words[5], words[6:])
    target = re.search(r"make (\w+) TORCH=", task["setup"])
    assert f"\n{target[1]}:" in (ROOT / "Makefile").read_text()
