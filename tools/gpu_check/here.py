"""What all sections share: the device, the time that is left, lines, clocks and errors."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from dist_moe.data.tokens import Encoded, TokenBatch, collate


class Here:
    """The device of a section's process, and its time."""

    def __init__(self, *, dry: bool, seconds: float) -> None:
        self.dry, self._end = dry, time.monotonic() + seconds - 3
        self.cuda = torch.cuda.is_available() and not dry
        self.device = torch.device("cuda", 0) if self.cuda else torch.device("cpu")
        if self.cuda:
            torch.cuda.set_device(self.device)

    @property
    def liger(self) -> bool:
        """Whether there is Liger Kernel, which is for GPUs."""
        return self.cuda and find_spec("liger_kernel") is not None

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def sync(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], *, most: float = 0.4) -> float:
        """Median time of a call, of at least three calls, after two to warm up."""
        for _ in range(2):
            call()
        times: list[float] = []
        stop = time.monotonic() + (0.02 if self.dry else most)
        while len(times) < 3 or (time.monotonic() < stop and len(times) < 50):
            self.sync()
            started = time.perf_counter()
            call()
            self.sync()
            times.append(time.perf_counter() - started)
        return sorted(times)[len(times) // 2]

    def matmul_rate(self) -> float:
        """FLOP/s of a large bf16 product."""
        n = 256 if self.dry else 8192
        a, b = (torch.randn(n, n, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        return 2 * n**3 / self.seconds(lambda: a @ b)


def report(section: str, check: str, ok: bool | None = None, **values: Any) -> None:
    """Print one line."""
    print(json.dumps({"section": section, "check": check, "ok": ok, **_plain(values)}), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value


class guarded:  # noqa: N801 - reads like a statement
    """A check whose failure is a line, not the end of its section. Without memory a check has no answer."""

    def __init__(self, section: str, check: str) -> None:
        self.section, self.check, self.failed = section, check, False

    def __enter__(self) -> guarded:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failed = True
        where = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(trace)][-4:]
        ok = None if isinstance(error, torch.OutOfMemoryError) else False
        report(self.section, self.check, ok, error=f"{type(error).__name__}: {error}"[:600], where=where)
        return True


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|; NaN passes no limit."""
    found, expected = (x.detach().double().flatten().cpu() for x in (found, expected))
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


def token_batch(vocabulary: int, *, rows: int = 4, length: int = 24, seed: int = 1, packed: bool = False) -> TokenBatch:
    """Rows of different lengths, every other one unsafe."""
    ids = torch.randint(3, vocabulary - 3, (rows, length), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = [(row[: length // 3], row[length // 3 : length - i % 4]) for i, row in enumerate(ids)]
    return collate([Encoded(tuple(a), tuple(b), unsafe=i % 2 == 1) for i, (a, b) in enumerate(cut)], 0, packed=packed)
