import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dist_moe.stats.frames import risk_frame, select_head
from dist_moe.stats.order import selected, selection_order, unsafe_experts

# Few distinct values, so that ties and values equal to the threshold are common.
risk_diffs = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 6)),
    elements=st.sampled_from([-0.3, -0.0, 0.0, 0.04, 0.05, np.nextafter(0.05, 1), 0.06, 0.3]),
)


def slow_unsafe_experts(risk_diff_LE, threshold, top_k):
    """Take the riskiest remaining expert, again and again, in reading order among equals."""
    left = [(layer, expert) for layer in range(len(risk_diff_LE)) for expert in range(len(risk_diff_LE[0]))]
    chosen = []
    while left and len(chosen) < top_k:
        best = left[0]
        for candidate in left:
            if risk_diff_LE[candidate] > risk_diff_LE[best]:
                best = candidate
        if not risk_diff_LE[best] > threshold:
            break
        left.remove(best)
        chosen.append(best)
    return chosen


@given(risk_diffs, st.sampled_from([-1.0, 0.0, 0.05, 0.3]), st.integers(1, 30))
def test_against_a_slow_reference(risk_diff_LE, threshold, top_k):
    assert unsafe_experts(risk_diff_LE, threshold, top_k) == slow_unsafe_experts(risk_diff_LE, threshold, top_k)


@given(risk_diffs, st.integers(1, 30))
def test_head_of_the_frame_and_mask_are_the_same_experts(risk_diff_LE, top_k):
    expected = slow_unsafe_experts(risk_diff_LE, 0.04, top_k)
    head = select_head(risk_frame(risk_diff_LE, risk_diff_LE, risk_diff_LE), 0.04, top_k)
    assert list(zip(head["layer"], head["expert"], strict=True)) == expected
    assert sorted(map(tuple, np.argwhere(selected(risk_diff_LE, 0.04, top_k)).tolist())) == sorted(expected)


def test_the_riskiest_are_kept_not_the_first_layers():
    risk_diff_LE = np.array([[0.1, 0.1, 0.1], [0.2, 0.3, 0.0]])
    assert unsafe_experts(risk_diff_LE, 0.05, 2) == [(1, 1), (1, 0)]


def test_ties_go_to_the_lower_layer_then_the_lower_expert():
    risk_diff_LE = np.full((20, 30), 0.1)
    risk_diff_LE[7, 3] = 0.2
    assert unsafe_experts(risk_diff_LE, 0.05, 4) == [(7, 3), (0, 0), (0, 1), (0, 2)]
    assert selection_order(risk_diff_LE).tolist() == [213, *range(213), *range(214, 600)]


def test_order_does_not_depend_on_memory_layout():
    risk_diff_LE = np.random.default_rng(0).normal(size=(5, 7))
    fortran = np.asfortranarray(risk_diff_LE)
    assert unsafe_experts(fortran, 0.05, 9) == unsafe_experts(risk_diff_LE, 0.05, 9)


def test_threshold_itself_is_not_unsafe():
    risk_diff_LE = np.array([[0.05, 0.0500001]])
    assert unsafe_experts(risk_diff_LE, 0.05, 50) == [(0, 1)]
    assert selected(risk_diff_LE, 0.05, 50).tolist() == [[False, True]]
