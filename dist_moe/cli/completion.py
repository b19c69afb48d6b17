"""Completion of commands, options, settings and their values in a shell: `dist-moe --print-completion bash|zsh`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from shlex import quote

from dist_moe.cli.arguments import Parser

SHELLS = ("bash", "zsh")
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
"""zsh runs what is written for bash."""
SCRIPT = """\
_dist_moe() {{
    local word at="" offered="" current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$at $word" in
            {commands}) at="$at $word" ;;
        esac
    done
    case "$at $previous" in
        {values}
        *) case "$at" in
            {words}
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$offered" -- "$current"))
}}
complete -o default -F _dist_moe dist-moe
"""


def completion(shell: str, parser: Parser) -> str:
    """The script for a shell to read. Where it offers nothing, the shell completes names of files."""
    tree = dict(_tree(parser, ""))
    for each in tree.values():
        each.add_settings()
    values = {
        f"{place} {option}": " ".join(map(str, action.choices))
        for place, each in tree.items()
        for action in each._actions
        if action.choices is not None
        for option in action.option_strings
    }
    script = SCRIPT.format(
        commands="|".join(quote(place) for place in tree if place),
        values="\n        ".join(f"{quote(place)}) offered={quote(words)} ;;" for place, words in values.items()),
        words="\n            ".join(
            f"{quote(place)}) offered={quote(' '.join(_words(each)))} ;;" for place, each in tree.items()
        ),
    )
    return (ZSH if shell == "zsh" else "") + script


def _tree(parser: Parser, place: str) -> Iterator[tuple[str, Parser]]:
    """Every parser by the commands that lead to it, each after a blank."""
    yield place, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from _tree(inner, f"{place} {name}")


def _words(parser: Parser) -> Iterator[str]:
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            yield from action.option_strings or map(str, action.choices or ())
