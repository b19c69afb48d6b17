"""`train.compile` as a person types it: a stopped run goes on to the same bits, compiled anew for other first rows."""

import pytest
import torch

from tests.cli.test_resume import result
from tests.cli.test_trains import train

COMPILED = ("--train.compile", "--train.lr", "1e-2", "--train.epochs", "2")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_stopped_run_goes_on_to_the_same_bits(trained, tmp_path, capsys):
    whole, stopped, plain = tmp_path / "whole", tmp_path / "stopped", tmp_path / "plain"
    assert train(trained, whole, *COMPILED) == 0
    stopped.mkdir()
    (stopped / "STOP").touch()
    assert train(trained, stopped, *COMPILED) == 0
    assert train(trained, stopped, *COMPILED[1:]) == 2
    assert "train.compile is True there, False here" in capsys.readouterr().err
    torch._dynamo.reset()
    assert train(trained, stopped, *COMPILED) == 0
    assert "Resuming after step 1 of 4" in capsys.readouterr().out
    assert result(stopped) == result(whole)
    assert train(trained, plain, *COMPILED[1:]) == 0
    assert result(plain) != result(whole)  # another rounding
