"""Replaces the experts of families that lack transformers' experts interface, so that no other code must know them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from transformers import PreTrainedModel

from dist_moe.errors import UserError
from dist_moe.moe.adapters.dbrx import DbrxFusedExperts
from dist_moe.moe.adapters.interface import AdaptedExperts
from dist_moe.moe.adapters.jetmoe import JetMoeBlock
from dist_moe.moe.adapters.llama4 import Llama4Block
from dist_moe.moe.adapters.longcat_flash import LongcatFlashRoutedExperts
from dist_moe.moe.internals import Conversion

ADAPTERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DbrxExperts": DbrxFusedExperts,
    "JetMoeMoE": JetMoeBlock,
    "Llama4TextMoe": Llama4Block,
    "LongcatFlashExperts": LongcatFlashRoutedExperts,
}
"""Class of the family -> class that replaces it, with its weights."""
REFUSED = {"DogeCDMoE": "its experts are rows of embeddings that product keys look up"}
"""Class of the family -> why there is no adapter."""


def adapt(model: PreTrainedModel) -> None:
    """Put the adapters of a model's family in place, on the meta device or with weights; most families need none.

    Raises:
        UserError: the family is not supported.
    """
    for name, module in list(model.named_modules()):
        family = type(module).__name__
        if family in REFUSED:
            raise UserError(f"{name}: model type '{model.config.model_type}' is not supported: {REFUSED[family]}")
        if family in ADAPTERS:
            parent, _, key = name.rpartition(".")
            setattr(model.get_submodule(parent), key, ADAPTERS[family](module).train(module.training))


def own_conversions(model: PreTrainedModel) -> list[Conversion]:
    """The adapters' rules for weights on disk, each once; they take precedence over transformers' rules."""
    kinds = {type(module): None for module in model.modules() if isinstance(module, AdaptedExperts)}
    return [rule for kind in kinds for rule in kind.conversions()]
