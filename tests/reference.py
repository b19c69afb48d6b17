"""What is right: masked training in one process with plain transformers and torch.optim.AdamW, no code of ours.

The base model that a divergence is taken from is a second, frozen model.

Routing masks are applied to a router's output by recomputing it from the definition; each expert has a torch AdamW of
its own, which steps only when the expert is in the batch's mask and has a gradient.
"""

import torch
import torch.nn.functional as F

from tests.tiny import CONFIGS, E, K, L, tiny_model

WEIGHTS = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}
MAX_NORM = 0.05


def softmax(logits, allowed, config, router):
    """Scores over the allowed experts; the family says whether the k chosen ones are made to sum to 1."""
    weights, index = torch.softmax(logits.masked_fill(~allowed, float("-inf")).float(), -1).topk(K)
    if config.model_type == "mixtral" or config.norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, index


def gpt_oss(logits, allowed, config, router):
    """Softmax over the k chosen logits."""
    chosen, index = logits.masked_fill(~allowed, float("-inf")).topk(K)
    return torch.softmax(chosen, -1), index


def deepseek_v3(logits, allowed, config, router):
    """Choose by sigmoid score plus correction bias, inside the groups whose best two allowed experts are best together
    (arXiv 2412.19437); weights are the scores without the bias, made to sum to the scaling factor."""
    scores = torch.sigmoid(logits.float())
    choice = (scores.detach() + router.e_score_correction_bias).masked_fill(~allowed, float("-inf"))
    groups = choice.unflatten(-1, (config.n_group, -1))
    best_two = groups.topk(2).values
    group_scores = torch.where(best_two[..., :1].isinf(), best_two[..., :1], best_two.masked_fill(best_two.isinf(), 0))
    chosen_groups = group_scores.sum(-1).topk(config.topk_group).indices
    in_group = torch.zeros(groups.shape[:-1], dtype=torch.bool).scatter(-1, chosen_groups, True)[..., None]
    best, index = groups.masked_fill(~in_group, float("-inf")).flatten(-2).topk(K)
    weights = scores.gather(-1, index).masked_fill(best.isinf(), 0)
    return weights / (weights.sum(-1, keepdim=True) + 1e-20) * config.routed_scaling_factor, index


class Reference:
    def __init__(
        self,
        family: str,
        mode: str,
        scope: str = "all",
        kl: float = 0.0,
        kl_rows: str = "safe",
        cross_entropy: float = 1.0,
    ) -> None:
        """`kl` weighs the divergence from the base model over the loss tokens of `kl_rows`."""
        self.model, self.mode, self.scope = tiny_model(family), mode, scope
        self.base = tiny_model(family)
        self.weights_of_terms, self.kl_rows = (cross_entropy, kl), kl_rows
        self.model.requires_grad_(False)
        self.experts = [m for name, m in self.model.named_modules() if name.endswith(".experts")]
        self.routers = [m for name, m in self.model.named_modules() if name.endswith(("mlp.gate", "mlp.router"))]
        self.names = [name for name in WEIGHTS if hasattr(self.experts[0], name)]
        self.rule = {"deepseek_v3": deepseek_v3, "gpt_oss": gpt_oss}.get(family, softmax)
        self.config = CONFIGS[family]()
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
        weights, index = self.rule(out[0], ~forbidden_TE, self.config, self.routers[layer])
        return out[0], weights, index

    def reconcile(self, union):
        """Optimizers of experts outside bool [L, E] are forgotten: one that comes back starts from its weights."""
        self.rows = {key: row for key, row in self.rows.items() if union[key[:2]]}
        self.adamw = {key: adamw for key, adamw in self.adamw.items() if union[key[:2]]}

    def step(self, mask, input_ids, labels, unsafe, weight=1.0):
        """One batch, `unsafe` bool [R]: loss and global norm, and new weights for the mask's experts."""
        rows = unsafe if self.scope == "unsafe" else torch.ones_like(unsafe)
        self.masked_T = rows.repeat_interleave(input_ids.shape[1])
        self.allowed = None
        if self.mode == "route":
            self.allowed = mask.clone()
            self.allowed[~mask.any(1)] = True
        logits = self.model(input_ids=input_ids, use_cache=False).logits
        loss = self._loss(logits, input_ids, labels, unsafe)
        (weight * loss).backward()
        active = []
        for layer, expert in torch.nonzero(mask).tolist():
            for name in self.names:
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

    def _loss(self, logits, input_ids, labels, unsafe):
        cross_entropy = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        self.terms = {"cross_entropy": cross_entropy.item()}
        if not self.weights_of_terms[1]:
            return self.weights_of_terms[0] * cross_entropy
        chosen = {"all": torch.ones_like(unsafe), "safe": ~unsafe, "unsafe": unsafe}[self.kl_rows]
        counted = (labels[:, 1:] != -100) & chosen[:, None]
        with torch.no_grad():
            base = self.base(input_ids=input_ids, use_cache=False).logits
        target, log_model = torch.softmax(base[:, :-1][counted], -1), torch.log_softmax(logits[:, :-1][counted], -1)
        kl = F.kl_div(log_model, target, reduction="sum") / max(int(counted.sum()), 1)
        self.terms["kl_to_base"] = kl.item()
        return self.weights_of_terms[0] * cross_entropy + self.weights_of_terms[1] * kl

    def weights(self):
        return {
            (layer, expert, name): getattr(module, name).detach()[expert]
            for layer, module in enumerate(self.experts)
            for expert in range(E)
            for name in self.names
        }
