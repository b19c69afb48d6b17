"""Does a repair last? Fine-tune models on harmless and on compliance rows, and measure refusals after so many steps.

    python examples/durability.py --models base=models/base repaired=repaired --fine-tune harmless=harmless.jsonl \
        compliance=compliance.jsonl --held-out held-out.jsonl --out durability

The fine-tuning is the plain loop in `fine_tune`: all weights, torch's AdamW, a constant learning rate, one answer's
tokens at a time; nothing of dist_moe, so that anyone can repeat it with his own trainer. Every row that is fine-tuned
on has a response, whatever its label: compliance rows are unsafe prompts with answers that comply. Measured is by
`dist_moe.evaluate`: held-out rows, greedy answers, and the model before its fine-tuning as the "before", so that each
change has a paired interval.

Compare models that refuse alike before the fine-tuning (step 0), for example by `dist-moe export --alpha`.
A model and file that has been measured to the end is not repeated: its tables are in --out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import dist_moe
from dist_moe.data.rows import read_prompts

NO_RESPONSE = "I'm sorry, but I can't help with that."


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], response: str
) -> tuple[list[int], list[int]]:
    """A row's tokens, and its labels: -100 for those of the prompt."""
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    answer = tokenizer(response, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    asked = tokenizer(prompt, add_special_tokens=False).input_ids
    return asked + answer, [-100] * len(asked) + answer


def fine_tune(
    model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]], *, lr: float, batch_size: int, seed: int
) -> Iterator[int]:
    """Train all weights for ever; after each step its number, from 1."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    draw = torch.Generator().manual_seed(seed)
    order: list[int] = []
    step = 0
    while True:
        while len(order) < batch_size:
            order += torch.randperm(len(rows), generator=draw).tolist()
        chosen, order = order[:batch_size], order[batch_size:]
        num_tokens = sum(label != -100 for row in chosen for label in rows[row][1])
        for row in chosen:
            ids, labels = (torch.tensor([each], device=model.device) for each in rows[row])
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum") / num_tokens
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        yield step


def measured(model: Path, before: Path, held_out: Sequence[Path], out: Path, max_new_tokens: int) -> pd.DataFrame:
    """The estimates of refusals, of all rows; an evaluation that is there already is read."""
    found = dist_moe.evaluate(model, held_out, against=before, out=out, max_new_tokens=max_new_tokens).estimates
    of_all = found[(found["by"] == "all") & found["measure"].isin(["refused (unsafe)", "refused (safe)"])]
    return of_all[of_all["when"].isin(["after", "change"])]


def arm(path: Path, rows: Path, held_out: Sequence[Path], out: Path, args: argparse.Namespace) -> pd.DataFrame:
    """One model, fine-tuned on one file: the estimates after each number of steps."""
    done = out / "estimates.csv"
    if done.exists():
        return pd.read_csv(done)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype).train()
    prompts = read_prompts((rows,), NO_RESPONSE).prompts
    encoded = [
        encode(tokenizer, [{"role": m.role, "content": m.content} for m in each.messages], each.response)
        for each in prompts
    ]
    tables = [measured(path, path, held_out, out / "step-0", args.max_new_tokens).assign(steps=0)]
    for step in fine_tune(model, encoded, lr=args.lr, batch_size=args.batch_size, seed=args.seed):
        if step in args.steps:
            with tempfile.TemporaryDirectory(dir=out) as folder:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                found = measured(Path(folder), path, held_out, out / f"step-{step}", args.max_new_tokens)
                tables.append(found.assign(steps=step))
        if step == max(args.steps):
            break
    table = pd.concat(tables)
    table.to_csv(done, index=False)
    return table


def shown(table: pd.DataFrame) -> str:
    """A line for each model, file and number of steps."""
    cells = table.assign(
        shown=[
            f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" if when == "change" else f"{value:.3f} [{low:.3f}, {high:.3f}]"
            for when, value, low, high in zip(table["when"], table["value"], table["low"], table["high"], strict=True)
        ]
    )
    keys = ["model", "fine-tuned on", "steps"]
    wide = cells.pivot(index=keys, columns=["measure", "when"], values="shown").sort_index(axis=1)
    return wide.fillna("-").to_string()


def named(word: str) -> tuple[str, Path]:
    """`NAME=PATH`."""
    name, mark, path = word.partition("=")
    if not (name and mark and path):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, got {word!r}")
    return name, Path(path)


def main(words: Sequence[str] | None = None) -> pd.DataFrame:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=named, nargs="+", required=True, metavar="NAME=DIRECTORY")
    parser.add_argument("--fine-tune", type=named, nargs="+", required=True, metavar="NAME=FILE", dest="files")
    parser.add_argument("--held-out", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--dtype", default="float32", help="of the weights that are fine-tuned")
    args = parser.parse_args(words)
    tables = []
    for model, path in args.models:
        for file, rows in args.files:
            out = args.out / model / file
            out.mkdir(parents=True, exist_ok=True)
            found = arm(path, rows, args.held_out, out, args)
            tables.append(found.assign(model=model, **{"fine-tuned on": file}))
    table = pd.concat(tables, ignore_index=True)
    print(shown(table))
    return table


if __name__ == "__main__":
    main()
