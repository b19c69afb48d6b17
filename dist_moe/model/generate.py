"""Generates the model's own answers, for counting and for evaluation, with transformers' `generate`.

All settings are our own: of a checkpoint's generation_config.json only the ids that end an answer are used.
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
    """How answers are generated: greedily at temperature 0, else sampled, reproducibly from `seed` and the prompts."""

    max_new_tokens: int
    temperature: float
    seed: int
    eos_ids: tuple[int, ...]
    """An answer ends with the first of these ids."""

    @property
    def facts(self) -> dict[str, Any]:
        """All settings on which an answer depends, besides model and prompt: JSON values."""
        return {"seed": self.seed, "eos_ids": list(self.eos_ids), "temperature": self.temperature, **self._settings}

    @property
    def _settings(self) -> dict[str, Any]:
        """In transformers' terms. A setting that is not here has transformers' default, whatever the checkpoint says
        about it."""
        drawn = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        how = drawn if self.temperature > 0 else {"do_sample": False}
        return {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": 1,
            "repetition_penalty": 1.0,
            "use_cache": True,
        } | how

    def config(self, pad_id: int, no_token: int) -> GenerationConfig:
        """The generation configuration. `no_token` is an id beyond the vocabulary that ends no answer: transformers
        must not stop a row by itself, because other ranks may still go on."""
        return GenerationConfig(pad_token_id=pad_id, eos_token_id=no_token, **self._settings)

    def seed_of(self, rows: Sequence[Encoded]) -> int:
        """Seed for these rows together, independent of when and where they are generated."""
        text = repr((self.seed, [row.inference_ids for row in rows]))
        return int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1


class _EachPass(StoppingCriteria):
    """Called between two passes with the tokens written so far: says which rows the next pass reads, and when to stop.

    It stops when the answers of all ranks that run passes together have ended, because each pass needs all of them.
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
        num_going_on = self.model.in_step.sum_(self.going_on_R.sum())
        return torch.full_like(self.going_on_R, int(num_going_on) == 0)


@dataclass(frozen=True, slots=True)
class Asked:
    """The inference inputs of R rows, left-padded: int64 and bool [R, S].

    A rank without rows takes part with one dummy token, which is attended but not live.
    """

    rows: Sequence[Encoded]
    input_ids: torch.Tensor
    is_prompt: torch.Tensor
    live: torch.Tensor
    pad_id: int

    @staticmethod
    def of(rows: Sequence[Encoded], pad_id: int, device: torch.device) -> Asked:
        ids, is_prompt = (each.to(device) for each in collate_prompts(rows or [Encoded((pad_id,), ())], pad_id))
        return Asked(rows, ids, is_prompt, is_prompt & bool(rows), pad_id)


@torch.no_grad()
def write_answers(
    model: MoEModel,
    asked: Asked,
    sampling: Sampling,
    before_pass: Callable[[torch.Tensor], object] = lambda _: None,
) -> list[list[int]]:
    """Generate the answers to R rows, which share forward passes, each with its end token if there was room for it.

    The first pass reads the prompts, each later one a token of every answer, with a key-value cache. `before_pass` is
    called before each pass but the first, with bool [R]: the rows whose tokens the pass reads. All ranks that share
    experts call this together.
    """
    device, width = asked.input_ids.device, asked.input_ids.shape[1]
    each_pass = _EachPass(model, asked.live.any(1), width, sampling, before_pass)
    model.module.generation_config = GenerationConfig()  # generate fills what we leave open from it
    with model.batch(asked.live), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed_of(asked.rows))
        out = model.module.generate(  # type: ignore[operator]  # mypy sees nn.Module's __getattr__
            asked.input_ids,
            attention_mask=asked.is_prompt.long(),
            generation_config=sampling.config(asked.pad_id, model.module.config.get_text_config().vocab_size),
            stopping_criteria=StoppingCriteriaList([each_pass]),
        )
    return [_to_end(written, sampling.eos_ids) for written in out[: len(asked.rows), width:].tolist()]


def _to_end(ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    return ids[: next((i + 1 for i, each in enumerate(ids) if each in eos_ids), len(ids))]
