"""What the documents say is so: commands parse, configurations load and show the defaults, links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import dist_moe
from dist_moe.cli.main import command_tree
from dist_moe.config import load_config
from dist_moe.config.describe import described
from dist_moe.data.rows import read_prompts
from dist_moe.errors import UserError
from dist_moe.slurm.site import site_keys
from tests.documented import (
    PAGES,
    ROOT,
    in_comments,
    in_docstrings,
    in_helps,
    in_pages,
    in_sentences,
    settings,
)
from tools.mutations import chosen, read_mutations

GIVEN = {"run_dir", "model.path", "data.paths"}
"""What a configuration has no default for."""
MINIMAL = "run_dir: r\nmodel: {path: m}\ndata: {paths: [d]}\n"
COMMANDS = {where: command for found in (in_pages, in_comments, in_docstrings, in_helps) for where, command in found()}
EXERCISE = "--train.objective.entropy.weight 0.1"
"""A setting that CONTRIBUTING.md's exercise adds; `tests/unit/test_contributing.py` does it."""
GONE = ("dist-moe store repair", "dist-moe store merge")
"""Commands that the changes and the design say are gone."""
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def words_of(command: str) -> list[str]:
    """The words of a documented command, with what is optional, one of alternatives, and 1 for a variable."""
    command = command.replace("...", "").replace(" [", " ").replace("] ", " ").removesuffix("]")
    words = [re.sub(r"\$\w+|^N$", "1", word) for word in shlex.split(command)]
    return [word.split("|")[0] if "://" not in word else word for word in words]


def alternatives(command: str) -> list[str]:
    """The command with each of the words that a word of it offers as `one|other`."""
    found = re.search(r"[\w-]+(?:\|[\w-]+)+", command)
    return [command.replace(found[0], word) for word in found[0].split("|")] if found else [command]


def ours(words: list[str]) -> list[str] | None:
    """What `dist-moe` is given by a command, itself or by a launcher; None: it is another program's."""
    if words[0] == "dist-moe":
        return words[1:]
    for i, word in enumerate(words):
        if found := re.fullmatch(r"launch/(\w+)\.py", word):
            assert (ROOT / word).is_file(), word
            return [found[1], *words[i + 1 :]]
    return None


def require_command(given: list[str], folder: Path, *, may_lack: bool = False) -> None:
    """Raise unless `dist-moe` takes these words; `may_lack`: what it requires may be missing."""
    if "--help" in given:
        given, may_lack = [word for word in given if word != "--help"], True
    try:
        args, settings = command_tree().parse_known_args(given)
    except SystemExit:  # it has printed what was asked for
        return
    except UserError as error:
        lacks = ("are required", "expected one argument", "expected at least one argument")
        if may_lack and any(words in str(error) for words in lacks):
            return
        raise
    if args.parser.takes_settings:
        (folder / "run.yaml").write_text(MINIMAL)
        load_config(folder / "run.yaml", [word for word in settings if word not in ("--section.setting", "value")])
    else:
        args.parser.refuse(settings)


