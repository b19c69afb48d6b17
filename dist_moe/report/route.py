"""What a routing mask changes, for a person to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dist_moe.config.objective import active_terms
from dist_moe.config.schema import TrainConfig
from dist_moe.training.price import LabelPrice


def price_lines(train: TrainConfig, batch: int, price: Mapping[str, LabelPrice]) -> Iterator[str]:
    """A line for each label, with the terms that train it, and what to do about a price that is too high."""
    yield f"Mode route, fill {train.fill}, scope {train.scope}. What the mask changes in batch {batch} before training:"
    for label, found in price.items():
        terms = [term.name for term in active_terms(train.objective) if getattr(term, "rows", label) in ("all", label)]
        trained = f"trained by {', '.join(terms)}" if terms else "not trained"
        yield f"  {label} rows ({trained}): {_of_label(train, label, found)}"
    yield "  Inference has no mask. `--train.mode update` trains the same experts and leaves the routing as it is."


def _of_label(train: TrainConfig, label: str, found: LabelPrice) -> str:
    if train.scope == "unsafe" and label == "safe":
        return f"routed without a mask; loss {found.loss:.4f}"
    return (
        f"{100 * found.slots:.1f} % of the routing slots in use, with {100 * found.chosen:.1f} % of the experts that "
        f"tokens choose without a mask; loss {found.loss:.4f} without it, {found.masked_loss:.4f} under it"
    )
