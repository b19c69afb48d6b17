"""How a model answers each row, and how likely it finds other answers; always unmasked, because inference has no mask.

Legend: R rows, n tokens of answers, T openings, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from dist_moe.data.tokens import Encoded, collate
from dist_moe.model.generate import Asked, Sampling, write_answers
from dist_moe.model.model import MoEModel
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.rows import Kind, map_rows
from dist_moe.training.loss import LabelledLogits, at_labels

NO_TOKEN = -1
"""Behind an answer's end."""
TOKENS_AT_ONCE = 1024
"""Of the two distributions over the vocabulary that a divergence is made of."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is scored, as it is inside `in_force`: with its weights as they are, or with kept originals."""

    model: MoEModel
    in_force: Callable[[], AbstractContextManager[None]] = nullcontext
    labelled: LabelledLogits = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labelled", LabelledLogits(self.model.module))


@dataclass(frozen=True, slots=True)
class Scorable:
    """A row, and its prompt with each of T texts as the beginning of an answer, see `opening`."""

    row: Encoded
    openings: tuple[Encoded, ...]

    def longest(self, max_new_tokens: int) -> int:
        """Tokens of the longest forward pass that it needs."""
        given = (each.num_tokens for each in (self.row, *self.openings))
        return max(*given, len(self.row.inference_ids) + max_new_tokens)


@dataclass(frozen=True, slots=True)
class Reply:
    """What one model says to one row."""

    loss_sum: float
    """- log p over the tokens of the row's response, added up."""
    opening_log_p: tuple[float, ...]
    """Of each opening: mean log p of its tokens."""
    ids: tuple[int, ...]
    """Its own greedy answer, with the token that ended it, if there was room for one."""


@dataclass(frozen=True, slots=True)
class _Likelihoods:
    """What one model makes of the responses of R rows."""

    log_p_R: torch.Tensor
    """float64: of all tokens of a row's response, added up."""
    num_tokens_R: torch.Tensor
    """int64"""
    safe_mV: torch.Tensor
    """The logits from which the safe rows' responses are predicted."""
    safe_row_m: torch.Tensor
    """int64: the rows that these belong to."""


@dataclass(frozen=True, slots=True)
class RowScore:
    num_loss_tokens: int
    """Tokens of the row's response; 0 where it has none."""
    kl_sums: dict[str, float]
    """Of each subject but the first, by name: KL(it || first), added up over the tokens of a safe row's response, in
    nats."""
    replies: dict[str, Reply]
    """By the subject's name; of those that are asked."""


def opening(row: Encoded, ends: Collection[int]) -> Encoded:
    """A row whose response is the beginning of an answer: without the tokens, such as `ends`, that end its turn."""
    ids = row.response_ids if row.gap is None else row.response_ids[: row.gap[0] - len(row.prompt_ids)]
    while len(ids) > 1 and ids[-1] in ends:
        ids = ids[:-1]
    return replace(row, response_ids=ids, gap=None, span=None)


def score_rows(
    subjects: Mapping[str, Subject],
    rows: Sequence[Scorable],
    *,
    max_new_tokens: int,
    micro_batch_tokens: int,
    pad_id: int,
    eos_ids: Sequence[int],
    comm: Comm,
    progress: Callable[[int], object],
    known: Collection[str] = (),
) -> list[RowScore]:
    """Score R rows in their order, the same on every rank; all ranks of `comm` call it with the same rows.

    Args:
        subjects: models that have one tokenizer, by name; ranks may share their experts.
        rows: of as many openings each.
        max_new_tokens: the longest answer; 0: none is asked for.
        micro_batch_tokens: bounds a forward pass, its padding and the answers that it becomes; where padding would
            change results, each row is alone. Rows that the model packs are chosen likewise, as their answers are not
            packed.
        pad_id: token that fills up shorter rows.
        eos_ids: tokens that end an answer.
        comm: all ranks.
        progress: is told the rows done each time.
        known: subjects whose replies are known: they are not asked, and only their distributions are computed, which
            divergences are of.
    """
    greedy = Sampling(max_new_tokens=max_new_tokens, temperature=0, seed=0, eos_ids=tuple(eos_ids))
    num_openings = len(rows[0].openings)
    models, others = [subject.model for subject in subjects.values()], list(subjects)[1:]
    asked = [name for name in subjects if name not in known]
    of_each: dict[str, Kind] = {
        "loss": (torch.float64, ()),
        "opening": (torch.float64, (num_openings,)),
        "ids": (torch.int64, (max_new_tokens,)),
    }
    found = map_rows(
        rows,
        lambda some: _pass(subjects, asked, some, num_openings, greedy, pad_id),
        comm,
        results={
            "tokens": (torch.int64, ()),
            **{f"{what} {name}": kind for name in asked for what, kind in of_each.items()},
            **{f"kl {name}": (torch.float64, ()) for name in others},
        },
        length=lambda row: row.longest(max_new_tokens),
        budget=min(model.at_once(micro_batch_tokens) for model in models),
        sharing=models[0].in_step.size,
        progress=progress,
    )
    lists = {name: values.tolist() for name, values in found.items()}
    return [
        RowScore(
            num_loss_tokens=lists["tokens"][i],
            kl_sums={name: lists[f"kl {name}"][i] for name in others},
            replies={
                name: Reply(
                    loss_sum=lists[f"loss {name}"][i],
                    opening_log_p=tuple(lists[f"opening {name}"][i]),
                    ids=tuple(token for token in lists[f"ids {name}"][i] if token != NO_TOKEN),
                )
                for name in asked
            },
        )
        for i in range(len(rows))
    ]


