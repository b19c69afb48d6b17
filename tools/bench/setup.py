"""The model, batches and masks that all contenders of one run share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3MoeConfig

from dist_moe.data.tokens import Encoded, TokenBatch
from dist_moe.model.model import MoEModel, adopt
from dist_moe.moe.bank import train_from
from dist_moe.moe.route_mask import routable
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.placement import Placement
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.split import Split
from tools.bench.timing import Comparison, Contender, measure

Mode = Literal["update", "route"]
Row = Literal["experts", "step", "larger", "ranks", "counted", "tap", "permutation", "store"]

BATCH_ROWS = 16
LR, BETAS, EPS, MAX_NORM = 1e-5, (0.9, 0.999), 1e-8, 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    small: bool = False
    """Sizes that run in seconds, for all options that are not given."""
    rows: tuple[Row, ...] = get_args(Row)
    """What to measure."""
    layers: int = 4
    hidden: int = 512
    intermediate: int = 256
    """Inner size of one expert."""
    experts: int = 64
    top_k: int = 8
    tokens: int = 1024
    """Positions a batch, in 16 rows."""
    padding: float = 0.4
    """Share of these positions that is padding: rows have different lengths."""
    share: float = 0.1
    """Share of all experts that a batch trains, more of them in some layers than in others."""
    batches: int = 4
    """Different batches, each with its own random mask; optimizer state exists for the union."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    launches: int = 4
    """Fresh processes, one after another, that measure all rows anew; 2 at least."""
    repetitions: int = 2
    """Rounds of each comparison in each launch, after one to warm up."""
    threads: int | None = None
    """CPU threads; default: torch's own choice. In the row of ranks, each rank's; default: all are shared."""
    ranks: int = 2
    """Ranks in the row of ranks, each a process of its own."""
    counted_ranks: int = 4
    """Ranks in the row of counted goals, where nothing is timed."""
    permutations: int = 10_000
    """Labelings in the permutation row."""
    store_shape: tuple[int, int, int] = (2000, 48, 128)
    """Batches, layers and experts of the mask store; the default needs 3.2 GiB of memory."""
    masks_shape: tuple[int, int, int] = (100_000, 48, 128)
    """Likewise of a store in which only the masks count."""
    out: Path | None = None
    """A file for the numbers, as JSON."""
    markdown: bool = False
    """Print tables for docs/benchmarks.md."""
    previous: Path | None = None
    """The file of an earlier run: says of each row whether this run's median lies in the interval of that one."""

    @property
    def num_trained(self) -> int:
        """Experts that a batch trains, of all layers together."""
        return max(1, round(self.share * self.layers * self.experts))

    @property
    def larger(self) -> Options:
        """Experts of four times the size, in half as many layers. By default that is half of OLMoE-1B-7B in each
        dimension of a layer (hidden size 2048, expert size 1024, 64 experts, k = 8), where the default is a quarter."""
        return replace(self, layers=-(-self.layers // 2), hidden=2 * self.hidden, intermediate=2 * self.intermediate)

    def rounds(self, launch: int) -> range:
        """Of a launch: each goes on where the one before ended, so that all batches have their turn."""
        return range(launch * self.repetitions, (launch + 1) * self.repetitions)


SMALL = Options(
    layers=2,
    hidden=64,
    intermediate=32,
    experts=16,
    top_k=4,
    tokens=128,
    share=0.2,
    batches=2,
    launches=2,
    permutations=200,
    store_shape=(40, 4, 16),
    masks_shape=(200, 4, 16),
)


class Setup:
    """The same model twice, as ours and as transformers', with the batches and masks of all rounds."""

    def __init__(self, options: Options, mesh: Mesh | None = None, launch: int = 0) -> None:
        """With a mesh of several ranks, what this rank has of them."""
        self.options, self.launch = options, launch
        here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.mesh = mesh or Mesh.one_replica(SoloComm(here))
        self.comm = self.mesh.world
        self.device = self.comm.device
        generator = torch.Generator().manual_seed(0)
        scores_BX = torch.rand(options.batches, options.layers * options.experts, generator=generator)
        masks_BX = scores_BX >= scores_BX.topk(options.num_trained).values[:, -1:]
        self.masks_BLE = masks_BX.unflatten(1, (options.layers, options.experts))
        length = options.tokens // BATCH_ROWS
        ids_BRS = torch.randint(self.config.vocab_size, (options.batches, BATCH_ROWS, length), generator=generator)
        lengths_R = torch.linspace(1 - 2 * options.padding, 1, BATCH_ROWS).mul(length).round().clamp(min=2).int()
        split = Split.of(BATCH_ROWS, self.comm.size, None)
        self.batches: list[TokenBatch] = []
        self._num_answers: list[int] = []
        for ids_RS in ids_BRS.tolist():
            lengths = lengths_R[torch.randperm(BATCH_ROWS, generator=generator)].tolist()
            rows = [_row(ids[:length]) for ids, length in zip(ids_RS, lengths, strict=True)]
            self.batches += [batch.to(self.device) for batch in split.local(rows, self.comm.rank, 0)]
            self._num_answers.append(sum(len(row.response_ids) for row in rows))

    @property
    def config(self) -> Qwen3MoeConfig:
        o = self.options
        return Qwen3MoeConfig(
            vocab_size=4096,
            hidden_size=o.hidden,
            num_hidden_layers=o.layers,
            num_attention_heads=max(1, o.hidden // 64),
            num_key_value_heads=max(1, o.hidden // 64),
            head_dim=64,
            moe_intermediate_size=o.intermediate,
            num_experts=o.experts,
            num_experts_per_tok=o.top_k,
            norm_topk_prob=True,
        )

    def plain_model(self) -> PreTrainedModel:
        """Frozen, with transformers' own grouped experts; the same weights at every call."""
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(self.config, dtype=getattr(torch, self.options.dtype))
        model.set_experts_implementation("grouped_mm")
        return model.to(self.device).eval().requires_grad_(False)

    def our_model(self) -> MoEModel:
        placement = Placement.balanced(self.masks_BLE.numpy(), self.mesh.ep.size)
        model = adopt(self.plain_model(), self.mesh.ep, placement)
        train_from(model.layers, 0)
        return model

    @property
    def num_union(self) -> int:
        """Parameters of all experts that any batch trains."""
        return int(self.masks_BLE.any(0).sum()) * 3 * self.options.hidden * self.options.intermediate

    def optimizer(self, model: MoEModel) -> SelectiveAdamW:
        return SelectiveAdamW(model.layers, self.masks_BLE.any(0), self.mesh, lr=LR, max_norm=MAX_NORM)

    def allowed(self, mode: Mode, i: int) -> torch.Tensor | None:
        return routable(self.mask(i)).to(self.device) if mode == "route" else None

    def mask(self, i: int) -> torch.Tensor:
        return self.masks_BLE[i % len(self.masks_BLE)]

    def batch(self, i: int) -> TokenBatch:
        return self.batches[i % len(self.batches)]

    def num_answers(self, i: int) -> int:
        """Tokens with a loss in a batch, on all ranks together."""
        return self._num_answers[i % len(self._num_answers)]

    def compare(
        self, row: str, contenders: Mapping[str, Contender], goals: Mapping[str, float] = MappingProxyType({})
    ) -> list[Comparison]:
        """The first contender against each of the others. It is the caller who warms up, by checking results."""
        (_, ours), *others = contenders.items()
        times = measure(ours, dict(others), self.options.rounds(self.launch), self.device)
        return [Comparison(row, name, *times[name], goals.get(name)) for name in times]

    def check(self, actual: torch.Tensor | float, expected: torch.Tensor | float, scale: float = 1.0) -> None:
        """Contenders compute the same, up to rounding."""
        actual, expected = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
        error = (actual - expected).norm() / expected.norm()
        limit = scale * (1e-4 if self.options.dtype == "float32" else 5e-2)
        assert error <= limit, f"contenders differ by {error:.1e}"


def _row(ids: list[int]) -> Encoded:
    """Loss on the second half of its tokens."""
    half = len(ids) // 2
    return Encoded(tuple(ids[:half]), tuple(ids[half:]), unsafe=True)


class PlainRouteMask:
    """Masked routing by its definition, in hooks on the routers of a qwen3_moe model.

    Where fewer than k experts are allowed, the others' pairs are left in with weight 0, or with `cut` left out.
    """

    def __init__(self, model: PreTrainedModel, *, cut: bool = False) -> None:
        self.allowed_LE: torch.Tensor | None = None
        self.cut = cut
        for index, layer in enumerate(model.model.layers):
            layer.mlp.gate.register_forward_hook(partial(self._route, index))

    def _route(self, index: int, router: nn.Module, args: Any, output: tuple[torch.Tensor, ...]) -> Any:
        if self.allowed_LE is None:
            return output
        logits_TE = output[0].masked_fill(~self.allowed_LE[index], float("-inf"))
        k = min(router.top_k, int(self.allowed_LE[index].sum())) if self.cut else router.top_k
        weights_Tk, index_Tk = logits_TE.float().softmax(-1).topk(k)
        weights_Tk = weights_Tk / weights_Tk.sum(-1, keepdim=True)
        return logits_TE, weights_Tk.to(logits_TE.dtype), index_Tk
