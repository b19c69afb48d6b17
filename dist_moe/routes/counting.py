"""From the recorded routes of one prompt to its counts; refuses what does not fit the model or its tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dist_moe.errors import UserError
from dist_moe.routes.record import PROMPT_ROUTES, ROUTES, Record

OTHER_TOKENS = (
    "the server has read other tokens than this run does: ask it with the token ids that `dist-moe count --requests` "
    "writes, or set model.path, data.chat_template, data.template_kwargs and data.max_length to what it has read"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteShape:
    """What the routes of a model look like: L MoE layers, E experts in each, k experts per token."""

    layer_names: tuple[str, ...]
    num_decoder_layers: int
    """MoE layers, dense ones, and all others."""
    num_experts: int
    num_scored: int
    """Experts and null experts, which have numbers from E on and are not counted."""
    experts_per_token: int

    @property
    def num_layers(self) -> int:
        return len(self.layer_names)

    @property
    def moe_layers(self) -> list[int]:
        """The number of each MoE layer among all layers."""
        numbers = [re.search(r"\.(\d+)\.", name) for name in self.layer_names]
        return [int(found[1]) if found else index for index, found in enumerate(numbers)]


@dataclass(frozen=True, slots=True)
class Routed:
    """The routes of the tokens that one prompt's record has, [tokens, L, k], and how many tokens are the prompt."""

    where: str
    routes_TLk: np.ndarray
    num_prompt: int
    num_answer: int | None
    """Tokens that the server has generated, if it says so."""

    @property
    def prompt(self) -> Routed:
        """Without the tokens that the server has generated."""
        return replace(self, routes_TLk=self.routes_TLk[: self.num_prompt])

    def counts(self, counted: np.ndarray, shape: RouteShape) -> np.ndarray:
        """int64 [L, E]: how often the tokens at these positions were routed to each expert.

        Raises:
            UserError: a token has no route, or one that no router gives.
        """
        if len(counted) and counted[-1] >= len(self.routes_TLk):
            raise UserError(
                f"{self.where}: token {counted[-1]} is counted, and there are routes of {len(self.routes_TLk)} tokens: "
                "ask for the routes of the whole row (`dist-moe count --requests`)"
            )
        chosen_CLk = self.routes_TLk[counted].astype(np.int64)
        self._require_possible(chosen_CLk, counted, shape.num_scored)
        key_CLk = chosen_CLk + shape.num_experts * np.arange(shape.num_layers)[:, None]
        keys = key_CLk[chosen_CLk < shape.num_experts]
        size = shape.num_layers * shape.num_experts
        return np.bincount(keys, minlength=size).reshape(shape.num_layers, shape.num_experts)

    def _require_possible(self, chosen_CLk: np.ndarray, counted: np.ndarray, num_scored: int) -> None:
        wrong = np.argwhere((chosen_CLk < 0) | (chosen_CLk >= num_scored))
        if len(wrong):
            token, layer, slot = wrong[0].tolist()
            expert = chosen_CLk[token, layer, slot]
            unknown = ": the server did not record it (a cached prefix?): ask again with its cache emptied"
            raise UserError(
                f"{self.where}: token {counted[token]} has expert {expert} in MoE layer {layer}, and the model has 0 "
                f"to {num_scored - 1}{unknown if expert < 0 else ''}"
            )
        ordered_CLk = np.sort(chosen_CLk, axis=2)
        twice = np.argwhere(ordered_CLk[:, :, 1:] == ordered_CLk[:, :, :-1])
        if len(twice):
            token, layer, slot = twice[0].tolist()
            raise UserError(
                f"{self.where}: token {counted[token]} has expert {ordered_CLk[token, layer, slot]} twice in MoE layer "
                f"{layer}, which no router gives: these are no recorded routes"
            )


def routed(record: Record, shape: RouteShape) -> Routed:
    """The routes of a record, of MoE layers only, prompt and answer in one array.

    Raises:
        UserError: they are of another number of layers or experts per token, or of fewer tokens than the prompt has.
    """
    where = record.where
    num_tokens = None
    if record.num_prompt is not None and record.num_answer is not None:
        num_tokens = record.num_prompt + record.num_answer - 1
    routes_TLk = _layers(record.routes, shape, num_tokens, f"{where}: `{ROUTES}`")
    num_prompt = record.num_prompt
    if record.prompt_routes is not None:
        of_prompt = _layers(record.prompt_routes, shape, record.num_prompt, f"{where}: `{PROMPT_ROUTES}`")
        num_prompt = len(of_prompt) if num_prompt is None else num_prompt
        if len(of_prompt) != num_prompt:
            raise UserError(
                f"{where}: `{PROMPT_ROUTES}` is of {len(of_prompt)} tokens, and the prompt has {num_prompt}"
            )
        routes_TLk = np.concatenate([of_prompt, routes_TLk]) if len(routes_TLk) else of_prompt
    num_prompt = len(routes_TLk) if num_prompt is None else num_prompt
    if len(routes_TLk) < num_prompt:
        raise UserError(
            f"{where}: routes of {len(routes_TLk)} tokens, and the prompt has {num_prompt}: let the server generate "
            "one token at least, as it does not return the route of the last"
        )
    answer = record.num_answer
    if answer is not None and len(routes_TLk) - num_prompt not in (answer, max(answer - 1, 0)):
        raise UserError(
            f"{where}: routes of {len(routes_TLk)} tokens, and the prompt has {num_prompt}, the answer {answer}: "
            f"expected {num_prompt + max(answer - 1, 0)}"
        )
    return Routed(where, routes_TLk, num_prompt, answer)


def require_tokens(record: Record, of: Routed, ids: Sequence[int], allowed: Sequence[int]) -> None:
    """Refuse a record whose prompt is not the first tokens of a row, as many as `allowed` says.

    Raises:
        UserError: its tokens are others; says where, if the record has their ids.
    """
    for place, (there, here) in enumerate(zip(record.prompt_ids or (), ids, strict=False)):
        if there != here:
            raise UserError(f"{of.where}: token {place} is {there}, and in this run {here}: {OTHER_TOKENS}")
    if of.num_prompt not in allowed:
        numbers = " or ".join(map(str, dict.fromkeys(allowed)))
        raise UserError(f"{of.where}: the prompt has {of.num_prompt} tokens, and in this run {numbers}: {OTHER_TOKENS}")


def _layers(array: np.ndarray, shape: RouteShape, num_tokens: int | None, where: str) -> np.ndarray:
    """[T, L, k] from [T, L or all layers, k], or from the same numbers in one axis."""
    k, sizes = shape.experts_per_token, list(dict.fromkeys((shape.num_decoder_layers, shape.num_layers)))
    if array.size == 0:
        return np.empty((0, shape.num_layers, k), np.int64)
    expected = f"{' or '.join(map(str, sizes))} layers of {k} experts per token"
    if array.ndim == 1:
        fitting = [
            size for size in sizes if len(array) % (size * k) == 0 and num_tokens in (None, len(array) // (size * k))
        ]
        if len(fitting) != 1:
            tokens = "" if num_tokens is None else f"{num_tokens} tokens in "
            raise UserError(
                f"{where}: {len(array)} numbers without a shape, expected those of {tokens}{expected}"
                f"{': say `prompt_tokens` and `completion_tokens`' if fitting else ''}"
            )
        array = array.reshape(-1, fitting[0], k)
    if array.ndim != 3 or array.shape[1] not in sizes or array.shape[2] != k:
        raise UserError(f"{where} is of the shape {array.shape}, expected [tokens, layers, k] with {expected}")
    return array if array.shape[1] == shape.num_layers else array[:, shape.moe_layers]
