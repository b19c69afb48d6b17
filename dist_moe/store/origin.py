"""Checks that masks belong to the model, tokenizer, data and batches of a run."""

from collections.abc import Sequence
from itertools import zip_longest

from dist_moe.errors import UserError
from dist_moe.store.read import MaskStore
from dist_moe.store.store import Store

NO_WEIGHTS = "unknown: counted from routes, without the model's weights"
IN_TRAINING = "unknown: counted in the middle of a training"
"""Both in the place of a model's hash."""


def require_same_origin(
    store: Store,
    *,
    model_hash: str | None = None,
    tokenizer_hash: str | None = None,
    data_hash: str | None = None,
    tokens_hash: str | None = None,
    batch_ids: Sequence[str] | None = None,
) -> None:
    """Refuse a store that was made from something else than what this run has.

    Args:
        store: the masks, or the counts, to be used.
        model_hash: this run's; likewise the others. None: this run has no such thing to compare.
        tokenizer_hash: see model_hash.
        data_hash: see model_hash.
        tokens_hash: see model_hash.
        batch_ids: this run's batches in their order.

    Raises:
        UserError: names the first thing that differs, both values, and what to do.
    """
    given = (
        ("model", model_hash, "model.path"),
        ("tokenizer", tokenizer_hash, "model.path or data.chat_template"),
        ("data", data_hash, "data.paths"),
        ("tokens", tokens_hash, "data.chat_template, data.template_kwargs, data.template_date and data.max_length"),
    )
    for what, here, key in given:
        if here is None:
            continue
        stored = store.provenance[f"{what}_hash"]
        if stored == IN_TRAINING:
            raise UserError(
                f"{store.path} is of a model in the middle of its training, which may be no base of this run: save "
                "that model, and analyze it"
            )
        if stored == NO_WEIGHTS:
            raise UserError(
                f"{store.path} does not say of which model's weights it is: it was counted from routes, and there were "
                f"no weights in {key}; run `dist-moe count --routes` again where they are"
            )
        if here != stored:
            raise UserError(
                f"{store.path} was made from other {what}: hash {stored[:12]} there, {here[:12]} in this run; "
                f"set {key} to what the masks were made from, or run the analysis again"
            )
    if batch_ids is not None:
        for index, (stored, here) in enumerate(zip_longest(store.batch_ids, batch_ids, fillvalue="missing")):
            if stored != here:
                raise UserError(
                    f"{store.path} was made for other batches: of {len(store.batch_ids)} there and {len(batch_ids)} in "
                    f"this run, batch {index} is {stored[:12]} there and {here[:12]} here; set data.paths, batches and "
                    "seed to what the masks were made with, or run the analysis again"
                )


def require_follows(before: MaskStore, after: MaskStore) -> None:
    """Refuse masks that are not the next revision of others.

    Raises:
        UserError: `after` has another number, names another predecessor, or is of other batches.
    """
    if (after.revision, after.previous) != (before.revision + 1, before.digest):
        raise UserError(
            f"{after.path} is not the revision after {before.path}: it is number {after.revision} and follows "
            f"{(after.previous or 'none')[:12]}, and that is number {before.revision}, digest {before.digest[:12]}"
        )
    if (after.batch_ids, after.layer_names, after.num_experts) != (
        before.batch_ids,
        before.layer_names,
        before.num_experts,
    ):
        raise UserError(f"{after.path} is of other batches or another model than {before.path}, which it shall follow")
