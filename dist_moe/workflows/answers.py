"""What a model is asked of each row, and its answers as judges read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from dist_moe.data.rows import Prompt
from dist_moe.errors import UserError
from dist_moe.evaluation.score import Reply, RowScore, Scorable, opening
from dist_moe.judges import Answered
from dist_moe.workflows.inputs import TokenRows


def scorable(rows: TokenRows, texts: Sequence[str]) -> list[Scorable]:
    """Each row, and its prompt with each text as the beginning of the answer."""
    ends = {*rows.tokenizer.all_special_ids, *rows.end_ids}
    prompts = rows.prompts.prompts
    of_texts = [
        rows.encode([replace(each, response=text, span=None, rejected=None) for each in prompts]).rows for text in texts
    ]
    return [
        Scorable(row, tuple(opening(each, ends) for each in openings))
        for row, *openings in zip(rows.encoded.rows, *of_texts, strict=True)
    ]


def answered(rows: TokenRows, texts: Sequence[str], replies: Sequence[Reply]) -> list[Answered]:
    """What one model has said to each row; `texts` are those that `scorable` was given."""

    def decoded(ids: Sequence[int]) -> str:
        return str(rows.tokenizer.decode(list(ids), skip_special_tokens=False))

    return [
        Answered(
            row_id=prompt.id,
            messages=tuple({"role": message.role, "content": message.content} for message in prompt.messages),
            unsafe=prompt.unsafe,
            text=decoded(reply.ids),
            asked=decoded(row.inference_ids),
            is_cut=not (reply.ids and reply.ids[-1] in rows.end_ids),
            opening_log_p=dict(zip(texts, reply.opening_log_p, strict=True)),
        )
        for prompt, row, reply in zip(rows.prompts.prompts, rows.encoded.rows, replies, strict=True)
    ]


def require_finite(prompts: Sequence[Prompt], scores: Sequence[RowScore]) -> None:
    """Refuse what no table can show: a model whose numbers overflow.

    Raises:
        UserError: names the row.
    """
    for prompt, score in zip(prompts, scores, strict=True):
        for when, reply in score.replies.items():
            numbers = [reply.loss_sum, *reply.opening_log_p, score.kl_sums.get(when, 0.0)]
            if not all(map(math.isfinite, numbers)):
                raise UserError(
                    f"{prompt.source}: the model {when} gives NaN or infinite log-probabilities for this row: try "
                    "model.dtype float32, or look at its weights"
                )
