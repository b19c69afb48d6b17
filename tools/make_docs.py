"""Write the pages that say what the code says, and check every link between the Markdown files.

docs/configuration.md is read from the source text of dist_moe/config/schema.py (its dataclasses, and the docstring
under each field), stats/settings.py and config/adjust.py, and from the selection rules and the terms of the objective,
whose parameters are settings; docs/python.md from the docstrings of the functions that dist_moe offers;
dist_moe/cli/settings.json, which the help of commands reads, from the settings' descriptions. The plans in
docs/planning.md and docs/models.md are what the commands above them print. The table in docs/families.md is what
`dist-moe families` finds with the installed transformers, in some minutes; the tests say when it is stale.

    python tools/make_docs.py               rewrite these pages and this file, check the links
    python tools/make_docs.py --families    rewrite the table in docs/families.md too
    python tools/make_docs.py --check       write nothing; status 1 when a page is stale or a link is dead
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import inspect
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import dist_moe
from dist_moe.cli.main import main as main_of_commands
from dist_moe.cli.settings import as_stored
from dist_moe.config import schema
from dist_moe.judges import JUDGES
from dist_moe.objective import TERMS
from dist_moe.registry import Registry, parameters

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = Path("dist_moe/config/schema.py")
STATISTICS = Path("dist_moe/stats/settings.py")
ADJUST = Path("dist_moe/config/adjust.py")
PAGE = Path("docs/configuration.md")
SETTINGS = Path("dist_moe/cli/settings.json")
PYTHON = Path("docs/python.md")
FAMILIES = Path("docs/families.md")
WITH_PLANS = (Path("docs/planning.md"), Path("docs/models.md"))
PLANNED = re.compile(r"^    (dist-moe plan .*)\n\n```text\n(?:.*\n)*?```\n", re.MULTILINE)
FAMILIES_TABLE = re.compile(r"^\| model type \|.*\n(?:\|.*\n)*", re.MULTILINE)

HEADER = f"""# Configuration

<!-- Written by tools/make_docs.py from {SCHEMA}: edit that file, then run `make docs`. -->

A run is configured by one YAML file. Any setting can also be given on the command line, as in `--train.lr 1e-4`.
The command line takes precedence over the file, and the file over the defaults below; `null` or `None` on the command
line unsets what the file sets. Settings marked as required have no default.

    dist-moe config init --out run.yaml          # write a file with every setting and its help, to start from
    dist-moe config show --config run.yaml       # print every setting, and where its value comes from
    dist-moe config diff a.yaml b.yaml           # print the settings in which two files differ
    dist-moe train --help                        # the settings that a command reads
    source <(dist-moe --print-completion bash)    enable completion of settings and values in this shell (or zsh)
    dist-moe --print-completion fish | source     the same in fish
"""

PYTHON_HEADER = """# Python

<!-- Written by tools/make_docs.py from the docstrings of what dist_moe offers: edit those, then run `make docs`. -->

`import dist_moe` takes no time: what it offers is loaded when it is first named, and torch by those functions only that
need a model. Each function does what the command of its name does, and returns values; bad input is a
`dist_moe.UserError` of one line. `Counts` and `MaskStore` open the stores ([file formats](formats.md)), and a `Config`
has all [settings](configuration.md). The [notebook](../examples/tiny_model.ipynb) uses it all.
"""


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    type: str
    default: str | None
    help: str


@dataclass(frozen=True, slots=True)
class Section:
    """One dataclass of the schema."""

    name: str
    fields: tuple[Field, ...]
    bases: tuple[str, ...] = ()
    """Sections whose fields it inherits."""


def read_sections(source: str) -> dict[str, Section]:
    """The dataclasses of a module's source text, by name, in their order. Every field must have a docstring."""
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {
        node.name: Section(node.name, tuple(_fields(node)), tuple(ast.unparse(base) for base in node.bases))
        for node in classes
    }


def rule_settings() -> Section:
    """The settings that the selection rules make."""
    fields = dataclasses.fields(schema.RuleSettings)
    rows = (Field(each.name, each.metadata["written"], repr(each.default), each.metadata["help"]) for each in fields)
    return Section("RuleSettings", tuple(rows))


def objects_sections(name: str, registry: Registry[Any]) -> dict[str, Section]:
    """A section that has one for each object of a registry, and these."""
    sections = {}
    for cls in registry.values():
        rows = (Field(each.name, each.written, repr(each.default), each.help) for each in parameters(cls))
        sections[cls.__name__] = Section(cls.__name__, tuple(rows))
    own = tuple(Field(each, cls.__name__, None, "") for each, cls in registry.items())
    return sections | {name: Section(name, own)}


def _fields(node: ast.ClassDef) -> Iterator[Field]:
    for statement, following in pairwise([*node.body, None]):
        if not isinstance(statement, ast.AnnAssign):
            continue
        name = ast.unparse(statement.target)
        match following:
            case ast.Expr(value=ast.Constant(value=str(text))):
                help_text = " ".join(text.split())
            case _:
                # A section field is explained by its own fields.
                help_text = ""
        default = None if statement.value is None else ast.unparse(statement.value)
        yield Field(name, ast.unparse(statement.annotation), default, help_text)


def render(sections: dict[str, Section], root: str = "Config") -> str:
    """The page: the top-level settings, then one table for each section in the order of the root class."""
    return "\n".join([HEADER, *_blocks(sections, root, "Top level", prefix="")])


