"""Runs that trackers, tuners and trainers left, through their own libraries or as plain text."""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hptransfer.errors import DataError
from hptransfer.tables.json_tables import parse_object, tabulate, to_cells
from hptransfer.tables.notes import TableNote, note
from hptransfer.tables.raw_table import RawTable
from hptransfer.tables.run_folders import METRICS, Run, import_library, read_folders, sort_key
from hptransfer.tables.table_columns import KNOWN
from hptransfer.tables.wording import clean

# Folders looked into before a directory is taken for something else: a home, or a disk.
_MOST_FOLDERS = 200_000

# What a run was set to comes from its settings, what it reached from its metrics: a logged "lr" is
# what a schedule had come down to, and a setting called "loss" is the name of a function.
_AS_METRIC = frozenset(KNOWN) - {"loss", "tokens", "params"} | {"learning_rate"}

Found = tuple[RawTable, Sequence[str], Sequence[TableNote]]


def read_runs(path: Path) -> Found | None:
    """Return the runs at a path as a table, files that are damaged, and notes.

    Parameters
    ----------
    path : Path
        A directory that holds runs of one tracker at any depth, a file of one, or
        ``wandb:ENTITY/PROJECT`` for runs on a server.

    Returns
    -------
    tuple or None
        None where the path holds no runs that are known.

    Raises
    ------
    DataError
        If a directory holds runs of several trackers, a library is missing, or no run is read.
    """
    damaged: list[str] = []
    if str(path).startswith("wandb:"):
        what, runs = "W&B runs", _read_wandb_server(str(path).removeprefix("wandb:"))
    elif path.is_file():
        kind = _recognize(path)
        if kind is None:
            return None
        what, runs = kind, _READERS[kind](path.parent, [path], damaged)
    elif path.is_dir():
        found = _search(path)
        if len(found) > 1:
            shown = ", ".join(str(paths[0].relative_to(path)) for paths in found.values())
            raise DataError(
                f"{path}: expected runs of one tracker or store, found those of several ({shown}); "
                "name the directory or the file of one"
            )
        if not found:
            return None
        what = next(iter(found))
        runs = _READERS[what](path, found[what], damaged)
    else:
        return None
    with warnings.catch_warnings():  # the libraries' own, of each other
        warnings.simplefilter("ignore")
        kept = list(runs)
    if not kept:
        reason = f"; {damaged[0]}" if damaged else ""
        raise DataError(f"{path}: {what}: expected at least one run, found none{reason}")
    notes = [note("tracker", what=what)]
    with_settings = [run for run in kept if run.config]
    if with_settings and len(with_settings) < len(kept):
        notes.append(note("no_settings", count=len(kept) - len(with_settings)))
        kept = with_settings
    return _tabulate(str(path), kept), damaged, notes


def _tabulate(source: str, runs: Sequence[Run]) -> RawTable:
    """Return a table of runs: ``run``, ``state``, what is known beside, settings and metrics.

    A name that two of these share is written ``config.NAME`` and ``metric.NAME``, as are a metric
    called like a setting of ours and a setting called ``loss``.
    """
    facts = {"run", "state"}.union(*(run.about for run in runs))
    config = {name for run in runs for name in run.config}
    metrics = {name for run in runs for name in run.metrics}

    def say_config(name: str) -> str:
        clash = name in facts or name in metrics or name.lower() == "loss"
        return f"config.{name}" if clash else name

    def say_metric(name: str) -> str:
        clash = name in facts or name in config or name.lower() in _AS_METRIC
        return f"metric.{name}" if clash else name

    def list_cells(run: Run) -> Iterator[tuple[str, object]]:
        yield from {"run": run.name, "state": run.state}.items()
        yield from ((name, cell) for name, cell in run.about.items() if cell)
        yield from ((clean(say_config(name)), cell) for name, cell in run.config.items())
        yield from ((clean(say_metric(name)), cell) for name, cell in run.metrics.items())

    raw = tabulate(source, ((f"run {clean(run.name)[:80]}", list_cells(run)) for run in runs))
    last = {
        clean(say_metric(name)): np.array([run.steps.get(name, np.nan) for run in runs])
        for name in metrics
    }
    return replace(raw, last_steps=last)


