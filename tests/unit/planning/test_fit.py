"""Which GPUs have room, which settings make it, and which layouts are not possible."""

from dataclasses import replace

import pytest

from dist_moe.planning.fit import Trained, counting, fit, rejected, room
from dist_moe.planning.memory import Setup, counting_memory, training_memory
from dist_moe.planning.outline import known_model
from dist_moe.planning.traffic import traffic

TRAINED = Trained(in_all=614, in_batch=50)


@pytest.fixture(scope="module")
def qwen():
    return known_model("qwen3-30b-a3b").outline


def setup(num_ranks, **more):
    return Setup(num_ranks=num_ranks, ep_size=num_ranks, row_tokens=1024, answer_tokens=1024, **more)


def words(found):
    return [change.words for change in found.changes]


def test_a_run_that_fits_as_it_is_set_needs_no_change(qwen):
    found = fit(qwen, setup(8), TRAINED, 80)
    assert found.fits
    assert not found.changes
    assert found.needs == training_memory(qwen, setup(8), TRAINED.share(qwen, setup(8))).total <= room(80)


def test_changes_are_the_cheapest_that_are_enough(qwen):
    one = setup(1)
    found = fit(qwen, one, TRAINED, 80)
    assert found.needs <= room(80)
    assert found.setup.offloads
    without = replace(found.setup, offloads=False)
    assert training_memory(qwen, without, TRAINED.share(qwen, without)).total > room(80)
    assert not fit(qwen, one, TRAINED, 192).setup.offloads


def test_where_nothing_helps_the_least_need_is_said(qwen):
    found = fit(qwen, setup(1), TRAINED, 24)
    assert not found.fits
    assert found.setup is None
    assert found.needs > qwen.total_bytes
    assert "--parallel.offload_optimizer cpu" in words(found)


def test_layouts_are_rejected_with_their_reason(qwen):
    reasons = {each.ep_size: each.reason for each in rejected(qwen, replace(setup(256), ep_size=128), TRAINED, 40)}
    assert reasons[256] == "128 experts of a layer cannot be split over 256 ranks"
    assert reasons[1].startswith("needs ")
    assert "of which a plan uses 37" in reasons[1]
    assert 16 not in reasons


def test_counting_takes_as_few_ranks_for_a_copy_as_have_room(qwen):
    assert counting(qwen, setup(8), 8192, 80).words == ""
    assert counting(qwen, setup(8), 8192, 40).words == "--analysis.ep_size 2"
    assert counting_memory(qwen, 2, 8192) <= room(40) < counting_memory(qwen, 1, 8192)
    assert counting(qwen, setup(1), 8192, 24) is None


def test_counting_with_fewer_tokens_in_a_pass_may_fit_where_all_ranks_are_too_few(qwen):
    gpu = next(size for size in range(1, 200) if room(size) > counting_memory(qwen, 1, 2048))
    assert room(gpu) < counting_memory(qwen, 1, 8192)
    assert counting(qwen, setup(1), 8192, gpu).words == "--analysis.micro_batch_tokens 2048"


def test_counting_has_room_for_the_mask_between_packed_rows(qwen):
    packed = setup(1, masks_rows=True)
    tokens = 65_536  # whose pairs take 12.9 GB
    assert counting_memory(qwen, 1, tokens, masks_rows=True) - counting_memory(qwen, 1, tokens) == 3 * tokens**2
    gpu = next(size for size in range(1, 400) if room(size) > counting_memory(qwen, 1, tokens))
    assert counting(qwen, setup(1), tokens, gpu).words == ""
    assert counting(qwen, packed, tokens, gpu).words == "--analysis.micro_batch_tokens 16384"


def test_ranks_that_hold_everything_send_no_tokens(qwen):
    alone = replace(setup(8), ep_size=1)
    sent = traffic(qwen, alone, TRAINED.share(qwen, alone))
    assert sent.tokens == sent.dense == 0
    per_expert = qwen.expert_parameters * (4 + 2)
    assert sent.experts == pytest.approx(50 / 8 * 7 * per_expert, rel=0.05)
