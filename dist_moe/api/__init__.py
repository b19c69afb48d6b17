"""The Python interface: each stage as a function that returns a value. `import dist_moe` offers all of them.

    config = dist_moe.load_config("run.yaml")
    masks = dist_moe.analyze(config)
    trained = dist_moe.train(config)
    print(trained.metrics[["step", "loss"]])
    dist_moe.export(trained.path, "repaired")
    assert dist_moe.verify(config.model.path, "repaired", config.run_dir / "masks.zarr").holds

Wrong input raises `UserError`. Nothing is printed: what the commands print is logged with Python's `logging`, under the
name `dist_moe`, at level INFO. In a process that a launcher (torchrun, deepspeed) has started, `count`, `analyze`,
`train`, `evaluate`, `evaluate_alphas` and `compare` do one rank's part of the work, as launch/*.py do: call them once
in each process, with the same arguments.

Torch is imported only by functions that need it, so `select` and functions that read a store work without it.
"""

from dist_moe.api.evaluating import evaluate, evaluate_alphas
from dist_moe.api.masks import RoutingCallback, analyze, count, older_structure, select
from dist_moe.api.models import apply, difference, export, verify, write_report
from dist_moe.api.training import compare, train
from dist_moe.api.values import Alphas, Evaluated, Exported, Trained

__all__ = [
    "Alphas",
    "Evaluated",
    "Exported",
    "RoutingCallback",
    "Trained",
    "analyze",
    "apply",
    "compare",
    "count",
    "difference",
    "evaluate",
    "evaluate_alphas",
    "export",
    "older_structure",
    "select",
    "train",
    "verify",
    "write_report",
]
