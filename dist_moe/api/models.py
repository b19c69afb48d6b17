"""From a finished run to a checkpoint, what has changed in it, and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_moe.api.values import Exported
from dist_moe.errors import UserError
from dist_moe.ranges import Trains

if TYPE_CHECKING:
    from dist_moe.weights.moved import Difference
    from dist_moe.weights.verify import Verification


def export(
    run: str | Path,
    out: str | Path,
    *,
    link: bool = False,
    delta: bool = False,
    alpha: float = 1.0,
    base_routers: bool = False,
    push: str | None = None,
    public: bool = False,
) -> Exported:
    """Write a run's trained model to the new directory `out`, or with `delta` only its experts to the new file `out`.

    Args:
        run: a run directory in which training has finished.
        out: a path that does not exist.
        link: hard-link unchanged checkpoint shards instead of copying them; not with `delta`.
        delta: write only the trained experts, as one safetensors file, for `apply`.
        alpha: from 0 (the base) to 1 (the trained experts): what is exported is base + alpha * (trained - base),
            rounded once to the checkpoint's data type.
        base_routers: leave routers that were trained as they are in the base.
        push: OWNER/NAME of a new repository of the Hugging Face hub, to which the checkpoint is pushed once it is
            verified; not with `delta`.
        public: everybody can see that repository; without, it is private.

    Returns:
        The path, facts about the run, and what is on the hub.

    Raises:
        UserError: training has not finished in `run`, its base model has changed, or `out` exists; or the hub refuses
            the push.

    Example:
        >>> dist_moe.export("runs/my-run", "repaired").facts.num_trained_experts
    """
    from dist_moe.workflows import export as workflow

    if link and delta:
        raise UserError("a delta has no shards to link: give link or delta")
    if push is not None and delta:
        raise UserError("push is for a checkpoint: leave delta out")
    if public and push is None:
        raise UserError("public is for a push: give push='OWNER/NAME'")
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha: expected a number from 0 to 1, got {alpha}")
    if push is not None:
        from dist_moe.workflows.push import export_and_push

        how: dict[str, Any] = {"link": link, "alpha": alpha, "base_routers": base_routers}
        return Exported(Path(out), *export_and_push(Path(run), Path(out), push, private=not public, **how))
    if delta:
        facts = workflow.export_delta(Path(run), Path(out), alpha=alpha, base_routers=base_routers)
    else:
        facts = workflow.export(Path(run), Path(out), link=link, alpha=alpha, base_routers=base_routers)
    return Exported(Path(out), facts)


def apply(base: str | Path, delta: str | Path, out: str | Path) -> Exported:
    """Write to the new directory `out` what `export` would write for the run from which a delta comes.

    Args:
        base: directory of the model from which the run was trained.
        delta: file that `export` has written with `delta=True`.
        out: a path that does not exist.

    Returns:
        The path of the checkpoint, and the facts in the delta.

    Raises:
        UserError: an input cannot be read, the delta is for another base, or `out` exists.

    Example:
        >>> dist_moe.apply("base", "delta.safetensors", "repaired").path
    """
    from dist_moe.workflows import export as workflow

    return Exported(Path(out), workflow.apply(Path(base), Path(delta), Path(out)))


def difference(base: str | Path, model: str | Path) -> Difference:
    """Say which experts have moved between a base and a model that any trainer has made from it, and what else.

    The two may be stored in other shards, other data types, and with a layer's experts in one tensor or in many.

    Args:
        base: directory of the base model.
        model: directory of the fine-tuned model.

    Returns:
        `experts` that have moved, each with the size of its change; other `tensors`, with the part of the model that
        they belong to; tensors of other shapes or in one of the two only; other settings and files.

    Raises:
        UserError: an input cannot be read, or the two have other numbers of layers or experts.

    Example:
        >>> found = dist_moe.difference("base", "tuned")
        >>> {(moved.layer, moved.expert): moved.size.relative for moved in found.experts}
    """
    from dist_moe.workflows import export as workflow

    return workflow.difference(Path(base), Path(model))


def verify(base: str | Path, model: str | Path, *masks: str | Path, trains: Trains = "experts") -> Verification:
    """Compare an exported model with its base, byte by byte: only what the run was to train may differ, that is experts
    in the union of the masks, and routers or other dense weights if `trains` says so.

    Args:
        base: directory of the base model.
        model: directory of the exported model.
        *masks: mask store of the run, a directory or URL; all of them if the run had `train.revisions`.
        trains: the run's setting `train.trains`.

    Returns:
        What was compared, what has changed, and `violations`: every difference that should not be there. `holds` is
            True
        if there is none.

    Raises:
        UserError: an input cannot be read, the masks are for another base, or there are none.

    Example:
        >>> dist_moe.verify("base", "repaired", "runs/my-run/masks.zarr").violations
        []
    """
    from dist_moe.workflows import verify as workflow

    if not masks:
        raise UserError("verify needs a mask store; dist_moe.difference says of any model what differs from its base")
    return workflow.verify(Path(base), Path(model), [str(each) for each in masks], trains)


def write_report(*runs: str | Path, out: str | Path | None = None, export: str | Path | None = None) -> Path:
    """Write one HTML page about runs and comparisons, that needs no network and no other file.

    Args:
        *runs: run directories, or directories of comparisons.
        out: the page; without, report.html in the first directory. An earlier page is replaced.
        export: what the first run was exported to; it is compared with its base, byte by byte.

    Returns:
        The place of the page.

    Raises:
        UserError: a directory has nothing to show, something in it is damaged, or `out` is another file.

    Example:
        >>> dist_moe.write_report("runs/my-run", export="repaired")
    """
    from dist_moe.workflows.report import report

    if not runs:
        raise UserError("no run to report: give the directory of one at least")
    places = [Path(run) for run in runs]
    return report(places, None if out is None else Path(out), None if export is None else Path(export))
