"""Dockerfile, examples/kubernetes.yaml and skypilot.yaml: what is copied exists, all fields are known, commands parse,
nobody is root.

tests/schemas has the schemas: of Kubernetes' own API, and SkyPilot's own.
"""

import json
import re
import shlex
import tomllib
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from dist_moe.cli.main import command_tree
from dist_moe.config import load_config

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COPIED = [word for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()]


def example(name):
    return YAML(typ="safe").load(ROOT / "examples" / name)


def require_job(document):
    jsonschema.validate(document, json.loads((ROOT / "tests/schemas/kubernetes-job.json").read_text()))


def require_task(document):
    """As SkyPilot does: what is below `resources` and each of `file_mounts` is checked by itself."""
    schemas = json.loads((ROOT / "tests/schemas/skypilot.json").read_text())
    jsonschema.validate(document, schemas["task"])
    jsonschema.validate(document["resources"], schemas["resources"])
    for each in document["file_mounts"].values():
        jsonschema.validate(each, schemas["storage"])


def changed(document, place, value):
    """With another value at a path of keys and numbers; None: without it."""
    *above, last = place
    inner = document
    for key in above:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return document


POD = ("spec", "template", "spec")
WRONG = {
    "kubernetes.yaml": [
        (("spec", "backofLimit"), 4),
        (("spec", "backoffLimit"), "4"),
        (("spec", "podFailurePolicy", "rules", 0, "onExitCodes", "operator"), None),
        ((*POD, "restartPolicy"), ["Never"]),
        ((*POD, "securityContext", "runAsRoot"), False),
        ((*POD, "containers", 0, "name"), None),
        ((*POD, "containers", 0, "arguments"), ["--config", "run.yaml"]),
        ((*POD, "containers", 0, "volumeMounts", 0, "mountPath"), None),
        ((*POD, "volumes", 0, "persistentVolumeClaim", "claim"), "moe"),
    ],
    "skypilot.yaml": [
        (("num_nodes",), "one"),
        (("command",), "dist-moe train"),
        (("resources", "gpus"), "H100:8"),
        (("resources", "disk_size"), [1024]),
        (("file_mounts", "/results", "bucket"), "moe-results"),
    ],
}


def test_every_field_of_the_examples_is_known():
    require_job(example("kubernetes.yaml"))
    require_task(example("skypilot.yaml"))


@pytest.mark.parametrize(("name", "place", "value"), [(name, *each) for name in WRONG for each in WRONG[name]])
def test_a_field_that_is_wrong_would_be_found(name, place, value):
    with pytest.raises(jsonschema.ValidationError):
        (require_job if name == "kubernetes.yaml" else require_task)(changed(example(name), place, value))


def require_settings(words, tmp_path):
    (tmp_path / "run.yaml").write_text("run_dir: r\nmodel: {path: m}\ndata: {paths: [d]}\n")
    load_config(tmp_path / "run.yaml", words)


def test_the_container_has_what_the_commands_need_and_ends_without_root():
    assert {"constraints.txt", "pyproject.toml", "dist_moe", "launch", "ds_configs", "examples"} <= set(COPIED)
    assert all((ROOT / name).exists() for name in COPIED)
    assert re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[-1] != "0"
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert let_in == set(COPIED)


def test_what_the_container_installs_is_offered():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"pip install [^\n]*'[.]\[([\w,]+)\]'", DOCKERFILE)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    (entry,) = re.findall(r'^ENTRYPOINT \["([\w-]+)"\]$', DOCKERFILE, re.MULTILINE)
    assert entry in project["scripts"]
    assert re.findall(r"&& ([\w-]+) --version", DOCKERFILE) == [entry]


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
