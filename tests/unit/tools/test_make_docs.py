"""The configuration page says what the schema says, and dead links are found."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import dist_moe
from tools.make_docs import (
    FAMILIES,
    PAGE,
    PYTHON,
    SETTINGS,
    dead_links,
    markdown_files,
    read_sections,
    render,
    render_python,
    update,
    update_families,
)
from tools.make_docs import SCHEMA as SCHEMA_PATH

SCHEMA = '''
@dataclass
class ClipConfig:
    norm: float = 1.0
    """Largest."""


@dataclass
class TrainConfig:
    mode: Literal["a", "b"] = "a"
    """a | b,
    on two lines."""
    clip: ClipConfig = field(default_factory=ClipConfig)


@dataclass
class Config:
    run_dir: Path
    """Where."""
    train: TrainConfig = field(default_factory=TrainConfig)
'''


def test_every_field_is_a_row_with_type_default_and_docstring() -> None:
    rows = [line for line in render(read_sections(SCHEMA)).splitlines() if line.startswith("| `")]
    assert rows == [
        "| `run_dir` | `Path` | required | Where. |",
        "| `train.mode` | `Literal['a', 'b']` | `'a'` | a \\| b, on two lines. |",
        "| `train.clip.norm` | `float` | `1.0` | Largest. |",
    ]


def test_field_without_docstring_is_refused_by_name() -> None:
    with pytest.raises(SystemExit, match=r"no docstring under run_dir"):
        render(read_sections(SCHEMA.replace('"""Where."""', "")))


@pytest.mark.parametrize(
    ("target", "dead"),
    [
        ("other.md", False),
        ("other.md#a-heading-here", False),
        ("#first", False),
        ("https://example.org/nothing", False),
        ("missing.md", True),
        ("other.md#no-heading", True),
        ("#not-a-heading-but-a-comment", True),
    ],
)
def test_dead_links(tmp_path: Path, target: str, dead: bool) -> None:
    (tmp_path / "other.md").write_text("# Title\n\n## A heading, here!\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# First\n\n```\n# not a heading but a comment\n[x](in-code.md)\n```\n" + f"`[y](quoted.md)` [z]({target})\n"
    )
    assert dead_links(page) == ([f"{page}:7: {target}"] if dead else [])


def test_hidden_directories_and_runs_are_not_searched(tmp_path: Path) -> None:
    for name in (".venv/a.md", "runs/b.md", "docs/deep/c.md", "d.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert markdown_files(tmp_path) == [tmp_path / "d.md", tmp_path / "docs/deep/c.md"]


def test_stale_page_is_found_until_it_is_rewritten(tmp_path: Path) -> None:
    for name, text in ((SCHEMA_PATH, SCHEMA), (PAGE, "# Configuration\n"), (PYTHON, "# Python\n"), (SETTINGS, "{}")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "docs/formats.md").touch()
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/tiny_model.ipynb").touch()
    stale = [f"{page} is not what the code says: run `make docs`" for page in (PAGE, PYTHON, SETTINGS)]
    assert update(tmp_path, check=True) == stale
    assert update(tmp_path, check=False) == []
    assert update(tmp_path, check=True) == []


def test_the_python_page_has_every_function_that_the_package_offers() -> None:
    offered = [name for name in dist_moe.__all__ if inspect.isfunction(getattr(dist_moe, name))]
    assert {"count", "select", "analyze", "train", "evaluate", "export", "apply", "verify"} <= {*offered}
    page = render_python()
    assert [line for line in page.splitlines() if line.startswith("## ")] == [f"## {name}" for name in offered]
    assert all(f">>> dist_moe.{name}(" in page or f" = dist_moe.{name}(" in page for name in offered)


def test_a_function_without_an_example_is_refused_by_name(monkeypatch) -> None:
    monkeypatch.setattr(dist_moe.select, "__doc__", dist_moe.select.__doc__.replace("Example:", "Once:"))
    with pytest.raises(SystemExit, match="select: expected a docstring"):
        render_python()


def test_families_table_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / FAMILIES
    page.parent.mkdir()
    page.write_text("# A\n\n| x |\n|---|\n\n| model type | a |\n| --- | --- |\n| old | yes |\n\nMore.\n")
    update_families(tmp_path, "| model type | a |\n| --- | --- |\n| new\\1 | no |\n")
    assert page.read_text() == "# A\n\n| x |\n|---|\n\n| model type | a |\n| --- | --- |\n| new\\1 | no |\n\nMore.\n"
    page.write_text("# A\n")
    with pytest.raises(SystemExit, match="0 tables of model types"):
        update_families(tmp_path, "")
