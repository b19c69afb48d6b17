"""Finds all commands and settings named in documents, help texts and messages, with their places."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

from dist_moe.cli.arguments import Parser
from dist_moe.cli.main import command_tree
from dist_moe.config.describe import described

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])
SOURCES = sorted([*ROOT.glob("dist_moe/**/*.py"), *ROOT.glob("tools/**/*.py")])
PLAIN = [ROOT / "Makefile", *sorted(ROOT.glob("examples/*.yaml"))]
"""Files whose comments hold commands."""
OURS = re.compile(
    r"^(?:\$ |\w+=\$\(|source <\()?"  # as typed after a prompt, or inside another command
    r"(?P<command>(?:dist-moe|make|deepspeed|torchrun|accelerate|sbatch|python (?:tools/|examples/|-m tools)).*)"
)
INLINE = re.compile(
    r"`((?:(?:dist-moe|make|sbatch|torchrun|deepspeed|python(?= (?:tools/|examples/|-m tools))) |--[a-z_]+\.)[^`\n]*)`"
)
SECTIONS = sorted({each.section for each in described()} - {""})
SETTING = re.compile(rf"(?<![\w./-])(?:{'|'.join(SECTIONS)})\.[a-z_]++(?:\.[a-z_]++)*+(?!\.<)")
FILES = (".json", ".py", ".safetensors", ".yaml")
ATTRIBUTES = {"model.batch", "model.layers"}
"""Names that look like settings, but are attributes of a model."""


def command_in(line: str) -> str | None:
    """The command in a line of code, without comments and without what surrounds it."""
    found = OURS.match(line.strip())
    if found is None:
        return None
    command = re.split(r"\s+#|\s{2,}(?=\S)|\s*\|\s+", found["command"])[0]
    return command[:-1] if command.endswith(")") and command.count("(") < command.count(")") else command


def in_pages() -> Iterator[tuple[str, str]]:
    """All commands in a page's code: place and command."""
    for page in PAGES:
        lines, fenced = page.read_text(encoding="utf-8").splitlines(), False
        for number, line in enumerate(lines, 1):
            fenced ^= line.lstrip().startswith("```")
            text, following = line.strip(), iter(lines[number:])
            if not (fenced or line.startswith("    ")):
                continue
            while text.endswith("\\"):
                text = f"{text[:-1].strip()} {next(following).strip()}"
            if command := command_in(text):
                yield f"{page.relative_to(ROOT)}:{number}", command


def in_comments() -> Iterator[tuple[str, str]]:
    """Commands in the Makefile and in example configurations."""
    for file in PLAIN:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("#   ") and (command := command_in(line[1:])):
                yield f"{file.relative_to(ROOT)}:{number}", command


def in_docstrings() -> Iterator[tuple[str, str]]:
    """Commands in the module docstrings of the tools, which are their help texts."""
    for file in sorted(ROOT.glob("tools/**/*.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith("    ") and (command := command_in(line)):
                yield f"{file.relative_to(ROOT)}:{number}", command


def in_helps() -> Iterator[tuple[str, str]]:
    """Commands in the help text of every command."""
    for parser in parsers(command_tree()):
        for number, line in enumerate(parser.format_help().splitlines(), 1):
            if line.startswith("    ") and (command := command_in(line)):
                yield f"{parser.prog} --help:{number}", command


def parsers(parser: Parser) -> Iterator[Parser]:
    """The help texts of a command and of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


def in_sentences() -> Iterator[tuple[str, str]]:
    """Commands between backticks in pages, docstrings and messages; some are only the beginning of a command."""
    for file in [*PAGES, *SOURCES, *PLAIN]:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            for place, found in enumerate(INLINE.findall(line)):
                yield f"{file.relative_to(ROOT)}:{number}.{place}", found


def settings() -> Iterator[tuple[str, str]]:
    """Dotted names of settings in pages, comments and string literals: place and name."""
    texts = [(file, file.read_text(encoding="utf-8")) for file in [*PAGES, *PLAIN]]
    for file in SOURCES:
        strings = [
            node.value
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        texts.append((file, "\n".join(strings)))
    for file, text in texts:
        for found in SETTING.findall(text):
            if not found.endswith(FILES) and found not in ATTRIBUTES:
                yield str(file.relative_to(ROOT)), found
