"""What was probed in training, as a study directory or its published Parquet table holds it."""

import math
import os
from pathlib import Path

import numpy as np

from hptransfer.errors import DataError
from hptransfer.stats._stability import ProbedTrial

_GROUPS = ("parameterization", "weight_decay")
_COLUMNS = (
    *_GROUPS, "width", "base_lr", "seed", "state", "steps", "warmup", "spikes", "spike_size",
    "probe_steps", "probe_names", "probe_values",
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
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hptransfer.study.store import read_trials

    path = Path(source)
    if (path / "study.json").is_file():
        rows = read_trials(path, _COLUMNS).rows
    elif path.suffix == ".parquet" and path.is_file():
        try:
            if not set(_COLUMNS) <= set(pq.read_schema(path).names):
                return ()
            rows = pq.read_table(path, columns=list(_COLUMNS))
        except (OSError, pa.ArrowException):
            return ()  # whoever reads the losses says what is wrong
    else:
        return ()
    found = []
    for number, row in enumerate(rows.select(_COLUMNS).to_pylist()):
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
        after = values.reshape(len(steps), len(names))[settled]
        found.append(
            ProbedTrial(
                group={name: row[name] for name in _GROUPS},
                width=row["width"],
                lr=row["base_lr"],
                seed=row["seed"],
                diverged=row["state"] == "diverged",
                spikes=row["spikes"],
                spike_size=row["spike_size"],
                medians={name: _median(after[:, k]) for k, name in enumerate(names)},
            )
        )
    return tuple(found)


def _median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan
