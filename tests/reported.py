"""A run that no model had to do, with its page: of stores computed by hand, and rows with known verdicts."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from dist_moe.config.schema import Config, DataConfig, ModelConfig, TrainConfig
from dist_moe.evaluation.groups import groups_of
from dist_moe.evaluation.measures import Resampling
from dist_moe.evaluation.record import Evaluation, EvaluationFacts, Judged, disagreements_of
from dist_moe.report.page.contents import PageContents, RunContents, Training
from dist_moe.report.page.page import page
from dist_moe.store import MaskStore
from dist_moe.training.steps import read_steps
from dist_moe.weights.facts import Arms, Numbers, RunFacts
from tests.unit.evaluation.made import outcome, row
from tests.unit.store.example import write_example

ATTACK = '</script></blockquote><script>alert(1)</script><img src=x onerror=alert(2)> & "quoted" \'}}{{ 7*7 }}'


def steps_file(path, store, right=True):
    lines = []
    for step, batch in enumerate([0, 1, 2, 1, 0, 2], 1):
        lines.append(
            {
                "step": step, "epoch": 0, "batch": batch, "batch_id": store.batch_ids[batch],
                "category": store.categories[batch], "mode": "update", "mask_revision": 0, "weight": 1.0,
                "num_rows": 2, "loss": 4.0 / step, "terms": {"cross_entropy": {"mean": 3.0 / step, "tokens": 9},
                "kl_to_base": {"mean": 0.5 / step, "tokens": 4}}, "grad_norm": 2.0 * step, "num_active": 1,
                "num_stepped": 1, "num_loss_tokens": 9, "num_tokens": 30, "lr": 1e-3,
                "mask_hash": store.batches[batch].mask_hash if right or step != 3 else "0" * 64,
                "audited": step in (1, 6), "seconds": 0.1, "tokens_per_second": 300.0,
            }
        )  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def made_evaluation(answer="w1 w2"):
    said = [dataclasses.replace(outcome(verdict), answer=answer) for verdict in "cr"]
    judged = dataclasses.replace(said[1].judgements["phrases"], why=f"because {answer}")
    refusing = dataclasses.replace(said[1], judgements={"phrases": judged})
    files = ["/home/someone/x.jsonl", "/home/someone/y.jsonl"]
    rows = (
        *(row(i, "unsafe", said[0], refusing if i < 6 else said[0], category="hexes" if i % 2 else "heists",
              file=files[0])
          for i in range(8)),
        *(row(10 + i, "safe", said[0], refusing if i == 0 else said[0], category=answer, file=files[1])
          for i in range(7)),
        row(30, "unsafe", said[0], dataclasses.replace(refusing, ended=False), kind="trained", batch=1),
    )  # fmt: skip
    facts = EvaluationFacts(
        model_name="tiny", model_hash="a1" * 32, against_name="tiny", against_hash="a1" * 32, experts_digest="e" * 64,
        tokenizer_hash="b2" * 32, data_hash="d" * 64, files=files, num_rows=len(rows),
        unknown=None, num_not_compared=0, judges=[Judged(facts={"name": "phrases"}, in_words="by its phrases")],
        seed=0, settings={"evaluation.resamples": 100, "evaluation.near_equal": 0.8, "evaluation.max_new_tokens": 24},
    )  # fmt: skip
    return Evaluation(
        facts=facts,
        groups=groups_of(rows, ["phrases"], Resampling(100, 0)),
        disagreements=disagreements_of(rows, ["phrases"]),
        rows=rows,
    )


def made_training(store):
    union = [(int(layer), int(expert)) for layer, expert in np.argwhere(store.union())]
    facts = RunFacts(
        masks_digest=store.digest, selection_rule=store.selection_rule, counted_tokens="prompt",
        chosen=Numbers(above_0=4, below_0=0, of_0=0), dist_moe_version="0.1.0", model_hash="a1" * 32,
        data_hash="c3" * 32, batches={"hexes": 2, "heists": 1}, prompts=Arms(safe=3, unsafe=3), mode="route",
        fill="shrink", scope="all", num_steps=6, union=union, num_union_parameters=30, num_parameters=1200,
        model_path="/home/someone/models/tiny", tokenizer_hash="b2" * 32, settings={},
    )  # fmt: skip
    return Training(facts=facts, experts=union[:1], digest="e" * 64)


def made_run(tmp_path):
    store = MaskStore.open(write_example(tmp_path / "run" / "masks.zarr"))
    steps_file(tmp_path / "run" / "metrics.jsonl", store)
    return RunContents(
        path=tmp_path / "run",
        config=Config(
            run_dir=tmp_path / "run",
            model=ModelConfig(path=Path("/home/someone/models/tiny")),
            data=DataConfig(paths=(Path("/home/someone/prompts.jsonl"),)),
            train=TrainConfig(lr=1e-3),
        ),
        masks=store,
        later_masks=(),
        counts=store.counts,
        training=made_training(store),
        steps=read_steps(tmp_path / "run" / "metrics.jsonl"),
        adjustments=(),
        evaluation=made_evaluation(),
        curve=None,
        prompts={"row0": "what row 0 asks"},
        verification=None,
        notes=(),
    )


def text_of(*runs):
    return page(PageContents(runs=runs, comparisons=()))
