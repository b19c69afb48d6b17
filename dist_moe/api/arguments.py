"""Arguments that several functions take."""

from collections.abc import Mapping
from pathlib import Path

from dist_moe.config import Config, load_config


def as_config(config: Config | str | Path) -> Config:
    """A configuration that is given as such, or as the path of its YAML file."""
    return config if isinstance(config, Config) else load_config(config)


def evaluation_words(settings: Mapping[str, object]) -> list[str]:
    """Settings of the section `evaluation` as on the command line."""
    words: list[str] = []
    for name, value in settings.items():
        words += [f"--evaluation.{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return words
