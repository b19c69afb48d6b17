"""Routing by plain transformers: each row alone, without padding or attention mask, and no code of ours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from dist_moe.data.tokens import Encoded
from tests.tiny import E, L


@torch.no_grad()
def routed(model: PreTrainedModel, ids: Sequence[int]) -> np.ndarray:
    """bool [T, L, E]: the experts to which each of a row's T tokens is routed."""
    chosen_TLE = np.zeros((len(ids), L, E), bool)
    experts = [module for name, module in model.named_modules() if name.endswith(".experts")]
    assert len(experts) == L

    def seen(layer: int):  # type: ignore[no-untyped-def]
        def hook(module, args, kwargs) -> None:  # type: ignore[no-untyped-def]
            index_Tk = kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]
            np.put_along_axis(chosen_TLE[:, layer], index_Tk.numpy(), True, axis=1)

        return hook

    handles = [module.register_forward_pre_hook(seen(i), with_kwargs=True) for i, module in enumerate(experts)]
    model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    for handle in handles:
        handle.remove()
    return chosen_TLE


@torch.no_grad()
def response_loss(model: PreTrainedModel, rows: Sequence[Encoded]) -> float:
    """Mean cross-entropy of all response tokens of all rows."""
    losses = []
    for row in rows:
        prompt, response = row.prompt_ids, row.response_ids
        logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        losses += torch.nn.functional.cross_entropy(logits, torch.tensor(list(response)), reduction="none").tolist()
    return float(np.mean(losses))
