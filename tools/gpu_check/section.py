"""A section's process: it imports what it needs, waits for its limit, and is ended there with all it has started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any


class Section:
    """A section whose process has been started, and does not touch the device before it is told to."""

    def __init__(self, name: str, *, dry: bool) -> None:
        self.name, self._errors = name, tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if dry:
            environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.gpu_check", "--section", name] + ["--dry"] * dry,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def run(self, limit: float, take: Callable[[dict[str, Any]], None]) -> None:
        """Give it so many seconds; its lines, and one of its own, go to `take` as they come."""
        process, started = self._process, time.monotonic()
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(limit, lambda: os.killpg(process.pid, signal.SIGKILL))
        timer.start()
        process.stdin.write(f"{limit}\n")
        process.stdin.close()
        for text in process.stdout:
            if text.startswith("{"):
                take(json.loads(text))
        status = process.wait()
        timer.cancel()
        seconds = round(time.monotonic() - started, 1)
        line = {"section": self.name, "check": "section", "ok": status == 0, "seconds": seconds, "limit": limit}
        self._errors.seek(0)
        take(line if status == 0 else line | {"status": status, "stderr": self._errors.read()[-1500:]})
        self._errors.close()

    def dismiss(self) -> None:
        """It is not to run."""
        self._process.communicate()
        self._errors.close()
