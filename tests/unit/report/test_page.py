"""The page against its artefacts, read by loops of its own; and what it must be for everyone to read it."""

import base64
import dataclasses
import hashlib
import re
from itertools import pairwise

import numpy as np
import pytest

from dist_moe.evaluation.comparison import Comparison
from dist_moe.evaluation.curve import Curve
from dist_moe.evaluation.groups import groups_of
from dist_moe.evaluation.harness import Capabilities, Capability, Level
from dist_moe.evaluation.measures import Resampling
from dist_moe.evaluation.record import Silenced
from dist_moe.report.page.charts import thinned
from dist_moe.report.page.contents import ComparisonContents, PageContents
from dist_moe.report.page.page import page
from dist_moe.report.page.svg import tick_labels
from dist_moe.stats.crossed import Mean
from dist_moe.stats.masks import mask_hash
from dist_moe.stats.measured import Estimate
from dist_moe.training.adjustments import AdjustedBatch, Adjustment
from dist_moe.training.state import RevisionInForce
from dist_moe.training.steps import read_steps
from tests.pages import Page
from tests.reported import ATTACK, made_evaluation, made_run, steps_file, text_of


@pytest.fixture
def run(tmp_path):
    return made_run(tmp_path)


def read(*runs):
    return Page(text_of(*runs))


def test_the_map_is_of_the_counts(run):
    values = read(run).table("risk_diff of each expert")
    counts, unsafe_P = run.counts.prompt_counts[:], run.counts.index.unsafe_P
    tokens_P = run.counts.prompt_tokens[:]
    masks_BLE = run.masks.masks[:]
    assert len(values.lines) == 3
    for layer in range(2):
        line = values.line(str(layer))
        for expert in range(4):
            rates = [counts[arm_P][:, layer, expert].sum() / tokens_P[arm_P].sum() for arm_P in (unsafe_P, ~unsafe_P)]
            shown, _, mark = line[str(expert)].partition(" ")
            assert float(shown) == pytest.approx(rates[0] - rates[1], abs=5e-5)
            assert (mark == "●") == ((layer, expert) in run.training.experts)
    found = read(run).table("The 8 experts")
    for line in found.lines[1:]:
        layer, expert = int(line[0][1:3]), int(line[0][5:7])
        assert line[4] == f"{sum(mask_LE[layer, expert] for mask_LE in masks_BLE)} of 3"


def test_squares_are_where_their_experts_are(run):
    text = text_of(run)
    picture = re.search(r'<svg id="run-1-heat".*?</svg>', text, re.DOTALL)[0]
    places = {css: d for d, css in re.findall(r'<path d="([^"]*)" class="((?:above|below) level\d)"/>', picture)}
    assert "M2 0h1v1h-1z" in places["above level4"]  # L00_E02: the largest, +0.3
    assert re.search(r"M0\.22 0\.22h0\.56", places["below level2"])  # L00_E00: -0.15, a small square
    assert "3 0" not in "".join(places.values())  # exactly 0: no square


def test_batches_and_overlap_are_of_the_masks(run):
    found = read(run)
    batches = found.table("Experts of each batch")
    assert batches.column("experts") == ["1", "2", "1"]
    assert batches.column("category") == ["hexes", "hexes", "heists"]
    assert [(line[2], line[3]) for line in batches.lines[1:]] == [("1", "1")] * 3
    flat = run.masks.masks[:].reshape(3, -1)
    alike = found.table("Jaccard index of batches")
    for place, one in enumerate((2, 0, 1)):  # by category: heists, hexes
        line = alike.lines[place + 1]
        assert line[0].startswith(f"{one} ")
        for column, other in enumerate((2, 0, 1), 1):
            both, either = (flat[one] & flat[other]).sum(), (flat[one] | flat[other]).sum()
            assert line[column] == f"{both / either:.2f}"
    assert "all 3 together have 2 of the model's 8" in found.text


def test_every_measure_is_explained(run):
    text = text_of(run)
    (told,) = re.findall(r"<summary>What the measures are</summary>(.*?)</details>", text, re.DOTALL)
    shown = {line[0] for line in Page(text).table("All held-out rows").lines[1:]}
    assert len(shown) > 5
    assert shown == set(re.findall(r"<li>([^:]*?): ", told))


