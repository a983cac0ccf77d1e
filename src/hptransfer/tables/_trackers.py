"""Runs that trackers, tuners and trainers left, through their own libraries or as plain text."""

import csv
import importlib
import io
import json
import os
import re
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hptransfer.errors import DataError
from hptransfer.tables import _raw_table as cells
from hptransfer.tables._columns import KNOWN
from hptransfer.tables._raw_table import RawTable, clean, unexpected
from hptransfer.tables._table_files import tabulate, to_cells

# Folders looked into before a directory is taken for something else: a home, or a disk.
_MOST_FOLDERS = 200_000
# What a run was set to comes from its settings, what it reached from its metrics: a logged "lr" is
# what a schedule had come down to, and a setting called "loss" is the name of a function.
_AS_METRIC = frozenset(KNOWN) - {"loss", "tokens", "params"} | {"learning_rate"}

# Files in plain text that hold what a run measured, likeliest first, and what it was set to.
_METRICS = (
    "trainer_state.json", "result.json", "progress.csv", "metrics.csv", "wandb-summary.json",
    "metrics.json", "results.json", "log.csv", "metrics.jsonl", "log.jsonl",
)  # fmt: skip
# Those that anybody's file may be called, and a run's only beside what it was set to.
_LOGS = frozenset({"log.csv", "metrics.jsonl", "log.jsonl"})
_SETTINGS = (
    "hparams.yaml", "params.json", ".hydra/config.yaml", "config.json", "config.yaml", "args.json",
    "args.yaml",
)  # fmt: skip
_TENSORBOARD = (
    "tensorboard.backend.event_processing.event_accumulator",
    "tensorboard.plugins.hparams.plugin_data_pb2",
    "tensorboard.util.tensor_util",
)


@dataclass
class _Run:
    """One run: what is known of it, its settings, and each metric's last value and step."""

    facts: dict[str, object]
    config: dict[str, object] = field(default_factory=dict)
    metrics: dict[str, object] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)

    def log(self, name: str, value: object, step: float) -> None:
        """Take a value of a metric, unless one of a later step was logged."""
        is_told = cells.is_nan(value) or not cells.is_empty(value)
        if is_told and self.steps.get(name, -np.inf) <= step:
            self.metrics[name], self.steps[name] = value, step


def _import_library(module: str, extra: str, path: object) -> Any:
    """Import a tracker's library, or raise the error that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(
            f"{path}: reading it takes {module.partition('.')[0]}: "
            f"pip install 'hptransfer[{extra}]', or export a table as CSV"
        ) from None


def read_runs(path: Path) -> RawTable | None:
    """Return the runs at a path as a table, with notes and files that are damaged.

    Parameters
    ----------
    path : Path
        A directory that holds runs of one tracker at any depth, a file of one, or
        ``wandb:ENTITY/PROJECT`` for runs on a server.

    Returns
    -------
    RawTable or None
        None where the path holds no runs that are known.

    Raises
    ------
    DataError
        If a directory holds runs of several trackers, a library is missing, or no run is read.
    """
    found = _search(path)
    if len(found) > 1:
        shown = ", ".join(str(paths[0].relative_to(path)) for paths in found.values())
        told = f"those of several ({shown}); name the directory or the file of one"
        raise unexpected(path, "runs of one tracker or store", told)
    for what, files in found.items():
        damaged: list[str] = []
        with warnings.catch_warnings():  # the libraries' own, of each other
            warnings.simplefilter("ignore")
            runs = [*_KINDS[what].read(path.parent if path.is_file() else path, files, damaged)]
        if not runs:
            reason = f"; {damaged[0]}" if damaged else ""
            raise DataError(f"{path}: {what}: expected at least one run, found none{reason}")
        for run in runs:
            run.config, run.metrics = _flatten(run.config), _flatten(run.metrics)
        set_up = [run for run in runs if run.config] or runs
        raw = replace(_tabulate(str(path), set_up), damaged=damaged)
        raw.tell("tracker", what=what)
        if len(set_up) < len(runs):
            raw.tell("no_settings", count=len(runs) - len(set_up))
        return raw
    return None


def _tabulate(source: str, runs: Sequence[_Run]) -> RawTable:
    """Return a table of runs: ``run``, ``state``, what is known beside, settings and metrics.

    A name that two of these share is written ``config.NAME`` and ``metric.NAME``, as are a metric
    called like a setting of ours and a setting called ``loss``.
    """
    kinds = ("facts", "config", "metrics")
    facts, config, metrics = ({n for run in runs for n in getattr(run, kind)} for kind in kinds)
    clashes = {n for n in config if n in facts | metrics or n.lower() == "loss"}
    settings = {n: clean(f"config.{n}" if n in clashes else n) for n in config}
    clashes = {n for n in metrics if n in facts | config or n.lower() in _AS_METRIC}
    reached = {n: clean(f"metric.{n}" if n in clashes else n) for n in metrics}

    def list_cells(run: _Run) -> Iterator[tuple[str, object]]:
        yield from ((name, cell) for name, cell in run.facts.items() if cell)
        yield from ((settings[name], cell) for name, cell in run.config.items())
        yield from ((reached[name], cell) for name, cell in run.metrics.items())

    rows = ((f"run {clean(str(run.facts['run']))[:80]}", list_cells(run)) for run in runs)
    raw = tabulate(source, rows)
    last = {reached[n]: np.array([run.steps.get(n, np.nan) for run in runs]) for n in metrics}
    return replace(raw, last_steps=last)


def _flatten(found: Mapping[str, object]) -> dict[str, object]:
    """Return nested settings or metrics under names joined by dots, less those of W&B's own."""
    return {name: cell for name, cell in to_cells(found) if not name.startswith("_wandb")}


