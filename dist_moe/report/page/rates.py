"""How the learning rates of a comparison were chosen (`dist-moe compare --lrs`)."""

from __future__ import annotations

from dist_moe.evaluation.learning_rates import NUMBERS
from dist_moe.report.comparison import chosen_by, worth_a_look
from dist_moe.report.page.blocks import Cell, Section, joined, note, paragraph, table
from dist_moe.report.page.contents import ComparisonContents
from dist_moe.report.page.numbers import shown_value


def learning_rates(found: ComparisonContents) -> Section | None:
    """Every rate that was tried, with what it was chosen by. None: none was chosen."""
    rates = found.rates
    if rates is None or not rates.choices:
        return None
    lines: list[list[Cell]] = []
    for variant, choice in rates.choices.items():
        for tried in choice.tried:
            rate = f"{tried.lr:g}" + (", chosen" if tried.lr == choice.lr else "")
            measures = [shown_value(name, tried.measures.get(name)) for name in NUMBERS]
            lines.append([variant, rate, f"{tried.loss:.4f}", *measures])
    head = ["variant", "learning rate", "mean of the two losses", *NUMBERS]
    parts = [paragraph(f"{chosen_by(rates)}."), table("Learning rates that were tried", head, lines)]
    parts += [note(f"{line}.") for line in worth_a_look(rates)]
    return Section("rates", "How learning rates were chosen", joined(parts))
