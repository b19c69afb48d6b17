"""Where each evaluated row belongs: to a batch that a run trained, to what is like it, or to what was held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dist_moe.data.rows import Prompt
from dist_moe.evaluation.leakage import asked_text, find_leakage
from dist_moe.evaluation.rows import Kind, Likeness


@dataclass(frozen=True, slots=True)
class TrainedPrompts:
    """The rows that a run was trained on, and the number of the batch of each."""

    prompts: tuple[Prompt, ...]
    batches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    kind: Kind
    batch: int | None = None
    like: Likeness | None = None


@dataclass(frozen=True, slots=True)
class Places:
    places: tuple[Place, ...]
    """One for each row."""
    num_not_compared: int
    """Rows that were compared with equal prompts only, as `Leakage` has it."""


def place_rows(prompts: Sequence[Prompt], trained: TrainedPrompts | None, near_equal: float) -> Places:
    """Find each row among the trained ones: itself, whatever its id, or a prompt that is equal or nearly equal.

    `trained` None: nobody knows what they are. `near_equal` is the similarity from which on prompts count as the same.
    """
    if trained is None:
        return Places((Place("unknown"),) * len(prompts), 0)
    batch_of: dict[str, int] = {}
    for prompt, batch in zip(trained.prompts, trained.batches, strict=True):
        batch_of.setdefault(prompt.content, batch)
    own = {(each.id, each.content): batch for each, batch in zip(trained.prompts, trained.batches, strict=True)}
    others = [prompt for prompt in prompts if prompt.content not in batch_of]
    leakage = find_leakage(
        [asked_text(prompt) for prompt in others], [asked_text(prompt) for prompt in trained.prompts], near_equal
    )
    matches = iter(leakage.matches)
    places = []
    for prompt in prompts:
        if prompt.content in batch_of:
            places.append(Place("trained", own.get((prompt.id, prompt.content), batch_of[prompt.content])))
        elif match := next(matches):
            like = Likeness(
                trained=trained.prompts[match.trained].id, similarity=match.similarity, is_equal=match.is_equal
            )
            places.append(Place("overlapping", like=like))
        else:
            places.append(Place("held out"))
    return Places(tuple(places), leakage.num_not_compared)
