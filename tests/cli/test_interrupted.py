"""Ctrl-C and SIGTERM: one line, status 130, nothing half written."""

import contextlib
import os
import shutil
import signal
import time

import pytest

from dist_moe.cli.main import main
from dist_moe.errors import refused_by_library
from dist_moe.workflows import train
from tests.forks import start_fork


def wait_for_a_signal():
    os.write(1, b"waiting\n")
    time.sleep(60)


def slow_export(*words):
    """A command in the middle of its writing: it says so, and waits to be interrupted."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    shutil.copyfile = lambda *args, **kwargs: wait_for_a_signal()
    return main(["export", *map(str, words)])


def translated_export(*words):
    """One in which a library makes its own error of the interrupt, as extensions do."""

    def translate(*args, **kwargs):
        try:
            wait_for_a_signal()
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape of object type 'Storage'") from None

    shutil.copyfile = translate
    return main(["export", *map(str, words)])


def refused_training(*words):
    """One in which we would take a library's error for the user's."""

    def refuse(*args, **kwargs):
        with refused_by_library("model.safetensors: damaged", "copy it anew"):
            try:
                wait_for_a_signal()
            except KeyboardInterrupt:
                raise ValueError("not a tensor") from None

    train.build_parts = refuse
    return main(["train", *map(str, words)])


def deaf_training(*words):
    """One in which the interrupt of its set-up is swallowed."""
    build = train.build_parts

    def swallow(*args):
        with contextlib.suppress(KeyboardInterrupt):
            wait_for_a_signal()
        return build(*args)

    train.build_parts = swallow
    return main(["train", *map(str, words)])


def interrupted(folder, command, *words, number=signal.SIGTERM):
    """The ended job, to which the signal was sent when it waited for it."""
    job = start_fork(folder, command, *words)
    while not (job.out.exists() and "waiting" in job.out.read_text()):
        assert job.process.is_alive()
        time.sleep(0.01)
    os.kill(job.process.pid, number)
    return job


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_export(trained, tmp_path, tmp_path_factory, number):
    words = (trained.run_dir, "--out", tmp_path / "new" / "out")
    job = interrupted(tmp_path_factory.mktemp("streams"), slow_export, *words, number=number)
    assert (job.status(), job.err.read_text()) == (130, "dist-moe: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_a_library_translates(trained, tmp_path, tmp_path_factory):
    words = (trained.run_dir, "--out", tmp_path / "new" / "out")
    job = interrupted(tmp_path_factory.mktemp("streams"), translated_export, *words)
    assert (job.status(), job.err.read_text()) == (130, "dist-moe: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_no_fault_of_the_input(trained, tmp_path):
    words = ("--config", trained.config, "--train.masks", trained.masks, "--run-dir", tmp_path / "new")
    job = interrupted(tmp_path, refused_training, *words)
    assert (job.status(), job.err.read_text()) == (130, "dist-moe: interrupted\n")


def test_training_heeds_a_swallowed_interrupt_after_its_next_step(trained, tmp_path):
    words = ("--config", trained.config, "--train.masks", trained.masks, "--run-dir", tmp_path / "new")
    job = interrupted(tmp_path, deaf_training, *words)
    assert job.status() == 0, job.err.read_text()
    assert "as requested, with a checkpoint" in job.out.read_text()
    assert len((tmp_path / "new" / "metrics.jsonl").read_text().splitlines()) == 1
