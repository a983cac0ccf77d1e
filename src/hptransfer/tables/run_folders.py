"""Folders of runs in plain text: Hugging Face's trainer, Lightning, Ray Tune, Hydra and W&B."""

import csv
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hptransfer.errors import DataError
from hptransfer.tables.cell_values import is_empty, is_nan, parse_plain
from hptransfer.tables.json_tables import parse_object, to_cells
from hptransfer.tables.wording import clean

# Files of a run in plain text that hold what was set.
_SETTINGS = (
    "hparams.yaml", "params.json", ".hydra/config.yaml", "config.json", "config.yaml", "args.json",
    "args.yaml",
)  # fmt: skip


@dataclass
class Run:
    """One run: how it ended, what it was set to, and the last value and step of each metric."""

    name: str
    state: str = ""
    about: dict[str, object] = field(default_factory=dict)
    config: dict[str, object] = field(default_factory=dict)
    metrics: dict[str, object] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)

    def log(self, name: str, value: object, step: float) -> None:
        """Take a value of a metric, unless one of a later step was logged."""
        if self.steps.get(name, -np.inf) <= step and (is_nan(value) or not is_empty(value)):
            self.metrics[name], self.steps[name] = value, step


def import_library(module: str, extra: str, path: object) -> Any:
    """Import a tracker's library, or raise the error that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(
            f"{path}: reading it takes {module.partition('.')[0]}: "
            f"pip install 'hptransfer[{extra}]', or export a table as CSV"
        ) from None


def read_folders(root: Path, folders: Sequence[Path], damaged: list[str]) -> Iterator[Run]:
    """Yield the run of each folder; a checkpoint is part of the run that it lies in."""
    latest: dict[Path, Path] = {}
    for folder in sorted(folders, key=lambda f: (len(f.parts), _find_number(f.name), f.name)):
        home = folder.parent if folder.name.startswith("checkpoint-") else folder
        home = home.parent if home.name == "files" else home
        latest.setdefault(home, folder)
        if folder != home and (home / "trainer_state.json").is_file():
            continue
        latest[home] = folder
    for home, folder in sorted(latest.items(), key=lambda item: sort_key(item[0])):
        run = Run(name=str(home.relative_to(root)) if home != root else home.name)
        try:
            name = next(name for name in METRICS if (folder / name).is_file())
            METRICS[name](run, folder / name)
            inner = sorted(home.glob("checkpoint-*"), key=lambda f: _find_number(f.name))
            places = [folder, *reversed(inner), home]
            places += [p for p in home.parents if p == root or root in p.parents]
            for place in places:
                for settings in _SETTINGS:
                    if (place / settings).is_file():
                        run.config = {**_read_settings(place / settings), **run.config}
        except (OSError, ValueError, csv.Error, RecursionError) as error:
            damaged.append(f"{folder}: damaged: {clean(str(error))[:200]}")
            continue
        run.config = run.config or {"folder": home.name}
        yield run


def _find_number(name: str) -> int:
    digits = name.rpartition("-")[2].rpartition("_")[2]
    return int(digits) if digits.isdecimal() and len(digits) < 19 else -1


def sort_key(path: Path) -> tuple[str, int, str]:
    """Return what orders runs' folders by the numbers that their names end with."""
    return str(path.parent), _find_number(path.name), path.name


def _read_trainer_state(run: Run, path: Path) -> None:
    """Take a Hugging Face trainer's history, under the names that it reports to trackers."""
    state = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise ValueError("expected the state of a trainer with a log_history, found other JSON")
    for row in state["log_history"]:
        for name, value in row.items() if isinstance(row, dict) else ():
            head, _, tail = name.partition("_")
            told = f"{head}/{tail}" if head in ("eval", "test") and tail else f"train/{name}"
            run.log(told, value, parse_plain(row.get("step")))
    if state.get("max_steps") and state.get("global_step"):
        run.state = "finished" if state["global_step"] >= state["max_steps"] else "running"


def _read_result(run: Run, path: Path) -> None:
    """Take Ray Tune's reports, a JSON object each; a trial's settings stand in each."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        for name, value in (parse_object(line) if line.strip() else {}).items():
            if name.startswith("config."):
                run.config[name.removeprefix("config.")] = value
            else:
                run.log(name, value, number)


def _read_history(run: Run, path: Path) -> None:
    """Take the rows of Lightning's or Ray Tune's CSV; a cell that a row leaves empty is none."""
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            step = parse_plain(row.get("step") or row.get("training_iteration") or number)
            for name, value in row.items():
                if name and name.startswith("config/"):
                    run.config[name.removeprefix("config/")] = value
                elif name and isinstance(value, str):
                    run.log(name, value, step)


def _read_summary(run: Run, path: Path) -> None:
    for name, value in parse_object(path.read_text(encoding="utf-8")).items():
        if not name.startswith("_wandb"):
            run.metrics[name] = value


#: Files of a run in plain text that hold what was measured, likeliest first, and their readers.
METRICS = {
    "trainer_state.json": _read_trainer_state, "result.json": _read_result,
    "progress.csv": _read_history, "metrics.csv": _read_history,
    "wandb-summary.json": _read_summary, "metrics.json": _read_summary,
    "results.json": _read_summary,
}  # fmt: skip


def _read_settings(path: Path) -> dict[str, object]:
    """Return a run's settings; W&B writes each as an object with its ``value``."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        found = json.loads(text)
    else:
        yaml = import_library("yaml", "yaml", path)
        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(clean(str(error))[:200]) from None
    if not isinstance(found, Mapping):
        return {}
    if "wandb_version" in found or "_wandb" in found:
        found = {
            name: entry["value"]
            for name, entry in found.items()
            if isinstance(entry, Mapping) and "value" in entry and name != "_wandb"
        }
    return dict(to_cells(found))