def _recognize(path: Path) -> str | None:
    """Return whose runs a file holds, by its first bytes and its name."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"SQLite format 3\0"):
        return "Optuna or MLflow database"
    if start.startswith(b'{"op_code":'):
        return "Optuna journal"
    if path.suffix == ".wandb":
        return "W&B logs"
    return "TensorBoard events" if "tfevents" in path.name else None


def _search(root: Path) -> dict[str, list[Path]]:
    """Return files and folders of runs under a directory, by what reads them."""
    found: dict[str, list[Path]] = {}
    plain: list[Path] = []
    for count, (name, folders, files) in enumerate(os.walk(root)):
        if count > _MOST_FOLDERS:
            raise DataError(
                f"{root}: expected the directory of a study or of a tracker's runs, found more "
                f"than {_MOST_FOLDERS:,} folders"
            )
        folder, names = Path(name), set(files)
        folders[:] = sorted(other for other in folders if other not in (".trash", ".git"))
        if "meta.yaml" in names:
            found.setdefault("MLflow files", []).append(folder)
            folders.clear()  # its runs are found there; artifacts may hold anything
            continue
        if any(metrics in names for metrics in METRICS):
            plain.append(folder)
        for file in sorted(names):
            kind = (
                "W&B logs" if file.endswith(".wandb")
                else "TensorBoard events" if "tfevents" in file
                else "Optuna or MLflow database" if file == "mlflow.db"
                else None
            )  # fmt: skip
            if kind:
                found.setdefault(kind, []).append(folder / file)
    # Plain text says what a run's other files say, and needs no library.
    above = {folder for path in plain for folder in path.parents}
    for kind in ("W&B logs", "TensorBoard events") if plain else ():
        alone = [
            p for p in found.get(kind, []) if not (above & {p.parent} or set(plain) & {*p.parents})
        ]
        if not alone:
            found.pop(kind, None)
    return {**found, "run folders": plain} if plain else found


def _read_events(root: Path, files: Sequence[Path], damaged: list[str]) -> Iterator[Run]:
    """Yield a run for each folder of event files that holds settings, with its inner folders.

    ``SummaryWriter.add_hparams`` writes settings to a folder of their own inside the run's: the
    only such folder inside another is that one's. Ray Tune writes them to ``params.json``.
    """
    accumulators = import_library(
        "tensorboard.backend.event_processing.event_accumulator", "tensorboard", root
    )
    plugin = import_library("tensorboard.plugins.hparams.plugin_data_pb2", "tensorboard", root)
    tensors = import_library("tensorboard.util.tensor_util", "tensorboard", root)
    folders: dict[Path, Run] = {}
    for folder in sorted({file.parent for file in files}, key=sort_key):
        run = folders[folder] = Run(name=str(folder.relative_to(root)), state="running")
        try:
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
            for content in _list_contents(events):
                data = plugin.HParamsPluginData.FromString(content)
                if data.HasField("session_start_info"):
                    for name, value in data.session_start_info.hparams.items():
                        run.config[name] = _read_value(value)
                if data.HasField("session_end_info"):
                    run.state = {1: "success", 2: "failed"}.get(data.session_end_info.status, "")
        except Exception as error:  # whatever a damaged file makes the library raise
            damaged.append(f"{folder}: damaged: {clean(str(error))[:200]}")
            folders.pop(folder)
    for run in folders.values():
        run.state = run.state if run.config else ""
    yield from _join_sessions(root, folders)


def _list_contents(events: Any) -> list[bytes]:
    try:
        return list(events.PluginTagToContent("hparams").values())
    except KeyError:
        return []


def _read_value(value: Any) -> object:
    kind = value.WhichOneof("kind")
    found = getattr(value, kind) if kind in ("number_value", "string_value", "bool_value") else None
    return int(found) if isinstance(found, float) and found.is_integer() else found


def _join_sessions(root: Path, folders: Mapping[Path, Run]) -> Iterator[Run]:
    """Yield the runs that folders of event files make together."""
    sessions = {path for path, run in folders.items() if run.config}
    inside: dict[Path, list[Path]] = {}
    for path in sorted(sessions, key=sort_key):
        above = next((parent for parent in path.parents if parent in folders), None)
        if above is not None and above not in sessions:
            inside.setdefault(above, []).append(path)
    home = {paths[0]: parent for parent, paths in inside.items() if len(paths) == 1}
    joined = {home.get(path, path): path for path in sorted(sessions, key=sort_key)}
    runs: dict[Path, Run] = {}
    for path, run in folders.items():
        top = home.get(path, path) if path in sessions else path
        if path not in sessions and path not in joined:
            top = next((parent for parent in path.parents if parent in joined), path)
        prefix = "" if path in sessions or top == path else f"{path.relative_to(top).as_posix()}/"
        settings = folders[joined[top]] if top in joined else run
        name = str(top.relative_to(root)) if top != root else top.name
        found = runs.setdefault(top, Run(name=name, state=settings.state, config=settings.config))
        for metric, value in run.metrics.items():
            found.log(prefix + metric, value, run.steps[metric])
    yield from runs.values()


def _read_database(root: Path, files: Sequence[Path], damaged: list[str]) -> Iterator[Run]:
    """Yield the runs of a SQLite database that Optuna or MLflow keeps, from a copy of it."""
    import sqlite3
    from contextlib import closing

    path = files[0]
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(path, Path(folder) / "copy.db")
        try:
            with closing(sqlite3.connect(copy)) as base:
                query = "SELECT name FROM sqlite_master WHERE type = 'table'"
                tables = {str(name) for (name,) in base.execute(query)}
        except sqlite3.Error as error:
            raise DataError(f"{path}: damaged SQLite database: {clean(str(error))}") from error
        if "study_directions" in tables:
            yield from _read_studies(path, f"sqlite:///{copy}")
        elif "latest_metrics" in tables:
            yield from _read_mlflow(path, f"sqlite:///{copy}")
        else:
            raise DataError(
                f"{path}: expected a database of Optuna or MLflow, found tables "
                f"{', '.join(sorted(tables)[:6]) or 'none'}; export a table as CSV"
            )


def _read_journal(root: Path, files: Sequence[Path], damaged: list[str]) -> Iterator[Run]:
    """Yield the trials of an Optuna journal, from a copy of it."""
    journal = import_library("optuna.storages.journal", "optuna", files[0])
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(files[0], folder)
        backend = journal.JournalFileBackend(str(copy))
        yield from _read_studies(files[0], lambda: journal.JournalStorage(backend))


def _read_studies(path: Path, storage: Any) -> Iterator[Run]:
    """Yield an Optuna storage's trials, with the columns of its CSV export."""
    optuna = import_library("optuna", "optuna", path)
    try:
        storage = storage() if callable(storage) else optuna.storages.RDBStorage(storage)
        names = optuna.get_all_study_names(storage)
        studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
        trials = [(s.study_name, t) for s in studies for t in s.get_trials(deepcopy=False)]
    except Exception as error:  # whatever a damaged storage makes the library raise
        raise DataError(f"{path}: not readable by Optuna: {clean(str(error))[:200]}") from error
    for name, trial in trials:
        values, several = trial.values or [], len(names) > 1
        config = {f"params_{key}": value for key, value in to_cells(trial.params)}
        config |= {f"user_attrs_{key}": value for key, value in to_cells(trial.user_attrs)}
        metrics = {"value" if len(values) == 1 else f"values_{k}": v for k, v in enumerate(values)}
        about, number = {"study": name if several else ""}, str(trial.number)
        run = f"{name}/{number}" if several else number
        yield Run(run, trial.state.name.lower(), about, config, metrics)


