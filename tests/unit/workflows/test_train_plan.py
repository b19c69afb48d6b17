"""The plan that a run is compared with takes the rows of its own batches."""

import random

import numpy as np
import pytest

from dist_moe.data.batches import plan_batches
from dist_moe.data.rows import Message, Prompt
from dist_moe.data.tokens import IGNORED, Encoded
from dist_moe.training.split import Split
from dist_moe.workflows.train_plan import most_in_pass


def _prompts(num):
    for i in range(num):
        unsafe = i % 2 == 1
        yield Prompt(f"{i:03}", (Message("user", f"{i}"),), "answer", unsafe, "c" if unsafe else None, "rows:1", None)


@pytest.mark.parametrize(("num_ranks", "at_once"), [(1, None), (1, 3), (2, None), (2, 2)])
def test_no_pass_has_more_tokens(num_ranks, at_once):
    """Passes are those of training, and their tokens are counted."""
    generator = random.Random(0)
    plan = plan_batches([*_prompts(40)], 8, 0.5, 0)
    sizes = [(generator.randint(1, 30), generator.randint(1, 30)) for _ in range(40)]
    rows = [Encoded((5,) * prompt, (6,) * answer, unsafe=i % 2 == 1) for i, (prompt, answer) in enumerate(sizes)]
    split = Split.of(8, num_ranks, at_once)
    batches = [[rows[i] for i in plan.taken_P[plan.index.rows(batch)]] for batch in range(len(plan.index))]
    passes = [
        each for batch in batches for rank in range(num_ranks) for each in split.local(batch, rank, 0)
    ]  # fmt: skip
    live = max(int(each.live.sum()) for each in passes)
    losses = max(int((each.labels != IGNORED).sum()) for each in passes)
    tokens, answers = np.array([sum(size) for size in sizes]), np.array([answer for _, answer in sizes])
    planned = [most_in_pass(tokens, plan, split), most_in_pass(answers, plan, split)]
    assert planned[0] >= live
    assert planned[1] >= losses
    if num_ranks == 1 and at_once is None:
        assert planned == [live, losses]
    assert planned[0] < sum(map(sum, sizes)) / 2
