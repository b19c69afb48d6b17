"""What a GPU would feel of a step: where its host waits, how many kernels it launches, what it keeps in memory.

The fake GPU is a device of its own for torch, so it lives in a process of its own.
"""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import pytest

from dist_moe.conformance.sizes import FAMILY_CONFIGS
from tests.forks import server
from tests.tiers import by_family

NO_LOGITS = {"deepseek_v4"}
"""Hash-routed, so refused for route masks."""
FAILS_IN_BFLOAT16 = {"inkling2_text"}
"""The plain model's own router multiplies float32 by bfloat16."""
FAMILIES = sorted(set(FAMILY_CONFIGS) - NO_LOGITS - FAILS_IN_BFLOAT16)
WAYS = {
    "update": {"mode": "update"},
    "natural": {"mode": "route", "fill": "natural"},
    "unsafe": {"mode": "route", "fill": "natural", "scope": "unsafe"},
    "shrink": {"mode": "route", "fill": "shrink", "scope": "all"},
    "best": {"mode": "route", "fill": "best", "scope": "unsafe"},
    "bias": {"mode": "route", "fill": "bias", "scope": "unsafe"},
}
PER_STEP = 4
"""The monitor's table, the norms, the numbers of tokens, and the losses: each is read once a step."""


LAUNCHES = {"update": 49, "natural": 67, "shrink": 60}
"""Operations with a kernel that we add to a MoE layer of qwen3_moe in a micro-batch, forward and backward, at most."""
STEP = 39
"""And those of a step, whatever its layers and micro-batches, at most."""


@pytest.fixture(scope="module")
def child():
    with ProcessPoolExecutor(1, mp_context=server()) as pool:
        yield lambda name, *args, **kwargs: pool.submit(_call, name, args, kwargs).result(timeout=120)


def _call(name, args, kwargs):
    from tests import gpu_steps

    return getattr(gpu_steps, name)(*args, **kwargs)


def ours(waits):
    """The waits at our own lines; families wait for themselves, too."""
    return {place: number for place, number in waits.items() if place.startswith("dist_moe/")}


@pytest.mark.parametrize("family", by_family(FAMILIES))
def test_a_step_waits_for_the_device_in_no_layer(child, family):
    found = child("step", family, WAYS["unsafe"])
    assert sum(ours(found["waits"]).values()) <= PER_STEP, found["waits"]
    assert found["launches"]["_grouped_mm"] > 0


@pytest.mark.parametrize("way", ["shrink", "best", "bias"])
def test_no_way_of_routing_waits_in_a_layer(child, way):
    found = child("step", "gpt_oss", WAYS[way], num_micro=2)
    assert sum(ours(found["waits"]).values()) <= PER_STEP, found["waits"]


@pytest.mark.parametrize(
    ("family", "way"),
    [
        *(("gpt_oss", way) for way in ("update", "unsafe", "shrink")),
        ("longcat_flash", "shrink"),
        *(pytest.param("gpt_oss", way, marks=pytest.mark.long) for way in ("natural", "best", "bias")),
    ],
)
def test_where_the_host_knows_no_sizes_losses_and_weights_are_the_cpus(child, family, way):
    found = child("step", family, WAYS[way], dtype="float32", num_micro=2, compare=True)
    assert found["loss"] == pytest.approx(found["on_cpu"], rel=1e-6)
    assert found["moved"] > 1e-4
    assert found["apart"] < 1e-5


def test_launches_do_not_grow_with_the_mask(child):
    few, many = (child("step", "qwen3_moe", WAYS["update"], share=share) for share in (0.2, 0.8))
    assert 2 * few["active"] < many["active"]
    more = Counter(many["launches"])
    more.subtract(few["launches"])
    assert {name: number for name, number in more.items() if number} == {}


def test_a_batch_that_was_made_ready_is_not_waited_for(child):
    found, pageable = child("fed", ahead=True), child("fed", ahead=False)
    assert found["bytes"] > 64 << 10
    assert sum(ours(found["waits"]).values()) == PER_STEP
    assert sum(ours(pageable["waits"]).values()) > PER_STEP


def test_what_is_saved_does_not_wait_for_each_expert(child, tmp_path):
    few, many = (child("saved", share, str(tmp_path / str(share))) for share in (0.2, 0.8))
    assert 2 * few["experts"] < many["experts"]
    assert ours(few["waits"]) == ours(many["waits"])
    assert (
        sum(ours(many["waits"]).values()) == 4
    )  # which experts were updated, and their state; which, and their weights
    assert few["equal"]
    assert many["equal"]


def test_the_gradients_of_more_experts_take_the_place_of_those_before(child):
    found = child("gradients_grow")
    assert 0 < found["few"] < found["many"] == found["peak"]


def launches(child, way, *, layers, num_micro):
    """Our own, as the waits of `ours`."""
    found = child("step", "qwen3_moe", WAYS[way], num_micro=num_micro, num_hidden_layers=layers)
    return sum(ours(found["places"]).values())


@pytest.mark.parametrize("way", sorted(LAUNCHES))
def test_launches_of_an_experts_layer(child, way):
    micro_batch = {
        n: launches(child, way, layers=n, num_micro=2) - launches(child, way, layers=n, num_micro=1) for n in (3, 4)
    }
    assert micro_batch[4] - micro_batch[3] <= LAUNCHES[way]
    assert 2 * launches(child, way, layers=3, num_micro=1) - launches(child, way, layers=3, num_micro=2) <= STEP


def test_ranks_that_share_experts_wait_once_a_layer(child):
    found = child("passes_of_twins", "gpt_oss")
    assert ours(found["waits"]) == {next(iter(ours(found["waits"]))): found["layers"]}
    # counts, tokens there and back; then gradients there and back: below the first layer nothing is trained
    assert found["exchanges"] == 5 * found["layers"] - 1


def test_rows_that_are_not_computed_are_not_used(child):
    assert child("pass_without_tokens", "gpt_oss") == {"finite": True, "gradients": 0}
