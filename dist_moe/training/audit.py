"""The audit (`train.audit`): verifies by checksums that a step has changed nothing outside of what it trains.

The monitor checks what a step is about to do; the audit checks what it has done. So it finds what the monitor cannot
see: an optimizer that changes more than it should, a kernel that writes elsewhere, a weight changed in place. A digest
is the sum of a tensor's bits, eight bytes at a time, each multiplied by a random odd factor, modulo 2^64. One changed
value always changes it; several changes cancel with a probability below 2^-32. It is computed on the tensor's device.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from dist_moe.model.model import MoEModel
from dist_moe.parallel.comm import Comm
from dist_moe.stats.names import expert_name
from dist_moe.training.engine import Engine
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.rounds import Trained

CHUNK = 1 << 18
"""Number of factors, eight bytes each; longer tensors are processed in parts."""
Place = tuple[tuple[int, int] | None, str]
"""(layer, expert), or None for a dense weight; and the name of the tensor."""


class StepAudit:
    """Call `digests` before a step and `compare` after it, on all ranks together."""

    def __init__(self, model: MoEModel, optimizer: SelectiveAdamW, engine: Engine, comm: Comm) -> None:
        self.model, self.optimizer, self.engine, self.comm = model, optimizer, engine, comm
        self._factors: dict[torch.device, torch.Tensor] = {}

    def digests(self) -> dict[Place, int]:
        """Digests of everything on this rank: weights of all experts, dense weights, and optimizer state."""
        places = dict(self._places())
        digests = [self._digest(tensor).to(self.comm.device) for tensor in places.values()]
        return dict(zip(places, torch.stack(digests).tolist(), strict=True))

    def compare(self, before: dict[Place, int], mask_LE: np.ndarray, trained: Trained) -> None:
        """Assert, on all ranks alike, that nothing differs from `before` but what the step may train: the experts of
        the batch's mask, and dense weights."""
        moving = {name for name, _ in self._moving_dense()} if trained.dense else set()
        changed = [
            f"rank {self.comm.rank}: a step has changed {f'{expert_name(*key)}, {what}' if key else what}"
            for (key, what), digest in self.digests().items()
            if digest != before[key, what] and not (trained.experts and mask_LE[key] if key else what in moving)
        ]
        for lines in self.comm.gather(changed[:1]):
            assert not lines, f"{lines[0]}, which is outside the batch's mask"

    def _places(self) -> Iterator[tuple[Place, torch.Tensor]]:
        for layer in self.model.layers:
            for expert in layer.local:
                yield from ((((layer.index, expert), name), row) for name, row in layer.row(expert).items())
        for key, state in self.optimizer.expert_state.items():
            yield from (((key, f"optimizer state {name}"), tensor) for name, tensor in state.tensors().items())
        yield from (((None, name), tensor) for name, tensor in self.engine.dense())
        yield from (((None, name), tensor) for name, tensor in self._moving_dense())
        if self.model.originals is not None:
            for key, name, row in self.model.originals.weights():
                yield (None, f"the original {expert_name(*key)}, {name}"), row
            yield from (((None, f"the original {name}"), copy) for name, copy in self.model.originals.dense())

    def _moving_dense(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The dense weights that some step may train, and their optimizer state."""
        yield from self.model.dense.items()
        for name, state in self.optimizer.dense.state.items():
            yield from ((f"{name}, optimizer state {part}", tensor) for part, tensor in state.tensors().items())

    @torch.no_grad()
    def _digest(self, tensor: torch.Tensor) -> torch.Tensor:
        """int64 scalar."""
        words, factors = _words(tensor), self._factors_on(tensor.device)
        digest = torch.zeros((), dtype=torch.int64, device=tensor.device)
        for part in words.split(CHUNK):
            mixed = part ^ ((part >> 32) & 0xFFFFFFFF)  # a product keeps too little of a word's highest bits alone
            digest = digest * factors[0] + (mixed * factors[: len(part)]).sum()
        return digest

    def _factors_on(self, device: torch.device) -> torch.Tensor:
        """int64 [CHUNK], odd, the same on every device."""
        if device not in self._factors:
            generator = torch.Generator().manual_seed(0)
            odd = torch.randint(-(2**62), 2**62, (CHUNK,), generator=generator) * 2 + 1
            self._factors[device] = odd.to(device)
        return self._factors[device]


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bits as int64, padded with zeros."""
    bits = tensor.contiguous().reshape(-1).view(torch.uint8)
    if bits.numel() % 8 or bits.storage_offset() % 8:
        padded = bits.new_zeros(-(-bits.numel() // 8) * 8)
        padded[: bits.numel()] = bits
        bits = padded
    return bits.view(torch.int64)
