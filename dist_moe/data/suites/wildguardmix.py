"""WildGuardMix: prompts with and without harm, plain and adversarial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dist_moe.data.formats import Row
from dist_moe.data.suites.suite import SUITES, Line, Suite


@SUITES.register
@dataclass(frozen=True)
class WildGuardMix(Suite):
    """wildguard_test.parquet or wildguard_train.parquet (prompt, adversarial, response, prompt_harm_label,
    response_refusal_label, response_harm_label, subcategory) of huggingface.co/datasets/allenai/wildguardmix; Han et
    al., arXiv 2406.18495. harmful is unsafe, unharmful safe; prompts without this label are left out. The category is
    the subcategory. A prompt that stands there with several responses is one row."""

    name = "wildguardmix"
    needs = ("prompt", "prompt_harm_label", "subcategory")

    def rows(self, lines: Sequence[Line]) -> Iterator[tuple[Line, Row]]:
        for line in lines:
            label = line.words("prompt_harm_label", {"harmful": "unsafe", "unharmful": "safe"})
            if label:
                category = line.text("subcategory") if label == "unsafe" else None
                yield line, {"prompt": line.text("prompt"), "label": label, "category": category}
