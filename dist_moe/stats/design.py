"""Says which rows are independent observations, and which labels a permutation test may exchange.

The prompt is the unit of evidence. Rows of one prompt (a cluster) are answers to one question; however many there are,
they do not show what another question would have shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np


@dataclass(frozen=True, slots=True)
class Kinship:
    """Which of P rows have the same prompt, pair or batch, whatever their labels."""

    cluster_P: np.ndarray
    """uint64 [P]: equal for rows of one prompt."""
    pair_P: np.ndarray
    """uint64 [P]: equal for rows of one `pair_id`; 0 for rows without."""
    batch_P: np.ndarray
    """int64 [P]: batch of each row."""

    @staticmethod
    def of_texts(prompts: Sequence[str], pair_ids: Sequence[str | None], batch_P: np.ndarray) -> Kinship:
        """From the text of each row's prompt, and the name of its pair."""
        cluster_P = np.array([text_key(text) for text in prompts], np.uint64)
        pair_P = np.array([0 if name is None else text_key(name) for name in pair_ids], np.uint64)
        return Kinship(cluster_P, pair_P, batch_P)

    @staticmethod
    def none(batch_P: np.ndarray) -> Kinship:
        """For rows that each have a prompt of their own, without pairs."""
        return Kinship(np.arange(len(batch_P), dtype=np.uint64), np.zeros(len(batch_P), np.uint64), batch_P)

    def of(self, rows: np.ndarray | slice) -> Kinship:
        """The same for some of the rows (indices, a bool mask [P] or a slice)."""
        return Kinship(self.cluster_P[rows], self.pair_P[rows], self.batch_P[rows])

    def design(self, unsafe_P: np.ndarray) -> Design:
        """Units, blocks and strata of these rows with these labels; docs/statistics.md gives the reasons.

        - The rows of a prompt that is in one arm are a block. Blocks of the same size exchange labels within their
          batch; those
          of prompts that are in several batches do so among themselves.
        - Two such prompts, one in each arm, with the same number of rows, that share a pair_id and share none with a
          third
          prompt, are a unit, and exchange labels only with each other.
        - Of a prompt in both arms, as many rows of each arm as the smaller one has exchange labels, as two blocks. The
          other
          rows keep their label.
        """
        clusters = _members(self.cluster_P)
        label_of, batch_of = unsafe_P.tolist(), self.batch_P.tolist()
        arms = {name: {bool(label_of[row]) for row in rows} for name, rows in clusters.items()}
        partner = self._partners(clusters, arms)
        unit_P, block_P, stratum_P = (np.empty(len(unsafe_P), np.int64) for _ in range(3))
        alike: dict[tuple[int, int], list[list[int]]] = {}  # blocks by batch and size
        strata: list[list[list[int]]] = []
        for number, (name, rows) in enumerate(clusters.items()):
            unit_P[rows] = number
            if len(arms[name]) == 2:
                of_arms = [[row for row in rows if label_of[row] == arm] for arm in (False, True)]
                least = min(map(len, of_arms))
                strata.append([of_arm[:least] for of_arm in of_arms])
                strata += [[of_arm[least:]] for of_arm in of_arms if of_arm[least:]]
            elif name in partner:
                other = clusters[partner[name]]
                if rows[0] < other[0]:
                    strata.append([rows, other])
                else:
                    unit_P[rows] = unit_P[other[0]]
            else:
                batches = {batch_of[row] for row in rows}
                alike.setdefault((batches.pop() if len(batches) == 1 else -1, len(rows)), []).append(rows)
        blocks = 0
        for stratum, of_stratum in enumerate([*(alike[key] for key in sorted(alike, reverse=True)), *strata]):
            for rows in of_stratum:
                block_P[rows], stratum_P[rows] = blocks, stratum
                blocks += 1
        return Design(unit_P, block_P, stratum_P)

    def _partners(self, clusters: dict[int, list[int]], arms: dict[int, set[bool]]) -> dict[int, int]:
        sharing = {pair: set(self.cluster_P[rows].tolist()) for pair, rows in _members(self.pair_P).items() if pair}
        related: dict[int, set[int]] = {}
        for names in sharing.values():
            for name in names:
                related.setdefault(name, set()).update(names)
        partner = {}
        for name, names in related.items():
            (other,) = names - {name} if len(names) == 2 else (name,)
            opposite = len(arms[name]) == len(arms[other]) == 1 and arms[name] != arms[other]
            if opposite and related[other] == names and len(clusters[name]) == len(clusters[other]):
                partner[name] = other
        return partner


