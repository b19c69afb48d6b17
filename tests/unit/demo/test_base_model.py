"""A very short training run: the checkpoint loads as any other, the loss falls, and the seed decides every bit."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dist_moe.cli.console import console
from dist_moe.demo.base_model import make_base_model
from dist_moe.demo.corpus import Corpus, build_corpus

STEPS = 12


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build_corpus(0, num_pretraining=600, batches_per_category=1)


@pytest.fixture(scope="module")
def base(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("base")
    with redirect_stdout(StringIO()) as printed, console():
        make_base_model(out, corpus, seed=0, steps=STEPS, num_threads=1)
    return out, printed.getvalue().splitlines()


def test_checkpoint_is_sharded_and_loads_as_a_qwen3_moe(base: tuple[Path, list[str]]) -> None:
    out, _ = base
    assert len(list(out.glob("model-*.safetensors"))) >= 2
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    config = model.config
    assert (config.model_type, config.num_hidden_layers, config.num_experts_per_tok) == ("qwen3_moe", 4, 2)
    assert [layer.mlp.experts.num_experts for layer in model.model.layers] == [16] * 4
    assert not config.output_router_logits


def test_loss_falls_below_the_uniform_guess(base: tuple[Path, list[str]], corpus: Corpus) -> None:
    out, lines = base
    losses = [float(m[1]) for line in lines if (m := re.search(r"loss ([\d.]+)", line))]
    assert losses[-1] < losses[0] - 1.0
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    ids = tokenizer(corpus.held_out[0].prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        assert model(input_ids=ids, labels=ids).loss < torch.tensor(len(tokenizer)).log() - 1.0


def test_tokenizer_renders_a_chat_and_decodes_what_it_encoded(base: tuple[Path, list[str]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base[0])
    question, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    opened = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    assert opened == "<|bos|><|user|>Why?<|end|><|assistant|>"
    assert tokenizer.apply_chat_template([question, answer], tokenize=False) == opened + "So.<|end|>"
    ids = tokenizer(opened, add_special_tokens=False).input_ids
    assert [tokenizer.convert_ids_to_tokens(i) for i in (*ids[:2], *ids[-2:])] == [
        "<|bos|>",
        "<|user|>",
        "<|end|>",
        "<|assistant|>",
    ]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Why?"
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<|pad|>", "<|bos|>", "<|end|>")
    unseen = "Übergrößen, 3 × 4 = 12 ✓"
    assert tokenizer.decode(tokenizer(unseen, add_special_tokens=False).input_ids) == unseen


@pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)])
def test_the_seed_decides_every_bit(
    base: tuple[Path, list[str]], corpus: Corpus, tmp_path: Path, seed: int, same: bool
) -> None:
    torch.manual_seed(99)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    make_base_model(tmp_path, corpus, seed=seed, steps=STEPS, num_threads=1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    names = sorted(path.name for path in base[0].glob("*.safetensors"))
    assert all((tmp_path / name).read_bytes() == (base[0] / name).read_bytes() for name in names) == same
