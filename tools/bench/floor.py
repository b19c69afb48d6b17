"""The floor: what a person would write by hand for exactly this model, these masks and this step, and nothing else.

transformers' dense modules (attention, norms, embedding, output) in a plain loop; routing, experts, loss and AdamW
written out. No hooks, no checks, no monitor, one process, one family. It does all that the step needs, as cheaply as is
known here:

- logits at label positions only; no padding in the experts, and none masked in attention, as it is on the right;
- autograd from the first experts on; in mode route top-k over the allowed experts only;
- one sort a layer, grouped GEMMs over all experts' rows, weight gradients of the active experts with rows only, written
  (not added) into one flat buffer that is never zero-filled;
- a routing weight's gradient from the inner size I, not H: dout . (W h) = (W^T dout) . h;
- AdamW, clipped, over the active experts' flat rows; in fp32 the weights are their own master copy.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.optim.adamw import adamw

from dist_moe.moe.route_mask import routable
from tools.bench.memory import bytes_outside
from tools.bench.setup import BETAS, EPS, LR, MAX_NORM, Mode, Setup


class Layer:
    """One layer's experts: flat rows [E, N], the two weights as views of them, and this step's gradients."""

    def __init__(self, experts: torch.nn.Module) -> None:
        weights = [experts.gate_up_proj.detach(), experts.down_proj.detach()]
        self.flat_EN = torch.cat([weight.flatten(1) for weight in weights], dim=1)
        self.shapes = [weight.shape[1:] for weight in weights]
        self.up, self.down = self.views(self.flat_EN)
        self.act = experts.act_fn
        self.grads: dict[int, list[torch.Tensor]] = {}

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """[..., N] as views [..., 2I, H] and [..., H, I]."""
        cut = self.shapes[0].numel()
        parts = (flat[..., :cut], flat[..., cut:])
        return [part.unflatten(-1, shape) for part, shape in zip(parts, self.shapes, strict=True)]


class Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TH: Any, weights_Tk: Any, anchor: Any, index_Tk: Any, layer: Layer) -> torch.Tensor:
        k = index_Tk.shape[1]
        expert_n, order = index_Tk.flatten().sort(stable=True)
        ends = torch.bincount(expert_n, minlength=len(layer.up)).cumsum(0).to(torch.int32)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        token_n = order // k
        rows = x_TH.index_select(0, token_n)
        pre = F.grouped_mm(rows, layer.up.mT, offs=ends)
        gate, up = pre.chunk(2, -1)
        y = F.grouped_mm(F.silu(gate) * up, layer.down.mT, offs=ends)
        ctx.save_for_backward(rows, pre, weights_Tk, order, back, token_n, ends)
        ctx.layer = layer
        return F.embedding_bag(back.view(-1, k), y, mode="sum", per_sample_weights=weights_Tk)

    @staticmethod
    def backward(ctx: Any, *douts: torch.Tensor) -> Any:
        rows, pre, weights_Tk, order, back, token_n, ends = ctx.saved_tensors
        layer, size = ctx.layer, pre.shape[1] // 2
        dy = douts[0].index_select(0, token_n)
        dh = F.grouped_mm(dy, layer.down, offs=ends)
        gate, up = pre.chunk(2, -1)
        act = F.silu(gate)
        h = act * up
        dweights = torch.linalg.vecdot(dh, h)[back].view_as(weights_Tk) if ctx.needs_input_grad[1] else None
        weight_n1 = weights_Tk.flatten()[order, None]
        dh *= weight_n1
        dpre = torch.empty_like(pre)
        torch.mul(dh, act, out=dpre[:, size:])
        torch.ops.aten.silu_backward.grad_input(dh.mul_(up), gate, grad_input=dpre[:, :size])
        bounds = [0, *ends.tolist()]
        for expert, (dup, ddown) in layer.grads.items():
            mine = slice(bounds[expert], bounds[expert + 1])
            _weight_grad(dup, dpre[mine], rows[mine])
            _weight_grad(ddown, dy[mine], h[mine] * weight_n1[mine])
        dx = None
        if ctx.needs_input_grad[0]:
            drows = F.grouped_mm(dpre, layer.up, offs=ends)
            dx = F.embedding_bag(back.view_as(weights_Tk), drows, mode="sum")
        return dx, dweights, None, None, None


def _weight_grad(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if out.dtype == left.dtype:
        torch.mm(left.t(), right, out=out)
    else:
        out.copy_(left.t() @ right)


class FloorStep:
    def __init__(self, setup: Setup, mode: Mode) -> None:
        self.setup, self.mode, self.module = setup, mode, setup.plain_model()
        self.layers = []
        for block in self.module.model.layers:
            self.layers.append(Layer(block.mlp.experts))
            del block.mlp.experts
        self.union = {}
        for index, expert in torch.nonzero(setup.masks_BLE.any(0)).tolist():
            master = self.layers[index].flat_EN[expert].float()  # the row itself in fp32
            zeros = torch.zeros(2, len(master), device=setup.device)
            self.union[index, expert] = (master, *zeros, torch.zeros((), device=setup.device))
        self.anchor = torch.zeros((), device=setup.device, requires_grad=True)

    def __call__(self, i: int) -> tuple[float, float]:
        """Loss and gradient norm."""
        active = [key for key in self.union if self.setup.mask(i)[key]]
        self.grad_AN = torch.empty(len(active), self.layers[0].flat_EN.shape[1], device=self.setup.device)
        for layer in self.layers:
            layer.grads = {}
        for (index, expert), grad_N in zip(active, self.grad_AN, strict=True):
            self.layers[index].grads[expert] = self.layers[index].views(grad_N)
        loss = self._loss(i)
        loss.backward()
        norm = torch.linalg.vector_norm(torch.linalg.vector_norm(self.grad_AN, dim=1))  # in parts: fp32 sums round
        self._adamw(active, (norm / MAX_NORM).clamp(min=1.0))
        return loss.item(), norm.item()

    def _loss(self, i: int) -> torch.Tensor:
        batch, model = self.setup.batch(i), self.module.model
        hidden = model.embed_tokens(batch.input_ids)
        position_ids = torch.arange(hidden.shape[1], device=hidden.device)[None]
        position = model.rotary_emb(hidden, position_ids)
        live = torch.nonzero(batch.live.flatten()).squeeze(1)
        for block, layer, mask_E in zip(model.layers, self.layers, routable(self.setup.mask(i)), strict=True):
            hidden = hidden + block.self_attn(block.input_layernorm(hidden), position, None)[0]
            x_TH = block.post_attention_layernorm(hidden.flatten(0, 1)[live])
            weights_Tk, index_Tk = self._route(F.linear(x_TH, block.mlp.gate.weight), mask_E)
            out = Experts.apply(x_TH, weights_Tk, self.anchor, index_Tk, layer)
            hidden = hidden.flatten(0, 1).index_add(0, live, out).view_as(hidden)
        at = torch.nonzero(batch.labels[:, 1:] != -100, as_tuple=True)
        logits = self.module.lm_head(model.norm(hidden[at]))
        return F.cross_entropy(logits.float(), batch.labels[:, 1:][at])

    def _route(self, logits_TE: torch.Tensor, mask_E: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k = self.setup.options.top_k
        if self.mode == "route":
            k = min(k, int(mask_E.sum()))
            logits_TE = logits_TE.masked_fill(~mask_E.to(logits_TE.device), float("-inf"))
        weights_Tk, index_Tk = logits_TE.float().softmax(-1).topk(k)
        return (weights_Tk / weights_Tk.sum(-1, keepdim=True)).to(logits_TE.dtype), index_Tk

    @torch.no_grad()
    def _adamw(self, active: list[tuple[int, int]], scale: torch.Tensor) -> None:
        masters, firsts, seconds, steps = (list(column) for column in zip(*map(self.union.get, active), strict=True))
        adamw(
            masters,
            list(self.grad_AN),
            firsts,
            seconds,
            [],
            steps,
            fused=True,
            grad_scale=scale,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=LR,
            weight_decay=0.0,
            eps=EPS,
            maximize=False,
        )
        for (index, expert), master in zip(active, masters, strict=True):
            row = self.layers[index].flat_EN[expert]
            if row.dtype != master.dtype:
                row.copy_(master)

    def trained(self, i: int) -> torch.Tensor:
        """The weights that batch i trains, flat, fp32."""
        return torch.cat([master for key, (master, *_) in self.union.items() if self.setup.mask(i)[key]])

    def weights(self) -> list[torch.Tensor]:
        return [*self.module.parameters(), *(layer.flat_EN for layer in self.layers)]

    def vectors(self) -> list[torch.Tensor]:
        """Master weights and moments."""
        return [vector for state in self.union.values() for vector in state[:3]]

    def num_bytes(self) -> tuple[int, int]:
        """Gradients and optimizer state."""
        return self.grad_AN.nbytes, bytes_outside(self.vectors(), self.weights())
