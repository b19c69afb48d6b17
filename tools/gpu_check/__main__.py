"""What dist_moe does on one GPU, in one command: is it right, how fast is it, what does the host wait for.

    python -m tools.gpu_check [--budget 360] [--only parity,engines,...] [--out FILE] [--dry]

One JSON line a check, printed when it is known, so that a run that is cut off has still reported; "ok" is true, false,
or null (a number without a limit). The exit status is 1 if a check is false. Sections come in the order of what matters
most. Each is a process of its own with its own time limit, so one that crashes or hangs costs the others nothing but
time; one for which too little is left is left out, and named. No network is needed: models are made from
configurations, with random weights. `--dry` runs the same code with tiny shapes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tools.gpu_check.section import Section

IN_DRY = 4
"""How much longer everything may take on a CPU."""
SECTIONS = {
    "versions": 10,
    "parity": 35,
    "olmoe": 25,
    "qwen3": 65,
    "usual": 35,
    "compile": 60,
    "engines": 45,
    "host": 65,
    "products": 20,
    "demo": 60,
}
"""Name of the module with the section -> its budget in seconds: it is left out if less is left, and ended after twice
as many. All but the last together are six minutes."""
Line = dict[str, Any]


def main() -> int:
    """Run the sections that were asked for; with --section, one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny shapes, on a CPU")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas: %(default)s")
    parser.add_argument(
        "--budget", type=float, default=360, help=f"seconds; in --dry {IN_DRY} times as many: %(default)s"
    )
    parser.add_argument("--out", type=Path, help="append the JSON lines to this file too")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.section:
        return run_here(args.section, dry=args.dry)
    wanted = args.only.split(",")
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        parser.error(f"--only: no section {unknown[0]!r}: choose among {', '.join(SECTIONS)}")
    return run_all(wanted, args)


def run_here(name: str, *, dry: bool) -> int:
    """A section, in this process, which waits for its limit on stdin; without one it ends."""
    from tools.gpu_check.here import Here

    section = import_module(f"tools.gpu_check.{name}")
    limit = sys.stdin.readline()
    if limit:
        section.run(Here(dry=dry, seconds=float(limit)))
    return 0


def run_all(wanted: list[str], args: argparse.Namespace) -> int:
    """While a section runs, the next one's process imports what it needs."""
    lines: list[Line] = []
    longer = IN_DRY if args.dry else 1
    deadline = time.monotonic() + longer * args.budget

    def take(line: Line) -> None:
        text = json.dumps(line)
        print(text, flush=True)
        lines.append(line)
        if args.out:
            with args.out.open("a", encoding="utf-8") as out:
                out.write(text + "\n")

    def fits(name: str | None) -> bool:
        return name is not None and deadline - time.monotonic() >= longer * SECTIONS[name]

    ready, left_out = None, []
    for name, following in zip_longest(wanted, wanted[1:]):
        section, ready = ready, None
        if not fits(name):
            left_out.append(name)
            left = f"{longer * SECTIONS[name]} s are needed, {max(0, deadline - time.monotonic()):.0f} are left"
            take({"section": name, "check": "section", "ok": None, "skipped": left})
            if section is not None:
                section.dismiss()
            continue
        section = section or Section(name, dry=args.dry)
        if following is not None and fits(following):
            ready = Section(following, dry=args.dry)
        section.run(min(2 * longer * SECTIONS[name], deadline - time.monotonic()), take)
    bad = [line for line in lines if line["ok"] is False]
    print(f"\n{len(lines)} lines, {len(bad)} not ok")
    if left_out:
        print(f"left out for want of time: --only {','.join(left_out)}")
    for line in bad:
        print("NOT OK", json.dumps(line)[:400])
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
