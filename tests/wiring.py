"""The expected results of a run, written from the documents alone: plain transformers, torch.optim, NumPy, zarr.

The model is a tiny qwen3_moe with eager experts. Rows run one at a time, without padding.
"""

import hashlib
import json
import math
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
import transformers
import zarr

SPECIAL = ["<pad>", "<end>", "<bos>", "<unk>", "<user>", "<assistant>", "<system>", "sorry"]
USER, ASSISTANT, END = 4, 5, 1


def ids(text):
    """The tokenizer of tests/checkpoint.py: one token per word."""
    return [SPECIAL.index(w) if w in SPECIAL else len(SPECIAL) + int(w[1:]) for w in text.split()]


def words(tokens):
    return " ".join(f"w{t - len(SPECIAL)}" if t >= len(SPECIAL) else SPECIAL[t] for t in tokens if t >= 7)


def encoded(row, refusal):
    """Its template written out: ids of the prompt, and of the response with its end of turn."""
    return [USER, *ids(row["prompt"]), END, ASSISTANT], [*ids(row.get("response", refusal)), END]


class Store:
    """A mask store read with plain zarr, by docs/formats.md."""

    def __init__(self, path):
        group = zarr.open_group(str(path), mode="r")
        arrays = {name: array[:] for name, array in group.arrays()}
        beside = zarr.open_group(str(path.parent / "counts.zarr"), mode="r")
        measured = {name: array[:] for name, array in beside.arrays()}
        self.counts, num_experts = measured["prompt_counts"], group.attrs["num_experts"]
        self.masks = np.unpackbits(arrays["masks"], axis=-1)[..., :num_experts].astype(bool)
        self.categories, self.batch_ids, names = (
            json.loads(measured[name].tobytes()) for name in ("batch_categories", "batch_ids", "prompt_ids")
        )
        in_batch, tokens_BS = measured["prompt_batch"], measured["prompt_tokens"]
        unsafe = [measured["prompt_unsafe"][in_batch == b] for b in range(len(self.masks))]
        rates = [
            [self.counts[b, : len(u)][arm].sum(axis=0) / tokens_BS[b, : len(u)][arm].sum() for arm in (u, ~u)]
            for b, u in enumerate(unsafe)
        ]
        self.risk_diff = np.array([of_unsafe - of_safe for of_unsafe, of_safe in rates])
        self.rows = [[name for name, b in zip(names, in_batch, strict=True) if b == i] for i in range(len(self.masks))]

    def mask_hash(self, batch):
        mask = self.masks[batch]
        text = f"{mask.shape[0]}x{mask.shape[1]}:".encode()
        return hashlib.sha256(text + np.packbits(mask).tobytes()).hexdigest()


def plain(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, experts_implementation="eager").eval()


def routers(model):
    return [layer.mlp.gate for layer in model.model.layers]


def expert_counts(path, rows, counted):
    """How often each expert was in a row's top-k over the counted tokens of (prompt, response): [R, L, E]."""
    return counts_of(plain(path), rows, counted)


def counts_of(model, rows, counted):
    """The same of a model in memory."""
    chosen, counts = [], []
    hooks = [router.register_forward_hook(lambda module, args, out: chosen.append(out[2])) for router in routers(model)]
    for prompt, response in rows:
        chosen.clear()
        with torch.no_grad():
            model(input_ids=torch.tensor([prompt + response]), use_cache=False)
        where = {"all": slice(None), "completion": slice(len(prompt), None)}[counted]
        counts.append([np.bincount(index[where].flatten(), minlength=model.config.num_experts) for index in chosen])
    for hook in hooks:
        hook.remove()
    return np.array(counts)


def risk_diff(counts, num_tokens, unsafe):
    """a_unsafe_n - a_safe_n of one batch, [L, E]."""
    rates = [sum(counts[r] for r in arm) / sum(num_tokens[r] for r in arm) for arm in (unsafe, set(counts) - unsafe)]
    return rates[0] - rates[1]


def first_experts(scores, threshold, top_k):
    """Sorted, highest first (of equals the lower layer, then expert), then the threshold, then top_k: bool [L, E]."""
    places = sorted(np.ndindex(scores.shape), key=lambda place: (-scores[place], place))
    mask = np.zeros(scores.shape, bool)
    for place in [place for place in places if scores[place] > threshold][:top_k]:
        mask[place] = True
    return mask


