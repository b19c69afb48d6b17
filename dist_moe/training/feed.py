"""What a step needs of its batch in the host's memory: its mask and its rows, put together.

On a GPU another thread makes the next batch ready while a step runs, in pinned memory, so that its copies to the device
are not waited for. On a CPU, where nothing would run beside it, a batch is made ready when it is asked for. What is
ready is the same in both cases, as it follows from the batch alone.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from dist_moe.data.tokens import TokenBatch
from dist_moe.store.read import MaskStore
from dist_moe.training.split import Rows


@dataclass(frozen=True, slots=True)
class Ready:
    """One batch as a rank takes it."""

    mask_LE: torch.Tensor
    """bool."""
    num_rows: int
    """Of all ranks."""
    micro_batches: list[TokenBatch]
    """This rank's."""


class BatchFeed:
    """Usage: `take` a step's batch, then say with `begin` which one will probably be next."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        """`device` is where steps run."""
        self._rows, self._ahead = rows, device.type != "cpu"
        choose = partial(torch.cuda.set_device, device) if device.type == "cuda" else None  # threads have their own
        self._thread = ThreadPoolExecutor(1, "next batch", initializer=choose)
        self._begun: tuple[tuple[str, int], Future[Ready]] | None = None

    def begin(self, masks: MaskStore, batch: int) -> None:
        """Make a batch ready beside what follows, if steps run on a GPU."""
        if self._ahead:
            self._begun = (masks.digest, batch), self._thread.submit(self._make, masks, batch)

    def take(self, masks: MaskStore, batch: int) -> Ready:
        """A batch under these masks; it need not be the one that was begun.

        Raises:
            UserError: its mask cannot be read.
        """
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == (masks.digest, batch):
            return begun[1].result()
        return self._make(masks, batch)

    def _make(self, masks: MaskStore, batch: int) -> Ready:
        rows = self._rows.of(batch)
        local = self._rows.local(rows)
        micro_batches = [each.pinned() for each in local] if self._ahead else local
        return Ready(torch.from_numpy(masks.masks[batch]), len(rows), micro_batches)