@torch.no_grad()
def _pass(
    subjects: Mapping[str, Subject],
    asked: Collection[str],
    rows: Sequence[Scorable],
    num_openings: int,
    greedy: Sampling,
    pad_id: int,
) -> dict[str, torch.Tensor]:
    """What `score_rows` wants to know of the rows of one forward pass."""
    own = [each.row for each in rows]
    found: dict[str, torch.Tensor] = {}
    first: _Likelihoods | None = None
    for name, subject in subjects.items():
        with subject.in_force():
            likelihoods = _likelihoods(subject, own, pad_id)
            found["tokens"], log_p_R = likelihoods.num_tokens_R, likelihoods.log_p_R
            if name in asked:
                of_openings = [
                    _likelihoods(subject, [each.openings[t] for each in rows], pad_id) for t in range(num_openings)
                ]
                means = [each.log_p_R / each.num_tokens_R.clamp(min=1) for each in of_openings]
                found |= {
                    f"loss {name}": -log_p_R,
                    f"opening {name}": torch.stack(means, 1) if means else log_p_R.new_zeros(len(log_p_R), 0),
                    f"ids {name}": _answers(subject.model, own, greedy, pad_id),
                }
        if first is None:
            first = likelihoods
        else:
            found[f"kl {name}"] = _divergence(first, likelihoods)
    return found


def _likelihoods(subject: Subject, rows: Sequence[Encoded], pad_id: int) -> _Likelihoods:
    batch = collate(rows, pad_id, packed=subject.model.packed).to(subject.model.layers[0].comm.device)
    with subject.model.batch(batch.live), subject.labelled.at(batch.labels):
        whole = subject.model.module(**batch.inputs)
    logits_nV, target_n = subject.labelled.of(whole.logits, batch.labels)
    row_n = at_labels(batch.row, batch.labels)
    is_safe_n = ~at_labels(batch.is_unsafe, batch.labels)
    log_p_n = -F.cross_entropy(logits_nV.float(), target_n, reduction="none")
    log_p_R = torch.zeros(batch.num_rows, dtype=torch.float64, device=log_p_n.device)
    log_p_R.index_add_(0, row_n, log_p_n.double())
    num_tokens_R = torch.bincount(row_n, minlength=batch.num_rows)
    return _Likelihoods(log_p_R, num_tokens_R, logits_nV[is_safe_n], row_n[is_safe_n])


def _divergence(base: _Likelihoods, model: _Likelihoods) -> torch.Tensor:
    """float64 [R]: KL(model || base) at the response's tokens of each safe row, added up; 0 for unsafe rows."""
    sums_R = torch.zeros_like(base.log_p_R)
    for start in range(0, len(base.safe_row_m), TOKENS_AT_ONCE):
        some = slice(start, start + TOKENS_AT_ONCE)
        log_base, log_model = (each.safe_mV[some].double().log_softmax(-1) for each in (base, model))
        sums_R.index_add_(0, base.safe_row_m[some], (log_model.exp() * (log_model - log_base)).sum(-1))
    return sums_R


def _answers(model: MoEModel, rows: Sequence[Encoded], greedy: Sampling, pad_id: int) -> torch.Tensor:
    """int64 [R, max_new_tokens]: each row's answer, and `NO_TOKEN` behind its end."""
    device = model.layers[0].comm.device
    answers_RS = torch.full((max(len(rows), 1), greedy.max_new_tokens), NO_TOKEN, device=device)
    if not greedy.max_new_tokens:
        return answers_RS
    for row, ids in enumerate(write_answers(model, Asked.of(rows, pad_id, device), greedy)):
        answers_RS[row, : len(ids)] = torch.tensor(ids, device=device)
    return answers_RS