def _search(root: Path) -> dict[str, list[Path]]:
    """Return files of runs at a path or under it, by the kind of run."""
    found: dict[str, list[Path]] = {}
    if str(root).startswith("wandb:"):
        return {"W&B runs": [root]}
    if root.is_file():
        with root.open("rb") as file:
            start = file.read(64)
        begun = (w for w, kind in _KINDS.items() if kind.start and start.startswith(kind.start))
        what = next(begun, None) or _tell_kind(root.name)
        return {what: [root]} if what else {}
    for count, (folder, folders, files) in enumerate(os.walk(root)):
        if count > _MOST_FOLDERS:
            expected = "the directory of a study or of a tracker's runs"
            raise unexpected(root, expected, f"more than {_MOST_FOLDERS:,} folders")
        folders[:] = sorted({*folders} - {".trash", ".git"})
        if "meta.yaml" in files:  # MLflow finds the runs of its store; artifacts hold anything
            folders.clear()
            files = ["meta.yaml"]
        logs = _LOGS.intersection(files)
        if logs and not any(Path(folder, name).is_file() for name in _SETTINGS):
            files = [name for name in files if name not in logs]
        for name in sorted(files):
            if what := "run folders" if name in _METRICS else _tell_kind(name):
                found.setdefault(what, []).append(Path(folder, name))
    # Plain text says what a run's other files say, and needs no library.
    plain = {path.parent for path in found.get("run folders", ())}
    above = {folder for path in plain for folder in path.parents}
    for what in ("W&B logs", "TensorBoard events") if plain else ():
        if all(p.parent in above or plain & {*p.parents} for p in found.get(what, ())):
            found.pop(what, None)
    return found


def _tell_kind(name: str) -> str | None:
    return next((what for what, kind in _KINDS.items() if fnmatchcase(name, kind.name)), None)


