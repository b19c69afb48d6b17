"""Bring families outside transformers' experts interface into it, so that nothing else needs to know them."""

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
"""A family's own class -> what takes its place, weights and all."""
REFUSED = {"DogeCDMoE": "its experts are rows of embeddings that product keys look up"}
"""A family's own class -> why it has no adapter."""


def adapt(model: PreTrainedModel) -> None:
    """Put the adapters of a model's family in place, on the meta device or with weights; most families need none.

    Raises:
        UserError: the family cannot be adapted.
    """
    for name, module in list(model.named_modules()):
        family = type(module).__name__
        if family in REFUSED:
            raise UserError(f"{name}: model type '{model.config.model_type}' is not supported: {REFUSED[family]}")
        if family in ADAPTERS:
            parent, _, key = name.rpartition(".")
            setattr(model.get_submodule(parent), key, ADAPTERS[family](module).train(module.training))


def own_conversions(model: PreTrainedModel) -> list[Conversion]:
    """The adapters' rules for weights on disk, each once; they come before transformers' own."""
    kinds = {type(module): None for module in model.modules() if isinstance(module, AdaptedExperts)}
    return [rule for kind in kinds for rule in kind.conversions()]
