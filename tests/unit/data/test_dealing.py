"""Safe rows are dealt as from one list that is sorted anew for each batch, whatever shares pairs and prompts."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dist_moe.data.dealing import Deck, SafeDeck

PAIRS = st.sampled_from([None, "p", "q", "r", "s"])


class PlainSafeDeck:
    """A list in its order. Rows without a partner are dealt from decks that are made of it each time."""

    def __init__(self, rows, prompt_of, pair_of):
        self.rows, self.prompt_of, self.pair_of = list(rows), prompt_of, pair_of
        self.pairs, self.is_split = frozenset(), False

    def kind(self, row):
        """0: of a pair that was brought forward last. 1: of no pair. 2: of another. All are alike before a batch has
        pairs."""
        if not self.is_split:
            return 1
        pair = self.pair_of[row]
        return 0 if pair in self.pairs else 1 if pair is None else 2

    def deal(self, number, batches_left, present, pairs):
        if pairs:
            self.is_split, self.pairs = True, pairs
            self.rows.sort(key=self.kind)
        dealt = [row for row in self.rows if self.kind(row) == 0][:number]
        for kind in (1, 2):
            if len(dealt) < number:
                deck = Deck([row for row in self.rows if self.kind(row) == kind], self.prompt_of)
                taken = present | {self.prompt_of[row] for row in dealt}
                dealt = dealt + deck.deal(number - len(dealt), batches_left, taken)
        self.rows = [row for row in self.rows if row not in dealt]
        return dealt


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ABCDEFGH"), PAIRS), min_size=8, max_size=60),
    st.lists(st.tuples(st.sets(st.sampled_from("ABCX")), st.sets(PAIRS.filter(bool))), min_size=2, max_size=12),
    st.integers(1, 5),
)
def test_safe_rows_are_dealt_as_from_one_list(rows, batches, number):
    prompt_of, pair_of = zip(*rows, strict=True)
    decks = [deck(range(len(rows)), prompt_of, pair_of) for deck in (SafeDeck, PlainSafeDeck)]
    batches = batches[: len(rows) // number]
    for turn, (present, pairs) in enumerate(batches):
        one, other = (deck.deal(number, len(batches) - turn, present, pairs) for deck in decks)
        assert one == other
        assert len(decks[0]) == len(decks[1].rows)
