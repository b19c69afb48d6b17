"""Exports a run, verifies the export, and pushes it to the Hugging Face hub: `dist-moe export --push`."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from dist_moe.errors import UserError
from dist_moe.files import require_absent
from dist_moe.hub.push import Pushed, push, require_pushable
from dist_moe.moe.layout import HubLayout, hub_layout
from dist_moe.training.rounds import Rounds
from dist_moe.weights.facts import Facts
from dist_moe.weights.fetched import model_directory
from dist_moe.weights.verify import Verification, verify_checkpoint
from dist_moe.workflows.export import export
from dist_moe.workflows.trained_run import TrainedRun

log = logging.getLogger(__name__)


def export_and_push(
    run_dir: Path,
    out: Path,
    name: str,
    *,
    private: bool = True,
    link: bool = False,
    alpha: float = 1.0,
    base_routers: bool = False,
) -> tuple[Facts, Pushed]:
    """Write the export as `dist_moe.workflows.export.export` does, and push it to the new repository `name`.

    Returns the export's facts, and what is on the hub.

    Nothing is pushed unless every difference from the base is one that the run was to make.

    Raises:
        UserError: as `export`; the hub refuses the push; or the export does not verify.
    """
    require_absent(out, "choose another --out or remove it")
    require_pushable(name, private=private)
    facts = export(run_dir, out, link=link, alpha=alpha, base_routers=base_routers)
    run = TrainedRun.open(run_dir, every_byte=False)
    seen = verified(run, hub_layout(model_directory(run.config.model.path, "model.path")), out)
    if not seen.holds:
        raise UserError(
            f"{out} differs from {seen.base} outside of what {run_dir} was to train, so nothing is pushed: "
            f"{seen.violations[0]}; export again"
        )
    log.info(f"Verified: only the run's experts and dense weights differ from {seen.base}")
    pushed = push(out, name, private=private, message=f"Exported by dist_moe {run.facts.dist_moe_version}")
    kind = "private" if pushed.is_private else "public"
    log.info(f"Pushed {pushed.num_files} files, {pushed.num_bytes / 1e6:,.1f} MB, to {pushed.url} ({kind})")
    log.info(f"  at commit {pushed.commit}: each file there has the digest of the one here")
    return facts, pushed


def verified(run: TrainedRun, layout: HubLayout, out: Path) -> Verification:
    """Compare an export with the base; only what the run's own record says may differ."""
    rounds, shape = Rounds(run.facts.trains), (layout.num_layers, layout.num_experts)
    union_LE = np.zeros(shape, dtype=bool)
    for layer, expert in run.facts.union:
        union_LE[layer, expert] = True
    dense = layout.dense(routers_only=rounds.routers_only) if rounds.ever.dense else frozenset[str]()
    return verify_checkpoint(layout, out, rounds.union(union_LE), dense)
