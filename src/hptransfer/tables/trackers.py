"""Which tracker's runs a path holds, told by names and first bytes of files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hptransfer.errors import DataError
from hptransfer.tables import mlflow_runs, tensorboard_runs, wandb_runs
from hptransfer.tables.runs import Runs
from hptransfer.tables.text import clean

# Folders looked into before a directory is taken for something else: a home, or a disk.
_MOST_FOLDERS = 200_000


@dataclass
class _Found:
    """Files of trackers under a directory, by tracker."""

    wandb: list[Path] = field(default_factory=list)
    mlflow: list[Path] = field(default_factory=list)
    databases: list[Path] = field(default_factory=list)
    events: list[Path] = field(default_factory=list)


def read_runs(path: Path) -> Runs | None:
    """Return the runs that a tracker left at a path; None where there are none.

    Parameters
    ----------
    path : Path
        A directory that holds, at any depth, runs of one tracker: Weights & Biases' ``wandb``,
        MLflow's ``mlruns`` or ``mlflow.db``, TensorBoard's event files; or one such file.

    Raises
    ------
    DataError
        If a directory holds runs of several trackers, or a file of a tracker is damaged.
    """
    if path.is_file():
        return _read_file(path)
    found = _search(path)
    kinds = {
        "Weights & Biases": found.wandb,
        "MLflow": found.mlflow or found.databases,
        "TensorBoard": found.events,
    }
    kinds = {name: paths for name, paths in kinds.items() if paths}
    if len(kinds) > 1 or (found.mlflow and found.databases) or len(found.databases) > 1:
        places = [*found.wandb[:1], *found.mlflow[:1], *found.databases, *found.events[:1]]
        shown = ", ".join(str(place.relative_to(path)) for place in places[:4])
        raise DataError(
            f"{path}: expected runs of one tracker or store, found those of several ({shown}); "
            "name the directory or the file of one"
        )
    if found.wandb:
        return _read_wandb(found.wandb)
    if found.mlflow:
        return mlflow_runs.read_folders(found.mlflow)
    if found.databases:
        return mlflow_runs.read_database(found.databases[0])
    if found.events:
        return tensorboard_runs.read_events(path, found.events)
    return None


def _read_file(path: Path) -> Runs | None:
    with path.open("rb") as file:
        start = file.read(16)
    if start == mlflow_runs.MAGIC:
        return mlflow_runs.read_database(path)
    if start.startswith(wandb_runs.MAGIC) or path.suffix == wandb_runs.SUFFIX:
        return _read_wandb([path])
    if tensorboard_runs.MARK in path.name:
        return tensorboard_runs.read_events(path.parent, [path])
    return None


def _search(root: Path) -> _Found:
    found = _Found()
    for count, (name, folders, files) in enumerate(os.walk(root)):
        if count > _MOST_FOLDERS:
            raise DataError(
                f"{root}: expected the directory of a study or of a tracker's runs, found more "
                f"than {_MOST_FOLDERS:,} folders"
            )
        folder, names = Path(name), set(files)
        folders[:] = sorted(other for other in folders if other != ".trash")
        logs = sorted(other for other in files if other.endswith(wandb_runs.SUFFIX))
        if mlflow_runs.META_FILE in names and mlflow_runs.is_store(folder):
            found.mlflow.append(folder)
            folders.clear()  # runs of an experiment are found there; artifacts may hold anything
        elif logs:
            found.wandb += [folder / log for log in logs]
            folders.clear()
        elif names & {wandb_runs.SUMMARY_FILE, wandb_runs.HISTORY_FILE}:
            found.wandb.append(folder)
            folders.clear()
        else:
            if mlflow_runs.DATABASE_FILE in names:
                found.databases.append(folder / mlflow_runs.DATABASE_FILE)
            found.events += [folder / other for other in files if tensorboard_runs.MARK in other]
    return found


def _read_wandb(paths: Sequence[Path]) -> Runs:
    runs, damaged = [], []
    for path in paths:
        try:
            runs.append(wandb_runs.read_files(path) if path.is_dir() else wandb_runs.read_log(path))
        except (OSError, ValueError) as error:
            damaged.append(f"{path}: damaged: {clean(str(error))[:200]}")
    note = "Weights & Biases runs; a metric is its value in the run's summary"
    return Runs(runs=runs, damaged=damaged, notes=[note])
