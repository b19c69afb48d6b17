"""For mkdocs (mkdocs.yml): the README is the site's first page, files outside docs/ are named, not linked, and the
search finds numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
CODE = re.compile(r"`[^`\n]+`")
README = Path(__file__).parents[1] / "README.md"

# lunr takes two nodes of its index for the same one when their edges, written without a mark between them, read alike
# ("1" to 23 and "12" to 3): with many numbers on the pages, words are lost and searches fail
# (https://github.com/olivernn/lunr.js/issues/503).
EDGES = ("e=e+s+o.id}return e", 'e=e+s+o.id+";"}return e')


def on_files(files: Files, config: Any) -> Files:
    """Add the README."""
    files.append(File.generated(config, "index.md", content=README.read_text(encoding="utf-8")))
    return files


def on_post_build(config: Any) -> None:
    """Mend the search of the theme."""
    for path in Path(config.site_dir).glob("assets/javascripts/workers/search.*.min.js"):
        text = path.read_text(encoding="utf-8")
        assert text.count(EDGES[0]) == 1, f"{path.name}: lunr is another than EDGES of {Path(__file__).name} mends"
        path.write_text(text.replace(*EDGES), encoding="utf-8")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links between the README and docs/ lead to pages; those to other files of the repository become text."""
    markdown = CODE.sub(lambda found: found[0].replace("\\|", "|"), markdown)  # here a bar in code ends no cell
    return LINK.sub(lambda found: _on_site(found, from_readme=page.file.src_uri == "index.md"), markdown)


def _on_site(found: re.Match[str], *, from_readme: bool) -> str:
    text, target = found.groups()
    if "://" in target or target.startswith("#"):
        return found[0]
    if from_readme:
        inside = target.removeprefix("docs/")
        return f"[{text}]({inside})" if inside != target else _named(text, target)
    if target.startswith("../README.md"):
        return f"[{text}](index.md{target.removeprefix('../README.md')})"
    return _named(text, target[3:]) if target.startswith("../") else found[0]


def _named(text: str, path: str) -> str:
    return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"
