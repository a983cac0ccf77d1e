"""Runs of an experiment tracker, and the table that they make: one row each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hptransfer.errors import DataError
from hptransfer.tables.columns import KNOWN
from hptransfer.tables.files import check_columns
from hptransfer.tables.raw import Places, RawTable
from hptransfer.tables.text import clean

# What a run was set to comes from its settings, what it reached from its metrics: a logged "lr" is
# what a schedule had come down to, and a setting called "loss" is the name of a function.
_SETTINGS = frozenset(KNOWN) - {"loss", "tokens", "params"}
_METRICS = frozenset({"loss"})


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run.

    Attributes
    ----------
    name : str
        Its name or directory, for messages and as column ``run``.
    state : str
        How it ended, in the tracker's word; empty where the tracker does not say.
    about : mapping of str to object
        What the tracker knows beside: ``experiment``, ``group`` and so on.
    config, metrics : mapping of str to object
        Settings, and the last value of each metric.
    """

    name: str
    state: str
    about: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    metrics: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Runs that were found together.

    Attributes
    ----------
    runs : sequence of Run
        In an order that does not depend on the file system.
    damaged : sequence of str
        One line for each file that could not be read.
    notes : sequence of str
        What was read and what left out, in words.
    """

    runs: Sequence[Run]
    damaged: Sequence[str] = ()
    notes: Sequence[str] = ()


def tabulate(source: str, runs: Sequence[Run]) -> RawTable:
    """Return a table of runs; what a run lacks is an empty cell.

    Columns are ``run``, ``state``, what the tracker knows beside, then settings and metrics under
    their own names. A name that two of these share is written ``config.NAME`` and
    ``metric.NAME``, as are a metric called like a setting of ours and a setting called ``loss``.

    Raises
    ------
    DataError
        If there is no run, or far too many columns.
    """
    if not runs:
        raise DataError(f"{source}: expected at least one run, found none")
    facts = {"run", "state"}.union(*(run.about for run in runs))
    config = {name for run in runs for name in run.config}
    metrics = {name for run in runs for name in run.metrics}

    def say_config(name: str) -> str:
        clash = name in facts or name in metrics or name.lower() in _METRICS
        return f"config.{name}" if clash else name

    def say_metric(name: str) -> str:
        clash = name in facts or name in config or name.lower() in _SETTINGS
        return f"metric.{name}" if clash else name

    cells: dict[str, list[object]] = {}
    for row, run in enumerate(runs):
        found = {
            "run": run.name,
            "state": run.state,
            **run.about,
            **{say_config(name): cell for name, cell in run.config.items()},
            **{say_metric(name): cell for name, cell in run.metrics.items()},
        }
        for name, cell in found.items():
            cells.setdefault(clean(name), [None] * len(runs))[row] = cell
        check_columns(source, f"run {run.name}", len(cells))
    cells.pop("", None)
    return RawTable(
        source=source,
        columns=dict(cells),
        places=Places(
            rows=np.arange(1, len(runs) + 1), names=tuple(clean(run.name)[:80] for run in runs)
        ),
    )
