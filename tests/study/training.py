"""What tests of whole studies share: plan, train to the end, read what is stored."""

import pyarrow.parquet as pq

from hptransfer.study.config import load_study
from hptransfer.study.result import TIMING_COLUMNS
from hptransfer.study.runner import prepare_run, run_groups
from hptransfer.study.store import read_trials


def prepare(study_file, directory, *, shard=None):
    """Fix the plan: that of two workers, so that each group trains on few threads."""
    return prepare_run(load_study(study_file), directory, workers=2, shard=shard)


def complete(study_file, directory, *, groups=None, on_event=lambda event: None, interval=1e9):
    """Train what is missing, or `groups`, in this process."""
    groups = prepare(study_file, directory).groups if groups is None else groups
    run_groups(
        load_study(study_file), directory, groups, workers=1, on_event=on_event,
        checkpoint_interval=interval,
    )  # fmt: skip


def read_rows(directory):
    """All stored rows but their timings, by trial; no trial may be in two files."""
    stored = read_trials(directory)
    assert stored.damaged == ()
    files = (directory / "groups").glob("*.parquet")
    ids = [trial for path in files for trial in pq.read_table(path).column("id").to_pylist()]
    assert len(ids) == len(set(ids))
    rows = stored.rows.drop_columns(list(TIMING_COLUMNS)).to_pylist()
    return sorted(rows, key=lambda row: row["id"])
