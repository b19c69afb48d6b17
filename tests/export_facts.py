"""Facts for an export, made without training."""

from dist_moe.weights.facts import Facts


def example_facts(model_hash: str, num_trained: int) -> Facts:
    """Facts for a model with this hash and this number of trained experts."""
    values = {
        "dist_moe_version": "9.8.7",
        "model_name": "tiny",
        "model_hash": model_hash,
        "data_hash": "d" * 64,
        "masks_digest": "e" * 64,
        "selection_rule": {"name": "threshold_top_k", "threshold": 0.05, "top_k": 50},
        "counted_tokens": "prompt",
        "batches": {"hexes": 2, "heists": 1},
        "prompts": {"safe": 24, "unsafe": 24},
        "chosen": {"above_0": 9, "below_0": 0, "of_0": 0},
        "mode": "route",
        "fill": "shrink",
        "scope": "unsafe",
        "num_steps": 6,
        "union": [(0, 3), (0, 5), (2, 0), (2, 7), (2, 6)],
        "num_union_parameters": 23_040,
        "num_parameters": 200_000,
        "num_trained_experts": num_trained,
        "evaluation": None,
    }
    return Facts.parse(values, "the example", "mend it")
