"""Counts the bytes of all tensors that are alive while it is entered, also on the meta device, where none has any.

On a CPU it measures what a GPU's allocator says of itself. Memory that is taken without an operation is not seen: FSDP
resizes what it gathers.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """`now` and `peak` in bytes; tensors from before it was entered do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            self._hold(value, is_new=False)
        out = self.compute(func, args, kwargs or {})
        for value in tree_leaves(out):
            self._hold(value, is_new=True)
        return out

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation returns."""
        return func(*args, **kwargs)

    def _hold(self, value: Any, *, is_new: bool) -> None:
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            return
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes() if is_new else 0
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
