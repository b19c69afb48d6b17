"""Completion of commands, options, settings and their values: `dist-moe --print-completion bash|zsh|fish`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from shlex import quote

from dist_moe.cli.arguments import Parser

BASH = """\
_dist_moe() {{
    local word at="" offered="" current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
    for word in "${{COMP_WORDS[@]:1:$((COMP_CWORD - 1))}}"; do
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
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
"""With these lines before it, zsh runs what is written for bash."""
FISH = """\
function __dist_moe
    set -l given (commandline -opc)
    set -l current (commandline -ct)
    set -l at ""
    set -l offered
    for word in $given[2..-1]
        switch "$at $word"
            case {commands}
                set at "$at $word"
        end
    end
    switch "$at $given[-1]"
{values}
        case '*'
            switch "$at"
{words}
            end
    end
    set offered (string match -- "$current*" $offered)
    if set -q offered[1]
        string join \\n -- $offered
    else
        __fish_complete_path "$current"
    end
end
complete -c dist-moe -f -a '(__dist_moe)'
"""
BASH_CASE, FISH_CASE = "{}) offered={} ;;", "case {}\n    set offered {}"
SHELLS = ("bash", "zsh", "fish")


def completion(shell: str, parser: Parser) -> str:
    """The script for one of `SHELLS` to read. Where it offers nothing, the shell completes names of files."""
    tree = dict(_tree(parser, ""))
    for each in tree.values():
        each.add_settings()
    commands = [quote(place) for place in tree if place]
    values = {
        f"{place} {option}": list(map(str, action.choices))
        for place, each in tree.items()
        for action in each._actions
        if action.choices is not None
        for option in action.option_strings
    }
    words = {place: list(_words(each)) for place, each in tree.items()}
    if shell == "fish":
        return FISH.format(
            commands=" ".join(commands),
            values=_cases(FISH_CASE, {place: " ".join(map(quote, some)) for place, some in values.items()}, 8),
            words=_cases(FISH_CASE, {place: " ".join(map(quote, some)) for place, some in words.items()}, 16),
        )
    return (ZSH if shell == "zsh" else "") + BASH.format(
        commands="|".join(commands),
        values=_cases(BASH_CASE, {place: quote(" ".join(some)) for place, some in values.items()}, 8),
        words=_cases(BASH_CASE, {place: quote(" ".join(some)) for place, some in words.items()}, 12),
    )


def _cases(case: str, offered: dict[str, str], indent: int) -> str:
    """One case of a shell's switch for each place, with what is offered there."""
    lines = (line for place, words in offered.items() for line in case.format(quote(place), words).splitlines())
    return "\n".join(" " * indent + line for line in lines)


def _tree(parser: Parser, place: str) -> Iterator[tuple[str, Parser]]:
    """Every parser, with the commands that lead to it, each after a blank."""
    yield place, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from _tree(inner, f"{place} {name}")


def _words(parser: Parser) -> Iterable[str]:
    """The options of a command, and its own commands or the choices of its arguments."""
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            yield from action.option_strings or map(str, action.choices or ())
