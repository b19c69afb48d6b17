"""Checks that a row gives the same results alone and in a padded batch (padded right to count and train, left to
decode)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dist_moe.conformance.sizes import SPAN, VOCAB
from dist_moe.conformance.specimen import COMM, Specimen, close, counted, experts_inputs, require
from dist_moe.data.batches import micro_batches
from dist_moe.data.tokens import Encoded, collate, collate_prompts
from dist_moe.measure.collect import count_rows
from dist_moe.model.generate import Sampling
from dist_moe.model.model import MoEModel

LENGTHS = (SPAN // 3, SPAN, 2 * SPAN - 1, 3 * SPAN)
"""Numbers of tokens of the rows. Parts that see `SPAN` tokens at once have to choose or forget in the last two."""
NUM_NEW = 4
PAD_ID = 0
WRITTEN = Sampling(max_new_tokens=NUM_NEW, temperature=0.0, seed=0, eos_ids=())


def padding(specimen: Specimen) -> str | None:
    """Counts of rows together equal those of each alone, for given and for generated tokens; logits are close."""
    model, rows = specimen.taken(), long_rows()
    settings = {"micro_batch_tokens": len(rows) * (max(LENGTHS) + NUM_NEW), "pad_id": PAD_ID, "comm": COMM}
    given = count_rows(model, rows, tokens="all", **settings)  # type: ignore[arg-type]
    written = count_rows(model, rows, tokens=WRITTEN, **settings)  # type: ignore[arg-type]
    together = [row for part in micro_batches(rows, model.at_once(len(rows))) for row in _logits(model, part)]
    for i, row in enumerate(rows):
        ids = torch.tensor([row.prompt_ids])
        counts_LE = counted(model, experts_inputs(model, lambda ids=ids: model.module(input_ids=ids)))
        decoding = experts_inputs(model, lambda ids=ids: _decode(model, ids, torch.ones_like(ids)))
        what = f"with padding a row of {LENGTHS[i]} tokens has other"
        require(bool((given.counts_PLE[i] == counts_LE).all()), f"{what} counts than alone")
        read_LE = counted(model, decoding[: model.shape.num_layers])
        written_LE = counted(model, decoding[model.shape.num_layers :])
        require(bool((written.tables["prefill_counts"][i] == read_LE).all()), f"{what} counts before its answer")
        require(bool((written.counts_PLE[i] == written_LE).all()), f"{what} counts in its answer")
        for found, expected in zip(together[i], _logits(model, [row])[0], strict=True):
            require(close(found, expected), f"{what} logits than alone")
    return "each row runs alone" if model.rows_alone else None


def long_rows() -> list[Encoded]:
    """Rows of `LENGTHS` tokens, without a response."""
    generator = torch.Generator().manual_seed(3)
    return [Encoded(tuple(torch.randint(3, VOCAB - 3, (n,), generator=generator).tolist()), ()) for n in LENGTHS]


@torch.no_grad()
def _logits(model: MoEModel, rows: Sequence[Encoded]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits for each row, from one pass for all: of its own tokens [S, V], and of its continuation."""
    batch = collate(rows, PAD_ID)
    right = model.module(**batch.inputs).logits
    input_ids, live = collate_prompts(rows, PAD_ID)
    left = _decode(model, input_ids, live.long())
    return [(right[i, : len(row.prompt_ids)], left[i]) for i, row in enumerate(rows)]


def _decode(model: MoEModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The logits [R, NUM_NEW, V] from which greedy answers are chosen."""
    config = WRITTEN.config(PAD_ID, VOCAB)
    config.update(return_dict_in_generate=True, output_logits=True)
    out = model.module.generate(input_ids, attention_mask=attention_mask, generation_config=config)  # type: ignore[operator]
    return torch.stack(out.logits, 1)
