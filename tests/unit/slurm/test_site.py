"""A site file: what each stage gets of it, and one line for what is wrong."""

from dataclasses import fields
from pathlib import Path

import pytest

from dist_moe.errors import UserError
from dist_moe.report.slurm import site_template
from dist_moe.slurm import STAGES
from dist_moe.slurm.site import Resources, Site, read_site

WHOLE = """
partition: gpu
time: 8:00:00
gpus_per_node: 8
cpus_per_rank: 12
mem: 800G
options: [--constraint=a100]
train: {nodes: 4, time: 2-00:00:00, mem: 1200G}
evaluate: {nodes: 2}
select: {partition: cpu, ranks_per_node: 16}
"""


def read(text: str, tmp_path: Path, *words: str) -> Site:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    return read_site(file, words)


def test_a_stage_has_its_own_values_and_else_the_sites(tmp_path):
    site = read(WHOLE, tmp_path)
    assert site.of("count") == Resources(
        partition="gpu", time="8:00:00", gpus_per_node=8, cpus_per_rank=12, mem="800G", options=("--constraint=a100",)
    )
    train = site.of("train")
    assert (train.nodes, train.time, train.mem, train.partition) == (4, "2-00:00:00", "1200G", "gpu")
    assert (train.processes, train.threads) == (8, 12)
    assert site.of("evaluate").nodes == 2


def test_what_needs_no_gpu_asks_for_none(tmp_path):
    site = read(WHOLE, tmp_path)
    common = {"time": "8:00:00", "options": ("--constraint=a100",)}
    assert site.of("report") == Resources(partition="gpu", **common)
    assert site.of("select") == Resources(partition="cpu", ranks_per_node=16, **common)
    assert (site.of("report").processes, site.of("select").processes) == (1, 16)


def test_words_change_the_file_and_need_none(tmp_path):
    site = read(WHOLE, tmp_path, "nodes=2", "train.nodes=3", "options=[--exclusive, -x n1]", "evaluate.time=90")
    assert [site.of(stage).nodes for stage in ("count", "train", "evaluate")] == [2, 3, 2]
    assert site.of("count").options == ("--exclusive", "-x n1")
    assert site.of("evaluate").time == 90
    assert read_site(None, ["mem=8G"]) == Site(mem="8G")
    assert read("", tmp_path) == read("train:\ncontainer:\n", tmp_path) == Site()


def test_the_template_has_every_key_and_is_a_site_as_it_is(tmp_path):
    assert read(site_template(), tmp_path) == Site()
    lines = site_template().splitlines()
    for each in fields(Site):
        assert any(line.lstrip("#").startswith(f"{each.name}:") for line in lines), each.name
    set_all = "\n".join(line[1:] if line.startswith("#train: {nodes") else line for line in lines)
    assert read(set_all, tmp_path) == Site(train=Resources(nodes=2, mem="119G", time="24:00:00"))


@pytest.mark.parametrize(
    ("text", "words", "says"),
    [
        ("- a", (), "site.yaml: expected settings of a site as `key: value`, got ['a']"),
        ("partition: a b", (), "site.yaml:1: partition is 'a b': expected a name without blanks"),
        ("\ntime: 24h", (), "site.yaml:2: time is '24h': expected a time as Slurm takes it: minutes, HH:MM:SS"),
        ("mem: 119", (), "site.yaml:1: mem is 119: expected"),
        ("", ("mem=119",), "--resources mem=119: mem is 119: expected"),
        ("mem: 119g", (), "mem is '119g': expected memory as Slurm takes it, such as 119G"),
        ("train: {nodes: two}", (), "site.yaml:1: train.nodes is 'two': expected a valid integer"),
        ("train: 4", ("train.nodes=2",), "site.yaml:1: train is 4: expected settings below it"),
        ("trian: {nodes: 2}", (), "site.yaml:1: a site has no 'trian': did you mean train?"),
        ("train:\n  nods: 2", (), "site.yaml:2: a site has no 'train.nods': did you mean train.nodes?"),
        ("gpus_per_node: -1", (), "gpus_per_node is -1: expected greater than or equal to 0"),
        ('setup: ["a\\nb"]', (), "setup is 'a\\nb': expected text in one line, not blank"),
        ("container: {kind: docker}", (), "container.kind is 'docker': expected 'none', 'apptainer' or 'pyxis'"),
        ("container: {kind: pyxis}", (), "container.kind is pyxis, but there is no container.image"),
        ("train:\n  nodes: 1\n  nodes: 2", (), "site.yaml:3: not valid YAML: found duplicate key"),
        ("a: !!python/object:os.system x", (), "site.yaml:1: not valid YAML: could not determine a constructor"),
        ("", ("nods=2",), "such as train.nodes=2; did you mean nodes?"),
        ("", ("train",), "--resources 'train': expected KEY=VALUE"),
        ("", ("options=[",), "--resources 'options=[': the value is not valid YAML"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(text, words, says, tmp_path):
    with pytest.raises(UserError) as caught:
        read(text, tmp_path, *words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_stage_has_a_section():
    assert all(isinstance(getattr(Site(), stage), Resources) for stage in STAGES)
