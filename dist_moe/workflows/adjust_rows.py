"""The rows that batches are judged by in mid-run (`train.adjust`), and how each batch does on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from dist_moe.config.adjust import RATES
from dist_moe.config.schema import Config
from dist_moe.data.batches import UNCATEGORISED
from dist_moe.data.encoded import EncodedRows
from dist_moe.errors import UserError, shown
from dist_moe.evaluation.batches import mean_loss, refusal_rate
from dist_moe.evaluation.measures import Resampling
from dist_moe.evaluation.score import RowScore, Scorable, Subject, score_rows
from dist_moe.judges import Judge
from dist_moe.model.model import MoEModel
from dist_moe.parallel.alone import alone
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.stats.design import text_key
from dist_moe.stats.measured import Estimate
from dist_moe.workflows.answers import answered, require_finite, scorable
from dist_moe.workflows.inputs import Inputs, TokenRows, read_token_rows
from dist_moe.workflows.judges import chosen_judges


@dataclass(frozen=True, slots=True)
class JudgedRows:
    """Rows of one label, and which of them each batch is judged by; the same on all ranks."""

    rows: TokenRows
    of_batch: tuple[tuple[int, ...], ...]
    """[B]: indices into the rows."""
    names: tuple[str, ...]
    """Of the batches."""
    judge: Judge | None
    """Who says what a refusal is; None: the measure is a loss."""
    texts: tuple[str, ...]
    """Beginnings of answers whose likelihood the judge reads."""
    asked: tuple[Scorable, ...]
    """What the model is asked of each row."""
    prompts: tuple[str, ...]
    """Of each row; equal for rows of one prompt."""
    config: Config

    @classmethod
    def read(cls, config: Config, inputs: Inputs) -> JudgedRows:
        """Read them, on each rank for itself.

        Raises:
            UserError: `train.adjust.data` has no row of some batch's category, or a row there cannot be used.
        """
        adjust, index = config.train.adjust, inputs.batches
        is_unsafe = adjust.label == "unsafe"
        if adjust.data:
            rows: TokenRows = read_token_rows(replace(config, data=replace(config.data, paths=adjust.data)))
            of_batch = _by_category(rows, is_unsafe, index.categories, config)
        else:
            rows = inputs
            taken = [inputs.plan.taken_P[index.rows(batch)] for batch in range(len(index))]
            of_batch = [[row for row in some if inputs.prompts.prompts[row].unsafe == is_unsafe] for some in taken]
        chosen = sorted({row for some in of_batch for row in some})
        place = {row: number for number, row in enumerate(chosen)}
        judge = chosen_judges(config)[0] if adjust.measure in RATES else None
        rows, texts = _part(rows, chosen), () if judge is None else judge.openings
        return cls(
            rows=rows,
            of_batch=tuple(tuple(place[row] for row in some) for some in of_batch),
            names=index.names,
            judge=judge,
            texts=texts,
            asked=tuple(scorable(rows, texts)),
            prompts=tuple(f"{text_key(prompt.question):016x}" for prompt in rows.prompts.prompts),
            config=config,
        )

    @property
    def num_prompts(self) -> list[int]:
        """[B]: different prompts that each batch is judged by."""
        prompts = self.rows.prompts.prompts
        return [len({prompts[i].question for i in some}) for some in self.of_batch]

    def measure(self, model: MoEModel, comm: Comm) -> list[Estimate | None]:
        """[B]: how the model does now, without a mask. Called by all ranks together, which all get the same."""
        settings = self.config.evaluation
        scores = score_rows(
            {"in training": Subject(model)},
            self.asked,
            max_new_tokens=0 if self.judge is None else settings.max_new_tokens,
            micro_batch_tokens=settings.micro_batch_tokens,
            pad_id=self.rows.pad_id,
            eos_ids=self.rows.end_ids,
            comm=comm,
            progress=lambda _: None,
        )
        with together(comm):
            require_finite(self.rows.prompts.prompts, scores)
        if self.judge is None:
            return [self._loss(batch, scores) for batch in range(len(self.of_batch))]
        refused = self._refused(scores, comm)
        return [refusal_rate([self.prompts[i] for i in some], [refused[i] for i in some]) for some in self.of_batch]

    def _loss(self, batch: int, scores: Sequence[RowScore]) -> Estimate | None:
        some, resampling = self.of_batch[batch], Resampling(self.config.evaluation.resamples, self.config.seed)
        return mean_loss(
            [self.prompts[i] for i in some],
            [scores[i].replies["in training"].loss_sum for i in some],
            [scores[i].num_loss_tokens for i in some],
            resampling,
            self.names[batch],
        )

    def _refused(self, scores: Sequence[RowScore], comm: Comm) -> list[bool | None]:
        """Of each row, as the first rank's judge says; None: it could not tell."""
        assert self.judge is not None
        judge, said = self.judge, list[bool | None]()

        def work() -> None:
            replies = [score.replies["in training"] for score in scores]
            judgements = judge.judge(answered(self.rows, self.texts, replies))
            said.extend(None if each.verdict == "missing" else each.verdict == "refused" for each in judgements)

        alone(comm, work)
        return comm.gather(said)[0]


def _by_category(rows: TokenRows, is_unsafe: bool, categories: Sequence[str], config: Config) -> list[list[int]]:
    """[B]: the rows of the batch's category."""
    found: dict[str, list[int]] = {}
    for number, prompt in enumerate(rows.prompts.prompts):
        if prompt.unsafe == is_unsafe:
            found.setdefault(prompt.category or UNCATEGORISED, []).append(number)
    for category in categories:
        if category not in found:
            raise UserError(
                f"train.adjust.data: there is no {config.train.adjust.label} row of the category {shown(category)}, by "
                "which its batches would be judged: add some, or leave train.adjust.data out"
            )
    return [found[category] for category in categories]


def _part(rows: TokenRows, chosen: Sequence[int]) -> TokenRows:
    """Some of the rows; the hashes stay those of all."""
    known = {field.name: getattr(rows, field.name) for field in fields(TokenRows)}
    prompts = replace(rows.prompts, prompts=tuple(rows.prompts.prompts[i] for i in chosen))
    encoded = replace(rows.encoded, rows=EncodedRows.of(rows.encoded.rows[i] for i in chosen))
    return TokenRows(**known | {"prompts": prompts, "encoded": encoded})
