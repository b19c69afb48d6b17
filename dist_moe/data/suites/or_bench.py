"""OR-Bench: safe prompts that models refuse, and its toxic ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from dist_moe.data.formats import Row
from dist_moe.data.suites.suite import SUITES, Line, Suite


class _ORBench(Suite):
    needs = ("prompt", "category")
    label: ClassVar[str]

    def rows(self, lines: Sequence[Line]) -> Iterator[tuple[Line, Row]]:
        for line in lines:
            yield line, {"prompt": line.text("prompt"), "label": self.label, "category": line.text("category")}


@SUITES.register
@dataclass(frozen=True)
class ORBench(_ORBench):
    """or-bench-hard-1k.csv and or-bench-80k.csv (prompt, category) of huggingface.co/datasets/bench-llm/or-bench; Cui
    et al., arXiv 2405.20947. All safe: the files have no label."""

    name = "or_bench"
    label = "safe"
    others: ClassVar[Mapping[str, str]] = {"toxic": "or_bench_toxic"}


@SUITES.register
@dataclass(frozen=True)
class ORBenchToxic(_ORBench):
    """or-bench-toxic.csv (prompt, category) of the same source. All unsafe."""

    name = "or_bench_toxic"
    label = "unsafe"
    others: ClassVar[Mapping[str, str]] = {"hard-1k": "or_bench", "hard_1k": "or_bench", "80k": "or_bench"}