def order(num_batches, seed, epoch):
    digest = hashlib.sha256(json.dumps([seed, "epoch", epoch]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big")).permutation(num_batches).tolist()


def learning_rate(train, step, num_steps):
    """Learning rates of steps 0, 1, ...: linear warm-up, then the schedule's curve to 0."""
    warmup = train["warmup_steps"]
    if step < warmup:
        return train["lr"] * step / warmup
    part = (step - warmup) / (num_steps - warmup)
    return train["lr"] * {"linear": 1 - part, "cosine": (1 + math.cos(math.pi * part)) / 2}[train["schedule"]]


class Training:
    """Masked training of one expert at a time: each has a torch.optim.AdamW of its own."""

    def __init__(self, path, train):
        self.model, self.train = plain(path).requires_grad_(False), train
        self.experts = [layer.mlp.experts.requires_grad_(True) for layer in self.model.model.layers]
        for layer, router in enumerate(routers(self.model)):
            router.register_forward_hook(lambda module, args, out, layer=layer: self._route(layer, module, args, out))
        self.moved = {}

    def _route(self, layer, router, args, out):
        """docs/design.md, "Mask modes"."""
        mask, k = self.mask[layer], self.model.config.num_experts_per_tok
        if not self.masked or not mask.any():
            return out
        logits = F.linear(args[0].reshape(-1, args[0].shape[-1]), router.weight)
        if self.train["fill"] == "bias":
            logits = logits + self.train["route_bias"] * mask
        else:
            allowed = mask.repeat(len(logits), 1)
            for token in range(len(logits)):
                others = [e for e in logits[token].argsort(descending=True).tolist() if not mask[e]]
                allowed[token, others[: max(0, k - int(mask.sum()))]] = True
            logits = logits.masked_fill(~allowed, -math.inf)
        weights, index = logits.softmax(-1).topk(k)
        return out[0], weights / weights.sum(-1, keepdim=True), index

    def step(self, mask, rows, unsafe, lr, weight=1.0):
        """rows: (prompt, response) each; loss, global norm, and numbers of stepped experts, loss tokens and tokens."""
        self.mask = torch.from_numpy(mask)
        num_loss_tokens = sum(len(response) for _, response in rows)
        total = 0.0
        for (prompt, response), is_unsafe in zip(rows, unsafe, strict=True):
            self.masked = self.train["mode"] == "route" and (is_unsafe or self.train["scope"] == "all")
            logits = self.model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
            loss = F.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(response), reduction="sum")
            (weight * loss / num_loss_tokens).backward()
            total += loss.item() / num_loss_tokens
        active = {}
        for layer, expert in zip(*mask.nonzero(), strict=True):
            weights = list(self.experts[layer].parameters())
            if any(weight.grad is not None and weight.grad[expert].any() for weight in weights):
                active[layer, expert] = weights
        for (layer, expert), weights in active.items():
            parameters, _ = self.moved.setdefault((layer, expert), self._own(weights, expert))
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.grad = weight.grad[expert].clone()
        trained = list(chain.from_iterable(self.moved[key][0] for key in active))
        norm = float(torch.nn.utils.clip_grad_norm_(trained, self.train["max_norm"]))
        for (layer, expert), weights in active.items():
            parameters, adamw = self.moved[layer, expert]
            adamw.param_groups[0]["lr"] = lr
            adamw.step()
            with torch.no_grad():
                for parameter, weight in zip(parameters, weights, strict=True):
                    weight[expert] = parameter
        self.model.zero_grad(set_to_none=True)
        return total, norm, len(active), num_loss_tokens, sum(len(p) + len(r) for p, r in rows)

    def _own(self, weights, expert):
        parameters = [torch.nn.Parameter(weight.detach()[expert].clone()) for weight in weights]
        settings = {name: self.train[name] for name in ("betas", "eps", "weight_decay")}
        return parameters, torch.optim.AdamW(parameters, **settings)


@torch.no_grad()
def greedy(model, prompt, num):
    """The answer's words."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + num:
        tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        if tokens[-1] == END:
            break
    return words(tokens[len(prompt) :])


@torch.no_grad()
def response_loss(model, prompt, response):
    """A sum over the response's tokens."""
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
    return F.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(response), reduction="sum").item()
