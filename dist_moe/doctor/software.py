"""Checks of what is installed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dist_moe.doctor.check import Asked, Finding, check
from dist_moe.tested import PYTHON, TESTED, is_tested
from dist_moe.version import __version__

STALE_S = 600.0
"""A build of DeepSpeed's helpers takes a minute or two."""


@check()
def versions(asked: Asked) -> Finding:
    """Of python and the libraries that compute, against those with which the tests were run."""
    problems, seen = dict[str, str](), [f"dist_moe {__version__}"]
    for name, tested in {"python": PYTHON, **TESTED}.items():
        try:
            found = platform.python_version() if name == "python" else version(name)
        except PackageNotFoundError:
            problems[f"{name} is not installed"] = f"pip install '{name}=={tested[1]}.*'"
            continue
        seen.append(f"{name} {found}")
        if not is_tested(found, tested):
            remedy = "use python" if name == "python" else f"`dist-moe families` tells what works, or install {name}"
            problems[f"{name} {found} is not one of the tested {tested[0]} to {tested[1]}"] = f"{remedy} {tested[1]}"
    return Finding.of(f"{', '.join(seen)}; {sys.executable}; {platform.platform()}", problems)


@check()
def compiler(asked: Asked) -> Finding:
    """A C++ compiler and ninja, with which DeepSpeed and Triton build helpers when they first need them."""
    problems, seen = dict[str, str](), list[str]()
    beside = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    for program, package in ((os.environ.get("CXX", "g++"), "g++"), ("ninja", "ninja-build")):
        found = shutil.which(program, path=beside)
        if found is None:
            reason = "dist_moe itself builds nothing; DeepSpeed's own operators and Triton's kernels do"
            problems[f"no {program}"] = f"apt-get install {package}, or load the site's module ({reason})"
            continue
        told = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
        first = (told.splitlines() or ["?"])[0]
        seen.append(first if first.startswith(program) else f"{program} {first}")
    return Finding.of(", ".join(seen), problems)


@check()
def extensions(asked: Asked) -> Finding:
    """Locks of builds that were killed: each later build waits for such a file for ever, and says nothing."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(given) if given else Path.home() / ".cache" / "torch_extensions"
    locks = sorted([*root.glob("*/lock"), *root.glob("*/*/lock")])
    problems = dict[str, str]()
    for lock in locks:
        age = time.time() - lock.stat().st_mtime
        if age > STALE_S:
            problems[f"{lock} is {age / 3600:.1f} h old: a build was killed"] = f"rm {lock}"
    building = "" if len(problems) == len(locks) else "; a build is under way"
    where = f"{root}{'' if given else ' (TORCH_EXTENSIONS_DIR is not set)'}{building}"
    return Finding.of(where if root.exists() else f"{where}: nothing has been built", problems)
