"""What a command says of its prompts."""

from dist_moe.data.batches import plan_batches
from dist_moe.data.rows import Message, Prompt
from dist_moe.report.data import batch_lines


def test_the_batches_by_category_and_what_is_left_over() -> None:
    names = [None] * 7 + ["fraud"] * 6 + ["hacking"] * 2 + ["theft"]
    prompts = [
        Prompt(f"{i}", (Message("user", f"text {i}"),), "r", name is not None, name, "rows.jsonl:1")
        for i, name in enumerate(names)
    ]
    assert list(batch_lines(plan_batches(prompts, batch_size=4, safe_ratio=0.5, seed=0))) == [
        "Batches: 3, each of 2 safe + 2 unsafe rows",
        "  fraud: 2; unsafe rows not used: 2 (too few safe rows)",
        "  hacking: 1; unsafe rows not used: 0",
        "  theft: 0; unsafe rows not used: 1",
        "safe rows not used: 1",
    ]
