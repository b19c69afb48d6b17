"""The compact-union peer, as in ESFT: all experts that any batch trains are parameters, with a stock AdamW.

It is as quick as one would make it: no padding in the experts and none masked in attention, as it is on the right,
logits where there is a label, a token's rows gathered and summed in one pass.

A speed peer only. Every step gives all of the union gradients and moves all of it, so a batch moves experts that are
not its own: what it computes first, the loss of the first batch, must agree, and nothing after.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from dist_moe.data.tokens import IGNORED, TokenBatch
from tools.bench.setup import BETAS, EPS, LR, MAX_NORM, Mode, PlainRouteMask, Setup


class UnionExperts(nn.Module):
    """Frozen experts' weights [E - n_union, ...] and trained ones [n_union, ...]; two grouped GEMM chains."""

    def __init__(self, experts: nn.Module, union_E: torch.Tensor) -> None:
        super().__init__()
        self.act = experts.act_fn
        order = torch.cat([torch.nonzero(~union_E), torch.nonzero(union_E)]).squeeze(1)
        self.position_E = torch.argsort(order).to(experts.down_proj.device)
        self.num_frozen = int((~union_E).sum())
        weights = [weight.detach()[order.to(weight.device)] for weight in (experts.gate_up_proj, experts.down_proj)]
        self.frozen = [weight[: self.num_frozen].clone() for weight in weights]
        self.trained = nn.ParameterList([nn.Parameter(weight[self.num_frozen :].clone()) for weight in weights])
        self.live_T: torch.Tensor | None = None
        """Where there is a token, as indices."""

    def forward(self, x_TH: torch.Tensor, index_Tk: torch.Tensor, weights_Tk: torch.Tensor) -> torch.Tensor:
        live = self.live_T
        out = self._forward(x_TH[live], index_Tk[live], weights_Tk[live])
        return torch.zeros_like(x_TH).index_copy(0, live, out)

    def _forward(self, x_TH: torch.Tensor, index_Tk: torch.Tensor, weights_Tk: torch.Tensor) -> torch.Tensor:
        position_n, order = self.position_E[index_Tk.flatten()].sort(stable=True)
        ends = torch.bincount(position_n, minlength=len(self.position_E)).cumsum(0).to(torch.int32)
        rows = x_TH[order // index_Tk.shape[1]]
        cut = int(ends[self.num_frozen - 1])
        frozen = self._chain(rows[:cut], self.frozen, ends[: self.num_frozen])
        trained = self._chain(rows[cut:], self.trained, ends[self.num_frozen :] - cut)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        y = torch.cat([frozen, trained])
        return F.embedding_bag(back.view_as(index_Tk), y, mode="sum", per_sample_weights=weights_Tk)

    def _chain(self, rows: torch.Tensor, weights: list[torch.Tensor], ends: torch.Tensor) -> torch.Tensor:
        gate, up = F.grouped_mm(rows, weights[0].mT, offs=ends).chunk(2, -1)
        return F.grouped_mm(self.act(gate) * up, weights[1].mT, offs=ends)


class UnionModel(nn.Module):
    """A model whose forward pass gives a batch's loss."""

    def __init__(self, module: PreTrainedModel) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: TokenBatch, num_answers: int) -> torch.Tensor:
        """The sum of losses over `num_answers`."""
        live_T = torch.nonzero(batch.live.flatten()).squeeze(1)
        for layer in self.module.model.layers:
            layer.mlp.experts.live_T = live_T
        hidden = self.module.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        at = torch.nonzero(batch.labels[:, 1:] != IGNORED, as_tuple=True)
        logits = self.module.lm_head(hidden[at]).float()
        return F.cross_entropy(logits, batch.labels[:, 1:][at], reduction="sum") / num_answers


class PeerStep:
    def __init__(self, setup: Setup, mode: Mode) -> None:
        self.setup, self.mode, self.module = setup, mode, setup.plain_model()
        self.route_mask = PlainRouteMask(self.module, cut=True)
        for layer, union_E in zip(self.module.model.layers, setup.masks_BLE.any(0), strict=True):
            layer.mlp.experts = UnionExperts(layer.mlp.experts, union_E)
        self.network: nn.Module = UnionModel(self.module)
        self.parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)

    def __call__(self, i: int) -> tuple[float, float]:
        """This rank's share of the loss, and the gradient norm."""
        self.route_mask.allowed_LE = self.setup.allowed(self.mode, i)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.network(self.setup.batch(i), self.setup.num_answers(i)) * self.setup.comm.size
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        self.optimizer.step()
        return loss.item() / self.setup.comm.size, norm.item()

    def num_bytes(self) -> tuple[int, int]:
        """Gradients and optimizer state."""
        states = [tensor for state in self.optimizer.state.values() for tensor in state.values()]
        return sum(weight.grad.nbytes for weight in self.parameters), sum(tensor.nbytes for tensor in states)
