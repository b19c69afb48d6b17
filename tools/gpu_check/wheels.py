"""Is a folder of wheels enough for a GPU machine without a package index? For CPython 3.12 on x86_64 Linux.

    python tools/gpu_check/wheels.py missing PROJECT MACHINE_LIST WHEELS    what to fetch next, one requirement a line
    python tools/gpu_check/wheels.py check PROJECT MACHINE_LIST WHEELS      proof; status 1 where something is missing

MACHINE_LIST has NAME==VERSION or NAME in each line. Where only a name is known and a version is asked for, a package is
carried too if it is small, else it is listed as assumed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

ENVIRONMENT = {
    "implementation_name": "cpython",
    "implementation_version": "3.12.3",
    "python_full_version": "3.12.3",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "sys_platform": "linux",
    "platform_python_implementation": "CPython",
    "python_version": "3.12",
    "platform_release": "",
    "platform_version": "",
    "extra": "",
}
SMALL = {"typing-extensions", "fsspec", "pytest", "pytest-timeout", "pluggy", "tqdm", "packaging", "jinja2"}
"""Pure Python; carried if the machine's version is unknown and a bound is asked for."""
TESTS = {"pytest", "pytest-timeout", "filelock"}
"""Of the requirements of tests, what the machine needs."""


def machine_packages(path: Path) -> dict[str, Version | None]:
    """Name -> version, None where it is not known."""
    found: dict[str, Version | None] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("#")[0].strip().partition("==")
        if name:
            found[canonicalize_name(name)] = Version(version) if version else None
    return found


def wheel_requirements(path: Path) -> list[Requirement]:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        metadata = Parser().parsestr(archive.read(name).decode())
    return [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]


def project_requirements(project: Path) -> tuple[list[Requirement], dict[str, str]]:
    """What the project needs there, and the tested version of each package."""
    described = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dev = map(Requirement, described["optional-dependencies"]["dev"])
    lines = (project / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    wanted = [*map(Requirement, described["dependencies"]), *(each for each in dev if each.name in TESTS)]
    return wanted, {canonicalize_name(name): version.strip() for name, version in pins.items()}


class Closure:
    """Each requirement of the project, and of each wheel, by what meets it."""

    def __init__(self, project: Path, machine: Path, wheels: Path) -> None:
        self.there = machine_packages(machine)
        self.carried = {name: version for name, version, *_ in map(parse_wheel_filename, _names(wheels))}
        self.met: list[str] = []
        self.assumed: list[str] = []
        self.wrong: list[str] = []
        self.missing: set[str] = set()
        wanted, self.pins = project_requirements(project)
        for requirement in wanted:
            self._place("the project", requirement)
        for path in sorted(wheels.glob("*.whl")):
            for requirement in wheel_requirements(path):
                self._place(path.name, requirement)

    def _place(self, source: str, requirement: Requirement) -> None:
        if requirement.marker is not None and not requirement.marker.evaluate(ENVIRONMENT):
            return
        name, what = canonicalize_name(requirement.name), f"{source} needs {requirement}"
        version = self.carried.get(name, self.there.get(name))
        if version is not None:
            fits = requirement.specifier.contains(version, prereleases=True)
            (self.met if fits else self.wrong).append(f"{what}: {version}")
        elif name not in self.there or (requirement.specifier and name in SMALL):
            self.missing.add(name)
        else:
            (self.assumed if requirement.specifier else self.met).append(what)


def _names(wheels: Path) -> list[str]:
    return [path.name for path in wheels.glob("*.whl")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("missing", "check"))
    for name in ("project", "machine", "wheels"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    closure = Closure(args.project, args.machine, args.wheels)
    if args.what == "missing":
        if closure.wrong:
            sys.exit("\n".join(closure.wrong))
        for name in sorted(closure.missing):
            print(f"{name}=={closure.pins[name]}" if name in closure.pins else name)
        return 0
    size = sum(path.stat().st_size for path in args.wheels.glob("*.whl"))
    print(f"{len(closure.carried)} wheels, {size / 2**20:.1f} MiB; {len(closure.met)} requirements are met")
    for line in closure.assumed:
        print(f"assumed: {line}")
    for line in [*closure.wrong, *sorted(closure.missing)]:
        print(f"not met: {line}")
    return 1 if closure.wrong or closure.missing else 0


if __name__ == "__main__":
    sys.exit(main())
