"""A run to a Hugging Face checkpoint, and the proof that only the union's experts changed."""

from __future__ import annotations

from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.export.export import export_checkpoint
from dist_moe.export.verify import verify_checkpoint
from dist_moe.moe.checkpoint import model_hash
from dist_moe.moe.model import check_model_dir
from dist_moe.store.origin import require_same_origin
from dist_moe.store.read import MaskStore
from dist_moe.training.save import read_index
from dist_moe.workflows.console import Say
from dist_moe.workflows.run_dir import trained_run

SHOWN_VIOLATIONS = 20


def export(run_dir: Path, out: Path, say: Say) -> None:
    """Write the trained model of a run to the new directory `out`."""
    run, config = trained_run(run_dir)
    if out.exists():
        raise UserError(f"{out} exists: choose another --out or remove it")
    base = config.model.path
    check_model_dir(base)
    found, trained = model_hash(base), read_index(run.experts)["model_hash"]
    if found != trained:
        raise UserError(
            f"{base} is not the model that {run.experts} was trained from: its hash is {found[:12]}, expected {trained[:12]}; "
            "restore it"
        )
    num_experts = export_checkpoint(base, run.experts, out)
    say(f"Exported {out}: {num_experts} trained experts, everything else copied from {base}")


def verify(base: Path, out: Path, masks: Path, say: Say) -> bool:
    """Whether `out` differs from `base` in the experts of the store's union only; says what it saw."""
    for path in (base, out):
        check_model_dir(path)
    store = MaskStore.open(masks)
    require_same_origin(store, model_hash=model_hash(base))
    union_LE = store.union()
    seen = verify_checkpoint(base, out, union_LE)
    say(f"Compared {seen.num_tensors} tensors ({seen.num_bytes / 1e6:,.1f} MB) of {out} with {base}")
    say(
        f"Changed: {len(seen.changed_tensors)} tensors, {len(seen.changed_experts)} experts; "
        f"the union has {int(union_LE.sum())} of {union_LE.size} experts"
    )
    for line in seen.violations[:SHOWN_VIOLATIONS]:
        say(f"VIOLATION {line}")
    if len(seen.violations) > SHOWN_VIOLATIONS:
        say(f"... and {len(seen.violations) - SHOWN_VIOLATIONS} more")
    if seen.violations:
        say(f"NOT verified: {len(seen.violations)} differences outside the union")
        return False
    say("Verified: every bit outside the union's experts is the base's")
    return True
