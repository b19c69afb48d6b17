"""What each step trains, against a plain list of steps; wrong rounds are refused."""

from itertools import cycle, islice

import numpy as np
import pytest

from dist_moe.config.load import changed, load_config
from dist_moe.config.schema import TrainConfig
from dist_moe.errors import UserError
from dist_moe.training.rounds import Rounds, Trained
from dist_moe.workflows.train_given import require_trainable


@pytest.mark.parametrize("rounds", [[("experts", 2), ("routers", 1)], [("routers", 3), ("experts", 1), ("routers", 2)]])
def test_rounds_take_turns_to_the_end(rounds):
    made = Rounds.of("experts_and_routers", [f"{what}:{steps}" for what, steps in rounds])
    turns = [what for what, steps in rounds for _ in range(steps)]
    expected = list(islice(cycle(turns), 20))
    assert [made.name_at(step) for step in range(1, 21)] == expected
    assert [made.at(step) for step in range(1, 21)] == [Trained(w == "experts", w == "routers") for w in expected]


@pytest.mark.parametrize(
    ("trains", "experts", "dense", "routers_only"),
    [
        ("experts", True, False, False),
        ("routers", False, True, True),
        ("experts_and_routers", True, True, True),
        ("experts_and_dense", True, True, False),
    ],
)
def test_without_rounds_all_steps_are_alike(trains, experts, dense, routers_only):
    made = Rounds.of(trains, TrainConfig().rounds)
    assert {made.at(step) for step in range(1, 5)} == {made.ever} == {Trained(experts, dense)}
    assert made.routers_only == routers_only
    assert made.union(np.ones((2, 3), bool)).all() == experts


@pytest.mark.parametrize(
    ("trains", "rounds", "says"),
    [
        (
            "experts_and_routers",
            ["experts"],
            "expected experts:STEPS or routers:STEPS, such as experts:20, got 'experts'",
        ),
        ("experts_and_routers", ["experts:0", "routers:1"], "got 'experts:0'"),
        ("experts_and_routers", ["dense:1"], "got 'dense:1'"),
        ("experts_and_routers", ["experts:4"], "at least one round of experts and one of routers"),
        ("experts", ["experts:2", "routers:1"], "train.trains is experts: set it to experts_and_routers"),
    ],
)
def test_wrong_rounds_are_refused(trains, rounds, says):
    with pytest.raises(UserError, match=says):
        Rounds.of(trains, rounds)


def test_all_dense_weights_need_one_process():
    words = ["--run-dir", "r", "--model.path", "m", "--data.paths", "d"]
    config = load_config(None, [*words, "--train.trains", "experts_and_dense"])
    require_trainable(config, "local")
    for engine in ("deepspeed", "fsdp"):
        with pytest.raises(UserError, match=f"experts_and_dense, which the engine {engine} cannot do.* in one process"):
            require_trainable(config, engine)
    require_trainable(changed(config, ["--train.trains", "experts_and_routers"]), "fsdp")