@contextmanager
def _blame(place: object, damaged: list[str] | None = None) -> Iterator[None]:
    """Turn whatever a library raises on a damaged store into an error of ours, or a line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        told = clean(str(error) or type(error).__name__)[:200]
        if damaged is None:
            raise DataError(f"{place}: not readable: {told}") from error
        damaged.append(f"{place}: damaged: {told}")


def _read_events(root: Path, files: Sequence[Path], damaged: list[str]) -> Iterator[_Run]:
    """Yield a run for each folder of event files that holds settings, with its inner folders.

    ``SummaryWriter.add_hparams`` writes settings to a folder of their own inside the run's: the
    only such folder inside another is that one's. Ray Tune writes them to ``params.json``.
    """
    libraries = [_import_library(name, "tensorboard", root) for name in _TENSORBOARD]
    folders: dict[Path, _Run] = {}
    for folder in sorted({file.parent for file in files}, key=_sort_key):
        run = _Run({"run": str(folder.relative_to(root)) if folder != root else folder.name})
        with _blame(folder, damaged):
            _take_events(run, folder, *libraries)
            folders[folder] = run
    above = {
        path: next((outer for outer in path.parents if outer in folders), path)
        for path, run in folders.items()
        if run.config
    }
    homes: dict[Path, _Run] = {}
    for path, outer in above.items():
        is_inner = outer not in above and [*above.values()].count(outer) == 1
        homes[outer if is_inner else path] = folders[path]
    runs: dict[Path, _Run] = {}
    for path, run in folders.items():
        top = next((p for p in (path, *path.parents) if p in homes), path)
        told = homes.get(top, run)
        found = runs.setdefault(top, _Run({**told.facts, **folders[top].facts}, told.config))
        prefix = "" if run.config or top == path else f"{path.relative_to(top).as_posix()}/"
        for metric, value in run.metrics.items():
            found.log(prefix + metric, value, run.steps[metric])
    yield from runs.values()


def _take_events(run: _Run, folder: Path, accumulators: Any, plugin: Any, tensors: Any) -> None:
    """Take the metrics and settings of a folder of event files."""
    sizes = {"scalars": 0, "tensors": 0, "images": 1, "audio": 1, "histograms": 1}
    events = accumulators.EventAccumulator(str(folder), size_guidance=sizes).Reload()
    for tag in events.scalars.Keys():
        for event in events.Scalars(tag):
            run.log(tag, event.value, event.step)
    for tag in events.tensors.Keys():
        for event in events.Tensors(tag):
            value = tensors.make_ndarray(event.tensor_proto)
            if value.dtype.kind == "f" and value.size == 1:
                run.log(tag, float(value.item()), event.step)
    with suppress(KeyError):
        for content in events.PluginTagToContent("hparams").values():
            data = plugin.HParamsPluginData.FromString(content)
            for name, value in data.session_start_info.hparams.items():
                cell: Any = getattr(value, value.WhichOneof("kind") or "list_value")
                whole = isinstance(cell, float) and cell.is_integer()
                run.config[name] = int(cell) if whole else cell
                run.facts.setdefault("state", "running")
            if data.HasField("session_end_info"):
                run.facts["state"] = {1: "success", 2: "failed"}.get(data.session_end_info.status)


def _read_database(root: Path, files: Sequence[Path], damaged: list[str]) -> Iterator[_Run]:
    """Yield the runs of a SQLite database that Optuna or MLflow keeps, from a copy of it."""
    path = files[0]
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(path, Path(folder) / "copy.db")
        with _blame(f"{path}: damaged SQLite database"), closing(sqlite3.connect(copy)) as base:
            query = "SELECT name FROM sqlite_master WHERE type = 'table'"
            tables = sorted(str(name) for (name,) in base.execute(query))
        if "study_directions" in tables:
            yield from _read_studies(path, f"sqlite:///{copy}")
        elif "latest_metrics" in tables:
            yield from _read_mlflow(path, f"sqlite:///{copy}")
        else:
            found = f"tables {', '.join(tables[:6]) or 'none'}"
            raise unexpected(path, "a database of Optuna or MLflow", found, "export a table as CSV")


def _read_journal(root: Path, files: Sequence[Path], damaged: list[str]) -> Iterator[_Run]:
    """Yield the trials of an Optuna journal, from a copy of it."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _read_studies(files[0], shutil.copy(files[0], folder))


def _read_studies(path: Path, copy: str) -> Iterator[_Run]:
    """Yield the trials of an Optuna database or journal, with the columns of its CSV export."""
    optuna = _import_library("optuna", "optuna", path)
    journal = _import_library("optuna.storages.journal", "optuna", path)
    with _blame(path):
        if copy.startswith("sqlite:"):
            storage = optuna.storages.RDBStorage(copy)
        else:
            storage = journal.JournalStorage(journal.JournalFileBackend(copy))
        names = optuna.get_all_study_names(storage)
        studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
        trials = [(s.study_name, t) for s in studies for t in s.get_trials(deepcopy=False)]
    for name, trial in trials:
        several, values = len(names) > 1, trial.values or []
        config = {"params": trial.params, "user_attrs": trial.user_attrs}
        one = "value" if len(values) == 1 else "values_{}"
        run = f"{name}/{trial.number}" if several else str(trial.number)
        yield _Run(
            {"run": run, "state": trial.state.name.lower(), "study": several and name},
            config={f"{k}_{n}": v for k, each in config.items() for n, v in to_cells(each)},
            metrics={one.format(k): value for k, value in enumerate(values)},
        )


