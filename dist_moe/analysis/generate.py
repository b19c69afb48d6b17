"""Count routing while the model writes its own answers: transformers' `generate`, with the tap told what each pass is.

Counted are the generated tokens at the pass that reads them. So of each answer the last token is not, which no pass
reads: an answer of n tokens counts n - 1. The prompts, which the first pass reads, are counted apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from dist_moe.data.tokens import Encoded, collate_prompts
from dist_moe.moe.model import MoEModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn: greedily at temperature 0, else from `seed` and the prompts alone."""

    max_new_tokens: int
    temperature: float
    seed: int
    eos_ids: tuple[int, ...]

    def config(self, pad_id: int, no_token: int) -> GenerationConfig:
        """In transformers' terms; what the model's own settings say of sampling (top_k, top_p) is left out.

        `no_token` is past the vocabulary: transformers ends no answer, as other ranks' may go on.
        """
        drawn = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            pad_token_id=pad_id,
            eos_token_id=no_token,
            **(drawn if self.temperature > 0 else {"do_sample": False}),
        )

    def seed_of(self, rows: Sequence[Encoded]) -> int:
        """A random stream for these rows together, wherever and whenever they are run."""
        text = repr((self.seed, [row.prompt_ids for row in rows]))
        return int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1


class _EachPass(StoppingCriteria):
    """Called between two passes with what was written so far: says which rows the coming one counts, and when to stop.

    That is when the answers of all ranks that share experts have ended, as each pass needs all of them.
    """

    def __init__(self, model: MoEModel, going_on_R: torch.Tensor, width: int, sampling: Sampling) -> None:
        self.model, self.going_on_R, self.width, self.sampling = model, going_on_R, width, sampling
        self.eos_ids = torch.tensor(sampling.eos_ids, dtype=torch.int64, device=going_on_R.device)
        self.tokens_R = torch.zeros_like(going_on_R, dtype=torch.int64)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        written = input_ids[:, self.width :]
        is_last = written.shape[1] == self.sampling.max_new_tokens  # which no pass reads
        self.going_on_R = self.going_on_R & ~torch.isin(written[:, -1], self.eos_ids) & (not is_last)
        self.tokens_R += self.going_on_R
        self.model.set_live(self.going_on_R[:, None])
        self.model.tap.next_pass(self.going_on_R[:, None])
        num_going_on = self.model.layers[0].comm.sum_(self.going_on_R.sum())
        return torch.full_like(self.going_on_R, int(num_going_on) == 0)


@torch.no_grad()
def count_generated(
    model: MoEModel, rows: Sequence[Encoded], sampling: Sampling, pad_id: int, *, gates: bool
) -> dict[str, torch.Tensor]:
    """Of the answers to R prompts, which share their passes: counts [R, L, E], counted tokens [R] and, if asked for,
    gates [R, L, E]. Of the prompts: `prefill_counts` [R, L, E] and `prefill_tokens` [R]. All int64.

    All ranks that share experts call it together; one without rows takes part, and counts nothing.
    """
    device = model.layers[0].comm.device
    input_ids, is_prompt = (tensor.to(device) for tensor in collate_prompts(rows or [Encoded((pad_id,), ())], pad_id))
    live_RS = is_prompt & bool(rows)
    num_rows = len(input_ids)
    each_pass = _EachPass(model, live_RS.any(1), input_ids.shape[1], sampling)
    model.set_live(live_RS)
    devices = [device] if device.type == "cuda" else []
    both = {"num_rows": 2 * num_rows, "first_row": num_rows}  # answers first, then the prompts
    with torch.random.fork_rng(devices), model.tap.count(live_RS, gates=gates, **both) as tally:
        torch.manual_seed(sampling.seed_of(rows))
        model.module.generate(  # type: ignore[operator]  # mypy sees nn.Module's __getattr__
            input_ids,
            attention_mask=is_prompt.long(),
            generation_config=sampling.config(pad_id, model.module.config.get_text_config().vocab_size),
            stopping_criteria=StoppingCriteriaList([each_pass]),
        )
    model.set_live(None)
    measured = {
        "counts": tally.counts_RLE[:num_rows],
        "tokens": each_pass.tokens_R,
        "prefill_counts": tally.counts_RLE[num_rows:],
        "prefill_tokens": live_RS.sum(1),
    }
    return measured if tally.gates_RLE is None else measured | {"gates": tally.gates_RLE[:num_rows]}