def joined(parts: Sequence[Kinship], batch_P: np.ndarray) -> Kinship:
    """The rows of all parts in order, with these batches."""
    return Kinship(
        np.concatenate([part.cluster_P for part in parts]), np.concatenate([part.pair_P for part in parts]), batch_P
    )


@dataclass(frozen=True, slots=True)
class Design:
    """For each of P rows, the numbers of the groups that it is in; the numbers themselves have no meaning."""

    unit_P: np.ndarray
    """int64 [P]: what is resampled as a whole: a prompt, or a pair of prompts. Different units are independent."""
    block_P: np.ndarray
    """int64 [P]: rows that always have one label."""
    stratum_P: np.ndarray
    """int64 [P]: blocks of the same size that exchange labels with each other."""

    def of(self, rows_P: np.ndarray) -> Design:
        """The same for some of the rows, bool [P]; units must be complete."""
        return Design(self.unit_P[rows_P], self.block_P[rows_P], self.stratum_P[rows_P])

    def strata(self) -> list[np.ndarray]:
        """Row positions of each stratum: int64 [blocks, rows of a block]; blocks in the order of their first rows."""
        strata: dict[int, dict[int, list[int]]] = {}
        for row, (stratum, block) in enumerate(zip(self.stratum_P.tolist(), self.block_P.tolist(), strict=True)):
            strata.setdefault(stratum, {}).setdefault(block, []).append(row)
        return [np.array(list(blocks.values())) for _, blocks in sorted(strata.items())]

    def units(self, unsafe_P: np.ndarray) -> tuple[Units, Units, Units]:
        """Units that are only in the unsafe arm, only in the safe arm, and in both."""
        kinds: tuple[list[list[int]], list[list[int]], list[list[int]]] = ([], [], [])
        labels = unsafe_P.tolist()
        for rows in _members(self.unit_P).values():
            unsafe = sum(labels[row] for row in rows)
            kinds[0 if unsafe == len(rows) else 2 if unsafe else 1].append(rows)
        unsafe_only, safe_only, both = map(Units.of_rows, kinds)
        return unsafe_only, safe_only, both

    def num_units(self, unsafe_P: np.ndarray) -> tuple[int, int]:
        """Number of units with rows in the safe arm, and in the unsafe arm."""
        unsafe_only, safe_only, both = self.units(unsafe_P)
        return safe_only.number + both.number, unsafe_only.number + both.number


@dataclass(frozen=True, slots=True)
class Units:
    """Units of one of these kinds."""

    number: int
    rows_R: np.ndarray
    """int64 [R]: positions of the rows."""
    unit_R: np.ndarray
    """int64 [R]: the unit of each of these rows, counted from 0."""

    @staticmethod
    def of_rows(units: Sequence[Sequence[int]]) -> Units:
        """From the rows of each unit."""
        rows_R = np.array([row for rows in units for row in rows], np.int64)
        return Units(len(units), rows_R, np.repeat(np.arange(len(units)), [len(rows) for rows in units]))


def text_key(text: str) -> int:
    """A 64-bit number for a text, never 0: the first 8 bytes of its SHA-256."""
    return int.from_bytes(sha256(text.encode()).digest()[:8]) or 1


def _members(group_P: np.ndarray) -> dict[int, list[int]]:
    """Rows of each group; groups in the order of their first rows."""
    members: dict[int, list[int]] = {}
    for row, group in enumerate(group_P.tolist()):
        members.setdefault(group, []).append(row)
    return members
