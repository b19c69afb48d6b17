"""Services that keep the numbers of experiments; each needs its own package, which is imported when it is used.

Their own environment variables say where they keep what, and whether they work offline (WANDB_MODE=offline,
MLFLOW_TRACKING_URI and so on). accelerate's trackers would do for all of them, but need accelerate's process state,
which changes the number of threads, and with it the bits of a run.
"""

from __future__ import annotations

import atexit
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

from dist_moe.errors import UserError, refused_by_library
from dist_moe.trackers.tracker import TRACKERS, Place

PROJECT = "dist_moe"
NUMBERS = (
    "loss",
    "grad_norm",
    "lr",
    "epoch",
    "num_active",
    "num_stepped",
    "num_tokens",
    "tokens_per_second",
    "seconds",
)

Log = Callable[[dict[str, float], int], object]
"""Takes numbers by name, and the step that they are of."""


@dataclass
class Service:
    """The first rank reports the numbers of each step, and the mean of each term as terms/NAME."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    """Any of these will do."""

    def __post_init__(self) -> None:
        self._log: Log | None = None
        if not any(map(find_spec, self.packages)):
            raise UserError(f"{self.name} needs a package that is not installed: pip install {self.packages[0]}")

    @abstractmethod
    def begin(self, place: Place) -> tuple[Log, Callable[[], object]]:
        """Open the run; returns what reports a step, and what closes the run."""

    def record(self, line: dict[str, Any], place: Place) -> None:
        if place.rank > 0:
            return
        advice = f"mend it, or leave {self.name} out of train.trackers, and give the same command again"
        with refused_by_library(f"train.trackers: {self.name} fails", advice):
            if self._log is None:
                self._log, finish = self.begin(place)
                atexit.register(finish)
            terms = {f"terms/{name}": term["mean"] for name, term in line["terms"].items()}
            self._log({name: float(line[name]) for name in NUMBERS} | terms, line["step"])


@TRACKERS.register
@dataclass
class TensorBoard(Service):
    """Event files in tensorboard/ of the run directory."""

    name: ClassVar[str] = "tensorboard"
    packages: ClassVar[tuple[str, ...]] = ("tensorboard", "tensorboardX")

    def begin(self, place: Place) -> tuple[Log, Callable[[], object]]:
        module = "torch.utils.tensorboard" if find_spec("tensorboard") else "tensorboardX"
        writer = import_module(module).SummaryWriter(str(place.run_dir / "tensorboard"))

        def log(values: dict[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        return log, writer.close


@TRACKERS.register
@dataclass
class Wandb(Service):
    name: ClassVar[str] = "wandb"
    packages: ClassVar[tuple[str, ...]] = ("wandb",)

    def begin(self, place: Place) -> tuple[Log, Callable[[], object]]:
        run = import_module("wandb").init(project=PROJECT, name=place.run_dir.name, dir=str(place.run_dir))
        return lambda values, step: run.log(values, step=step), run.finish


@TRACKERS.register
@dataclass
class Trackio(Service):
    name: ClassVar[str] = "trackio"
    packages: ClassVar[tuple[str, ...]] = ("trackio",)

    def begin(self, place: Place) -> tuple[Log, Callable[[], object]]:
        run = import_module("trackio").init(project=PROJECT, name=place.run_dir.name)
        return lambda values, step: run.log(values, step=step), run.finish


@TRACKERS.register
@dataclass
class MLflow(Service):
    name: ClassVar[str] = "mlflow"
    packages: ClassVar[tuple[str, ...]] = ("mlflow",)

    def begin(self, place: Place) -> tuple[Log, Callable[[], object]]:
        mlflow = import_module("mlflow")
        mlflow.set_experiment(PROJECT)
        run_id = mlflow.start_run(run_name=place.run_dir.name).info.run_id
        return lambda values, step: mlflow.log_metrics(values, step=step, run_id=run_id), mlflow.end_run


@TRACKERS.register
@dataclass
class Aim(Service):
    name: ClassVar[str] = "aim"
    packages: ClassVar[tuple[str, ...]] = ("aim",)

    def begin(self, place: Place) -> tuple[Log, Callable[[], object]]:
        run = import_module("aim").Run(experiment=PROJECT)
        run.name = place.run_dir.name
        return lambda values, step: run.track(values, step=step), run.close
