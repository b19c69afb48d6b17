"""Every MoE causal language model type of transformers: what docs/families.md says of it is so."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dist_moe.config.schema import ModelConfig
from dist_moe.conformance import checks
from dist_moe.conformance.checks import CHECKS
from dist_moe.conformance.packing import refuse_packing
from dist_moe.conformance.sizes import ALL_CONFIGS, FAMILY_CONFIGS, SETTINGS
from dist_moe.conformance.specimen import CheckError, Specimen
from dist_moe.conformance.sweep import NOT_TRIED, Support, support, sweep
from dist_moe.conformance.types import moe_model_types
from dist_moe.data.tokens import TokenBatch
from dist_moe.errors import UserError
from dist_moe.model import generate
from dist_moe.model.model import MoEModel
from dist_moe.moe.natural import Natural
from dist_moe.moe.route_mask import RouteMask
from dist_moe.moe.tap import RoutingTap
from dist_moe.report.families import table
from dist_moe.tested import TESTED, minor
from dist_moe.training.optimizer import SelectiveAdamW
from tests.tiers import by_family

ALONE = {
    *("axk2", "deepseek_v32", "deepseek_v4", "dots3_note", "dots3_note_text", "glm_moe_dsa", "hy_v4"),
    "minimax_m3_vl_text",
}
"""Model types whose rows must run alone."""
NOT_PACKED = {
    *("afmoe", "gpt_oss"),  # in transformers 5.23 their masks know nothing of where rows begin
    *("bailing_hybrid", "granitemoehybrid", "inkling2_text", "inkling_text", "jamba", "kimi_linear", "lfm2_moe"),
    *("minimax", "nemotron_h", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp", "qwen4_exp_text", "zaya"),
}
"""Model types whose packed rows see each other: most have states or convolutions."""
NOT_SUPPORTED = {
    **{name: {"packing"} for name in ALONE | NOT_PACKED},
    "deepseek_v4": {"packing", "route"},
    "doge": set(CHECKS),
}
"""Model type -> what is refused, with a reason; everything else must work."""
IS_PINNED = minor(transformers.__version__) == minor(TESTED["transformers"][1])
"""Whether this is the transformers of which docs/families.md tells."""
IN_5_17 = {
    "aria_text": set(CHECKS),  # does not have the interface yet
    **{name: {"packing"} for name in ("llama4", "llama4_text")},  # chunks of packed rows are another row's too
}
if minor(transformers.__version__) == (5, 17):
    NOT_SUPPORTED |= IN_5_17
PAGE = Path(__file__).resolve().parents[3] / "docs" / "families.md"


@pytest.mark.parametrize("model_type", by_family(moe_model_types()))
def test_family(model_type: str) -> None:
    result = support(model_type)
    failed = {name for name, works in result.works.items() if not works}
    assert failed == NOT_SUPPORTED.get(model_type, set()), result.note
    page = PAGE.read_text(encoding="utf-8")
    assert not IS_PINNED or list(table([result]))[-1] in page, "docs/families.md is stale: run `make docs`"


@pytest.mark.parametrize("model_type", by_family(sorted(ALONE & set(moe_model_types()))))
def test_padding_fails_where_rows_that_must_be_alone_are_not(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_moe.model.model.must_be_alone", lambda module: False)
    with pytest.raises(CheckError, match="with padding a row of"):
        checks.padding(Specimen(model_type, tmp_path))


def test_page_says_of_which_types_padded_rows_run_alone() -> None:
    assert set(re.findall(r"^\| (\w+) \|.*\| each row runs alone", PAGE.read_text("utf-8"), re.MULTILINE)) == ALONE


def test_page_has_no_other_family() -> None:
    cells = r" (?:yes|no) \|" * len(CHECKS)
    rows = re.findall(rf"^\| (\w+) \|{cells}", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    if IS_PINNED:
        assert rows == moe_model_types()
    else:  # an older one has fewer
        assert set(moe_model_types()) <= set(rows)


def test_page_says_what_differs_in_5_17() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (?:yes|no) \|", page, re.MULTILINE)
    said = page.split("**With transformers 5.17**")[1].split("\n\n")[0]
    unknown, differing = (set(re.findall(r"\w+", part)) & set(rows) for part in said.split("Three lines differ"))
    assert differing == IN_5_17.keys()
    assert f"prints {len(rows) - len(unknown)} lines" in said
    if minor(transformers.__version__) == (5, 17):
        assert set(moe_model_types()) == set(rows) - unknown


def test_the_tests_of_all_families_leave_out_none_that_works() -> None:
    known = SETTINGS.keys() & ALL_CONFIGS.keys()
    assert FAMILY_CONFIGS.keys() == {name for name in known if NOT_SUPPORTED.get(name) != set(CHECKS)}
    assert not IS_PINNED or known == SETTINGS.keys()


def test_no_type_with_experts_of_the_interface_is_left_out() -> None:
    """Told by the source of each type's model in place of its configuration."""
    package = Path(find_spec("transformers").origin).parent / "models"  # type: ignore[union-attr, arg-type]
    with_experts = set()
    for model_type, class_name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        for file in (package / model_type_to_module_name(model_type)).glob("modeling_*.py"):
            source = file.read_text(encoding="utf-8")
            if f"class {class_name}(" in source and "@use_experts_implementation" in source:
                with_experts.add(model_type)
    assert len(with_experts) > 40
    assert with_experts <= set(moe_model_types())


