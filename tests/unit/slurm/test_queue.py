"""What is said of the stages of a run, from what Slurm says of their jobs and from their logs."""

from dataclasses import replace

from dist_moe.report.slurm import slurm_lines
from dist_moe.slurm.queue import stages_of
from dist_moe.slurm.record import Record, Submitted
from dist_moe.slurm.scheduler import Task
from dist_moe.training.run_status import RunStatus

RUN = RunStatus(run_dir="runs/x", state="not started")


def record(tmp_path) -> Record:
    def job(stage, number, num_parts=1):
        log = str(tmp_path / f"{stage}-{number}.log")
        return Submitted(stage=stage, job=number, name=f"dist-moe-{stage}", num_parts=num_parts, log=log)

    return Record(directory="/w", jobs=[job("count", "1", 3), job("select", "2"), job("train", "3")])


def task(job, stage, state, part=None, reason="", time="1:00", nodes="n1"):
    name = f"dist-moe-{stage}"
    return Task(job=job, part=part, state=state, time=time, nodes=nodes, reason=reason, name=name, directory="/w")


COUNTS = [task("1", "count", "COMPLETED", part) for part in (1, 3)]


def said(record, tasks):
    lines = "\n".join(slurm_lines(RUN, stages_of(record, tasks))).splitlines()
    return [" ".join(line.split()) for line in lines]


def test_a_job_is_the_runs_by_number_name_and_directory(tmp_path):
    own = task("3", "train", "RUNNING")
    assert record(tmp_path).owns(own)
    for other in ({"job": "4"}, {"name": "dist-moe-count"}, {"directory": "/v"}):
        assert not record(tmp_path).owns(replace(own, **other))


def test_states_of_an_array_are_counted_and_what_follows_waits(tmp_path):
    tasks = [*COUNTS, task("1", "count", "RUNNING", 2), task("2", "select", "PENDING", reason="Dependency", nodes="")]
    tasks += [task("3", "train", "PENDING", reason="Dependency", time="0:00", nodes="")]
    assert said(record(tmp_path), tasks)[:4] == [
        "stage job state time nodes",
        "count 1 2 completed, 1 running of 3",
        "select 2 pending: count comes first 1:00",
        "train 3 pending: select comes first 0:00",
    ]


def test_of_a_failure_the_last_error_in_its_log_is_shown(tmp_path):
    log = tmp_path / "count-1_2.log"
    log.write_text("a\ndist-moe: error: first\ndist-moe: error: second\nsrun: error: n1: task 0: Exited with 2\n\n")
    tasks = [*COUNTS, task("1", "count", "FAILED", 2, reason="NonZeroExitCode")]
    tasks += [task("2", "select", "CANCELLED", reason="DependencyNeverSatisfied", time="0:00", nodes="")]
    tasks += [task("3", "train", "CANCELLED", reason="DependencyNeverSatisfied", time="0:00", nodes="")]
    lines = said(record(tmp_path), tasks)
    assert lines[2] == "select 2 cancelled: count has not succeeded 0:00"
    assert lines[3] == "train 3 cancelled: select has not succeeded 0:00"
    assert lines[4] == f"count part 2: dist-moe: error: second ({log})"
    log.write_text("Killed\n")
    assert said(record(tmp_path), tasks)[4] == f"count part 2: Killed ({log})"
    log.unlink()
    assert said(record(tmp_path), tasks)[4] == f"count part 2: it has left no message ({log})"


def test_a_job_may_wait_for_other_reasons_or_be_forgotten(tmp_path):
    tasks = [*COUNTS, task("1", "count", "COMPLETED", 2), task("2", "select", "PENDING", reason="Priority", nodes="")]
    lines = said(record(tmp_path), tasks)
    assert lines[2] == "select 2 pending (Priority) 1:00"
    assert lines[3] == "train 3 not known to Slurm any more"
    assert lines[4].startswith("runs/x: not started")