def _read_store(root: Path, folders: Sequence[Path], damaged: list[str]) -> Iterator[Run]:
    """Yield the runs of folders of an MLflow file store, from a copy without its artifacts."""
    with tempfile.TemporaryDirectory() as copy:
        for folder in folders:
            meta = (folder / "meta.yaml").read_text(encoding="utf-8", errors="replace")
            parts = folder.parts[-2:] if "run_id:" in meta else folder.parts[-1:]
            shutil.copytree(
                folder, Path(copy).joinpath(*parts), ignore=shutil.ignore_patterns("artifacts"),
                dirs_exist_ok=True,
            )  # fmt: skip
            above = folder.parent / "meta.yaml"
            if len(parts) == 2 and above.is_file():
                shutil.copy(above, Path(copy) / parts[0])
        yield from _read_mlflow(root, Path(copy).as_uri())


def _read_mlflow(path: Path, address: str) -> Iterator[Run]:
    """Yield the runs of an MLflow store: none that was deleted, none that only holds others."""
    import logging

    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = import_library("mlflow", "mlflow", path)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        client = mlflow.MlflowClient(tracking_uri=address)
        experiments = {e.experiment_id: e.name for e in client.search_experiments()}
        found: list[Any] = []
        for experiment in experiments:
            page = None
            while page is None or page.token:
                page = client.search_runs([experiment], page_token=page and page.token)
                found += page
    except Exception as error:  # whatever a damaged store makes the library raise
        raise DataError(f"{path}: not readable by MLflow: {clean(str(error))[:200]}") from error
    parents = {run.data.tags.get("mlflow.parentRunId") for run in found}
    for run in sorted(found, key=lambda r: (r.info.experiment_id, r.info.start_time)):
        if run.info.run_id not in parents:
            about = {
                "experiment": experiments[run.info.experiment_id],
                "name": run.data.tags.get("mlflow.runName"),
            }
            config, metrics = dict(run.data.params), dict(run.data.metrics)
            yield Run(run.info.run_id, run.info.status, about, config, metrics)