def require_tool(words: list[str]) -> None:
    """Raise unless a tool, a file or a module, has the options that it is given."""
    place, given = ROOT / words[1], words[2:]
    if words[1] == "-m":
        place, given = ROOT / words[2].replace(".", "/"), words[3:]
    files = list(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    for option in (word for word in given if word.startswith("--")):  # of argparse, or a field of tyro's
        assert f'"{option}"' in text or re.search(rf"^    {option[2:]}: ", text, re.MULTILINE), option
    if place.stem == "mutations":
        parts = [word for word in given if not word.startswith("--")]
        assert all(chosen(read_mutations(ROOT), [part]) for part in parts), parts


def require_target(words: list[str], folder: Path) -> None:
    """Raise unless the Makefile has the target, and what that starts takes the arguments."""
    target, *variables = words[1:]
    recipe = re.search(rf"^{re.escape(target)}:.*\n((?:[\t@].*\n)*)", MAKEFILE, re.MULTILINE)
    assert recipe, target
    for name, _, value in (variable.partition("=") for variable in variables):
        assert re.search(rf"\$\({name}\)|command line, *{name}|origin {name}", MAKEFILE), name
        if name == "ARGS" and value:
            assert "$(ARGS)" in recipe[1], words
            given = shlex.split(value)
            if tool := re.search(r"-m (tools\.\w+)", recipe[1]):
                require_tool(["python", "-m", tool[1], *given])
            elif "dist-moe" in recipe[1]:
                require_command([target, *given], folder)
            else:
                assert all((ROOT / word).exists() for word in given if word.startswith("tests/")), given


def require(command: str, folder: Path, *, may_lack: bool = False) -> None:
    """Raise unless the program that a command starts takes its words."""
    words = words_of(command)
    if words[0] == "make":
        require_target(words, folder)
    elif words[0] == "python":
        require_tool(words)
    elif words[0].startswith("--"):
        (folder / "run.yaml").write_text(MINIMAL)
        assert words[0].removeprefix("--") in {each.key for each in described()}, command
        if len(words) > 1:
            load_config(folder / "run.yaml", words)
    else:
        given = ours(words)
        if given is not None:
            require_command(given, folder, may_lack=may_lack)
        else:
            assert words[0] == "deepspeed", command  # its own options


def test_there_are_commands_of_each_kind() -> None:
    first = {line.split()[0] for line in COMMANDS.values()}
    assert first >= {"dist-moe", "make", "deepspeed", "torchrun", "python"}
    assert {where.partition(":")[0] for where in COMMANDS} >= {
        *("README.md", "CONTRIBUTING.md", "docs/slurm.md", "docs/demo.md", "docs/testing.md", "docs/configuration.md"),
        *("Makefile", "examples/qwen3-30b-a3b.yaml", "tools/mutations.py"),
        "dist-moe inspect --help",
    }
    assert len(COMMANDS) > 90


@pytest.mark.parametrize("where", COMMANDS)
def test_a_command_parses(where: str, tmp_path: Path) -> None:
    for command in alternatives(COMMANDS[where]):
        require(command, tmp_path)


def test_what_sentences_call_a_command_is_one(tmp_path: Path) -> None:
    wrong = []
    for where, text in in_sentences():
        if text in (*GONE, EXERCISE) or "{" in text:
            continue
        for command in alternatives(text.replace("COMMAND", "train")):
            try:
                require(command, tmp_path, may_lack=True)
            except (UserError, AssertionError) as error:
                wrong.append(f"{where}: `{command}`: {error}")
    assert wrong == []


@pytest.mark.parametrize("command", GONE)
def test_what_is_gone_is_no_command(command: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is none of"):
        require(command, tmp_path)


def test_what_is_called_a_setting_is_one() -> None:
    keys = {each.key for each in described()}
    groups = {".".join(key.split(".")[:number]) for key in keys for number in (1, 2, 3)}
    former = {("CHANGELOG.md", f"evaluation.{name}") for name in ("micro_batch_size", "refusal_phrases")}
    found = set(settings())
    assert len(found) > 100
    known = keys | groups | {*site_keys(), "evaluation.md"}
    assert sorted(each for each in found - former if each[1] not in known) == []


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in ("configuration.md", "CHANGELOG.md")],
    ids=lambda page: page.name,
)
def test_what_a_sentence_calls_the_default_is_it(page: Path) -> None:
    """`value` (default), `value`, the default, and `name: value`, the default."""
    text = page.read_text(encoding="utf-8")
    stated = re.findall(r"`(?:(\w+): )?(\w+)`(?: \(default\)|, the default\b)", text)
    stated += [("", value) for value in re.findall(r"the default, `(\w+)`", text)]
    defaults = {(each.key.rpartition(".")[2], each.default) for each in described() if isinstance(each.default, str)}
    for name, value in stated:
        assert any(value == default and name in ("", key) for key, default in defaults), (name, value)
    assert stated or page.name not in ("README.md", "design.md", "statistics.md")


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
    minimal.write_text(MINIMAL)
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


def test_messages_that_a_page_explains_are_those_of_the_code() -> None:
    code = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "dist_moe").rglob("*.py"))]
    nodes = [node for tree in code for node in ast.walk(tree)]
    said = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\*\*`(.+?)`\*\*", page, re.MULTILINE)
    assert len(quoted) > 5
    for fragment in [part.strip() for message in quoted for part in message.split("...") if part.strip()]:
        assert any(fragment in text for text in said), fragment
