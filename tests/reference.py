"""The reference: masked training in one process with plain transformers and torch.optim.AdamW, no code of ours.

The base model that a divergence is taken from is a second, frozen model. Router logits are those that the routers give
back, which is before `_route` masks them.

Routing masks are applied to a router's output by recomputing it from the definition; each expert has a torch AdamW of
its own, which steps only when the expert is in the batch's mask and has a gradient. So has each dense weight that a run
trains.
"""

import torch
import torch.nn.functional as F

from tests.tiny import CONFIGS, E, K, L, tiny_model

WEIGHTS = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}
MAX_NORM = 0.05


def softmax(logits, allowed, keep, config, router):
    """Scores over the allowed experts; some families make the k chosen scores sum to 1."""
    weights, index = torch.softmax(logits.masked_fill(~allowed, float("-inf")).float(), -1).topk(K)
    weights = weights * keep.gather(-1, index)
    if config.model_type == "mixtral" or config.norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, index


def gpt_oss(logits, allowed, keep, config, router):
    """Softmax over the k chosen logits."""
    chosen, index = logits.masked_fill(~allowed, float("-inf")).topk(K)
    return torch.softmax(chosen.masked_fill(~keep.gather(-1, index), float("-inf")), -1), index


def deepseek_v3(logits, allowed, keep, config, router):
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
    weights = scores.gather(-1, index).masked_fill(best.isinf() | ~keep.gather(-1, index), 0)
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
        drift: float = 0.0,
        drift_rows: str = "all",
        consistency: float = 0.0,
        refusals: float = 0.0,
        answers: float = 0.0,
        dpo: float = 0.0,
        fill: str = "shrink",
        trains: str = "experts",
    ) -> None:
        """`kl` weighs the divergence from the base model over the loss tokens of `kl_rows`; `drift` that of the routers
        over the tokens of `drift_rows`; `consistency` that of mean unsafe from mean safe routing; `refusals` and
        `answers` the cross-entropy of the unsafe and of the safe rows."""
        self.model, self.mode, self.scope, self.fill = tiny_model(family), mode, scope, fill
        self.base = tiny_model(family)
        self.weights_of_terms = {
            "cross_entropy": cross_entropy,
            "kl_to_base": kl,
            "router_drift": drift,
            "router_consistency": consistency,
            "refusals": refusals,
            "answers": answers,
            "dpo": dpo,
        }
        self.kl_rows, self.drift_rows = kl_rows, drift_rows
        self.model.requires_grad_(False)
        self.experts = [m for name, m in self.model.named_modules() if name.endswith(".experts")]
        self.routers, base_routers = (
            [m for name, m in model.named_modules() if name.endswith(("mlp.gate", "mlp.router"))]
            for model in (self.model, self.base)
        )
        self.router_logits, self.base_router_logits = {}, {}
        for layer, router in enumerate(base_routers):
            router.register_forward_hook(lambda m, args, out, at=layer: self.base_router_logits.update({at: out[0]}))
        self.names = [name for name in WEIGHTS if hasattr(self.experts[0], name)]
        self.rule = {"deepseek_v3": deepseek_v3, "gpt_oss": gpt_oss}.get(family, softmax)
        self.config = CONFIGS[family]()
        assert len(self.experts) == len(self.routers) == L
        for layer, router in enumerate(self.routers):
            router.register_forward_hook(lambda m, args, out, layer=layer: self._route(layer, out))
        for module in self.experts:
            module.requires_grad_(True)
        routers = {
            f"{name}.{part}"
            for name, module in self.model.named_modules()
            for part in ("weight", "bias")
            if module in self.routers
        }
        self.dense = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if trains != "experts" and ".experts." not in name and (trains == "experts_and_dense" or name in routers)
        }
        self.dense_adamw = {name: torch.optim.AdamW([p.requires_grad_()], **ADAMW) for name, p in self.dense.items()}
        self.rows, self.adamw, self.allowed = {}, {}, None

    def _route(self, layer, out):
        self.router_logits[layer] = out[0]
        if self.allowed is None:
            return out
        logits, _, index = out
        everything_TE = torch.ones_like(logits, dtype=torch.bool)
        forbidden_TE = ~self.allowed[layer] & self.masked_T[:, None]
        allowed_TE, keep_TE = ~forbidden_TE, everything_TE
        if self.fill == "natural":  # `index` is what each token has chosen by itself
            has_own_T = self.allowed[layer][index].any(-1)
            allowed_TE, keep_TE = everything_TE, ~forbidden_TE | ~has_own_T[:, None]
        weights, index = self.rule(logits, allowed_TE, keep_TE, self.config, self.routers[layer])
        return logits, weights, index

    def reconcile(self, union):
        """Forget the optimizers of experts outside bool [L, E]: an expert that returns starts from its weights."""
        self.rows = {key: row for key, row in self.rows.items() if union[key[:2]]}
        self.adamw = {key: adamw for key, adamw in self.adamw.items() if union[key[:2]]}

    def step(self, mask, input_ids, labels, unsafe, weight=1.0, worse=None, experts=True, dense=True):
        """One batch, `unsafe` bool [R]: loss and global norm, and new weights for the mask's experts (unless `experts`
        is false), and for the dense weights that are trained (unless `dense` is).

        `worse` are ids and labels of rejected answers, and the row [P] that each is of.
        """
        rows = unsafe if self.scope == "unsafe" else torch.ones_like(unsafe)
        self.masked_T = rows.repeat_interleave(input_ids.shape[1])
        self.allowed = None
        if self.mode == "route":
            self.allowed = mask.clone()
            self.allowed[~mask.any(1)] = True
        logits = self.model(input_ids=input_ids, use_cache=False).logits
        loss = self._loss(logits, input_ids, labels, unsafe, worse)
        (weight * loss).backward()
        active = []
        for layer, expert in torch.nonzero(mask & experts).tolist():
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
        moving = [p for p in self.dense.values() if dense and p.grad is not None and p.grad.any()]
        every = [self.rows[key] for key in active] + moving
        norm = torch.nn.utils.clip_grad_norm_(every, MAX_NORM) if every else 0.0
        for name, parameter in self.dense.items():
            if any(parameter is each for each in moving):
                self.dense_adamw[name].step()
            parameter.grad = None
        for layer, expert, name in active:
            self.adamw[layer, expert, name].step()
            with torch.no_grad():
                getattr(self.experts[layer], name)[expert] = self.rows[layer, expert, name]
        for module in self.experts:
            module.zero_grad(set_to_none=True)
        return loss.item(), float(norm)

    def _loss(self, logits, input_ids, labels, unsafe, worse):
        """The sum over the terms with a weight; `terms` are their means. Padding has token 0."""
        rows = {"all": torch.ones_like(unsafe), "safe": ~unsafe, "unsafe": unsafe}
        with torch.no_grad():
            base = self.base(input_ids=input_ids, use_cache=False).logits

        def cross_entropy(which):
            labelled = labels[:, 1:].masked_fill(~rows[which][:, None], -100)
            number = max(int((labelled != -100).sum()), 1)
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), labelled.flatten(), reduction="sum") / number

        def kl_to_base():
            counted = (labels[:, 1:] != -100) & rows[self.kl_rows][:, None]
            target, log_model = base[:, :-1][counted].softmax(-1), logits[:, :-1][counted].log_softmax(-1)
            return F.kl_div(log_model, target, reduction="sum") / max(int(counted.sum()), 1)

        def routers(which, logits_of):
            tokens = ((input_ids != 0) & rows[which][:, None]).flatten()
            return [logits_of[layer].flatten(0, -2)[tokens] for layer in range(L)]

        def router_drift():
            old, new = (routers(self.drift_rows, of) for of in (self.base_router_logits, self.router_logits))
            each = [
                F.kl_div(y.log_softmax(-1), x.softmax(-1), reduction="sum") / max(len(x), 1)
                for x, y in zip(old, new, strict=True)
            ]
            return sum(each) / L

        def router_consistency():
            if unsafe.all() or not unsafe.any():
                return torch.zeros(())
            safe, other = ([x.softmax(-1).mean(0) for x in routers(w, self.router_logits)] for w in ("safe", "unsafe"))
            return sum((p * (p.log() - q.log())).sum() for p, q in zip(safe, other, strict=True)) / L

        def log_p(scores, labels):
            log_p_RSV, next_RS = scores[:, :-1].log_softmax(-1), labels[:, 1:]
            chosen = log_p_RSV.gather(2, next_RS.clamp(min=0)[..., None]).squeeze(2)
            return chosen.masked_fill(next_RS == -100, 0).sum(1)

        def dpo():
            ids, worse_labels, row = worse
            rows = unsafe[row] if self.scope == "unsafe" else torch.ones_like(row, dtype=torch.bool)
            self.masked_T = rows.repeat_interleave(ids.shape[1])
            rejected = log_p(self.model(input_ids=ids, use_cache=False).logits, worse_labels)
            with torch.no_grad():
                rejected_before = log_p(self.base(input_ids=ids, use_cache=False).logits, worse_labels)
            gains = log_p(logits, labels) - log_p(base, labels)
            return -F.logsigmoid(0.1 * (gains[row] - (rejected - rejected_before))).mean()

        means = {
            "dpo": dpo,
            "cross_entropy": lambda: cross_entropy("all"),
            "refusals": lambda: cross_entropy("unsafe"),
            "answers": lambda: cross_entropy("safe"),
            "kl_to_base": kl_to_base,
            "router_drift": router_drift,
            "router_consistency": router_consistency,
        }
        found = {name: means[name]() for name, weight in self.weights_of_terms.items() if weight}
        self.terms = {name: mean.item() for name, mean in found.items()}
        return sum(self.weights_of_terms[name] * mean for name, mean in found.items())

    def weights(self):
        return {
            (layer, expert, name): getattr(module, name).detach()[expert]
            for layer, module in enumerate(self.experts)
            for expert in range(E)
            for name in self.names
        }
