"""Prompts that a model was trained on, found again among those that it is evaluated on.

Compared is what the user says, after NFKC, case folding and with every run of white space as one blank. Two prompts are
near-equal if their sets of character 5-grams have a Jaccard similarity (shared / all) of at least `threshold`. The
comparison of sets is exact; which pairs are compared follows from a prefix filter that loses none (Chaudhuri et al.,
ICDE 2006): ordered from the rarest gram on, two such sets share a gram among the first (1 - threshold) of each.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from dist_moe.data.rows import Prompt

GRAM = 5
MOST_COMPARISONS = 3_000_000
"""Of two sets of grams: about a minute."""


@dataclass(frozen=True, slots=True)
class Match:
    """For a prompt, the trained one that is most like it."""

    trained: int
    """Its number among the trained prompts."""
    similarity: float
    """1 if they are equal, else of their sets of grams."""
    is_equal: bool


@dataclass(frozen=True, slots=True)
class Leakage:
    matches: tuple[Match | None, ...]
    """For each evaluated prompt."""
    num_not_compared: int
    """Prompts for which only equal ones were looked for: comparing them all would have taken too long."""


def asked_text(prompt: Prompt) -> str:
    """What the user says, as it is compared."""
    said = "\n".join(message.content for message in prompt.messages if message.role == "user")
    return " ".join(unicodedata.normalize("NFKC", said).casefold().split())


def find_leakage(evaluated: Sequence[str], trained: Sequence[str], threshold: float) -> Leakage:
    """Look for each evaluated text among the trained ones; texts as `asked_text` makes them."""
    first: dict[str, int] = {}
    for number, text in enumerate(trained):
        first.setdefault(text, number)
    near = _NearEqual(first, threshold)
    known = {
        text: Match(first[text], 1.0, is_equal=True) if text in first else near.find(text)
        for text in dict.fromkeys(evaluated)
    }
    return Leakage(tuple(known[text] for text in evaluated), sum(text in near.not_compared for text in evaluated))


class _NearEqual:
    """An index of texts, each with its number."""

    def __init__(self, numbers: dict[str, int], threshold: float) -> None:
        self.numbers, self.threshold = numbers, threshold
        self.not_compared: set[str] = set()
        self._left = MOST_COMPARISONS
        self._often = Counter(gram for text in numbers for gram in _grams(text))
        self._with: dict[str, list[str]] = defaultdict(list)
        for text in numbers:
            for gram in self._prefix(_grams(text)):
                self._with[gram].append(text)

    def find(self, text: str) -> Match | None:
        """The text of the index that is most like this one; of several, the first."""
        grams = _grams(text)
        candidates = dict.fromkeys(other for gram in self._prefix(grams) for other in self._with.get(gram, ()))
        if len(candidates) > self._left:
            self.not_compared.add(text)
            return None
        self._left -= len(candidates)
        found = None
        for other in candidates:
            similarity = _jaccard(grams, _grams(other))
            if similarity >= self.threshold and (found is None or _key(found) < (similarity, -self.numbers[other])):
                found = Match(self.numbers[other], similarity, is_equal=False)
        return found

    def _prefix(self, grams: frozenset[str]) -> list[str]:
        """Of which two sets that are similar enough share at least one."""
        ordered = sorted(grams, key=lambda gram: (self._often[gram], gram))
        return ordered[: len(grams) - ceil(self.threshold * len(grams) - 1e-9) + 1]


def _key(match: Match) -> tuple[float, int]:
    return match.similarity, -match.trained


def _grams(text: str) -> frozenset[str]:
    return frozenset(text[start : start + GRAM] for start in range(max(1, len(text) - GRAM + 1)))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)