def test_results_are_those_of_the_rows(run):
    found = read(run).table("All held-out rows")
    held_out = [each for each in run.evaluation.rows if each.kind == "held out"]
    for label, num in (("unsafe", 8), ("safe", 7)):
        after = [each.after.judgements["phrases"].verdict == "refused" for each in held_out if each.label == label]
        line = found.line(f"refused ({label})")
        assert len(after) == num == int(line["rows"])
        assert line["after"].startswith(f"{100 * np.mean(after):.0f} % (")
        assert line["before"].startswith("0 % (")
        assert line["change"].startswith(f"+{100 * np.mean(after):.0f} points (")
    losses = [each.after.loss_sum for each in held_out if each.label == "unsafe"]
    tokens = [each.num_loss_tokens for each in held_out if each.label == "unsafe"]
    assert found.line("refusal loss (unsafe)")["after"].startswith(f"{sum(losses) / sum(tokens):.3f} (")
    group = next(g for g in run.evaluation.groups if (g.kind, g.by, g.name) == ("held out", "all", "all"))
    measure = group.measures["refused (unsafe)"]
    low, high = 100 * measure.after.low, 100 * measure.after.high
    assert found.line("refused (unsafe)")["after"] == f"75 % ({low:.0f} to {high:.0f})"
    by_category = read(run).table("By category")
    assert by_category.line("heists")["refused (unsafe)"].startswith("0 % → 75 %")
    assert by_category.line("heists")["unsafe rows"] == "4"


def test_what_after_is_and_what_another_program_has_measured(run):
    line = Capability(
        task="arc", metric="acc", num_rows=50, before=Level(value=0.5, standard_error=0.07),
        after=Level(value=0.25, standard_error=None),
    )  # fmt: skip
    table = Capabilities(version="0.4", tasks=["arc"], limit=50, lines=[line])
    silenced = Silenced(masks="masks.zarr", masks_digest="d", batches=None, num_experts=9)
    facts = dataclasses.replace(run.evaluation.facts, silenced=silenced, alpha=0.5)
    changed = dataclasses.replace(run.evaluation, facts=facts, capabilities=table)
    found = read(dataclasses.replace(run, evaluation=changed))
    assert found.table("By lm-evaluation-harness 0.4").lines[1] == ["arc, acc", "50", "0.500 ± 0.070", "0.250"]
    assert "a trial, no result" in found.text
    assert "without the 9 experts of masks.zarr, all batches" in found.text
    assert "the share 0.5 of the trained experts' change" in found.text


def test_pictures_of_changes_are_to_scale(run):
    text = text_of(run)
    picture = re.search(r'<svg id="run-1-held-out-unsafe".*?</svg>', text, re.DOTALL)[0]
    squares = [float(x) + 4 for x in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="8"', picture)]
    circles = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', picture)]
    start, end = 10, 346
    assert squares[1:] == pytest.approx([start + 0.75 * (end - start)] * 2, abs=0.01)  # the first is the key's
    assert circles[1:] == pytest.approx([start] * 2, abs=0.01)


def test_curves_are_those_of_the_steps(run):
    text = text_of(run)
    picture = re.search(r'<svg id="run-1-norm".*?</svg>', text, re.DOTALL)[0]
    points = re.search(r'<path d="M([^"]*)" class="line s0"', picture)[1].split("L")
    ys = np.array([float(point.split()[1]) for point in points])
    norms = np.array([step.grad_norm for step in run.steps])
    assert len(ys) == 6
    assert np.corrcoef(ys, norms)[0, 1] == pytest.approx(-1)  # upwards
    assert "objective from 4 to 0.6667; cross_entropy from 3 to 0.5; kl_to_base from 0.5 to 0.08333" in text


def test_an_axis_writes_all_its_numbers_in_one_way():
    assert tick_labels([0.0, 2e-4, 4e-4, 1e-3]) == ["0", "0.0002", "0.0004", "0.0010"]
    assert tick_labels([0.0, 1e-5, 3e-5]) == ["0", "1.0e-5", "3.0e-5"]
    assert tick_labels([0.0, 5e5, 1e6]) == ["0", "5.0e5", "1.0e6"]
    assert tick_labels([-0.5, 0.0, 1000.0]) == ["-0.5", "0", "1,000.0"]


def test_long_trainings_are_thinned_by_means():
    x, y = thinned([*range(1000)], [float(i % 7) for i in range(1000)], 300)
    assert len(x) == len(y) == 300
    assert y[0] == pytest.approx(np.mean([0, 1, 2]))
    assert np.mean(x) == pytest.approx(499.5, abs=1)


def test_checks_are_made_and_may_fail(run, tmp_path):
    assert "Holds: 6 of 6 steps updated their batch's mask" in read(run).text
    assert "2 of 6 steps were audited" in read(run).text
    unaudited = tuple(dataclasses.replace(step, audited=False) for step in run.steps)
    assert "No step was audited (train.audit)" in read(dataclasses.replace(run, steps=unaudited)).text
    assert "Holds: 1 of 1 trained experts are in the union" in read(run).text
    steps_file(tmp_path / "wrong.jsonl", run.masks, right=False)
    wrong = dataclasses.replace(run, steps=read_steps(tmp_path / "wrong.jsonl"))
    assert "DOES NOT HOLD: 5 of 6 steps" in read(wrong).text
    outside = dataclasses.replace(run.training, experts=[(0, 0), *run.training.experts])
    assert "DOES NOT HOLD: 1 of 2 trained experts" in read(dataclasses.replace(run, training=outside)).text


def test_limits_follow_from_the_numbers(run):
    said = read(run).text
    for limit in (
        "How many experts chance alone would select was not computed",
        'Mode "route" trained each batch with routing restricted',
        "one run from one seed",
        "Only 8 different unsafe prompts were scored (held out): the interval of their refusals is 52 points wide",
        "1 of 16 answers after training are cut at 24 tokens",
        "One judge alone",
    ):
        assert limit in said, limit
    trained = tuple(each for each in run.evaluation.rows if each.kind == "trained")
    groups = [group for group in run.evaluation.groups if group.kind == "trained"]
    only = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, rows=trained, groups=groups))
    assert "No evaluated row is held out" in read(only).text
    assert "dist-moe evaluate" in read(only).text


