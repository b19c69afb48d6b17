"""A tiny checkpoint on disk with its own tokenizer, and prompt files for it."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import COMMON, VOCAB, tiny_model

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
WORDS = [f"w{i}" for i in range(VOCAB - 8)]


def save_tokenizer(path: Path) -> None:
    names = ["<pad>", "<end>", "<bos>", "<unk>", "<user>", "<assistant>", "<system>", "sorry"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names + WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", bos_token="<bos>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>", "<system>"]})
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)


def save_checkpoint(path: Path, family: str = "qwen3_moe", dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A tiny MoE model in several shards."""
    tiny_model(family, dtype, seed).save_pretrained(path, max_shard_size="60KB")
    save_tokenizer(path)
    return path


def save_dense_checkpoint(path: Path) -> Path:
    config = transformers.LlamaConfig(**{**COMMON, "num_experts_per_tok": None}, intermediate_size=48)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    save_tokenizer(path)
    return path


def prompt_rows(
    num_safe: int = 16, categories: tuple[str, ...] = ("hacking", "weapons"), per_category: int = 8
) -> list:
    """Rows of words; unsafe rows prefer the words of their category, so that routing differs."""
    generator = torch.Generator().manual_seed(0)

    def words(first: int, number: int) -> str:
        return " ".join(WORDS[i] for i in (first + torch.randint(0, 25, (number,), generator=generator)).tolist())

    rows = [{"prompt": words(0, 6), "response": words(0, 5), "label": "safe"} for _ in range(num_safe)]
    for i, category in enumerate(categories):
        rows += [
            {"prompt": words(30 + 30 * i, 6), "label": "unsafe", "category": category} for _ in range(per_category)
        ]
    return rows


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_config(path: Path, model: Path, data: Path, run_dir: Path, extra: str = "") -> Path:
    path.write_text(
        f"run_dir: {run_dir}\nmodel: {{path: {model}}}\ndata: {{paths: [{data}], refusal: sorry w1 w2}}\n"
        "train: {lr: 1e-3, eps: 1e-6, epochs: 2}\n"
        f"evaluation: {{max_new_tokens: 4, judge: {{phrases: {{also: [sorry]}}}}}}\n{extra}"
    )
    return path
