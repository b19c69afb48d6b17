"""The commands and settings that documents, help texts, messages and batch files name, and where they stand."""

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
PLAIN = [ROOT / "Makefile", *sorted(each for each in ROOT.glob("slurm/*") if each.is_file())]
PLAIN += sorted(ROOT.glob("examples/*.yaml"))
"""Files whose comments hold commands."""
OURS = re.compile(
    r"^(?:\$ |\w+=\$\(|source <\()?"  # as typed after a prompt, or inside another command
    r"(?P<command>(?:dist-moe|make|deepspeed|torchrun|accelerate|sbatch|python (?:tools/|-m tools)).*)"
)
INLINE = re.compile(
    r"`((?:(?:dist-moe|make|sbatch|torchrun|deepspeed|python(?= (?:tools/|-m tools))) |--[a-z_]+\.)[^`\n]*)`"
)
SECTIONS = sorted({each.section for each in described()} - {""})
SETTING = re.compile(rf"(?<![\w./-])(?:{'|'.join(SECTIONS)})\.[a-z_]++(?:\.[a-z_]++)*+(?!\.<)")
FILES = (".json", ".py", ".safetensors", ".yaml")
ATTRIBUTES = {"model.batch", "model.layers"}
"""What looks like a setting, and is an attribute of a model."""


def command_in(line: str) -> str | None:
    """The command that a line of code is: without what is said of it beside, and without what is around it."""
    found = OURS.match(line.strip())
    if found is None:
        return None
    command = re.split(r"\s+#|\s{2,}(?=\S)|\s*\|\s+", found["command"])[0]
    return command[:-1] if command.endswith(")") and command.count("(") < command.count(")") else command


def in_pages() -> Iterator[tuple[str, str]]:
    """Every line of code of a page that is a command: where it stands, and the command."""
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
    """Those of the Makefile, of batch files and of example configurations."""
    for file in PLAIN:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("#   ") and (command := command_in(line[1:])):
                yield f"{file.relative_to(ROOT)}:{number}", command


def in_docstrings() -> Iterator[tuple[str, str]]:
    """Those of the tools' modules, which are their help."""
    for file in sorted(ROOT.glob("tools/**/*.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith("    ") and (command := command_in(line)):
                yield f"{file.relative_to(ROOT)}:{number}", command


def in_helps() -> Iterator[tuple[str, str]]:
    """Those of the help of every command."""
    for parser in parsers(command_tree()):
        for number, line in enumerate(parser.format_help().splitlines(), 1):
            if line.startswith("    ") and (command := command_in(line)):
                yield f"{parser.prog} --help:{number}", command


def parsers(parser: Parser) -> Iterator[Parser]:
    """It, and those of the commands below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


def in_sentences() -> Iterator[tuple[str, str]]:
    """What stands between backticks in a sentence of a page, a docstring or a message; it may be only its beginning."""
    for file in [*PAGES, *SOURCES, *PLAIN]:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            for place, found in enumerate(INLINE.findall(line)):
                yield f"{file.relative_to(ROOT)}:{number}.{place}", found


def settings() -> Iterator[tuple[str, str]]:
    """Dotted names of settings in pages, comments and string literals: where, and the name."""
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