MEANS = {
    "base": {"refused (unsafe)": Mean(0.0, 0.0, 0.2, 20), "refused (safe)": Mean(0.0, 0.0, 0.2, 20)},
    "ours,lr=1": {"refused (unsafe)": Mean(0.65, 0.31, 0.9, 20), "refused (safe)": Mean(0.1, 0.02, 0.3, 20)},
    "<other>": {"refused (unsafe)": Mean(0.4, 0.1, 0.7, 20), "KL to the base (safe)": Mean(0.1, 0.05, 0.15, 20)},
}
LESS = {
    "base": {"refused (unsafe)": Mean(-0.65, -0.9, -0.31, 20)},
    "<other>": {"refused (unsafe)": Mean(-0.25, -0.6, 0.1, 20)},
}


def test_a_comparison_names_only_what_is_clear(tmp_path):
    values = Comparison(
        seeds=[3, 4], judge="phrases", kind="held out", data_hash="d", model_hash="m", reference="ours,lr=1",
        num_experts={"ours,lr=1": [7, 9], "<other>": [8, 8]},
        num_parameters={"ours,lr=1": [7000, 9000], "<other>": [8000, 8000]}, lrs={"ours,lr=1": 1.0, "<other>": 3e-5},
        levels=MEANS, differences=LESS,
    )  # fmt: skip
    values.write(tmp_path / "comparison.json")
    assert Comparison.read(tmp_path / "comparison.json") == values
    contents = ComparisonContents(path=tmp_path, comparison=values, rates=None)
    text = page(PageContents(runs=(), comparisons=(contents,)))
    found = Page(text)
    levels = found.table("Mean over seeds and prompts")
    assert levels.line("2 ours,lr=1") == {
        "variant": "2 ours,lr=1", "experts trained": "7 to 9", "learning rate": "1",
        "trainable parameters": "7,000 to 9,000", "refused (unsafe)": "65 % (31 to 90)",
        "refused (safe)": "10 % (2 to 30)", "KL to the base (safe)": "–",
    }  # fmt: skip
    assert levels.line("3 <other>")["KL to the base (safe)"] == "0.100 (0.050 to 0.150)"
    assert "Only 2 seeds of each variant" in found.text
    assert "Only 20 different prompts were scored" in found.text
    assert "the same number of steps, not the same effect" in found.text
    less = found.table("Differences to ours,lr=1, on the same seeds and prompts")
    assert less.line("base")["refused (unsafe)"] == "-65 points (-90 to -31) *"
    assert less.line("<other>")["refused (unsafe)"] == "-25 points (-60 to +10)"
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4"', text)
    across, up = (float(each) for each in dots[1])  # the second: the other has no rate for safe prompts
    assert len(dots) == 2
    assert across == pytest.approx(48 + 0.1 * (352 - 48), abs=0.01)
    assert up == pytest.approx(314 - 0.65 * 290, abs=0.01)


