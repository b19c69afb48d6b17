"""How each family routes one token, written from its paper or definition: plain NumPy, nothing of transformers or ours.

A rule sees the logits of the router's own weight, float64 [W], and looks at the allowed experts only: it is the router
of a model that has no others. Of those that it has chosen, only the experts of `keep` (None: all) get a weight, and
with it a part in a renormalisation. It gives the weights [E], and by how much its closest decision was made: where that
is below rounding, another choice is as right.
"""

from dataclasses import dataclass

import numpy as np

INF = float("inf")


@dataclass
class Routed:
    weights_E: np.ndarray
    margin: float


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def sqrt_softplus(x):
    return np.sqrt(np.log1p(np.exp(x)))


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def take_best(choice, number):
    """choice: {expert: value} -> the `number` highest, and how far they are from the next."""
    order = sorted(choice, key=choice.get, reverse=True)
    gap = choice[order[number - 1]] - choice[order[number]] if len(order) > number else INF
    return order[:number], gap


def take_best_of_groups(choice, k, num_experts, num_groups, topk_group, group_score, losers=None):
    """Device-limited routing (DeepSeek-V2, 2.2.2): the k best in the groups that score highest.

    A group scores by its members in `choice`; one that has none does not take part. `losers`: the value that experts of
    other groups keep; None: they cannot be chosen.
    """
    size = num_experts // num_groups
    groups = {}
    for expert, value in choice.items():
        groups.setdefault(expert // size, []).append(value)
    scores = {group: group_score(sorted(values, reverse=True)) for group, values in groups.items()}
    winners, group_gap = take_best(scores, topk_group)
    inside = {e: v if e // size in winners else losers for e, v in choice.items()}
    chosen, gap = take_best({e: v for e, v in inside.items() if v is not None}, k)
    return chosen, min(gap, group_gap)


def top_two(values):
    """DeepSeek-V3, 2.1.2: the sum of the highest two."""
    return sum(values[:2])


def only(chosen, keep):
    return [expert for expert in chosen if keep is None or expert in keep]


def weigh(scores, chosen, num_experts, margin, renormalise=False, scale=1.0, floor=0.0, epsilon=0.0):
    weights = np.zeros(num_experts)
    for expert in chosen:
        weights[expert] = scores[expert]
    if renormalise:
        weights /= max(weights.sum() + epsilon, floor)
    return Routed(weights * scale, margin)


def scores_then_top_k(x, allowed, k, score, *, bias=None, groups=None, keep=None, **weighing):
    """Score all experts, choose the top k by score plus correction bias, weigh by the scores alone."""
    scores = np.zeros(len(x))
    scores[allowed] = score(x[allowed])
    choice = {e: scores[e] + (0.0 if bias is None else bias[e]) for e in allowed}
    if groups is None:
        chosen, margin = take_best(choice, k)
    else:
        chosen, margin = take_best_of_groups(choice, k, len(x), **groups)
    return weigh(scores, only(chosen, keep), len(x), margin, **weighing)


def top_k_then_scores(x, allowed, k, score, *, bias=None, keep=None, **weighing):
    """Choose the top k logits (plus correction bias), then score only these."""
    chosen, margin = take_best({e: x[e] + (0.0 if bias is None else bias[e]) for e in allowed}, k)
    chosen = only(chosen, keep)
    scores = np.zeros(len(x))
    scores[chosen] = score(x[chosen])
    return weigh(scores, chosen, len(x), margin, **weighing)


def sparse_mixer(x, allowed, k, *, jitter, keep=None):
    """SparseMixer-v2 at inference (arXiv 2409.12136): two experts, one after the other; each weighs what softmax gives
    it among the experts left that are within 2 * jitter of it."""
    weights, margin, left = np.zeros(len(x)), INF, list(allowed)
    for _ in range(min(2, len(left))):
        (best,), gap = take_best({e: x[e] for e in left}, 1)
        distance = {e: (x[best] - x[e]) / max(abs(x[e]), x[best]) for e in left}
        near = [e for e in left if distance[e] <= 2 * jitter]
        weights[best] = np.exp(x[best]) / np.exp(x[near]).sum()
        margin = min(margin, gap, *(abs(distance[e] - 2 * jitter) for e in left if e != best))
        left.remove(best)
    weights[[e for e in range(len(x)) if e not in only(range(len(x)), keep)]] = 0
    return Routed(weights, margin)


def with_shared(x, allowed, k, num_experts, *, bias, scale, keep=None):
    """Inkling: the chosen experts and the shared ones, whose logits come last, split one sum of sigmoids."""
    chosen, margin = take_best({e: sigmoid(x[e]) + bias[e] for e in allowed}, k)
    chosen = only(chosen, keep)
    weights = np.zeros(num_experts)
    weights[chosen] = sigmoid(x[chosen])
    return Routed(scale * weights / (weights.sum() + sigmoid(x[num_experts:]).sum()), margin)


def with_null(x, allowed, k, num_experts, *, bias, scale=1.0, keep=None):
    """Zaya, LongCat-Flash: softmax plus bias; the last logits are of experts without weights, always allowed."""
    allowed = [*allowed, *range(num_experts, len(x))]
    routed = scores_then_top_k(x, allowed, k, softmax, bias=bias, scale=scale, keep=keep)
    return Routed(routed.weights_E[:num_experts], routed.margin)
