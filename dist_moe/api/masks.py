"""From prompts to masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dist_moe.api.arguments import as_config
from dist_moe.config import Config
from dist_moe.errors import UserError
from dist_moe.selection.stored import open_masks
from dist_moe.store import Counts, MaskStore
from dist_moe.workflows.run_dir import RunDir
from dist_moe.workflows.select import select as select_masks

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from dist_moe.selection.structure import OlderStructure


def count(config: Config | str | Path, *, routes: Sequence[str | Path] = ()) -> Counts:
    """Run the model on all prompts and count which experts their tokens are routed to. Selects no experts.

    Args:
        config: a configuration, or the path of its YAML file.
        routes: files of routes that a server has recorded; these are counted, and no model is run.

    Returns:
        The run's counts store: `prompt_counts` int [P, L, E] and `risk_diff` float [B, L, E], for P prompts in B
            batches, L
        MoE layers and E experts in each layer.

    Raises:
        UserError: the input is wrong, or a part of the counting is left to other jobs (`analysis.part`).

    Example:
        >>> dist_moe.count("run.yaml").risk_diff[0].max()
    """
    from dist_moe.parallel.launch import process_group
    from dist_moe.workflows import count as workflow

    config = as_config(config)
    with process_group() as comm:
        if routes:
            from dist_moe.workflows.count_routes import count_routes

            count_routes(config, comm, [Path(file) for file in routes])
        else:
            workflow.count(config, comm)
    run = RunDir(config.run_dir)
    if not run.counts.exists():
        raise UserError(f"{run.path}: a part of the counting is left to other jobs: call it again when they are done")
    return Counts.open(run.counts)


def select(run: str | Path, rule: str | None = None, *, out: str = "masks", **parameters: object) -> MaskStore:
    """Select each batch's unsafe experts from a run's counts, and write them to the mask store `run`/`out`.zarr.

    Args:
        run: a run directory in which `count` or `analyze` has finished.
        rule: name of a selection rule; None: that of the run's configuration.
        out: name of the new mask store.
        **parameters: parameters of the rule; others are as in the run's configuration.

    Returns:
        The mask store: `masks` bool [B, L, E], for B batches, L MoE layers and E experts in each layer.

    Raises:
        UserError: there are no counts, the rule is wrong or selects nothing, or the mask store exists.

    Example:
        >>> dist_moe.select("runs/my-run", "lowest", out="lowest", threshold=0.1).union().sum()
    """
    words = {name: str(value) for name, value in parameters.items()}
    return select_masks(Path(run), words if rule is None else {"name": rule, **words}, out)


def analyze(config: Config | str | Path) -> MaskStore:
    """Find each batch's unsafe experts: `count`, then `select`.

    Args:
        config: a configuration, or the path of its YAML file.

    Returns:
        The run's mask store: `masks` bool [B, L, E], for B batches, L MoE layers and E experts in each layer.

    Raises:
        UserError: the input is wrong, or a part of the analysis is left to other jobs (`analysis.part`).

    Example:
        >>> store = dist_moe.analyze("run.yaml")
        >>> store.masks[0].sum()  # number of unsafe experts of the first batch
    """
    from dist_moe.parallel.launch import process_group
    from dist_moe.workflows import analyze as workflow

    config = as_config(config)
    with process_group() as comm:
        workflow.analyze(config, comm)
    run = RunDir(config.run_dir)
    if run.analysis.exists() or not run.masks.exists():
        raise UserError(f"{run.path}: a part of the analysis is left to other jobs: call it again when they are done")
    return MaskStore.open(run.masks)


def RoutingCallback(
    config: Config | str | Path, out: str | Path, *, steps: Sequence[int] = (), at_evaluation: bool = False
) -> TrainerCallback:
    """A callback for transformers' Trainer: it counts the routing of prompts in the middle of anybody's training.

    It writes `out`/step-000100/counts.zarr, from which `select` selects masks. The training is not changed, and on
    several ranks the counts are those of one.

    Args:
        config: a configuration, or the path of its YAML file: `data`, `batches` and `analysis` say what is counted. Of
            `model.path`, only config.json and the tokenizer are read.
        out: directory for the results.
        steps: count after these steps of the optimizer.
        at_evaluation: count at each evaluation, too.

    Returns:
        The callback, for `callbacks` of a Trainer.

    Raises:
        UserError: the configuration asks for generated answers or for gradients. In the training, on all ranks: the
            data is wrong, `out` has counts of the step, or the model has no experts that transformers' interface
            covers.

    Example:
        >>> counting = dist_moe.RoutingCallback("run.yaml", "routing", steps=[100])
        >>> Trainer(model, arguments, train_dataset=rows, callbacks=[counting]).train()
    """
    from dist_moe.workflows import routing_callback

    return routing_callback.RoutingCallback(config, out, steps=steps, at_evaluation=at_evaluation)


def older_structure(masks: MaskStore | str | Path) -> OlderStructure:
    """A mask store in the words of older scripts: `batch_unsafe_experts`, `batch_expert_masks`, `aggregated_risk_diff`
    and `global_unsafe_experts`. `dist-moe store export` writes the same as files.

    Args:
        masks: a mask store, or its path; the counts that it was selected from are beside it.

    Returns:
        An object with these four as attributes.

    Raises:
        UserError: there is no such store, or no counts.

    Example:
        >>> dist_moe.older_structure("runs/my-run/masks.zarr").batch_unsafe_experts[0]
    """
    from dist_moe.selection.structure import OlderStructure

    return OlderStructure.of(masks if isinstance(masks, MaskStore) else open_masks(masks))
