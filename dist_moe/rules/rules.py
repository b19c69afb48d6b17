"""Selection rules by name: which experts of a batch are called unsafe, and controls to compare them with.

Ties go to the lower layer, then to the lower expert. Controls take as many experts as `threshold_top_k` does.
"""

from collections.abc import Callable, Mapping

import numpy as np

from dist_moe.errors import UserError
from dist_moe.rules.select import OF_DIFFERENCE, Choice, SelectionRule, threshold_top_k
from dist_moe.stats.evidence import Evidence
from dist_moe.stats.order import first_of_each_layer, selected

LOAD_QUANTILES = 4

Rule = Callable[[Evidence, SelectionRule], np.ndarray]


def of_difference(choose: Choice) -> Rule:
    """A rule that looks at risk_diff alone."""
    return lambda batch, rule: choose(batch.risk_diff_LE, rule)


def shrunk(batch: Evidence, rule: SelectionRule) -> np.ndarray:
    """Threshold and top_k of the shrunk risk_diff, which other batches' labels are part of."""
    return threshold_top_k(batch.shrunk_LE, rule)


def significant(batch: Evidence, rule: SelectionRule) -> np.ndarray:
    """Used more by unsafe prompts, with a q-value (or family-wise p) of at most alpha."""
    p_LE = batch.test.q_LE if rule.correction == "fdr" else batch.test.family_p_LE
    return (p_LE <= rule.alpha) & (batch.risk_diff_LE > 0)


def stable(batch: Evidence, rule: SelectionRule) -> np.ndarray:
    """Selected by threshold_top_k in at least the share `frequency` of half-samples (Meinshausen, Bühlmann 2010)."""
    return batch.frequency_LE(lambda diff_LE: threshold_top_k(diff_LE, rule)) >= rule.frequency


def esft_token(batch: Evidence, rule: SelectionRule) -> np.ndarray:
    """ESFT-Token (arXiv 2407.01906): the fewest experts of each layer whose shares of the unsafe prompts' routing reach
    top_p. A prompt's share is c / (k t); prompts weigh the same. Safe prompts play no part.
    """
    counts = batch.counts
    slots_P11 = (counts.experts_per_token * counts.tokens_P)[:, None, None]
    return _top_p((counts.counts_PLE / slots_P11)[batch.unsafe_P].mean(axis=0), rule.top_p)


def esft_gate(batch: Evidence, rule: SelectionRule) -> np.ndarray:
    """ESFT-Gate, from the same paper: by the mean gate weight of a counted token, mean over the unsafe prompts. It is
    taken relative to the layer's sum, as not every family's weights sum to 1. The counts must have a table `gates`.
    """
    gates_PLE = batch.counts.tables["gates"] / batch.counts.tokens_P[:, None, None]
    mean_LE = gates_PLE[batch.unsafe_P].mean(axis=0)
    return _top_p(mean_LE / np.maximum(mean_LE.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny), rule.top_p)


def gradient(batch: Evidence, rule: SelectionRule) -> np.ndarray:
    """The top_k largest, over all layers, of mean |d loss / d weight| of an expert, mean over the unsafe prompts, each
    with the loss of its own response. Safe prompts play no part. The counts must have a table `gradients`.
    """
    gradients_PLE = batch.counts.tables["gradients"][batch.unsafe_P]
    return _top(gradients_PLE.mean(axis=0, dtype=np.float64), rule.top_k)


def random(batch: Evidence, rule: SelectionRule) -> np.ndarray:
    """Control: experts drawn at random over all layers, anew for each batch."""
    return _top(batch.generator("random").random(batch.risk_diff_LE.shape), _num_reference(batch, rule))


