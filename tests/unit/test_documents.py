"""What the documents say is so: commands parse, configurations load and show the defaults, links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import dist_moe
from dist_moe.cli.main import command_tree
from dist_moe.config import load_config
from dist_moe.data.rows import read_prompts

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])
OURS = re.compile(r"^(\$ )?(dist-moe |make |(deepspeed|torchrun|accelerate|sbatch) |python (tools/|-m tools))")
GIVEN = {"run_dir", "model.path", "data.paths"}
"""What a configuration has no default for."""


def words_of(line: str) -> list[str]:
    """The words of a documented command: without a comment, with what is optional, the first of alternatives."""
    line = re.sub(r"\s+#.*", "", line).replace("...", "").replace("[", " ").replace("]", " ")
    words = [re.sub(r"\$\w+", "1", word) for word in shlex.split(line)]
    return [word.split("|")[0] if "://" not in word else word for word in words]


def commands() -> Iterator[tuple[str, str]]:
    """Every line of a page that is a command: where it stands, and the line."""
    for page in PAGES:
        lines = page.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not OURS.match(text) or not (line.startswith(("    ", "$")) or "```" in "\n".join(lines[:number])):
                continue
            following = iter(lines[number:])
            while text.endswith("\\"):
                text = f"{text[:-1]} {next(following).strip()}"
            yield f"{page.relative_to(ROOT)}:{number}", text.removeprefix("$ ")


COMMANDS = dict(commands())


def ours(words: list[str]) -> list[str] | None:
    """What `dist-moe` is given by a command, itself or by a launcher; None: it is another program's."""
    if words[0] == "dist-moe":
        return words[1:]
    for i, word in enumerate(words):
        if found := re.fullmatch(r"(?:launch|slurm)/(\w+)\.(?:py|sbatch)", word):
            assert (ROOT / word).is_file(), word
            return [found[1], *words[i + 1 :]]
    return None


def test_there_are_commands_of_each_kind() -> None:
    first = {line.split()[0] for line in COMMANDS.values()}
    assert first >= {"dist-moe", "make", "deepspeed", "torchrun", "sbatch"}
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("where", COMMANDS)
def test_a_command_parses(where: str, tmp_path: Path) -> None:
    words = words_of(COMMANDS[where])
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    elif words[0] == "python":
        assert words[1] == "-m" or (ROOT / words[1]).is_file(), words
    else:
        given = ours(words)
        assert given is not None
        if "--help" in given:
            given.remove("--help")
            given += ["--config", "x"]
        args, settings = command_tree().parse_known_args(given)
        if args.parser.takes_settings:
            file = tmp_path / "run.yaml"
            file.write_text("run_dir: r\nmodel: {path: m}\ndata: {paths: [d]}\n")
            load_config(file, settings)
        else:
            args.parser.refuse(settings)


def yaml_blocks() -> dict[str, str]:
    return {
        f"{page.relative_to(ROOT)}:{i}": block
        for page in PAGES
        for i, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    }


@pytest.mark.parametrize("where", yaml_blocks())
def test_a_configuration_loads_and_shows_defaults(where: str, tmp_path: Path) -> None:
    """A whole configuration in a page shows the settings as they are when nothing is set."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml_blocks()[where])
    minimal = tmp_path / "minimal.yaml"
    minimal.write_text("run_dir: r\nmodel: {path: m}\ndata: {paths: [d]}\n")
    shown, default = flat(asdict(load_config(file))), flat(asdict(load_config(minimal)))
    written = flat(YAML(typ="safe").load(file))
    assert {key: shown[key] for key in written if key not in GIVEN} == {
        key: default[key] for key in written if key not in GIVEN
    }


def flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name}: {target}"


def test_the_readmes_rows_are_read(tmp_path: Path) -> None:
    (block,) = re.findall(r"```text\n(\{.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "prompts.jsonl"
    file.write_text(block)
    found = read_prompts([file], "no").prompts
    assert sorted(prompt.unsafe for prompt in found) == [False] * 5 + [True] * 5
    assert sorted(prompt.unsafe for prompt in found if prompt.pair_id == "shop") == [False, True]


def test_the_readmes_python_names_what_there_is() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    used = {node.attr for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Attribute) and is_package(node)}
    assert used == {"load_config", "analyze", "train", "evaluate", "export", "verify"}
    assert used <= set(dist_moe.__all__)


def is_package(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "dist_moe"
