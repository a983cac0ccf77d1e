"""What tests of whole studies share: plan, train to the end, read what is stored."""

import contextlib

import pyarrow.parquet as pq
import pytest

from hptransfer.study._executor import make_training
from hptransfer.study._local_engine import run_in_process
from hptransfer.study._plan import Plan
from hptransfer.study._runner import prepare_run, run_groups
from hptransfer.study.config import load_study
from hptransfer.study.store import TIMING_COLUMNS, read_trials


class InProcess:
    """An engine that trains in this process, by a function that a test has chosen."""

    def __init__(self, make):
        self._make = make

    def train(self, config, directory, groups, on_event, *, workers, checkpoint_interval):
        run_in_process(
            directory, groups, on_event, root=config.root,
            checkpoint_interval=checkpoint_interval, make_training=self._make,
        )  # fmt: skip


def prepare(study_file, directory, *, shard=None):
    """Fix the plan: that of two workers, so that each group trains on few threads."""
    return prepare_run(load_study(study_file), directory, workers=2, shard=shard)


def complete(
    study_file, directory, *, groups=None, shard=None, on_event=lambda event: None, interval=1e9,
    make=make_training,
):  # fmt: skip
    """Train what is missing, or `groups`, in this process; return what was missing."""
    work = None
    if groups is None:
        work = prepare(study_file, directory, shard=shard)
        groups = work.groups
    run_groups(
        load_study(study_file), directory, groups, on_event=on_event,
        checkpoint_interval=interval, engine=InProcess(make),
    )  # fmt: skip
    return work


class _Stop(BaseException):
    pass


def leave_checkpoints(study_file, directory, *, step=6):
    """Train each group of a planned study to about a step, and leave it as a kill would."""

    def stop(event):
        if event.kind == "step" and event.step >= step:
            raise _Stop

    work = prepare(study_file, directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hptransfer.study._executor.REPORT_INTERVAL", 0.0)
        for group in work.groups:
            with contextlib.suppress(_Stop):  # a group whose runs all diverge ends before
                complete(study_file, directory, groups=[group], on_event=stop, interval=0)
    left = list((directory / "checkpoints").glob("*.safetensors"))
    assert len(left) >= len(work.groups) / 2
    return left


def read_plan(directory):
    return Plan.read(directory).groups


def read_rows(directory):
    """All stored rows but their timings, by trial; no trial may be in two files."""
    stored = read_trials(directory)
    assert stored.damaged == ()
    files = (directory / "groups").glob("*.parquet")
    ids = [trial for path in files for trial in pq.read_table(path).column("id").to_pylist()]
    assert len(ids) == len(set(ids))
    rows = stored.rows.drop_columns(list(TIMING_COLUMNS)).to_pylist()
    return sorted(rows, key=lambda row: row["id"])
