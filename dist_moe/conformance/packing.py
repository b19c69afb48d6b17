"""Checks that rows laid end to end in one forward pass do not see each other: each gives what it gives alone.

transformers tells rows apart by the places that begin anew, and leaves it to the code of a model type to heed them.
Convolutions and recurrent states run on into the next row, and some types do not hand the places on to attention. So
before a run packs its rows, a tiny model of its type is asked, with the installed transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import accumulate, pairwise

import torch

from dist_moe.config.schema import ModelConfig
from dist_moe.conformance.padding import PAD_ID, long_rows
from dist_moe.conformance.sizes import ALL_CONFIGS, build
from dist_moe.conformance.specimen import (
    CLOSE,
    COMM,
    Specimen,
    close,
    counted,
    experts_inputs,
    require,
    require_gradients,
)
from dist_moe.data.tokens import TokenBatch, collate
from dist_moe.errors import UserError
from dist_moe.measure.collect import count_rows
from dist_moe.moe.internals import must_be_alone

CLOSE_IN_BFLOAT16 = 0.04
"""Norm of the difference as a share of the logits'. Rounding makes at most .015, as a token may go to another expert;
rows that see each other make at least .06 (61 model types, transformers 5.23)."""


def packing(specimen: Specimen) -> None:
    """Of rows in one packed pass, counts equal those of each alone; logits and the experts' gradients are close."""
    model, rows = specimen.trainable(), long_rows()
    require(not model.rows_alone, "each row runs alone")
    batch, reference = collate(rows, PAD_ID, packed=True), specimen.plain()
    found = model.module(**batch.inputs).logits[0]
    for i, ((start, stop), expected) in enumerate(zip(_ends(batch), _alone(reference, batch), strict=True)):
        require(close(found[start:stop], expected), "packed rows see each other")
        (expected.square().sum() * (i + 1)).backward()
        (found[start:stop].square().sum() * (i + 1)).backward(retain_graph=True)
    require_gradients(model, reference, "packed, gradients of layer {}, {}, are others")
    model = specimen.taken()
    model.packed = True
    counts = count_rows(model, rows, tokens="all", micro_batch_tokens=batch.num_live, pad_id=PAD_ID, comm=COMM)
    for i, row in enumerate(rows):
        seen = experts_inputs(model, partial(model.module, input_ids=torch.tensor([row.prompt_ids])))
        require(bool((counts.counts_PLE[i] == counted(model, seen)).all()), "packed, a row has other counts than alone")


def refuse_packing(model_type: str, config: ModelConfig, device: torch.device) -> None:
    """Raise a one-line `UserError` unless a tiny model of this type keeps packed rows apart, with the attention that
    is asked for."""
    why = _why_not(model_type, config, device)
    if why is not None:
        raise UserError(f"data.packing: model type '{model_type}' cannot have packed rows: {why}: set it to false")


def _why_not(model_type: str, config: ModelConfig, device: torch.device) -> str | None:
    if model_type not in ALL_CONFIGS:
        return "nobody has tried it (no tiny configuration in dist_moe/conformance/sizes.py)"
    flash = config.attention == "flash_attention_2"  # knows 16 bits only
    with torch.random.fork_rng(devices=[]):
        model = build(model_type, torch.bfloat16 if flash else torch.float32, attention=config.attention)
    torch.nn.Module.to(model, device)
    if must_be_alone(model):
        return "its sparse attention needs a forward pass for each row"
    batch = collate(long_rows(), PAD_ID, packed=True).to(device)
    with torch.no_grad():
        expected = torch.cat(list(_alone(model, batch))).float()
        found = model(**batch.inputs).logits[0].float()
    differ = (found - expected).norm() / expected.norm()
    sees = not bool(differ <= (CLOSE_IN_BFLOAT16 if flash else CLOSE))
    return f"with {model.config._attn_implementation} attention they see each other" if sees else None


def _ends(batch: TokenBatch) -> Iterator[tuple[int, int]]:
    """Where each packed row starts and stops."""
    lengths = torch.bincount(batch.row.flatten()).tolist()
    return pairwise([0, *accumulate(lengths)])


def _alone(module: torch.nn.Module, batch: TokenBatch) -> Iterator[torch.Tensor]:
    """The logits [S, V] of each packed row in a pass of its own."""
    for start, stop in _ends(batch):
        yield module(input_ids=batch.input_ids[:, start:stop], use_cache=False).logits[0]
