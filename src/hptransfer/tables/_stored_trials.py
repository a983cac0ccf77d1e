"""What was probed in training, and the losses on the way, as a study or its table holds them."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hptransfer.errors import DataError
from hptransfer.stats._stability import ProbedTrial

# A study of more trials is shown without their curves, which are most of its bytes.
_MOST_CURVES = 5000
_ABOUT = ("parameterization", "weight_decay", "width", "base_lr", "seed")
_CURVE = ("loss_curve", "curve_steps")
_PROBED = (
    "state", "steps", "warmup", "spikes", "spike_size", "probe_steps", "probe_names",
    "probe_values",
)  # fmt: skip


def read_probes(source: str | os.PathLike[str]) -> tuple[ProbedTrial, ...]:
    """Return the probed trials of a study directory or of a Parquet table made of one.

    Parameters
    ----------
    source : str or path
        Any source of a loss table.

    Returns
    -------
    tuple of ProbedTrial
        Empty for a source without probes, of whatever kind.

    Raises
    ------
    StoreError
        If a study's settings cannot be read.
    DataError
        If a table's probes do not fit together; the message names the trial.

    Examples
    --------
    >>> read_probes("losses.csv")
    ()
    """
    path, found = Path(source), []
    for number, row in enumerate(_read_rows(path, _PROBED)):
        if row["probe_values"] is None:
            continue
        steps, names = row["probe_steps"] or [], row["probe_names"] or []
        values = np.asarray(row["probe_values"], dtype=np.float64)
        if values.size != len(steps) * len(names):
            raise DataError(
                f"{path}: trial {number + 1}: expected {len(steps) * len(names)} probe_values, of "
                f"{len(names)} quantities at {len(steps)} steps, found {values.size}"
            )
        settled = np.asarray(steps) >= row["warmup"] * row["steps"]
        after = values.reshape(len(steps), len(names))[settled].T
        finite = [each[np.isfinite(each)] for each in after]
        medians = [float(np.median(each)) if len(each) else np.nan for each in finite]
        about = {**_name_trial(row), "spikes": row["spikes"], "spike_size": row["spike_size"]}
        named = dict(zip(names, medians, strict=True))
        found.append(ProbedTrial(**about, diverged=row["state"] == "diverged", medians=named))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """The training losses of one trial, thinned.

    Attributes
    ----------
    group : mapping of str to object
        Its parameterization and weight decay.
    width : int
        D.
    lr : float
        The learning rate on the swept axis.
    seed : int
        Its seed.
    steps : tuple of int
        Steps, ascending.
    losses : tuple of float
        The losses of their batches, in nats.

    Examples
    --------
    >>> LossCurve(group={}, width=64, lr=0.01, seed=0, steps=(0, 9), losses=(8.3, 4.1)).losses[-1]
    4.1
    """

    group: Mapping[str, object]
    width: int
    lr: float
    seed: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]


def read_curves(source: str | os.PathLike[str]) -> tuple[LossCurve, ...]:
    """Return the loss curves of the trials of a study directory or its Parquet table.

    Parameters
    ----------
    source : str or path
        Any source of a loss table.

    Returns
    -------
    tuple of LossCurve
        Empty for a source without them, of whatever kind, and for more than 5,000 trials.

    Raises
    ------
    StoreError
        If a study's settings cannot be read.

    Examples
    --------
    >>> read_curves("losses.csv")
    ()
    """
    rows = _read_rows(Path(source), _CURVE)
    return tuple(
        LossCurve(
            **_name_trial(row), steps=tuple(row["curve_steps"]), losses=tuple(row["loss_curve"])
        )
        for row in (rows if len(rows) <= _MOST_CURVES else [])
        if row["loss_curve"] and len(row["loss_curve"]) == len(row["curve_steps"] or ())
    )


def _name_trial(row: Mapping[str, Any]) -> dict[str, Any]:
    group = {name: row[name] for name in _ABOUT[:2]}
    return {"group": group, "width": row["width"], "lr": row["base_lr"], "seed": row["seed"]}


def _read_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the trials of a study or its Parquet table; none where it lacks a column."""
    from hptransfer.study.store import read_trials

    columns = (*_ABOUT, *columns)
    found: list[dict[str, Any]] = []
    if (path / "study.json").is_file():
        found = read_trials(path, columns).rows.select(columns).to_pylist()
    elif path.suffix == ".parquet":
        with suppress(OSError, pa.ArrowException):  # whoever reads the losses says what is wrong
            if {*columns} <= {*pq.read_schema(path).names}:
                found = pq.read_table(path, columns=[*columns]).select(columns).to_pylist()
    return found
