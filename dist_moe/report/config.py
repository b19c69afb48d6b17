"""The lines that `dist-moe config` prints."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from dist_moe.config.describe import described
from dist_moe.config.load import Resolved, settings_of
from dist_moe.config.schema import Config
from dist_moe.described import Described

EXAMPLES = {"run_dir": "runs/my-run", "model.path": "models/my-model", "data.paths": ["data/prompts.jsonl"]}
"""Example values for the required settings."""
HEADER = """\
# A run of dist-moe: fill in run_dir, model.path and data.paths. A line that starts with # and a name is a setting with
# its default: remove the # to change it. Paths are relative to the directory in which the command is started.
"""


def template() -> str:
    """A configuration file with every setting, its default and its help. Only the required settings, which come
    first, are not commented out."""
    assert EXAMPLES.keys() == {each.key for each in described() if each.required}
    sections = {name: list(group) for name, group in groupby(described(), lambda each: each.section)}
    top = sections.pop("")
    ordered = sorted(sections.values(), key=lambda settings: not any(each.required for each in settings))  # stable
    blocks = [
        *([each] for each in top if each.required),
        *ordered,
        *([each] for each in top if not each.required),
    ]
    return HEADER + "".join("\n" + "\n".join(_lines(block)) + "\n" for block in blocks)


def resolved_lines(resolved: Resolved) -> list[str]:
    """One line for each setting: `key: value`, and where the value comes from."""
    settings = settings_of(resolved.config)
    left = {key: f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()}
    width = min(60, max(map(len, left.values())))
    return [f"{line:<{width}}  # {resolved.sources.get(key, 'default')}" for key, line in left.items()]


def differences(first: Config, second: Config) -> dict[str, tuple[Any, Any]]:
    """Settings in which two configurations differ: dotted key -> both values."""
    one, two = settings_of(first), settings_of(second)
    return {key: (one[key], two[key]) for key in one if one[key] != two[key]}


def _lines(settings: list[Described]) -> Iterator[str]:
    """Each setting below its help, with the name of a section above its first setting."""
    inside: list[str] = []
    for setting in settings:
        *sections, name = setting.key.split(".")
        for depth, section in enumerate(sections):
            if sections[: depth + 1] != inside[: depth + 1]:
                yield f"{'  ' * depth}{section}:"
        inside = sections
        indent = "  " * len(sections)
        for line in textwrap.wrap(f"{setting.help} ({setting.kind})", width=110 - len(indent), break_long_words=False):
            yield f"{indent}# {line}"
        value = json.dumps(EXAMPLES[setting.key] if setting.required else setting.default, ensure_ascii=False)
        yield f"{indent}{'' if setting.required else '#'}{name}: {value}"
