"""Deals shuffled rows batch by batch, so that rows of one prompt go to different batches as far as possible.

If no two rows share a prompt, a batch simply gets the next rows. A batch looks at about as many prompts as it has rows,
so dealing takes time proportional to the number of rows.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Sequence, Set


class Deck:
    """Rows that are not dealt yet, in an order."""

    def __init__(self, rows: Iterable[int], prompt_of: Sequence[str]) -> None:
        """`prompt_of[row]` is the prompt of a row."""
        self._prompt_of = prompt_of
        self._place: dict[int, int] = {row: place for place, row in enumerate(rows)}  # of the rows that are left
        self._rows: dict[str, deque[int]] = {}  # of each prompt, in order; some may be gone
        for row in self._place:
            self._rows.setdefault(prompt_of[row], deque()).append(row)
        self._left = Counter({prompt: len(rows) for prompt, rows in self._rows.items()})
        # Heaps with an entry for each prompt, and entries that are past: (place, first row) and (- rows left, prompt).
        self._order: list[tuple[int, int]] = []
        self._often: list[tuple[int, str]] = []
        self._note(self._rows)
        self._first = 0

    def __len__(self) -> int:
        return len(self._place)

    @property
    def rows(self) -> list[int]:
        """The rows that are left, in order."""
        return sorted(self._place, key=self._place.__getitem__)

    def remove(self, rows: Iterable[int]) -> list[int]:
        """Take out those of the given rows that are left; returns them in order."""
        found = sorted((row for row in rows if row in self._place), key=self._place.__getitem__)
        for row in found:
            del self._place[row]
            self._left[self._prompt_of[row]] -= 1
        self._note({self._prompt_of[row] for row in found})
        return found

    def put_first(self, rows: Sequence[int]) -> None:
        """Move these rows to the front."""
        for row in reversed(rows):
            self._first -= 1
            self._place[row] = self._first
            self._rows.setdefault(self._prompt_of[row], deque()).appendleft(row)
            self._left[self._prompt_of[row]] += 1
        self._note({self._prompt_of[row] for row in rows})

    def deal(self, number: int, batches_left: int, present: Set[str]) -> list[int]:
        """Take `number` rows for the next of `batches_left` batches, or all that are left if there are fewer.

        A batch gets at most one row of a prompt, and none of the prompts that it already has (`present`); their other
        rows wait for later batches. Prompts that have as many rows left as there are batches to come are taken first.
        If there are too few prompts for that, rows of one prompt share a batch, evenly over the batches.
        """
        needed = min(number * batches_left, len(self))
        number = min(number, len(self))
        times, seen, dealt = Counter(present), dict[str, None](), dict[int, int]()

        def take(prompt: str) -> None:
            row = self._first_of(prompt)
            dealt[row] = self._place.pop(row)
            self._left[prompt] -= 1
            times[prompt] += 1

        def take_again(num: int) -> None:
            for _ in range(num):
                again = (prompt for prompt in seen if self._left[prompt])
                take(min(again, key=lambda prompt: (times[prompt], -self._left[prompt], self._place_of(prompt))))

        placed = len(self)  # how many rows can have a batch without another row of their prompt
        while self._often and -self._often[0][0] >= batches_left and len(dealt) < number:
            left, prompt = heapq.heappop(self._often)
            if -left == self._left[prompt] and prompt not in seen:
                seen[prompt] = None
                placed -= -left - batches_left
                take(prompt)
        twice = -(-max(0, needed - placed) // batches_left)
        take_again(min(twice, number - len(dealt)))
        while self._order and len(dealt) < number:
            place, row = heapq.heappop(self._order)
            if self._place.get(row) == place:
                seen[self._prompt_of[row]] = None
                if not times[self._prompt_of[row]]:
                    take(self._prompt_of[row])
        take_again(number - len(dealt))  # now all prompts that are left have been seen
        self._note(seen)
        return sorted(dealt, key=dealt.__getitem__)

    def _note(self, prompts: Iterable[str]) -> None:
        for prompt in prompts:
            if left := self._left[prompt]:
                heapq.heappush(self._order, (self._place_of(prompt), self._first_of(prompt)))
                if left > 1:
                    heapq.heappush(self._often, (-left, prompt))

    def _first_of(self, prompt: str) -> int:
        rows = self._rows[prompt]
        while rows[0] not in self._place:
            rows.popleft()
        return rows[0]

    def _place_of(self, prompt: str) -> int:
        return self._place[self._first_of(prompt)]


class SafeDeck:
    """Deck of safe rows. A batch first gets the partners of its unsafe rows, then rows without a pair, then the
    other rows."""

    def __init__(self, rows: Iterable[int], prompt_of: Sequence[str], pair_of: Sequence[str | None]) -> None:
        self._prompt_of, self._pair_of = prompt_of, pair_of
        self._front: list[int] = []
        self._free, self._others = Deck(rows, prompt_of), Deck((), prompt_of)
        self._of_pair: dict[str, list[int]] | None = None
        """Rows of `_others`, and some that are gone; None until a batch has pairs: up to then all rows are alike."""

    def __len__(self) -> int:
        return len(self._front) + len(self._free) + len(self._others)

    def deal(self, number: int, batches_left: int, present: Set[str], pairs: Set[str]) -> list[int]:
        """Take rows as `Deck.deal` does; at least `number` rows must be left. `pairs` are the pair ids of the batch."""
        if pairs:
            self._bring_forward(pairs)
        dealt = self._front[:number]
        del self._front[:number]
        for deck in (self._free, self._others):
            if len(dealt) < number:
                taken = present | {self._prompt_of[row] for row in dealt}
                dealt += deck.deal(number - len(dealt), batches_left, taken)
        return dealt

    def _bring_forward(self, pairs: Set[str]) -> None:
        of_pair = self._of_pair if self._of_pair is not None else self._split()
        if not all(self._pair_of[row] in pairs for row in self._front):
            back = [row for row in self._front if self._pair_of[row] not in pairs]
            self._front = [row for row in self._front if self._pair_of[row] in pairs]
            self._others.put_first(back)
            for row in back:
                of_pair.setdefault(str(self._pair_of[row]), []).append(row)
        self._front += self._others.remove(row for pair in pairs for row in of_pair.pop(pair, ()))

    def _split(self) -> dict[str, list[int]]:
        rows, self._of_pair = self._free.rows, {}
        self._free, self._others = (
            Deck((row for row in rows if (self._pair_of[row] is None) == free), self._prompt_of)
            for free in (True, False)
        )
        for row in self._others.rows:
            self._of_pair.setdefault(str(self._pair_of[row]), []).append(row)
        return self._of_pair


TRIED = 100
"""Number of batches that are tried as a place for a row."""


def separate(
    batches: Sequence[list[int]], num_safe: int, prompt_of: Sequence[str], pair_of: Sequence[str | None]
) -> None:
    """Swap safe rows (the first `num_safe` of each batch) between batches, in place, so that fewer share a batch with
    another row of their prompt.

    This is needed because the unsafe prompts of a batch are known only when it is dealt, and the last batches have
    little choice. Rows stay with the partner of their pair.
    """
    prompts = [Counter(prompt_of[row] for row in rows) for rows in batches]
    pairs = [{pair_of[row] for row in rows[num_safe:]} - {None} for rows in batches]

    def swap(here: int, place: int) -> None:
        row = batches[here][place]
        for there in (index % len(batches) for index in range(here + 1, here + min(TRIED, len(batches)))):
            if prompts[there][prompt_of[row]]:
                continue
            for other_place, other in enumerate(batches[there][:num_safe]):
                if not prompts[here][prompt_of[other]] and pair_of[other] not in pairs[there]:
                    batches[here][place], batches[there][other_place] = other, row
                    prompts[here] += Counter({prompt_of[other]: 1, prompt_of[row]: -1})
                    prompts[there] += Counter({prompt_of[row]: 1, prompt_of[other]: -1})
                    return

    for here, rows in enumerate(batches):
        for place, row in enumerate(rows[:num_safe]):
            if prompts[here][prompt_of[row]] > 1 and pair_of[row] not in pairs[here]:
                swap(here, place)
