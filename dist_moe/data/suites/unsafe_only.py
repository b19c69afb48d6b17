"""Suites whose prompts are all unsafe: StrongREJECT, AdvBench, HarmBench, Do-Not-Answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dist_moe.data.formats import Row
from dist_moe.data.suites.suite import SUITES, Line, Suite


@SUITES.register
@dataclass(frozen=True)
class StrongREJECT(Suite):
    """strongreject_dataset.csv or strongreject_small_dataset.csv (category, source, forbidden_prompt) of
    github.com/alexandrasouly/strongreject; Souly et al., arXiv 2402.10260."""

    name = "strongreject"
    needs = ("category", "forbidden_prompt")

    def rows(self, lines: Sequence[Line]) -> Iterator[tuple[Line, Row]]:
        for line in lines:
            yield line, _unsafe(line, "forbidden_prompt", category="category")


@SUITES.register
@dataclass(frozen=True)
class AdvBench(Suite):
    """harmful_behaviors.csv (goal, target) of github.com/llm-attacks/llm-attacks, data/advbench; Zou et al., arXiv
    2307.15043. The target, the beginning of a compliant answer, is not read. No categories."""

    name = "advbench"
    needs = ("goal", "target")

    def rows(self, lines: Sequence[Line]) -> Iterator[tuple[Line, Row]]:
        for line in lines:
            yield line, _unsafe(line, "goal")


@SUITES.register
@dataclass(frozen=True)
class HarmBench(Suite):
    """harmbench_behaviors_text_all.csv and its parts (Behavior, FunctionalCategory, SemanticCategory, Tags,
    ContextString, BehaviorID) of github.com/centerforaisafety/HarmBench, data/behavior_datasets; Mazeika et al., arXiv
    2402.04249. The category is the semantic one. A context stands before the behaviour, as there, between them a line
    of three dashes."""

    name = "harmbench"
    needs = ("Behavior", "SemanticCategory", "BehaviorID")
    may_have = ("ContextString",)

    def rows(self, lines: Sequence[Line]) -> Iterator[tuple[Line, Row]]:
        for line in lines:
            row = _unsafe(line, "Behavior", category="SemanticCategory", identity="BehaviorID")
            context = line.text("ContextString")
            if context and row["prompt"]:
                row = {**row, "prompt": f"{context}\n\n---\n\n{row['prompt']}"}
            yield line, row


@SUITES.register
@dataclass(frozen=True)
class DoNotAnswer(Suite):
    """data_en.csv (id, risk_area, types_of_harm, specific_harms, question) of github.com/Libr-AI/do-not-answer, also
    as huggingface.co/datasets/LibrAI/do-not-answer; Wang et al., arXiv 2308.13387. The category is the risk area."""

    name = "do_not_answer"
    needs = ("risk_area", "question")
    may_have = ("id",)

    def rows(self, lines: Sequence[Line]) -> Iterator[tuple[Line, Row]]:
        for line in lines:
            yield line, _unsafe(line, "question", category="risk_area", identity="id")


def _unsafe(line: Line, prompt: str, *, category: str | None = None, identity: str | None = None) -> Row:
    return {
        "id": line.text(identity) if identity else None,
        "prompt": line.text(prompt),
        "label": "unsafe",
        "category": line.text(category) if category else None,
    }
