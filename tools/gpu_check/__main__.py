"""What dist_moe does on one GPU, in one command: is it right, how fast is it, what does the host wait for.

    python -m tools.gpu_check [--budget 360] [--only parity,engines,...] [--out FILE] [--dry]

One JSON line a check, printed when it is known, so that a run that is cut off has still reported; "ok" is true, false,
or null (a number without a limit). The exit status is 1 if a check is false. Each section is a process of its own with
its own time limit, so one that crashes or hangs costs the others nothing. No network is needed: models are made from
configurations, with random weights. `--dry` runs the same code with tiny shapes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

IN_DRY = 4
"""How much longer a section may take on a CPU."""
SECTIONS = {
    "versions": 60,
    "parity": 80,
    "engines": 80,
    "products": 60,
    "olmoe": 90,
    "usual": 70,
    "qwen3": 130,
    "demo": 90,
    "host": 120,
}
"""Name of the module with the section -> seconds at most."""
Line = dict[str, Any]


def main() -> int:
    """Run the sections that were asked for; with --section, one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny shapes, on a CPU")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas: %(default)s")
    parser.add_argument("--budget", type=float, default=360, help="seconds for everything")
    parser.add_argument("--out", type=Path, help="append the JSON lines to this file too")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=60, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.section:
        from tools.gpu_check.here import Here

        import_module(f"tools.gpu_check.{args.section}").run(Here(dry=args.dry, seconds=args.limit))
        return 0
    wanted = args.only.split(",")
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        parser.error(f"--only: no section {unknown[0]!r}: choose among {', '.join(SECTIONS)}")
    return run_all(wanted, time.monotonic() + args.budget, args)


def run_all(wanted: list[str], deadline: float, args: argparse.Namespace) -> int:
    lines: list[Line] = []

    def take(line: Line) -> None:
        text = json.dumps(line)
        print(text, flush=True)
        lines.append(line)
        if args.out:
            with args.out.open("a", encoding="utf-8") as out:
                out.write(text + "\n")

    for name in wanted:
        limit = SECTIONS[name] * (IN_DRY if args.dry else 1)
        run_section(name, min(limit, deadline - time.monotonic()), args.dry, take)
    bad = [line for line in lines if line["ok"] is False]
    print(f"\n{len(lines)} lines, {len(bad)} not ok")
    for line in bad:
        print("NOT OK", json.dumps(line)[:400])
    return 1 if bad else 0


def run_section(name: str, limit: float, dry: bool, take: Callable[[Line], None]) -> None:
    """One section in a process group of its own, which is ended at the limit."""
    if limit < 5:
        take({"section": name, "check": "section", "ok": None, "skipped": "no time left"})
        return
    started = time.monotonic()
    command = [sys.executable, "-m", "tools.gpu_check", "--section", name, "--limit", str(limit)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if dry:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command + ["--dry"] * dry,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,
        )
        timer = threading.Timer(limit, lambda: os.killpg(process.pid, signal.SIGKILL))
        timer.start()
        assert process.stdout is not None
        for text in process.stdout:
            if text.startswith("{"):
                take(json.loads(text))
        status = process.wait()
        timer.cancel()
        errors.seek(0)
        line = {"section": name, "check": "section", "ok": status == 0, "seconds": round(time.monotonic() - started, 1)}
        take(line if status == 0 else line | {"status": status, "stderr": errors.read()[-1500:]})


if __name__ == "__main__":
    sys.exit(main())
