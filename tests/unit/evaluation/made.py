"""Makes evaluated rows without a model."""

from dist_moe.evaluation.rows import EvaluatedRow, Outcome
from dist_moe.judges import Judgement

VERDICTS = {"r": "refused", "c": "complied", "p": "partial", "m": "missing"}


def outcome(verdict="c", *, loss=3.0, refusal_log_p=-2.0, num_tokens=5, others=None):
    """`others`: verdicts of further judges."""
    said = {"phrases": verdict, **(others or {})}
    return Outcome(
        loss_sum=loss,
        refusal_log_p=refusal_log_p,
        answer="w1 w2",
        num_tokens=num_tokens,
        ended=True,
        judgements={judge: Judgement(VERDICTS[each], "why") for judge, each in said.items()},
    )


def row(number, label="unsafe", before="c", after="c", **fields):
    """`before` and `after`: a verdict, an outcome, or None."""
    made = {
        "id": f"row{number}",
        "file": "x.jsonl",
        "place": str(number),
        "label": label,
        "category": "hexes",
        "prompt": f"{number:016x}",
        "pair_id": None,
        "kind": "held out",
        "batch": None,
        "like": None,
        "num_loss_tokens": 4,
        "kl_sum": 0.5 if label == "safe" else None,
        "before": outcome(before) if isinstance(before, str) else before,
        "after": outcome(after) if isinstance(after, str) else after,
    }
    return EvaluatedRow(**made | fields)
