"""The demo's base model: a small real Qwen3-MoE checkpoint with its own tokenizer and chat template.

Its experts divide the topics among themselves by training alone: none is planted. The auxiliary loss keeps all in use.
The same seed, steps and number of threads give the same bits on the same machine. At this size transformers' eager
experts train faster on a CPU than `grouped_mm`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.utils.logging import disable_progress_bar

from dist_moe.demo.corpus import Corpus, Row

log = logging.getLogger(__name__)

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
VOCAB_SIZE = 1536
MAX_SHARD_SIZE = "2MB"
BATCH_SIZE = 16
PEAK_LR = 5e-3
REPORT_EVERY = 50
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_base_model(
    out: Path,
    corpus: Corpus,
    *,
    seed: int,
    steps: int,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_experts: int = 16,
    peak_lr: float = PEAK_LR,
    num_threads: int = 1,
) -> None:
    """Train on `corpus.pretraining` for `steps` steps of 16 rows; write model and tokenizer to `out`.

    600 steps give a model that answers well. One of hidden size 96 and 3 layers answers on topic after 300 steps, for a
    third of the time. One thread is the default: on a busy machine of
    two cores a second one made a step about ten times slower.
    """
    tokenizer = train_tokenizer(corpus.pretraining)
    with _reproducible(seed, num_threads):
        model = Qwen3MoeForCausalLM(_model_config(tokenizer, hidden_size, num_layers, num_experts))
        model.set_experts_implementation("eager")
        num_parameters = sum(p.numel() for p in model.parameters())
        log.info(f"base model: {num_parameters / 1e6:.1f}M parameters, {len(corpus.pretraining)} rows to train on")
        _train(model, tokenizer, corpus.pretraining, steps, peak_lr, np.random.default_rng(seed))
    model.config.output_router_logits = False
    disable_progress_bar()
    model.save_pretrained(out, max_shard_size=MAX_SHARD_SIZE)
    tokenizer.save_pretrained(out)


def train_tokenizer(rows: Iterable[Row]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the demo's chat template: any text encodes without an unknown token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, BOS, END, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((f"{row.prompt}\n{row.response}" for row in rows), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
    )


def _model_config(
    tokenizer: PreTrainedTokenizerFast, hidden_size: int, num_layers: int, num_experts: int
) -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=hidden_size,
        moe_intermediate_size=hidden_size // 2,
        num_experts=num_experts,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        output_router_logits=True,
        router_aux_loss_coef=1e-3,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _train(
    model: Qwen3MoeForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    steps: int,
    peak_lr: float,
    generator: np.random.Generator,
) -> None:
    """Next-token training on whole chats, prompts included."""
    texts = [_chat(tokenizer, row) for row in rows]
    encoded = [torch.tensor(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    batches = _batches([len(ids) for ids in encoded], BATCH_SIZE, generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, steps))
    model.train()
    for step in range(1, steps + 1):
        ids_RS = torch.nn.utils.rnn.pad_sequence(
            [encoded[i] for i in next(batches)], batch_first=True, padding_value=tokenizer.pad_token_id
        )
        live_RS = ids_RS != tokenizer.pad_token_id
        loss = model(input_ids=ids_RS, attention_mask=live_RS.long(), labels=ids_RS.masked_fill(~live_RS, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step == 1 or step % REPORT_EVERY == 0 or step == steps:
            log.info(f"step {step}/{steps}: loss {loss.item():.3f}")
    model.eval()


def _chat(tokenizer: PreTrainedTokenizerFast, row: Row) -> str:
    assert row.response is not None, "every pretraining row has an answer"
    messages = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.response}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def _lr_factor(step: int, steps: int) -> float:
    """Linear warm-up over a twentieth of the steps, then a cosine down to a tenth."""
    warmup = steps / 20
    return min(1.0, (step + 1) / (warmup + 1)) * (0.55 + 0.45 * math.cos(math.pi * step / steps))


def _batches(lengths: Sequence[int], batch_size: int, generator: np.random.Generator) -> Iterator[list[int]]:
    """Endless shuffled epochs of row indices; rows of like length share a batch, so that little is padding."""
    while True:
        order = generator.permutation(len(lengths)).tolist()
        for start in range(0, len(order), 16 * batch_size):
            near = sorted(order[start : start + 16 * batch_size], key=lengths.__getitem__)
            batches = [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
            yield from (batches[i] for i in generator.permutation(len(batches)))


@contextmanager
def _reproducible(seed: int, num_threads: int) -> Iterator[None]:
    """Torch seeded and on `num_threads` threads; both as before at the end."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads_before)