def test_masks_that_change_are_checked_and_marked(run, tmp_path):
    steps = tuple(dataclasses.replace(each, mask_revision=each.step // 4) for each in run.steps)
    assert "DOES NOT HOLD: 3 of 6 steps" in read(dataclasses.replace(run, steps=steps)).text
    changed = dataclasses.replace(run, steps=steps, later_masks=(run.masks,))
    assert "Holds: 6 of 6 steps" in read(changed).text
    assert text_of(changed).count(">masks r1</text>") == 3


def adjusted_batch(batch, value, weight, before, **fields):
    estimate = Estimate(value=value, low=value - 0.1, high=value + 0.1, num_rows=8, num_prompts=8)
    return AdjustedBatch(
        batch=batch, batch_id=f"{batch:016x}", category="hexes", value=estimate, weight=weight, weight_before=before,
        **{"is_weak": False, "repeats": 0, "experts_in": [], "experts_out": []} | fields,
    )  # fmt: skip


def test_batches_that_were_weak_in_mid_run_are_told(run):
    def adjustment(step, batches, revision):
        return Adjustment(
            step=step, measure="refusal_unsafe", below=0.8, above=None, action="both" if revision else None,
            revision=revision, batches=batches,
        )  # fmt: skip

    weak = adjusted_batch(1, 0.41, 2.0, 1.0, is_weak=True, repeats=3, experts_in=[(0, 1)], experts_out=[(0, 2), (1, 3)])
    first = adjustment(4, (adjusted_batch(0, 0.9, 1.0, 1.0), weak), RevisionInForce(2, "d" * 64))
    last = adjustment(8, (adjusted_batch(0, 0.95, 1.0, 1.0), adjusted_batch(1, 0.78, 2.0, 2.0)), None)
    found = read(dataclasses.replace(run, adjustments=(first, last)))
    (line,) = found.table("Weak batches").lines[1:]
    assert line == ["4", "1 (hexes)", "41 % (31 to 51)", "1 → 2", "3", "1", "2", "r2"]
    said = " ".join(found.text.split())
    assert "After step 4: 1 of 2 batches were weak." in said
    assert "Batch 1 (hexes): 41 % (31 to 51) after step 4 → 78 % (68 to 88) after revision 2" in said
    assert "Weak batches in mid-run" not in [title for _, title in read(run).headings]
    kept = dataclasses.replace(weak, experts_in=[], experts_out=[], num_selected=0)
    first = dataclasses.replace(first, batches=(first.batches[0], kept))
    found = read(dataclasses.replace(run, adjustments=(first, last)))
    (line,) = found.table("Weak batches").lines[1:]
    assert line[-3:] == ["0", "0", "keeps its experts, as the rule selects none from its new counts"]
    assert "78 % (68 to 88) after weight 2, with the experts that it had" in " ".join(found.text.split())


def test_a_run_that_trained_no_expert_marks_none_and_says_what_it_is(run):
    none = mask_hash(np.zeros((2, 4), bool))
    steps = tuple(dataclasses.replace(each, trains="routers", mask_hash=none) for each in run.steps)
    facts = dataclasses.replace(run.training.facts, trains="routers", union=[], num_dense_parameters=60)
    training = dataclasses.replace(run.training, facts=facts, experts=[])
    found = read(dataclasses.replace(run, steps=steps, training=training))
    assert "Note: This is a baseline. Only its routers were trained" in found.text
    assert "5.00 % of all parameters" in found.text
    assert "Holds: 6 of 6 steps" in found.text
    assert "●" not in "".join(cell for line in found.table("risk_diff of each expert").lines for cell in line)
    wrong = (dataclasses.replace(steps[0], mask_hash=run.steps[0].mask_hash), *steps[1:])
    assert "DOES NOT HOLD: 5 of 6" in read(dataclasses.replace(run, steps=wrong, training=training)).text


def test_the_way_of_the_run_has_its_numbers(run):
    said = read(run).text
    for words in (
        "3 safe and 3 unsafe, in 3 batches",
        "each prompt's routing to 2 layers x 4 experts",
        "threshold_top_k: 1 to 2 experts a batch",
        "2 of 8 experts are in at least one mask",
        "6 steps changed 1 experts",
        "16 rows, without a mask",
    ):
        assert words in said, words


def test_what_is_missing_is_told_with_its_command(run):
    bare = dataclasses.replace(run, training=None, steps=(), evaluation=None)
    said = read(bare).text
    assert "Nothing was trained: dist-moe train --config" in said
    assert "Before and after" not in [title for _, title in read(bare).headings]
    counted = dataclasses.replace(bare, masks=None)
    assert "No experts were selected: dist-moe analyze" in read(counted).text
    under_way = dataclasses.replace(run, training=None, evaluation=None)
    assert "Training has not ended; the same command goes on" in read(under_way).text
    assert "How training went" in [title for _, title in read(under_way).headings]
    facts = dataclasses.replace(run.evaluation.facts, experts_digest=None)
    model = dataclasses.replace(
        run, masks=None, counts=None, training=None, steps=(), config=None,
        evaluation=dataclasses.replace(run.evaluation, facts=facts),
    )  # fmt: skip
    assert "All held-out rows" in [table.caption for table in read(model).tables]
    assert "What is missing here" not in [title for _, title in read(model).headings]


def test_what_a_model_has_said_runs_nothing(run):
    attacked = dataclasses.replace(
        run, evaluation=made_evaluation(ATTACK), prompts={"row0": ATTACK}, path=run.path.parent / "<i>run"
    )
    text = text_of(attacked)
    found = Page(text)
    assert sum(name == "script" for name, _ in found.elements) == 1
    assert not any(name in ("img", "i") or any(key.startswith("on") for key in attributes)
                   for name, attributes in found.elements)  # fmt: skip
    assert ATTACK in found.quotes
    assert f"because {ATTACK}" in "".join(found.texts)
    assert "49" not in "".join(found.quotes)


def test_the_page_asks_for_nothing_and_allows_only_its_own_script(run):
    text = text_of(run)
    found = Page(text)
    assert not re.search(
        r'(?:src|href|url)\s*[=(]\s*["\']?(?!["\']?#)', text.split("<style>")[0] + text.split("</style>")[1]
    )
    (policy,) = [each["content"] for name, each in found.elements if each.get("http-equiv")]
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not any("style" in attributes for _, attributes in found.elements)


def test_everyone_can_read_it(run):
    found = read(run, dataclasses.replace(run, path=run.path.parent / "other"))
    assert len(set(found.addresses)) == len(found.addresses)
    targets = [each["href"][1:] for name, each in found.elements if name == "a"]
    assert set(targets) <= set(found.addresses)
    levels = [level for level, _ in found.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= level + 1 for level, later in pairwise(levels))
    pictures = [each for name, each in found.elements if name == "svg" and each.get("aria-hidden") != "true"]
    assert len(pictures) > 10
    for each in pictures:
        assert each["role"] == "img"
        assert set(each["aria-labelledby"].split()) <= set(found.addresses)
    assert all(table.caption and set(table.scopes) == {"col", "row"} for table in found.tables)


def test_it_says_no_paths_of_the_machine(run):
    assert "/home/someone" not in text_of(run)
    assert str(run.path.parent) not in text_of(run)


def test_the_same_contents_give_the_same_page(run):
    assert text_of(run) == text_of(run)


def test_shares_of_the_change_are_a_curve(run):
    kept = tuple(each for each in run.evaluation.rows if each.kind == "held out")
    less = tuple(dataclasses.replace(each, after=each.before if i % 2 else each.after) for i, each in enumerate(kept))
    evaluations = {
        alpha: dataclasses.replace(run.evaluation, rows=rows, groups=groups_of(rows, ["phrases"], Resampling(100, 0)))
        for alpha, rows in ((0.5, less), (1.0, kept))
    }
    found = read(dataclasses.replace(run, curve=Curve(evaluations))).table("Shares of the change")
    assert [line[0] for line in found.lines[1:]] == ["1 alpha 0", "2 alpha 0.5", "3 alpha 1"]
    for number, rows in ((2, less), (3, kept)):
        said = [each.after.judgements["phrases"].verdict for each in rows if each.label == "unsafe"]
        share = 100 * said.count("refused") / len(said)
        assert found.lines[number][found.head.index("refused (unsafe)")].startswith(f"{share:.0f} % (")
    assert found.lines[1][1].startswith("0 % (")


def test_runs_on_the_same_rows_are_in_one_plane(run):
    other = dataclasses.replace(run, path=run.path.parent / "other")
    found = read(run, other)
    points = found.table("The points of the picture")
    assert [line[0] for line in points.lines[1:]] == ["1 base", "2 run", "3 other"]
    assert points.lines[2][2].startswith("75 %")
    settings = run.evaluation.facts.settings | {"train.mode": "route"}
    facts = dataclasses.replace(run.evaluation.facts, settings=settings)
    trained_otherwise = dataclasses.replace(other, evaluation=dataclasses.replace(run.evaluation, facts=facts))
    assert read(run, trained_otherwise).table("The points of the picture").lines == points.lines
    facts = dataclasses.replace(run.evaluation.facts, data_hash="f" * 64)
    elsewhere = dataclasses.replace(other, evaluation=dataclasses.replace(run.evaluation, facts=facts))
    assert "Runs side by side" not in [title for _, title in read(run, elsewhere).headings]
