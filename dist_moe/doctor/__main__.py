"""One check in a process: python -m dist_moe.doctor NAME RUN_DIR RANKS prints what it has found as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from dist_moe.doctor.check import Asked
from dist_moe.doctor.examine import CHECKS

if __name__ == "__main__":
    name, run_dir, ranks = sys.argv[1:]
    print(json.dumps(asdict(CHECKS[name].function(Asked(run_dir=Path(run_dir), ranks=int(ranks))))))
