import numpy as np

from dist_moe.stats.frames import risk_frame, select_head

SAFE_LE = np.array([[0.5, 0.25], [0.75, 0.0]])
UNSAFE_LE = np.array([[0.25, 0.5], [0.75, 1.0]])


def test_riskiest_first_with_its_rates():
    frame = risk_frame(SAFE_LE, UNSAFE_LE, UNSAFE_LE - SAFE_LE)
    assert frame.to_dict(orient="list") == {
        "layer": [1, 0, 1, 0],
        "expert": [1, 1, 0, 0],
        "Layer_Expert": ["L01_E01", "L00_E01", "L01_E00", "L00_E00"],
        "a_safe_n": [0.0, 0.25, 0.75, 0.5],
        "a_unsafe_n": [1.0, 0.5, 0.75, 0.25],
        "risk_diff": [1.0, 0.25, 0.0, -0.25],
    }


def test_head_is_cut_by_threshold_and_by_top_k():
    frame = risk_frame(SAFE_LE, UNSAFE_LE, UNSAFE_LE - SAFE_LE)
    assert len(select_head(frame, 0.05, 50)) == 2
    assert len(select_head(frame, 0.25, 50)) == 1
    assert len(select_head(frame, 0.05, 1)) == 1
