"""What is right: masked training in one process with plain transformers and torch.optim.AdamW, no code of ours.

Routing masks are applied to a router's output by recomputing it from the definition; each expert has a torch AdamW of
its own, which steps only when the expert is in the batch's mask and has a gradient.
"""

import torch
import torch.nn.functional as F

from tests.tiny import CONFIGS, E, K, L, tiny_model

WEIGHTS = ("gate_up_proj", "down_proj")
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}
MAX_NORM = 0.05


class Reference:
    def __init__(self, family: str, mode: str, scope: str = "all") -> None:
        self.model, self.mode, self.scope = tiny_model(family), mode, scope
        self.model.requires_grad_(False)
        self.experts = [m for name, m in self.model.named_modules() if name.endswith(".experts")]
        self.routers = [m for name, m in self.model.named_modules() if name.endswith("mlp.gate")]
        self.normalise = family == "mixtral" or CONFIGS[family]().norm_topk_prob
        assert len(self.experts) == len(self.routers) == L
        for layer, router in enumerate(self.routers):
            router.register_forward_hook(lambda m, args, out, layer=layer: self._route(layer, out))
        for module in self.experts:
            module.requires_grad_(True)
        self.rows, self.adamw, self.allowed = {}, {}, None

    def _route(self, layer, out):
        if self.allowed is None:
            return out
        forbidden_TE = ~self.allowed[layer] & self.masked_T[:, None]
        logits = out[0].masked_fill(forbidden_TE, float("-inf"))
        weights, index = torch.softmax(logits.float(), -1).topk(K)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights, index

    def step(self, mask, input_ids, labels, unsafe):
        """One batch, `unsafe` bool [R]: loss and global norm, and new weights for the mask's experts."""
        rows = unsafe if self.scope == "unsafe" else torch.ones_like(unsafe)
        self.masked_T = rows.repeat_interleave(input_ids.shape[1])
        self.allowed = None
        if self.mode == "route":
            self.allowed = mask.clone()
            self.allowed[~mask.any(1)] = True
        logits = self.model(input_ids=input_ids, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        active = []
        for layer, expert in torch.nonzero(mask).tolist():
            for name in WEIGHTS:
                weight = getattr(self.experts[layer], name)
                if weight.grad is None or not weight.grad[expert].any():
                    continue
                key = (layer, expert, name)
                if key not in self.rows:
                    self.rows[key] = torch.nn.Parameter(weight.detach()[expert].clone())
                    self.adamw[key] = torch.optim.AdamW([self.rows[key]], **ADAMW)
                self.rows[key].grad = weight.grad[expert].clone()
                active.append(key)
        norm = torch.nn.utils.clip_grad_norm_([self.rows[key] for key in active], MAX_NORM) if active else 0.0
        for layer, expert, name in active:
            self.adamw[layer, expert, name].step()
            with torch.no_grad():
                getattr(self.experts[layer], name)[expert] = self.rows[layer, expert, name]
        for module in self.experts:
            module.zero_grad(set_to_none=True)
        return loss.item(), float(norm)

    def weights(self):
        return {
            (layer, expert, name): getattr(module, name).detach()[expert]
            for layer, module in enumerate(self.experts)
            for expert in range(E)
            for name in WEIGHTS
        }
