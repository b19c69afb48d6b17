"""Deals shuffled rows batch by batch, so that rows of one prompt go to different batches as far as possible.

If no two rows share a prompt, a batch simply gets the next rows. A batch looks at about as many prompts as it has rows,
so dealing takes time proportional to the number of rows.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import islice


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

    def __contains__(self, row: int) -> bool:
        return row in self._place

    def remove(self, rows: Iterable[int]) -> None:
        """Take out these rows."""
        prompts = dict[str, None]()
        for row in rows:
            del self._place[row]
            self._left[self._prompt_of[row]] -= 1
            prompts[self._prompt_of[row]] = None
        self._note(prompts)

    def move_first(self, rows: Sequence[int]) -> None:
        """Move these rows, which are in the deck, to its front."""
        for row in reversed(rows):
            self._first -= 1
            self._place[row] = self._first
            self._rows[self._prompt_of[row]].appendleft(row)  # where it was, it is passed over once it is gone
        self._note(dict.fromkeys(self._prompt_of[row] for row in rows))

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
        self._free, self._others = Deck(rows, prompt_of), Deck((), prompt_of)
        self._pairs: PairOrder | None = None
        """The rows of `_others`; None until a batch has pairs: up to then all rows are alike."""

    def __len__(self) -> int:
        return len(self._free) + len(self._others)

    def deal(self, number: int, batches_left: int, present: Set[str], pairs: Set[str]) -> list[int]:
        """Take rows as `Deck.deal` does; at least `number` rows must be left. `pairs` are the pair ids of the batch."""
        if pairs and self._pairs is None:
            self._pairs = self._split()
        if self._pairs is None:
            return self._free.deal(number, batches_left, present)
        if pairs:
            self._pairs.bring_forward(pairs)
        dealt = self._pairs.first(number)
        self._others.remove(dealt)
        for deck in (self._free, self._others):
            if len(dealt) < number:
                if deck is self._others:
                    deck.move_first(self._pairs.take_moved())
                taken = present | {self._prompt_of[row] for row in dealt}
                dealt += deck.deal(number - len(dealt), batches_left, taken)
        return dealt

    def _split(self) -> PairOrder:
        rows = self._free.rows
        self._free, self._others = (
            Deck((row for row in rows if (self._pair_of[row] is None) == free), self._prompt_of)
            for free in (True, False)
        )
        return PairOrder(self._others, self._pair_of)


class PairOrder:
    """The order of the rows of pairs. All rows that are left of a batch's pairs move to the front, in the order that
    they had; so they come first for a batch without pairs, too.

    A pair may have any number of rows, so they are not moved one by one: two pairs whose rows are still in their first
    order among each other have one number in `_block`, and rows of a lower number come first. A deck needs places of
    its rows only where rows without a partner are dealt from it; `take_moved` then says what it has missed.
    """

    def __init__(self, deck: Deck, pair_of: Sequence[str | None]) -> None:
        self._deck = deck
        self._place = {row: place for place, row in enumerate(deck.rows)}
        self._rows: dict[str, deque[int]] = {}  # of each pair, in order; some may be gone
        for row in self._place:
            self._rows.setdefault(str(pair_of[row]), deque()).append(row)
        self._block: dict[str, int] = dict.fromkeys(self._rows, 0)
        self._lowest = 0
        self._front: list[str] = []
        self._moved: dict[str, None] = {}

    def bring_forward(self, pairs: Set[str]) -> None:
        """Move the rows of these pairs to the front."""
        self._front = [pair for pair in pairs if pair in self._rows]
        new = {}
        for block in sorted({self._block[pair] for pair in self._front}, reverse=True):
            self._lowest -= 1
            new[block] = self._lowest
        self._block.update({pair: new[self._block[pair]] for pair in self._front})
        self._moved.update(dict.fromkeys(self._front))

    def first(self, number: int) -> list[int]:
        """The first rows of the pairs that were brought forward last, at most `number`."""
        return list(islice(self._in_order(self._front), number))

    def take_moved(self) -> list[int]:
        """The rows, in their order, of all pairs that were brought forward since this was last asked for."""
        moved, self._moved = [*self._moved], {}
        return list(self._in_order(moved))

    def _in_order(self, pairs: Iterable[str]) -> Iterator[int]:
        blocks: dict[int, list[str]] = {}
        for pair in pairs:
            blocks.setdefault(self._block[pair], []).append(pair)
        for block in sorted(blocks):
            yield from heapq.merge(*(self._left_of(pair) for pair in blocks[block]), key=self._place.__getitem__)

    def _left_of(self, pair: str) -> Iterator[int]:
        rows = self._rows[pair]
        while rows and rows[0] not in self._deck:
            rows.popleft()
        return (row for row in rows if row in self._deck)


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
