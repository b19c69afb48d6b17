"""A device that computes on the CPU, is as strict as a GPU about where tensors are, and counts what a GPU would feel.

    with FakeGpu() as gpu:
        ...                       # with tensors on DEVICE
    gpu.waits                     # Counter: line of code -> how often the host would have waited for the device

An operation whose tensors are not all on one device is an error, as with CUDA; 0-dim CPU tensors and CPU indices pass.
So is a grouped product with strides that CUDA's kernel refuses; its rows past the last end are NaN here. The host waits
where it reads a value, where a shape depends on values (`nonzero`, boolean indices, `repeat_interleave`), and where it
copies without `non_blocking`, also to the device: torch then waits for the stream. With `non_blocking` it waits all the
same where the memory on its side is not pinned, as CUDA documents it: for every copy from the device, and for those to
the device of more than 64 KB. Real values are computed, so results can be compared with the CPU's.

`FakeGpu` takes torch's one free kind of device, for the whole process and for good: use it in a process of its own.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

NAME = "fakegpu"
aten = torch.ops.aten
NO_KERNEL = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_unsafe_view", "lift_fresh"}
SHAPE_FROM_VALUES = {"nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim"}
MOST_PAGEABLE = 64 << 10
"""Bytes of pageable memory that go to the device with the launch of the copy."""
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    def is_autocast_enabled(self) -> bool:
        return False

    def get_rng_state(self, device: Any = 0) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = 0) -> None:
        return

    def manual_seed(self, seed: int) -> None:
        return

    def device(self, index: Any) -> Any:
        return nullcontext()


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
DEVICE = torch.device(NAME, 0)


@dataclass
class Counts:
    """What a GPU would have felt, each by the innermost line of dist_moe or of transformers."""

    waits: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    """Copies to the device for which the host does not wait."""
    launches: Counter[str] = field(default_factory=Counter)
    """Operations with a kernel, by name."""
    places: Counter[str] = field(default_factory=Counter)
    """The same by line of code."""
    num_bytes: int = 0
    """Of all tensors that are alive."""
    peak_bytes: int = 0
    base_bytes: int = 0
    """Alive when counting began."""
    _users: Counter[int] = field(default_factory=Counter)

    def reset(self) -> None:
        """Count from here on; what is alive stays counted as memory."""
        for counted in (self.waits, self.uploads, self.launches, self.places):
            counted.clear()
        gc.collect()
        self.peak_bytes = self.base_bytes = self.num_bytes

    def hold(self, tensor: FakeTensor) -> None:
        """Count a tensor's memory until the last tensor in it is gone."""
        storage = tensor.inner.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self._users[key]:
            self.num_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.num_bytes)
        self._users[key] += 1
        weakref.finalize(tensor, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            self.num_bytes -= size


COUNTS = Counts()
PINNED: set[int] = set()
"""Storages in the host's memory that are pinned."""


class FakeTensor(torch.Tensor):
    """`inner` is on the CPU and has the values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> FakeTensor:
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )
        out.inner = inner
        COUNTS.hold(out)
        return out

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"FakeTensor({self.inner})"

    def tolist(self) -> Any:
        COUNTS.waits[_place()] += 1
        return self.inner.tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")

    def __array__(self, *_: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _place() -> str:
    """The innermost line of dist_moe, or of transformers: as `dist_moe/moe/experts.py:83`."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        for package in ("dist_moe", "transformers"):
            if f"/{package}/" in name:
                return f"{package}/{name.rsplit(f'/{package}/', 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor, whose memory counts as pinned from now on."""
    storage = tensor.untyped_storage()
    PINNED.add(storage._cdata)
    weakref.finalize(storage, PINNED.discard, storage._cdata)
    return tensor


def is_pinned(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage()._cdata in PINNED


def _is_fake(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation: check where its tensors are, count it, compute it on the CPU."""
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    fakes = [x for x in tensors if isinstance(x, FakeTensor)]
    name = func.overloadpacket.__name__
    device = kwargs.get("device")
    to_fake = _is_fake(device)
    wrap = bool(fakes) or to_fake
    if func is aten._to_copy.default:
        wrap = to_fake or (device is None and bool(fakes))
        if to_fake != bool(fakes) and (to_fake or device is not None):
            # torch itself gives what comes to the host without a wait pinned memory
            _copied(to_fake, bool(kwargs.get("non_blocking")), args[0] if to_fake else None)
    elif func is aten.copy_.default:
        target, source = args[0], args[1]
        wrap = isinstance(target, FakeTensor)
        if wrap != isinstance(source, FakeTensor):
            _copied(wrap, len(args) > 2 and bool(args[2]), source if wrap else target)
    elif func is aten._foreach_copy_.default and any(isinstance(t, FakeTensor) for t in args[0]):
        wrap, non_blocking = True, bool(kwargs.get("non_blocking", len(args) > 2 and args[2]))
        for source in args[1]:
            if not isinstance(source, FakeTensor):  # torch copies one by one
                _copied(True, non_blocking, source)
    elif fakes:
        wrap = _checked(func, name, args, kwargs, tensors)
    if wrap and not func.is_view and name not in NO_KERNEL:
        COUNTS.launches[name] += 1
        COUNTS.places[_place()] += 1
    inner_kwargs = tree_map(_inner, kwargs)
    if to_fake:
        inner_kwargs["device"] = torch.device("cpu")
    out = func(*tree_map(_inner, args), **inner_kwargs)
    if "grouped_mm" in name and out.dim() == 2:
        ends = _inner(kwargs.get("offs", args[2] if len(args) > 2 else None))
        out[int(ends[-1]) :] = float("nan")  # CUDA leaves there what was in memory
    if not wrap:
        return out
    outs = tree_map(lambda t: FakeTensor(t) if isinstance(t, torch.Tensor) else t, out)
    return return_and_correct_aliasing(func, args, kwargs, outs) if fakes else outs


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, FakeTensor) else x


def _copied(to_device: bool, non_blocking: bool, host: torch.Tensor | None) -> None:
    """`host` is the tensor on the host's side; None: a new one, pinned if the copy is `non_blocking`."""
    is_free = host is None or is_pinned(host) or (to_device and host.numel() * host.element_size() <= MOST_PAGEABLE)
    if not (non_blocking and is_free):
        COUNTS.waits[_place()] += 1
    elif to_device:
        COUNTS.uploads[_place()] += 1


def _checked(func: Any, name: str, args: Any, kwargs: Any, tensors: list[torch.Tensor]) -> bool:
    """Refuse what CUDA refuses, and count waits; returns whether the result is on the device."""
    others = [x for x in tensors if not isinstance(x, FakeTensor)]
    if any(x.dim() > 0 for x in others):
        if name not in INDEXED:
            raise RuntimeError(f"Expected all tensors to be on the same device: {func} mixes {NAME} and cpu")
        COUNTS.waits[_place()] += 1  # the index is copied there
    if name == "_local_scalar_dense":
        COUNTS.waits[_place()] += 1
        return False
    if name == "equal":
        COUNTS.waits[_place()] += 1
        return False
    if name == "bincount":
        COUNTS.waits[_place()] += 2
    elif name in SHAPE_FROM_VALUES or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        COUNTS.waits[_place()] += 1
    elif name in INDEXED:
        if any(x is not None and x.dtype == torch.bool for x in args[1]):
            COUNTS.waits[_place()] += 1
    elif "grouped_mm" in name:
        _check_grouped(args[:2])
    return True


def _check_grouped(matrices: tuple[torch.Tensor, ...]) -> None:
    for t in matrices:
        if t.dtype != torch.bfloat16:
            COUNTS.waits[_place()] += (
                1  # other types are computed in a loop over the ends, which are copied to the host
            )
        align = 16 // t.element_size()
        (rows, columns), (first, second) = t.shape[-2:], t.stride()[-2:]
        by_column = first == 1 and second >= max(1, rows) and second % align == 0
        by_row = second == 1 and first >= max(1, columns) and first % align == 0
        if not (by_column or by_row):
            raise RuntimeError(f"strides should be multiple of 16 bytes: {tuple(t.stride())} of {tuple(t.shape)}")


class _Factories(TorchFunctionMode):
    """What torch makes of Python's values, below the reach of the other mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_fake(kwargs.get("device")):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func in (torch.Tensor.__setitem__, torch.Tensor.__getitem__) and isinstance(args[0], FakeTensor):
            key = tuple(map(_listed, args[1])) if isinstance(args[1], tuple) else _listed(args[1])
            return func(args[0], key, *args[2:], **kwargs)
        return func(*args, **kwargs)


def _listed(index: Any) -> Any:
    return torch.tensor(index) if isinstance(index, list) else index


class _Dispatch(TorchDispatchMode):
    """Catches factories, which no tensor leads to."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat = tree_flatten((args, kwargs))[0]
        if kwargs.get("pin_memory") and not _is_fake(kwargs.get("device")):
            return pinned(func(*args, **kwargs | {"pin_memory": False}))
        if _is_fake(kwargs.get("device")) or any(isinstance(t, FakeTensor) for t in flat):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


class FakeGpu:
    """While entered, tensors can be made on `DEVICE`; entering gives what is counted from then on."""

    def __enter__(self) -> Counts:
        COUNTS.reset()
        self._pin_memory = torch.Tensor.pin_memory
        torch.Tensor.pin_memory = lambda tensor: pinned(tensor.clone())  # type: ignore[method-assign,assignment]  # also in other threads
        self._modes = [_Factories(), _Dispatch()]
        for mode in self._modes:
            mode.__enter__()
        return COUNTS

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
        torch.Tensor.pin_memory = self._pin_memory  # type: ignore[method-assign]