def _blocks(sections: dict[str, Section], name: str, heading: str, prefix: str) -> Iterator[str]:
    """The section's own settings, then those of the sections in it."""
    inherited = [field for base in sections[name].bases for field in sections[base].fields]
    fields = (*inherited, *sections[name].fields)
    if settings := [field for field in fields if field.type not in sections]:
        yield f"## {heading}\n"
        yield _table(settings, prefix)
    for field in fields:
        if field.type in sections:
            key = f"{prefix}{field.name}"
            yield from _blocks(sections, field.type, key, f"{key}.")


def _table(fields: list[Field], prefix: str) -> str:
    undocumented = [f"{prefix}{field.name}" for field in fields if not field.help]
    if undocumented:
        sys.exit(f"make_docs: {SCHEMA}: no docstring under {', '.join(undocumented)}; write one line there")
    rows = [
        f"| `{prefix}{field.name}` | {_code(field.type)} | {_code(field.default)} | {_escape(field.help)} |"
        for field in fields
    ]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _code(text: str | None) -> str:
    return "required" if text is None else f"`{_escape(text)}`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def render_python() -> str:
    """The page of the Python interface: each function with its docstring."""
    functions = [getattr(dist_moe, name) for name in dist_moe.__all__]
    return "\n".join([PYTHON_HEADER, *(_function(each) for each in functions if inspect.isfunction(each))])


def _function(function: Callable[..., object]) -> str:
    text = inspect.getdoc(function)
    if text is None or not all(f"\n{part}:\n" in text for part in ("Args", "Returns", "Raises", "Example")):
        sys.exit(f"make_docs: {function.__name__}: expected a docstring with Args, Returns, Raises and Example")
    (node,) = ast.parse(inspect.getsource(function)).body
    assert isinstance(node, ast.FunctionDef)
    assert node.returns is not None
    signature = f"{node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
    return f"## {node.name}\n\n```python\n{signature}\n```\n\n```text\n{text}\n```\n"


def render_plans(page: str) -> str:
    """A page with what each `dist-moe plan` in it prints. Their configurations are relative to the repository."""
    return PLANNED.sub(lambda found: f"    {found.group(1)}\n\n```text\n{_plan(found.group(1))}\n```\n", page)


def _plan(command: str) -> str:
    printed = io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(printed):
        main_of_commands(shlex.split(command)[1:])
    return printed.getvalue().strip()


def markdown_files(root: Path) -> list[Path]:
    """The project's Markdown files, without those of hidden directories and of runs."""
    folders = [folder for folder in root.iterdir() if folder.is_dir() and not re.match(r"\.|runs$", folder.name)]
    return sorted([*root.glob("*.md"), *(page for folder in folders for page in folder.rglob("*.md"))])


def dead_links(page: Path) -> list[str]:
    """Relative links of a page to no file, and links to no heading: `page:line: target`."""
    links = _links(page.read_text(encoding="utf-8"))
    return [f"{page}:{line_number}: {target}" for line_number, target in links if _is_dead(page, target)]


def _links(text: str) -> Iterator[tuple[int, str]]:
    for line_number, line in _prose(text):
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", line)):
            if not re.match(r"[a-z]+:", target):
                yield line_number, target


def _prose(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines outside code blocks."""
    in_code = False
    for line_number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code:
            yield line_number, line


def _is_dead(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    if not file.exists():
        return True
    return bool(anchor) and file.suffix == ".md" and anchor not in _anchors(file.read_text(encoding="utf-8"))


def _anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = (line.lstrip("#").strip().lower() for _, line in _prose(text) if re.match(r"#{1,6} ", line))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def update(root: Path, *, check: bool) -> list[str]:
    """Rewrite the page under `root` (unless `check`); returns what is wrong: a stale page, dead links."""
    problems = []
    sources = (path for path in (SCHEMA, STATISTICS, ADJUST) if (root / path).exists())
    sections = {"RuleSettings": rule_settings()} | objects_sections("ObjectiveConfig", TERMS)
    sections |= objects_sections("JudgeConfig", JUDGES)
    for path in sources:
        sections |= read_sections((root / path).read_text(encoding="utf-8"))
    settings = json.dumps(as_stored(), indent=1, ensure_ascii=False) + "\n"
    pages = [(PAGE, render(sections)), (PYTHON, render_python()), (SETTINGS, settings)]
    planned = [page for page in WITH_PLANS if (root / page).exists()]
    pages += [(page, render_plans((root / page).read_text(encoding="utf-8"))) for page in planned]
    for page, text in pages:
        if not check:
            (root / page).write_text(text, encoding="utf-8")
        elif not (root / page).exists() or (root / page).read_text(encoding="utf-8") != text:
            problems.append(f"{page} is not what the code says: run `make docs`")
    return problems + [f"dead link: {link}" for file in markdown_files(root) for link in dead_links(file)]


def update_families(root: Path, table: str) -> None:
    """Put a Markdown table in the place of the one that the families page has."""
    page = root / FAMILIES
    text, num_tables = FAMILIES_TABLE.subn(lambda _: table, page.read_text(encoding="utf-8"))
    if num_tables != 1:
        sys.exit(f"make_docs: {FAMILIES}: {num_tables} tables of model types; expected one")
    page.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page is stale")
    parser.add_argument("--families", action="store_true", help="try every model type, and rewrite their table")
    args = parser.parse_args()
    if args.families:
        command = [sys.executable, "-m", "dist_moe.cli.main", "families"]
        update_families(ROOT, subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    problems = update(ROOT, check=args.check)
    if problems:
        sys.exit("\n".join(f"make_docs: {problem}" for problem in problems))


if __name__ == "__main__":
    main()
