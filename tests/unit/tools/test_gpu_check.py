"""tools/gpu_check with tiny shapes on a CPU: it runs to its end, and a check that fails is seen."""

import json
import subprocess
import sys

import pytest

from tools.gpu_check.__main__ import SECTIONS


def check(*arguments):
    command = [sys.executable, "-m", "tools.gpu_check", "--dry", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    return done, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.long
@pytest.mark.timeout(1000)
def test_every_section_runs_to_its_end(tmp_path):
    done, lines = check("--out", str(tmp_path / "lines.jsonl"))
    assert done.returncode == 0, done.stdout
    assert [line["section"] for line in lines if line["check"] == "section" and line["ok"]] == list(SECTIONS)
    assert sum(line["ok"] is True for line in lines) > 15
    steps = {line["kernels"]: line for line in lines if (line["section"], line["check"]) == ("compile", "step")}
    assert steps.keys() == {"torch", "compiled"}
    assert steps["torch"]["graphs"] == 0 < steps["compiled"]["graphs"]
    assert [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()] == lines


def test_a_section_for_which_too_little_time_is_left_is_left_out_by_name():
    done, lines = check("--only", "parity,products", "--budget", "4")
    assert done.returncode == 0
    assert [(line["section"], line["ok"], line["skipped"]) for line in lines] == [
        ("parity", None, "140 s are needed, 16 are left"),
        ("products", None, "80 s are needed, 16 are left"),
    ]
    assert "left out for want of time: --only parity,products" in done.stdout


def test_all_sections_but_the_last_fit_into_six_minutes():
    *first, last = SECTIONS
    assert (first[:3], last) == (["versions", "parity", "olmoe"], "demo")
    assert sum(SECTIONS[name] for name in first) <= 360


def test_an_unknown_section_is_named():
    done, _ = check("--only", "version")
    assert done.returncode == 2
    assert "no section 'version': choose among versions" in done.stderr


def test_a_check_that_fails_is_a_line_and_the_others_go_on(capsys):
    from tools.gpu_check.here import guarded, report

    with guarded("parity", "one"):
        raise ValueError("differs")
    report("parity", "other", True, value=1 / 3)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["ok"], first["error"]) == (False, "ValueError: differs")
    assert second == {"section": "parity", "check": "other", "ok": True, "value": 0.33333}


def test_wheels_that_a_machine_lacks(tmp_path):
    from zipfile import ZipFile

    from tools.gpu_check.wheels import Closure

    (tmp_path / "wheels").mkdir()
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["torch>=2.10", "zarr>=3.1", "jinja2>=3.1", "numpy", "winreg; os_name == \'nt\'"]\n'
        '[project.optional-dependencies]\ndev = ["pytest>=9.0", "ruff"]\n'
    )
    (tmp_path / "constraints.txt").write_text("zarr==3.1.5\n")
    machine = tmp_path / "machine.txt"
    machine.write_text("Torch==2.11.0\njinja2\nnumpy\n")
    closure = Closure(tmp_path, machine, tmp_path / "wheels")
    assert (closure.missing, closure.wrong, closure.pins["zarr"]) == ({"zarr", "jinja2", "pytest"}, [], "3.1.5")
    with ZipFile(tmp_path / "wheels" / "zarr-3.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            "zarr-3.0.dist-info/METADATA", "Requires-Dist: numcodecs>=0.14\nRequires-Dist: x; extra == 'y'\n"
        )
    closure = Closure(tmp_path, machine, tmp_path / "wheels")
    assert closure.missing == {"numcodecs", "jinja2", "pytest"}
    assert closure.wrong == ["the project needs zarr>=3.1: 3.0"]