def _read_store(root: Path, files: Sequence[Path], damaged: list[str]) -> Iterator[_Run]:
    """Yield the runs of folders of an MLflow file store, from a copy without its artifacts."""
    skip = shutil.ignore_patterns("artifacts")
    with tempfile.TemporaryDirectory() as copy:
        for meta in files:
            if re.search("^run_id:", meta.read_text("utf-8", errors="replace"), re.MULTILINE):
                hint = "name the experiment's folder or mlruns"
                raise unexpected(meta.parent, "an experiment of MLflow", "a run of one", hint)
            # Two stores have an experiment of one name: each numbers its own from 0.
            home = Path(copy, meta.parent.name)
            shutil.copytree(meta.parent, home, ignore=skip, dirs_exist_ok=True)
        yield from _read_mlflow(root, Path(copy).as_uri())


def _read_mlflow(path: Path, address: str) -> Iterator[_Run]:
    """Yield the runs of an MLflow store: none that was deleted, none that only holds others."""
    import logging

    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = _import_library("mlflow", "mlflow", path)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with _blame(path):
        client = mlflow.MlflowClient(tracking_uri=address)
        experiments = {e.experiment_id: e.name for e in client.search_experiments()}
        found = page = client.search_runs([*experiments])
        while page.token:
            page = client.search_runs([*experiments], page_token=page.token)
            found += page
    parents = {run.data.tags.get("mlflow.parentRunId") for run in found}
    for run in sorted(found, key=lambda r: (r.info.experiment_id, r.info.start_time)):
        info, about = run.info, {"experiment": experiments[run.info.experiment_id]}
        if info.run_id not in parents:
            about |= {"run": info.run_id, "state": info.status, "name": info.run_name}
            yield _Run(about, dict(run.data.params), dict(run.data.metrics))


def _read_wandb_logs(root: Path, files: Sequence[Path], damaged: list[str]) -> Iterator[_Run]:
    """Yield the runs of W&B's logs, or of the folder beside each where wandb reads none."""
    try:
        datastore = _import_library("wandb.sdk.internal.datastore", "wandb", root)
        messages = _import_library("wandb.proto.wandb_internal_pb2", "wandb", root)
    except DataError:
        beside = [path.parent / "files" / "wandb-summary.json" for path in files]
        if not (beside := [*filter(Path.is_file, beside)]):
            raise DataError(
                f"{root}: reading offline logs of W&B takes a wandb that can: pip install "
                "'wandb<0.26'; or wandb sync them, and read wandb:ENTITY/PROJECT"
            ) from None
        yield from _read_folders(root, beside, damaged)
        return
    for path in files:
        run = _Run({"run": path.stem.removeprefix("run-"), "state": "crashed"})
        store = datastore.DataStore()
        with _blame(path, damaged):
            store.open_for_scan(str(path))
            while (data := store.scan_data()) is not None:
                _take_record(run, messages.Record.FromString(data))
            yield run


def _take_record(run: _Run, record: Any) -> None:
    """Take one record of a W&B log: settings, history, summary, or how the run ended."""
    for found, items in (
        (run.config, [*record.config.update, *record.run.config.update]),
        (run.metrics, [*record.history.item, *record.summary.update]),
    ):
        for item in items:
            if '"_type"' not in item.value_json:
                found[item.key or ".".join(item.nested_key)] = json.loads(item.value_json or "null")
    if record.run.run_id:
        told = record.run
        run.facts |= {"run": told.run_id, "name": told.display_name, "group": told.run_group}
    if record.HasField("exit"):
        run.facts["state"] = "failed" if record.exit.exit_code else "finished"


def _read_wandb_server(root: Path, paths: Sequence[Path], damaged: list[str]) -> Iterator[_Run]:
    """Yield the runs of a project on a server of W&B."""
    wandb = _import_library("wandb", "wandb", root)
    with _blame(root):
        for run in wandb.Api().runs(str(root).removeprefix("wandb:")):
            about = {"run": run.id, "state": run.state, "name": run.name}
            yield _Run(about, dict(run.config), dict(run.summary))


# --- Runs in plain text


