"""The model's own answers: transformers' `generate` with settings that are wholly ours, and their routing.

What a checkpoint's generation_config.json says is never used, but for the ids that end an answer. Counted are the
generated tokens at the pass that reads them. So of each answer the last token is not, which no pass reads: an answer of
n tokens counts n - 1. The prompts, which the first pass reads, are counted apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from dist_moe.data.tokens import Encoded, collate_prompts
from dist_moe.model.model import MoEModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn: greedily at temperature 0, else from `seed` and the prompts alone."""

    max_new_tokens: int
    temperature: float
    seed: int
    eos_ids: tuple[int, ...]
    """An answer ends with the first of these."""

    @property
    def facts(self) -> dict[str, Any]:
        """All that an answer follows from beside model and prompt: JSON values."""
        return {"seed": self.seed, "eos_ids": list(self.eos_ids), "temperature": self.temperature, **self._settings}

    @property
    def _settings(self) -> dict[str, Any]:
        """In transformers' terms; what is not here is as transformers has it, not as the checkpoint does."""
        drawn = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        how = drawn if self.temperature > 0 else {"do_sample": False}
        return {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": 1,
            "repetition_penalty": 1.0,
            "use_cache": True,
        } | how

    def config(self, pad_id: int, no_token: int) -> GenerationConfig:
        """`no_token` is past the vocabulary: transformers ends no answer, as other ranks' may go on."""
        return GenerationConfig(pad_token_id=pad_id, eos_token_id=no_token, **self._settings)

    def seed_of(self, rows: Sequence[Encoded]) -> int:
        """A random stream for these rows together, wherever and whenever they are run."""
        text = repr((self.seed, [row.inference_ids for row in rows]))
        return int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1


class _EachPass(StoppingCriteria):
    """Called between two passes with what was written so far: says which rows the coming one reads, and when to stop.

    That is when the answers of all ranks that share experts have ended, as each pass needs all of them.
    """

    def __init__(
        self,
        model: MoEModel,
        going_on_R: torch.Tensor,
        width: int,
        sampling: Sampling,
        before_pass: Callable[[torch.Tensor], object],
    ) -> None:
        self.model, self.going_on_R, self.width, self.sampling = model, going_on_R, width, sampling
        self.before_pass = before_pass
        self.eos_ids = torch.tensor(sampling.eos_ids, dtype=torch.int64, device=going_on_R.device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        written = input_ids[:, self.width :]
        is_last = written.shape[1] == self.sampling.max_new_tokens  # which no pass reads
        self.going_on_R = self.going_on_R & ~torch.isin(written[:, -1], self.eos_ids) & (not is_last)
        self.model.next_pass(self.going_on_R[:, None])
        self.before_pass(self.going_on_R)
        num_going_on = self.model.layers[0].comm.sum_(self.going_on_R.sum())
        return torch.full_like(self.going_on_R, int(num_going_on) == 0)


@torch.no_grad()
def write_answers(
    model: MoEModel,
    input_ids: torch.Tensor,
    is_prompt: torch.Tensor,
    live: torch.Tensor,
    sampling: Sampling,
    pad_id: int,
    *,
    stream: int = 0,
    before_pass: Callable[[torch.Tensor], object] = lambda _: None,
) -> list[list[int]]:
    """The answers to R left-padded prompts, each with the token that ends it, if there was room for one.

    `live` [R, S] is `is_prompt`, or False where a rank without rows takes part; `stream` seeds what is drawn;
    `before_pass` is told, bool [R], whose tokens a pass will read, for each but the first.
    """
    device = input_ids.device
    each_pass = _EachPass(model, live.any(1), input_ids.shape[1], sampling, before_pass)
    model.module.generation_config = GenerationConfig()  # generate fills what we leave open from it
    with model.batch(live), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(stream)
        out = model.module.generate(  # type: ignore[operator]  # mypy sees nn.Module's __getattr__
            input_ids,
            attention_mask=is_prompt.long(),
            generation_config=sampling.config(pad_id, model.module.config.get_text_config().vocab_size),
            stopping_criteria=StoppingCriteriaList([each_pass]),
        )
    return [_to_end(written, sampling.eos_ids) for written in out[:, input_ids.shape[1] :].tolist()]


def _to_end(ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    return ids[: next((i + 1 for i, each in enumerate(ids) if each in eos_ids), len(ids))]


@torch.no_grad()
def count_generated(
    model: MoEModel, rows: Sequence[Encoded], sampling: Sampling, pad_id: int, *, gates: bool
) -> dict[str, torch.Tensor]:
    """Of the answers to R prompts, which share their passes: counts [R, L, E], counted tokens [R] and, if asked for,
    gates [R, L, E]. Of the prompts: `prefill_counts` [R, L, E] and `prefill_tokens` [R]. Of both: `not_finite` [R].
    All int64.

    All ranks that share experts call it together; one without rows takes part, and counts nothing.
    """
    device = model.layers[0].comm.device
    input_ids, is_prompt = (tensor.to(device) for tensor in collate_prompts(rows or [Encoded((pad_id,), ())], pad_id))
    live_RS = is_prompt & bool(rows)
    num_rows = len(input_ids)
    both = {"num_rows": 2 * num_rows, "first_row": num_rows}  # answers first, then the prompts
    tokens_R = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def before_pass(going_on_R: torch.Tensor) -> None:
        tokens_R.add_(going_on_R)
        model.tap.next_pass(going_on_R[:, None])

    with model.tap.count(live_RS, gates=gates, **both) as tally:
        stream = sampling.seed_of(rows)
        write_answers(model, input_ids, is_prompt, live_RS, sampling, pad_id, stream=stream, before_pass=before_pass)
    measured = {
        "counts": tally.counts_RLE[:num_rows],
        "not_finite": tally.not_finite_R.view(2, num_rows).sum(0),
        "tokens": tokens_R,
        "prefill_counts": tally.counts_RLE[num_rows:],
        "prefill_tokens": live_RS.sum(1),
    }
    return measured if tally.gates_RLE is None else measured | {"gates": tally.gates_RLE[:num_rows]}