def _read_wandb_logs(root: Path, files: Sequence[Path], damaged: list[str]) -> Iterator[Run]:
    """Yield the runs of W&B's logs, or of the folder beside each where wandb reads none."""
    try:
        datastore = import_library("wandb.sdk.internal.datastore", "wandb", root)
        messages = import_library("wandb.proto.wandb_internal_pb2", "wandb", root)
    except DataError:
        beside = [f for path in files if (f := path.parent / "files").is_dir()
                  and (f / "wandb-summary.json").is_file()]  # fmt: skip
        if not beside:
            raise DataError(
                f"{root}: reading offline logs of W&B takes a wandb that can: pip install "
                "'wandb<0.26'; or wandb sync them, and read wandb:ENTITY/PROJECT"
            ) from None
        yield from read_folders(root, beside, damaged)
        return
    for path in files:
        run = Run(name=path.stem.removeprefix("run-"), state="crashed")
        try:
            store = datastore.DataStore()
            store.open_for_scan(str(path))
            while (data := store.scan_data()) is not None:
                _take_record(run, messages.Record.FromString(data))
        except Exception as error:  # whatever a damaged log makes the library raise
            damaged.append(f"{path}: damaged: {clean(str(error) or type(error).__name__)[:200]}")
            continue
        yield run


def _take_record(run: Run, record: Any) -> None:
    """Take one record of a W&B log: settings, history, summary, or how the run ended."""
    for part in (record.config, record.run.config):
        _update(run.config, part.update)
    _update(run.metrics, record.history.item)
    _update(run.metrics, record.summary.update)
    if record.run.run_id:
        run.name = record.run.run_id
        run.about = {"name": record.run.display_name, "group": record.run.run_group}
    if record.HasField("exit"):
        run.state = "failed" if record.exit.exit_code else "finished"


def _update(cells: dict[str, object], items: Any) -> None:
    for item in items:
        key = item.key or ".".join(item.nested_key)
        if not key.startswith("_wandb") and '"_type"' not in item.value_json:
            cells.update(parse_object(f"{{{json.dumps(key)}: {item.value_json or 'null'}}}"))


def _read_wandb_server(address: str) -> Iterator[Run]:
    """Yield the runs of a project on a server of W&B."""
    wandb = import_library("wandb", "wandb", f"wandb:{address}")
    try:
        for run in wandb.Api().runs(address):
            config, metrics = (
                {k: v for k, v in to_cells(dict(cells)) if not k.startswith("_wandb")}
                for cells in (run.config, run.summary)
            )
            yield Run(run.id, run.state, {"name": run.name}, config, metrics)
    except Exception as error:  # whatever the server or the network makes the library raise
        raise DataError(f"wandb:{address}: not readable: {clean(str(error))[:200]}") from error


_READERS: dict[str, Any] = {
    "run folders": read_folders,
    "TensorBoard events": _read_events,
    "Optuna or MLflow database": _read_database,
    "Optuna journal": _read_journal,
    "MLflow files": _read_store,
    "W&B logs": _read_wandb_logs,
}
