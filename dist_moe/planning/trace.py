"""Finds the `Outline` of any model: its code, and this package's, runs forward and backward on the meta device, where
shapes are computed and no values; the bytes of all tensors are counted as they come and go.

So whatever a family keeps for its backward pass is in it, and whatever dist_moe/moe/experts.py keeps: as on a GPU, on
one rank. Several lengths of rows give what grows with a row's length and what grows with its square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from dist_moe.errors import refused_by_library
from dist_moe.model.model import MoEModel, adopt
from dist_moe.moe.adapters.adapt import adapt
from dist_moe.moe.internals import is_decoder_layer
from dist_moe.moe.load import empty_model
from dist_moe.parallel.comm import SoloComm
from dist_moe.planning.live import LiveBytes
from dist_moe.planning.outline import Cost, Layers, Outline

META = torch.device("meta")
ROWS, LENGTHS = 2, (128, 512, 1024)
"""Rows of a pass, and their length. Where attention is not fused, long rows hide what experts take for a while, so the
shortest tells that."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """Bytes of one forward and backward pass."""

    before: int
    kept: list[int]
    """By each decoder layer."""
    spare: int


def outline_of_path(path: Path, dtype: str = "auto") -> Outline:
    """That of a model directory; reads config.json, and headers of weights if it names no data type."""
    return outline_of(empty_model(path, None if dtype == "auto" else getattr(torch, dtype)))


def outline_of_config(config: dict[str, Any], dtype: str = "bfloat16") -> Outline:
    """That of a model whose config.json says this about shapes."""
    values = {key: value for key, value in config.items() if key != "model_type"}
    with META:
        made = CONFIG_MAPPING[config["model_type"]](**values)
        module = AutoModelForCausalLM.from_config(made, dtype=getattr(torch, dtype))
    adapt(module)
    return outline_of(module.eval())


def outline_of(module: PreTrainedModel) -> Outline:
    """That of a whole model on the meta device, which is used up.

    Raises:
        UserError: values decide how large its tensors are, so that they must be computed.
    """
    family = module.config.model_type
    what = f"model type '{family}' cannot be planned: its code needs values on the meta device"
    with refused_by_library(what, "train some steps to see what it takes", (NotImplementedError, RuntimeError)):
        return _outline(module)


def _outline(module: PreTrainedModel) -> Outline:
    num_parameters = module.num_parameters()
    decoder = [part for part in module.modules() if is_decoder_layer(part)]
    model = adopt(module, SoloComm(META))
    stored = {id(t): t.nbytes for t in (*module.parameters(), *module.state_dict(keep_vars=True).values())}
    in_layers = [sum(t.nbytes for t in part.parameters()) for part in decoder]
    shortest, short, long = (_traced(model, decoder, length) for length in LENGTHS)
    with _FusedAttention(), model.batch(), torch.no_grad(), _LiveShapes() as alone:
        model.module.base_model(**_inputs(model, LENGTHS[-1]))
    config = module.config.get_text_config()
    moe_layers = {id(part) for part in decoder if any(layer.module in part.modules() for layer in model.layers)}
    kept = [
        (id(part) in moe_layers, _cost(one, two)) for part, one, two in zip(decoder, short.kept, long.kept, strict=True)
    ]
    return Outline(
        model_type=module.config.model_type,
        dtype=str(model.layers[0].bank["down_proj"].dtype).removeprefix("torch."),
        num_layers=model.shape.num_layers,
        num_experts=model.shape.num_experts,
        top_k=model.shape.top_k,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        num_parameters=num_parameters,
        expert_shapes={name: list(weight.shape[1:]) for name, weight in model.layers[0].bank.items()},
        dense_bytes=sum(stored.values()),
        outside_bytes=sum(stored.values()) - sum(in_layers),
        largest_layer_bytes=max(in_layers),
        router_parameters=sum(module.get_parameter(name).numel() for name in model.router_names),
        rows_alone=model.rows_alone,
        layers=[Layers(len([*same]), *layer) for layer, same in groupby(kept)],
        before=_cost(short.before, long.before),
        spare=[Cost(token=round(shortest.spare / (ROWS * LENGTHS[0]), 1)), _cost(short.spare, long.spare)],
        spare_forward=round(alone.peak / (ROWS * LENGTHS[-1]), 1),
    )


def _cost(short: int, long: int) -> Cost:
    """From the bytes of ROWS rows of the two greater lengths; never less than either."""
    (_, s, t), one, two = LENGTHS, short / ROWS, long / ROWS
    pair = max(0.0, (two / t - one / s) / (t - s))
    return Cost(token=round(max(one / s - pair * s, two / t - pair * t), 1), pair=round(pair, 3))


def _traced(model: MoEModel, decoder: Sequence[torch.nn.Module], length: int) -> _Pass:
    live, marks = _LiveShapes(), list[int]()
    inputs = _inputs(model, length)
    with (
        _watched(model.module, decoder, lambda: marks.append(live.now)),
        _FusedAttention(),
        model.batch(first_layer=0),
        live,
    ):
        logits = model.module(**inputs).logits
        kept, peak = live.now, live.peak
        logits.sum().backward()
    return _Pass(
        before=marks[0],
        kept=[after - before for before, after in pairwise(marks)],
        spare=max(peak, live.peak) - kept,
    )


def _inputs(model: MoEModel, length: int) -> dict[str, Any]:
    ids = torch.ones(ROWS, length, dtype=torch.int64, device=META)
    # a mask that is complete, so that nobody looks into it
    mask = torch.zeros(ROWS, 1, length, length, dtype=model.module.dtype, device=META)
    return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


@contextmanager
def _watched(module: PreTrainedModel, decoder: Sequence[torch.nn.Module], mark: Callable[[], None]) -> Iterator[None]:
    """While entered: `mark` is called before each decoder layer and after the last; autograd runs from the embedding
    on, as from an expert below; and the output layer sees one position, as logits are accounted for elsewhere."""

    def at_end(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        mark()
        return (args[0][:, :1], *args[1:])

    handles = [part.register_forward_pre_hook(lambda *_: mark()) for part in decoder]
    handles.append(module.get_output_embeddings().register_forward_pre_hook(at_end))
    handles.append(module.get_input_embeddings().register_forward_hook(lambda _, args, out: _requiring(out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _requiring(out: torch.Tensor) -> torch.Tensor:
    return out.requires_grad_()


class _LiveShapes(LiveBytes):
    """Of grouped products the meta device knows shapes in bfloat16 only."""

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is not torch.ops.aten._grouped_mm.default:
            return super().compute(func, args, kwargs)
        left, right, ends = args[:3]
        shape = (left.shape[0], right.shape[-1])
        return left.new_empty(shape if right.dim() == 3 else (len(ends), *shape))


class _FusedAttention(TorchFunctionMode):
    """A GPU computes attention in one kernel, and the meta device would not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
            return _Attention.apply(*args[:3], mask)
        return func(*args, **kwargs)


class _Attention(torch.autograd.Function):
    """Shapes of fused attention, and what it keeps: its inputs, the mask as numbers, its output and one sum a row."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        bias = None if mask is None else torch.empty_like(mask, dtype=q.dtype)
        ctx.save_for_backward(q, k, v, bias, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        q, k, v = ctx.saved_tensors[:3]
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None
