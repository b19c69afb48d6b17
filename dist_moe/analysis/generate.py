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

    def config(self, pad_id: int) -> GenerationConfig:
        """In transformers' terms; what the model's own settings say of sampling (top_k, top_p) is left out."""
        drawn = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            pad_token_id=pad_id,
            eos_token_id=list(self.eos_ids) or None,
            **(drawn if self.temperature > 0 else {"do_sample": False}),
        )

    def seed_of(self, rows: Sequence[Encoded]) -> int:
        """A random stream for these rows together, wherever and whenever they are run."""
        text = repr((self.seed, [row.prompt_ids for row in rows]))
        return int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1


class _EachPass(StoppingCriteria):
    """Never stops; called between two passes with what was written so far, says which rows the coming one counts."""

    def __init__(self, model: MoEModel, width: int, eos_ids: tuple[int, ...]) -> None:
        self.model, self.width, self.eos_ids = model, width, torch.tensor(eos_ids)
        self.tokens_R: torch.Tensor | int = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        ended_R = torch.isin(input_ids[:, self.width :], self.eos_ids.to(input_ids.device)).any(1)
        self._reads(~ended_R[:, None])
        return torch.zeros_like(ended_R)

    def _reads(self, going_on_R1: torch.Tensor) -> None:
        self.model.set_live(going_on_R1)
        self.model.tap.next_pass(going_on_R1)
        self.last_R = going_on_R1[:, 0].long()
        self.tokens_R = self.tokens_R + self.last_R


@torch.no_grad()
def count_generated(
    model: MoEModel, rows: Sequence[Encoded], sampling: Sampling, pad_id: int, *, gates: bool
) -> dict[str, torch.Tensor]:
    """Of the answers to R prompts, which share their passes: counts [R, L, E], counted tokens [R] and, if asked for,
    gates [R, L, E]. Of the prompts: `prefill_counts` [R, L, E] and `prefill_tokens` [R]. All int64.
    """
    device = model.layers[0].comm.device
    input_ids, is_prompt = (tensor.to(device) for tensor in collate_prompts(rows, pad_id))
    each_pass = _EachPass(model, input_ids.shape[1], sampling.eos_ids)
    model.set_live(is_prompt)
    devices = [device] if device.type == "cuda" else []
    num_rows = len(rows)
    both = {"num_rows": 2 * num_rows, "first_row": num_rows}  # answers first, then the prompts
    with torch.random.fork_rng(devices), model.tap.count(is_prompt, gates=gates, **both) as tally:
        torch.manual_seed(sampling.seed_of(rows))
        model.module.generate(  # type: ignore[operator]  # mypy sees nn.Module's __getattr__
            input_ids,
            attention_mask=is_prompt.long(),
            generation_config=sampling.config(pad_id),
            stopping_criteria=StoppingCriteriaList([each_pass]),
        )
    model.set_live(None)
    assert isinstance(each_pass.tokens_R, torch.Tensor)
    measured = {
        "counts": tally.counts_RLE[:num_rows],
        "tokens": each_pass.tokens_R - each_pass.last_R,  # the last token was announced, but no pass has read it
        "prefill_counts": tally.counts_RLE[num_rows:],
        "prefill_tokens": is_prompt.sum(1),
    }
    return measured if tally.gates_RLE is None else measured | {"gates": tally.gates_RLE[:num_rows]}