def _read_folders(root: Path, files: Sequence[Path], damaged: list[str]) -> Iterator[_Run]:
    """Yield the run of each folder; a checkpoint is part of the run that it lies in."""
    # The last checkpoint of a run, unless the trainer wrote its state to the run's own folder.
    latest: dict[Path, Path] = {}
    places = {file.parent for file in files}
    for folder in sorted(places, key=lambda f: (f.name.startswith("checkpoint-"), _sort_key(f))):
        is_part = folder != root and folder.name.startswith("checkpoint-")
        home = folder.parent if is_part else folder
        if home != root and home.name == "files" and home.parent not in places:
            home = home.parent  # W&B's
        if folder == home or not (home / "trainer_state.json").is_file():
            latest[home] = folder
    for home, folder in sorted(latest.items(), key=lambda item: _sort_key(item[0])):
        run = _Run({"run": str(home.relative_to(root)) if home != root else home.name})
        inner = sorted(home.glob("checkpoint-*"), key=_sort_key, reverse=True)
        above = [p for p in home.parents if p == root or root in p.parents]
        with _blame(folder, damaged):
            _take_metrics(run, next(folder / n for n in _METRICS if (folder / n).is_file()))
            for place in (folder, *inner, home, *above):
                for settings in filter(Path.is_file, map(place.joinpath, _SETTINGS)):
                    run.config = {**_read_settings(settings), **run.config}
            run.config = run.config or {"folder": home.name}
            yield run


def _sort_key(path: Path) -> str:
    """Return what orders runs' folders by the numbers in their names."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(20), str(path))


def _take_metrics(run: _Run, path: Path) -> None:
    """Take the rows of a run's metrics: of CSV, JSON lines, a trainer's history, or one object.

    Settings that stand in each row, as Ray Tune writes them, are the run's; a trainer's metrics
    have the names under which it reports them to trackers.
    """
    text, is_trainer = path.read_text(encoding="utf-8"), path.name == "trainer_state.json"
    rows: Iterable[Any]
    if path.suffix == ".jsonl" or path.name == "result.json":
        rows = map(json.loads, filter(str.strip, text.split("\n")))
    elif path.suffix == ".json":
        document = _need_object(json.loads(text))
        rows = document.get("log_history", [None]) if is_trainer else [document]
        if is_trainer and document.get("max_steps") and document.get("global_step"):
            is_done = document["global_step"] >= document["max_steps"]
            run.facts["state"] = "finished" if is_done else "running"
    else:
        rows = [*csv.DictReader(io.StringIO(text, newline=""))]
        if rows and not text.endswith("\n") and None in rows[-1].values():
            rows.pop()  # cut off in writing, it ends in half a number
    last = -np.inf
    for number, row in enumerate(map(_need_object, rows)):
        step = cells.parse_plain(row.get("step") or row.get("training_iteration") or number)
        # A step such as "final" comes after those before it.
        last = step = max(last, float(number)) if np.isnan(step) else step
        for name, value in to_cells({n: v for n, v in row.items() if n and v is not None}):
            head, _, tail = name.partition("_")
            if is_trainer:
                name = f"{head}/{tail}" if head in ("eval", "test") and tail else f"train/{name}"
            if name.startswith(("config.", "config/")):
                run.config[name[len("config.") :]] = value
            else:
                run.log(name, value, step)


def _need_object(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {type(found).__name__}")
    return found


def _read_settings(path: Path) -> dict[str, object]:
    """Return a run's settings; W&B writes each as an object with its ``value``."""
    read = json.loads if path.suffix == ".json" else _import_library("yaml", "yaml", path).safe_load
    found = read(path.read_text(encoding="utf-8"))
    if not isinstance(found, Mapping):
        return {}
    if "wandb_version" in found or "_wandb" in found:
        entries = {k: v for k, v in found.items() if isinstance(v, Mapping) and k != "_wandb"}
        found = {name: entry["value"] for name, entry in entries.items() if "value" in entry}
    return dict(to_cells(found))


class _Kind(NamedTuple):
    """Files of runs: what reads them, their name's pattern, and the first bytes of one alone."""

    read: Callable[[Path, Sequence[Path], list[str]], Iterator[_Run]]
    name: str = ""
    start: bytes = b""


_KINDS: Mapping[str, _Kind] = {
    "run folders": _Kind(_read_folders),
    "TensorBoard events": _Kind(_read_events, "*tfevents*"),
    "Optuna or MLflow database": _Kind(_read_database, "mlflow.db", b"SQLite format 3\0"),
    "Optuna journal": _Kind(_read_journal, start=b'{"op_code":'),
    "MLflow files": _Kind(_read_store, "meta.yaml"),
    "W&B logs": _Kind(_read_wandb_logs, "*.wandb"),
    "W&B runs": _Kind(_read_wandb_server),
}