def test_a_type_without_a_configuration_is_listed_as_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sweep.__globals__["ALL_CONFIGS"], "olmoe")
    assert list(sweep(["olmoe"])) == [Support("olmoe", dict.fromkeys(CHECKS, False), NOT_TRIED)]


# Each check must fail when what it is about is broken.


@pytest.fixture
def specimen(tmp_path: Path) -> Specimen:
    return Specimen("mixtral", tmp_path)


def test_tap_fails_on_a_lost_count(specimen: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RoutingTap, "_hook", lambda self, index: lambda module, args, kwargs: None)
    with pytest.raises(CheckError, match="routing counts"):
        checks.tap(specimen)


def test_padding_fails_where_a_prompts_padding_is_read(specimen: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    real = generate.collate_prompts

    def unmasked(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        ids, live = real(*args)
        return ids, torch.ones_like(live)

    monkeypatch.setattr(generate, "collate_prompts", unmasked)
    with pytest.raises(CheckError, match="counts"):
        checks.padding(specimen)


@pytest.mark.parametrize("model_type", ["lfm2_moe", "granitemoehybrid", "qwen3_next"])
def test_padding_fails_where_a_convolution_or_a_state_takes_it_in(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modeling = f"transformers.models.{model_type}.modeling_{model_type}.apply_mask_to_padding_states"
    monkeypatch.setattr(modeling, lambda hidden_states, attention_mask: hidden_states)
    with pytest.raises(CheckError, match="with padding a row of"):
        checks.padding(Specimen(model_type, tmp_path))


def test_packing_fails_where_nothing_says_where_rows_begin(specimen: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ModelConfig(path=specimen.path)
    refuse_packing("mixtral", asked, torch.device("cpu"))
    monkeypatch.setattr(TokenBatch, "inputs", property(lambda self: {"input_ids": self.input_ids, "use_cache": False}))
    with pytest.raises(CheckError, match="packed rows see each other"):
        checks.packing(specimen)
    with pytest.raises(UserError, match="'mixtral' cannot have packed rows: with sdpa attention they see each other"):
        refuse_packing("mixtral", asked, torch.device("cpu"))
    with pytest.raises(UserError, match="'later_moe' cannot have packed rows: nobody has tried it"):
        refuse_packing("later_moe", asked, torch.device("cpu"))


def test_route_fails_without_a_mask(specimen: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RouteMask, "set", lambda self, plan: None)
    with pytest.raises(CheckError, match="forbidden"):
        checks.route(specimen)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda dropped_Tk, dropping_T: (torch.zeros_like(dropped_Tk), dropping_T), "keeps a forbidden expert"),
        (lambda dropped_Tk, dropping_T: (dropped_Tk | ((~dropped_Tk).cumsum(1) > 1), dropping_T), "(natural)"),
    ],
    ids=["nothing is dropped", "the batch's second expert is dropped"],
)
def test_route_fails_on_another_natural_choice(
    specimen: Specimen, monkeypatch: pytest.MonkeyPatch, broken: Any, says: str
) -> None:
    dropped = Natural._dropped
    monkeypatch.setattr(Natural, "_dropped", lambda self, *given: broken(*dropped(self, *given)))
    with pytest.raises(CheckError) as error:
        checks.route(specimen)
    assert says in str(error.value)


def test_update_fails_on_other_gradients(specimen: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    trainable = specimen.trainable

    def broken() -> MoEModel:
        model = trainable()
        model.layers[1].bank["down_proj"][3, 0, 0] += 0.1
        return model

    monkeypatch.setattr(specimen, "trainable", broken)
    with pytest.raises(CheckError, match="plain model's"):
        checks.update(specimen)


def test_train_fails_on_a_leak(specimen: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    step = SelectiveAdamW.step

    def leaking(self: SelectiveAdamW) -> None:
        step(self)
        idle = next(key for key in self.expert_state if key not in self.active)
        self.expert_state[idle].exp_avg[0] += 1e-7

    monkeypatch.setattr(SelectiveAdamW, "step", leaking)
    with pytest.raises(CheckError, match="outside its mask"):
        checks.train(specimen)


def test_load_fails_on_another_expert(specimen: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checks.fill
    others = [[experts[0] + 1, *experts[1:]] if experts else [] for experts in checks.OWNED]
    monkeypatch.setattr(checks, "fill", lambda model, layers, path, owned: real(model, layers, path, others))
    with pytest.raises(CheckError, match="from_pretrained"):
        checks.load(specimen)


def test_export_and_verify_fail_on_a_wrong_row(specimen: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checks.trained_changes

    def shifted(*args):  # type: ignore[no-untyped-def]
        for place, data in real(*args):
            yield replace(place, name=place.name.replace("experts.0.", "experts.7.")), data

    monkeypatch.setattr(checks, "trained_changes", shifted)
    with pytest.raises(CheckError, match="export"):
        checks.export(specimen)
    with pytest.raises(CheckError, match="not verified"):
        checks.verify(specimen)
