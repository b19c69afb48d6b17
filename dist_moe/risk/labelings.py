"""Other ways in which a batch's prompts could have been labelled safe and unsafe.

Labels are exchanged within strata only: the two prompts of a pair are a stratum, with a number above 0; prompts without
a partner have 0 or a number below it, and those of one number are a stratum. For pairs alone this is the sign-flip
test.
"""

from collections.abc import Iterator
from itertools import combinations, product
from math import comb, prod

import numpy as np


def strata_of(unsafe_P: np.ndarray, pair_ids: tuple[str | None, ...]) -> np.ndarray:
    """int64 [P]: 0 for prompts without a partner; a number from 1 for each complete pair, one safe and one unsafe."""
    members: dict[str, list[int]] = {}
    for prompt, pair in enumerate(pair_ids):
        if pair is not None:
            members.setdefault(pair, []).append(prompt)
    strata_P = np.zeros(len(unsafe_P), np.int64)
    number = 0
    for prompts in members.values():
        if len(prompts) == 2 and unsafe_P[prompts].sum() == 1:
            number += 1
            strata_P[prompts] = number
    return strata_P


def units_of(unsafe_P: np.ndarray, strata_P: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of the prompts that belong together, one unit a row: unsafe prompts without a partner [U, 1], safe ones
    [U, 1], and pairs [U, 2]."""
    alone_P, paired = strata_P <= 0, np.nonzero(strata_P > 0)[0]
    pairs_U2 = paired[np.argsort(strata_P[paired], kind="stable")].reshape(-1, 2)
    return np.argwhere(alone_P & unsafe_P), np.argwhere(alone_P & ~unsafe_P), pairs_U2


def num_labelings(unsafe_P: np.ndarray, strata_P: np.ndarray) -> int:
    """How many labelings there are, the real one among them: 2 to the n for n pairs."""
    strata = (unsafe_P[strata_P == stratum] for stratum in np.unique(strata_P))
    return prod(comb(len(labels), int(labels.sum())) for labels in strata)


def labelings(
    unsafe_P: np.ndarray, strata_P: np.ndarray, num: int, generator: np.random.Generator
) -> tuple[np.ndarray, bool]:
    """Labelings, bool [N, P], and whether these are all that exist.

    All of them, the real one included, when there are at most `num`; else `num` drawn at random, each independently.
    """
    exact = num_labelings(unsafe_P, strata_P) <= num
    if exact:
        return np.array(list(_all(unsafe_P, strata_P))), True
    labels_NP = np.broadcast_to(unsafe_P, (num, len(unsafe_P))).copy()
    for stratum in np.unique(strata_P):
        members_P = strata_P == stratum
        labels_NP[:, members_P] = generator.permuted(labels_NP[:, members_P], axis=1)
    return labels_NP, False


def _all(unsafe_P: np.ndarray, strata_P: np.ndarray) -> Iterator[np.ndarray]:
    choices = []
    for stratum in np.unique(strata_P):
        members = np.nonzero(strata_P == stratum)[0].tolist()
        choices.append(list(combinations(members, int(unsafe_P[members].sum()))))
    for chosen in product(*choices):
        labels_P = np.zeros(len(unsafe_P), np.bool_)
        labels_P[[prompt for prompts in chosen for prompt in prompts]] = True
        yield labels_P
