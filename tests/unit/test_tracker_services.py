"""Trackers that report to services: what each service's package is asked to do, by a stand-in that writes it down.

The packages themselves are not installed here; docs/operating.md says with which of them it was tried.
"""

import atexit
import json
import sys

import pytest

from dist_moe.errors import UserError
from dist_moe.trackers.services import NUMBERS
from dist_moe.trackers.tracker import TRACKERS, Place

LINE = dict.fromkeys(NUMBERS, 0.0) | {"loss": 0.5, "lr": 1e-5, "terms": {"kl_to_base": {"mean": 0.25, "tokens": 9}}}
KEPT = {name: float(LINE[name]) for name in NUMBERS} | {"terms/kl_to_base": 0.25}
BOTH = (
    "class Run:\n    def log(self, values, step): said('log', values, step)\n    def finish(self): said('finish')\n"
    "def init(**given):\n    said('init', given['project'], given['name'])\n    return Run()\n"
)
PACKAGES = {
    "tensorboard": (
        "tensorboardX",
        "class SummaryWriter:\n    def __init__(self, place): said('init', place)\n"
        "    def add_scalar(self, name, value, step): said('log', {name: value}, step)\n"
        "    def flush(self): pass\n    def close(self): said('finish')\n",
    ),
    "wandb": ("wandb", BOTH),
    "trackio": ("trackio", BOTH),
    "mlflow": (
        "mlflow",
        "from types import SimpleNamespace as N\n"
        "def set_experiment(name): said('init', name)\n"
        "def start_run(run_name): return N(info=N(run_id=said('init', run_name)))\n"
        "def log_metrics(values, step, run_id): said('log', values, step)\n"
        "def end_run(): said('finish')\n",
    ),
    "aim": (
        "aim",
        "class Run:\n    def __init__(self, experiment): said('init', experiment)\n"
        "    def track(self, values, step): said('log', values, step)\n    def close(self): said('finish')\n",
    ),
}
SAY = "import json\ndef said(*words):\n    print(json.dumps(words), file=open({!r}, 'a'))\n"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that makes a service's package importable, and one that reads what it was asked to do."""
    record, finishes = tmp_path / "said.jsonl", []
    monkeypatch.setattr(atexit, "register", finishes.append)

    def install(name):
        package, code = PACKAGES[name]
        (tmp_path / f"{package}.py").write_text(SAY.format(str(record)) + code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, package, raising=False)

    yield install, lambda: [json.loads(line) for line in record.read_text().splitlines()], finishes
    for package, _ in PACKAGES.values():
        sys.modules.pop(package, None)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_service_gets_the_numbers_of_each_step_from_the_first_rank(name, installed, tmp_path):
    install, said, finishes = installed
    install(name)
    trackers = [TRACKERS.find(name)() for _ in range(2)]
    for step in (1, 2):
        for rank, tracker in enumerate(trackers):
            tracker.record(LINE | {"step": step}, Place(tmp_path / "olmoe", rank, 2))
    kept = {1: {}, 2: {}}
    for words in said():
        if words[0] == "log":
            kept[words[2]] |= words[1]
    assert kept == {1: KEPT, 2: KEPT}
    assert all(words[0] == "init" for words in said()[: len(said()) - sum(w[0] == "log" for w in said())])
    assert len(finishes) == 1
    finishes[0]()
    assert said()[-1] == ["finish"]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_service_whose_package_is_not_there_is_one_line(name, monkeypatch):
    monkeypatch.setattr("dist_moe.trackers.services.find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"{name} needs a package that is not installed: pip install {name}"):
        TRACKERS.find(name)()


def test_a_service_that_fails_is_one_line(installed, tmp_path):
    install, *_ = installed
    install("wandb")
    (tmp_path / "wandb.py").write_text("def init(**given):\n    raise RuntimeError('no\\nkey')\n")
    with pytest.raises(UserError, match=r"wandb fails \(RuntimeError: no key\): mend it, or leave wandb out"):
        TRACKERS.find("wandb")().record(LINE | {"step": 1}, Place(tmp_path, 0, 2))
