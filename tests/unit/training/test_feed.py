"""Batches that are made ready ahead: what is asked for, whatever was expected; and in a thread for a GPU only."""

import threading

import numpy as np
import pytest
import torch

from dist_moe.data.tokens import Encoded
from dist_moe.errors import UserError
from dist_moe.training.feed import BatchFeed
from dist_moe.training.split import Rows, Split

ROWS = [[Encoded((batch, 5, 6), (7, 8), unsafe=row == 1) for row in range(2)] for batch in range(4)]


class Masks:
    """A store's masks [4, 2, 3], of which the last cannot be read."""

    def __init__(self, digest, seed):
        self.digest, self.values, self.threads = digest, np.random.default_rng(seed).random((4, 2, 3)) < 0.5, []

    @property
    def masks(self):
        return self

    def __getitem__(self, batch):
        self.threads.append(threading.current_thread().name)
        if batch == 3:
            raise UserError("damaged")
        return self.values[batch]


@pytest.fixture
def feed(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.clone)
    return lambda device: BatchFeed(Rows(ROWS.__getitem__, Split.of(2, 1, None), 0, 0), torch.device(device))


def check(ready, masks, batch):
    assert ready.mask_LE.tolist() == masks.values[batch].tolist()
    assert ready.num_rows == 2
    (micro_batch,) = ready.micro_batches
    assert micro_batch.input_ids.tolist() == [[batch, 5, 6, 7, 8]] * 2
    assert micro_batch.is_unsafe.tolist() == [[False] * 5, [True] * 5]


@pytest.mark.parametrize(("device", "ahead"), [("cpu", False), ("meta", True)])
def test_the_next_batch_is_made_by_another_thread_only_beside_a_gpu(feed, device, ahead):
    masks, made = Masks("m", 0), feed(device)
    made.begin(masks, 2)
    check(made.take(masks, 2), masks, 2)
    check(made.take(masks, 2), masks, 2)
    assert [name.startswith("next batch") for name in masks.threads] == [ahead, False]


def test_another_batch_or_other_masks_than_were_expected(feed):
    masks, others, made = Masks("m", 0), Masks("o", 1), feed("meta")
    made.begin(masks, 1)
    check(made.take(masks, 2), masks, 2)
    made.begin(masks, 1)
    check(made.take(others, 1), others, 1)


def test_a_mask_that_cannot_be_read_fails_where_it_is_asked_for(feed):
    masks, made = Masks("m", 0), feed("meta")
    made.begin(masks, 3)
    check(made.take(masks, 0), masks, 0)
    made.begin(masks, 3)
    with pytest.raises(UserError, match="damaged"):
        made.take(masks, 3)


def test_all_of_a_batch_is_pinned(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    split = Split.of(2, 1, None)
    (micro_batch,) = split.local(ROWS[0], 0, 0)
    copied = micro_batch.pinned()
    tensors = {name: value for name in micro_batch.__slots__ if torch.is_tensor(value := getattr(micro_batch, name))}
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in tensors.values()}
    assert all(torch.equal(getattr(copied, name), tensor) for name, tensor in tensors.items())
