"""Runs of an MLflow store on this machine, read without MLflow.

MLflow opens a store to write to it: it makes tables, folders and a default experiment, and asks
for a migration of an older database. A reader has no business doing so. The file store is
``mlruns/EXPERIMENT/RUN/{meta.yaml,params/KEY,metrics/KEY}``, the database SQLite's.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from hptransfer.errors import DataError
from hptransfer.tables.runs import Run, Runs
from hptransfer.tables.text import clean, name_some

if TYPE_CHECKING:
    import sqlite3

DATABASE_FILE = "mlflow.db"
META_FILE = "meta.yaml"
MAGIC = b"SQLite format 3\x00"

_PARENT = "mlflow.parentRunId"
_NAME = "mlflow.runName"

# The file store writes states as the numbers of `mlflow.entities.RunStatus`.
_STATES = {"1": "RUNNING", "2": "SCHEDULED", "3": "FINISHED", "4": "FAILED", "5": "KILLED"}

_TABLES = ("runs", "experiments", "params", "latest_metrics", "tags")

# One run's id, then what `_select` needs of it.
_Found = tuple[str, Run, str, str]


def is_store(folder: Path) -> bool:
    """Tell whether a folder with a ``meta.yaml`` is an experiment or a run of a file store."""
    return "experiment_id" in _read_meta(folder)


def read_folders(folders: Sequence[Path]) -> Runs:
    """Return the runs of a file store, given folders of experiments or of runs.

    A metric's value is that of its last step, as in `read_database`.
    """
    found: list[_Found] = []
    damaged: list[str] = []
    for folder in folders:
        experiment = ""
        runs = [folder]
        meta = _read_meta(folder)
        if not {"run_id", "run_uuid"} & meta.keys():
            experiment = _unquote(meta.get("name", ""))
            runs = [file.parent for file in folder.glob(f"*/{META_FILE}")]
            runs.sort(key=lambda run: (_read_meta(run).get("start_time", ""), run.name))
        for run in runs:
            try:
                found.append(_read_folder(run, experiment))
            except (OSError, ValueError) as error:
                damaged.append(f"{run}: damaged: {clean(str(error))[:200]}")
    return _select(found, damaged)


def _read_folder(folder: Path, experiment: str) -> _Found:
    meta = _read_meta(folder)
    tags = {name: text for name, text in _read_values(folder / "tags") if name in (_PARENT, _NAME)}
    state = _STATES.get(meta.get("status", ""))
    if state is None:
        raise ValueError(f"{META_FILE}: expected a status from 1 to 5, found no such line")
    run = Run(
        name=folder.name,
        state=state,
        about=_describe(experiment, tags.get(_NAME, "")),
        config=dict(_read_values(folder / "params")),
        metrics={name: _find_last(name, text) for name, text in _read_values(folder / "metrics")},
    )
    return folder.name, run, meta.get("lifecycle_stage", "active"), tags.get(_PARENT, "")


def _describe(experiment: str, name: str) -> dict[str, object]:
    about = {"experiment": experiment, "name": name}
    return {key: value for key, value in about.items() if value}


def _read_meta(folder: Path) -> Mapping[str, str]:
    """Return the plain ``key: value`` lines of a folder's meta file."""
    try:
        text = (folder / META_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return dict(re.findall(r"^(\w+): *(.*?) *$", text, flags=re.MULTILINE))


def _unquote(text: str) -> str:
    """Return a scalar of YAML without the quotes that it may stand in."""
    for mark in ("'", '"'):
        if len(text) > 1 and text[0] == text[-1] == mark:
            return text[1:-1].replace(mark * 2, mark)
    return text


def _read_values(folder: Path) -> Iterator[tuple[str, str]]:
    """Return names and contents of the files of a folder: a key with ``/`` is a path."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            yield name, path.read_text(encoding="utf-8", errors="replace").strip("\r\n")


def _find_last(name: str, text: str) -> float:
    """Return the value of a metric's last step; of several, of the last time."""
    last, found = (-math.inf, -math.inf), math.nan
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.split()
        try:
            time, value = float(cells[0]), float(cells[1])
            step = float(cells[2]) if len(cells) > 2 else 0.0
        except (IndexError, ValueError):
            raise ValueError(
                f"metrics/{name}: line {number}: expected a time, a value and a step, "
                f"found {line[:60]!r}"
            ) from None
        if (step, time) >= last:
            last, found = (step, time), value
    return found


def read_database(path: Path) -> Runs:
    """Return the runs of an SQLite store; it is only read.

    Raises
    ------
    DataError
        If the file is damaged, or no store of MLflow.
    """
    import sqlite3

    address = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True)) as base:
            base.text_factory = lambda raw: raw.decode("utf-8", "replace")
            query = "SELECT name FROM sqlite_master WHERE type = 'table'"
            names = {str(name) for (name,) in base.execute(query)}
            if not names.issuperset(_TABLES):
                raise DataError(
                    f"{path}: expected an MLflow store (tables {', '.join(_TABLES)}), found "
                    f"tables {name_some(sorted(names)) or 'none'}; export a table as CSV"
                )
            return _select(list(_read_rows(base)), [])
    except (sqlite3.Error, OverflowError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: damaged SQLite database, or one in use: {clean(str(error))[:200]}"
        ) from error


def _read_rows(base: "sqlite3.Connection") -> Iterator[_Found]:
    config: dict[str, dict[str, object]] = {}
    metrics: dict[str, dict[str, object]] = {}
    parents: dict[str, str] = {}
    for run, name, value in base.execute("SELECT run_uuid, key, value FROM params ORDER BY key"):
        config.setdefault(str(run), {})[str(name)] = None if value is None else str(value)
    query = "SELECT run_uuid, key, value, is_nan FROM latest_metrics ORDER BY key"
    for run, name, value, is_nan in base.execute(query):
        metrics.setdefault(str(run), {})[str(name)] = math.nan if is_nan else float(value)
    for run, value in base.execute("SELECT run_uuid, value FROM tags WHERE key = ?", (_PARENT,)):
        parents[str(run)] = str(value)
    query = (
        "SELECT r.run_uuid, r.name, r.status, r.lifecycle_stage, e.name FROM runs r "
        "LEFT JOIN experiments e ON e.experiment_id = r.experiment_id "
        "ORDER BY r.experiment_id, r.start_time, r.run_uuid"
    )
    for uuid, name, state, stage, experiment in base.execute(query):
        run = str(uuid)
        found = Run(
            name=run,
            state=str(state or ""),
            about=_describe(str(experiment or ""), str(name or "")),
            config=config.get(run, {}),
            metrics=metrics.get(run, {}),
        )
        yield run, found, str(stage), parents.get(run, "")


def _select(found: Sequence[_Found], damaged: Sequence[str]) -> Runs:
    """Return the runs that are trials: none that was deleted, none that only holds others."""
    parents = {parent for _, _, stage, parent in found if stage != "deleted"}
    kept = [run for _, run, stage, _ in found if stage != "deleted"]
    trials = [run for run in kept if run.name not in parents]
    notes = ["MLflow runs; a metric is its value at its last step"]
    if len(kept) < len(found):
        notes.append(f"{len(found) - len(kept)} deleted run(s) left out")
    if len(trials) < len(kept):
        notes.append(f"{len(kept) - len(trials)} run(s) that hold other runs left out")
    return Runs(runs=trials, damaged=damaged, notes=notes)