def random_matched(batch: Evidence, rule: SelectionRule) -> np.ndarray:
    """Control: `threshold_top_k`'s mask with other experts that have all else in common with its own.

    One permutation of the experts, the same for all batches, within each layer's quartiles of load over all batches.
    So each batch keeps its number of experts in each layer and load quartile, and the union and every overlap of
    batches keep their size.
    """
    assert batch.population is not None
    mask_LE = threshold_top_k(batch.risk_diff_LE, rule)
    generator = np.random.default_rng([batch.seed, *b"random_matched"])
    matched_LE = np.zeros_like(mask_LE)
    for layer, order_E in enumerate(np.argsort(batch.population.load_LE, axis=1, kind="stable")):
        for group in np.array_split(order_E, LOAD_QUANTILES):
            matched_LE[layer, generator.permutation(group)] = mask_LE[layer, group]
    return matched_LE


def load(batch: Evidence, rule: SelectionRule) -> np.ndarray:
    """Control: the experts that the batch's prompts use most, safe and unsafe together."""
    return _top(batch.counts.counts_PLE.sum(axis=0), _num_reference(batch, rule))


def lowest(batch: Evidence, rule: SelectionRule) -> np.ndarray:
    """Control: the lowest risk_diff, the experts of safe prompts."""
    return _top(-batch.risk_diff_LE, _num_reference(batch, rule))


RULES: Mapping[str, Rule] = {
    **{name: of_difference(choose) for name, choose in OF_DIFFERENCE.items()},
    "shrunk": shrunk,
    "significant": significant,
    "stable": stable,
    "esft_token": esft_token,
    "esft_gate": esft_gate,
    "gradient": gradient,
    "random": random,
    "random_matched": random_matched,
    "load": load,
    "lowest": lowest,
}
"""Each a function of one batch; `shrunk` and `random_matched` need its population."""

TABLE_OF = {"esft_gate": "gates", "gradient": "gradients"}
"""Rules that need a table beside the counts, by its name."""

COUNTED_AS = dict.fromkeys(("random", "random_matched", "load", "lowest"), "threshold_top_k")
"""Controls, and the rule that says how many experts they take."""


def select_mask(batch: Evidence, rule: SelectionRule) -> np.ndarray:
    """The experts that the rule calls unsafe for the batch, bool [L, E]; there may be none."""
    return RULES[rule.name](batch, rule)


def require_experts(num_experts_B: np.ndarray, largest_risk_diff: float, rule: SelectionRule) -> None:
    """A batch may have an empty mask; all batches may not.

    Args:
        num_experts_B: selected experts of each batch.
        largest_risk_diff: of any expert of any batch.

    Raises:
        UserError: no expert of any batch is selected.
    """
    if num_experts_B.any():
        return
    if COUNTED_AS.get(rule.name, rule.name) == "threshold_top_k":
        raise UserError(
            f"no expert of any batch has a risk_diff above analysis.threshold = {rule.threshold}: the largest is "
            f"{largest_risk_diff:.6g}; set analysis.threshold below that"
        )
    raise UserError(
        f"analysis.rule = {rule.name} selects no expert in any of {len(num_experts_B)} batches: loosen its setting "
        "(see docs/statistics.md), use larger batches, or choose another rule"
    )


def _top_p(share_LE: np.ndarray, top_p: float) -> np.ndarray:
    """The fewest experts of each layer whose shares reach top_p."""
    reached_LE = np.cumsum(-np.sort(-share_LE, axis=1), axis=1) >= top_p - 1e-12
    # argmax of all-false is 0: where null experts keep a layer's shares from ever reaching top_p, all are taken
    number_L = np.where(reached_LE.any(axis=1), reached_LE.argmax(axis=1) + 1, share_LE.shape[1])
    return first_of_each_layer(share_LE, number_L)


def _num_reference(batch: Evidence, rule: SelectionRule) -> int:
    return int(threshold_top_k(batch.risk_diff_LE, rule).sum())


def _top(score_LE: np.ndarray, number: int) -> np.ndarray:
    return selected(score_LE.astype(np.float64), -np.inf, number)
