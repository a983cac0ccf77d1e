"""Any source of losses to a loss table: a file, a study directory, or a tracker's runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from hptransfer.errors import DataError, StoreError
from hptransfer.stats.loss_table import Axis, LossTable
from hptransfer.tables.columns import KNOWN
from hptransfer.tables.convert import GROUPS, convert
from hptransfer.tables.files import is_wanted, read_file
from hptransfer.tables.raw import Places, RawTable
from hptransfer.tables.runs import Runs, tabulate
from hptransfer.tables.source import StudyTable
from hptransfer.tables.trackers import read_runs

if TYPE_CHECKING:
    import pyarrow as pa


def read_table(
    path: Path,
    *,
    columns: Mapping[str, str] | None = None,
    by: Sequence[str] = GROUPS,
    where: Mapping[str, str] | None = None,
    token_axis: bool = False,
) -> LossTable:
    """Read a loss table: a CSV, TSV, JSON or Parquet file, a study, or a tracker's runs.

    Columns are ``width``, ``lr`` (or ``base_lr``, or ``log2_lr``) and ``loss``, and optionally
    ``parameterization``, ``seed``, ``weight_decay``, ``params``, ``tokens`` and ``state``. A
    missing or non-finite loss, or the state ``diverged``, is a diverged trial: NaN. Rows whose
    state is ``pending`` or ``failed`` are left out; `read_source` says how many. A column that
    has no entry at all counts as absent, and a seed column of words holds labels.

    Parameters
    ----------
    path : Path
        The file, or the directory of a study or of the runs of Weights & Biases, MLflow or
        TensorBoard.
    columns : mapping of str to str, optional
        Our column names to the file's, where they differ: ``{"width": "n_embd"}``.
    by : sequence of str
        Columns that separate fits; ``parameterization`` and ``weight_decay`` always do.
    where : mapping of str to str, optional
        Values that columns must have, ``{"batch": "512"}``; other rows are left out.
    token_axis : bool
        Whether to keep ``tokens`` as an axis, for `fit_tokens`, instead of asking for one budget.

    Returns
    -------
    LossTable
        One row for each trial that ended.

    Raises
    ------
    ConfigError
        If `columns`, `by` or `where` names what is not there.
    DataError
        If the table is wrong; the message names file, column and row.
    StoreError
        If a file of a study is damaged; `read_study` reads the rest.
    """
    study = read_source(path, columns=columns, by=by, where=where, token_axis=token_axis)
    if study.damaged:
        raise StoreError(study.damaged[0])
    return study.table


def read_source(
    path: Path,
    *,
    columns: Mapping[str, str] | None = None,
    by: Sequence[str] = GROUPS,
    where: Mapping[str, str] | None = None,
    token_axis: bool = False,
) -> StudyTable:
    """Read what `read_table` reads, with notes, settings and damaged files beside it."""
    if path.is_dir() and (path / "study.json").is_file():
        return read_study(path, columns=columns, by=by, where=where, token_axis=token_axis)
    columns, where = columns or {}, where or {}
    if path.exists() and (runs := read_runs(path)) is not None:
        return _read_tracker(path, runs, columns=columns, by=by, where=where, token_axis=token_axis)
    if path.is_dir():
        raise DataError(
            f"{path}: no study.json in it, nor runs of Weights & Biases, MLflow or TensorBoard; "
            "expected a study directory, a tracker's, or a table file"
        )
    table, notes = convert(
        read_file(path, _want(columns, by, where)),
        columns=columns,
        by=by,
        where=where,
        token_axis=token_axis,
    )
    return StudyTable(table=table, notes=notes)


def _want(columns: Mapping[str, str], by: Sequence[str], where: Mapping[str, str]) -> set[str]:
    """Return the columns that a loss table takes, in lower case."""
    return {name.lower() for name in (*KNOWN, *columns.values(), *by, *where)}


def _read_tracker(
    path: Path,
    runs: Runs,
    *,
    columns: Mapping[str, str],
    by: Sequence[str],
    where: Mapping[str, str],
    token_axis: bool,
) -> StudyTable:
    if not runs.runs:
        reason = runs.damaged[0] if runs.damaged else "; ".join(runs.notes)
        raise DataError(f"{path}: expected at least one run, found none; {reason}")
    table, notes = convert(
        tabulate(str(path), runs.runs), columns=columns, by=by, where=where, token_axis=token_axis
    )
    return StudyTable(table=table, damaged=tuple(runs.damaged), notes=(*runs.notes, *notes))


def read_study(
    directory: Path,
    *,
    columns: Mapping[str, str] | None = None,
    by: Sequence[str] = GROUPS,
    where: Mapping[str, str] | None = None,
    token_axis: bool = False,
) -> StudyTable:
    """Read a study directory; a damaged file of it is named, and the rest still reads.

    Raises
    ------
    DataError
        If the directory is no study, or holds no finished trial.
    StoreError
        If the study's settings cannot be read.
    """
    if not (directory / "study.json").is_file():
        raise DataError(
            f"{directory}: no study.json in it; expected a study directory, or a table file"
        )
    # Imported here: they need Arrow, which a CSV does not.
    import pyarrow as pa

    from hptransfer.study.store import ARROW_SCHEMA, read_trials
    from hptransfer.study.study_settings import read_settings
    from hptransfer.tables.parquet import to_cells

    settings = read_settings(directory)
    columns, where = columns or {}, where or {}
    # Loss curves are no cells of a table.
    names = [field.name for field in ARROW_SCHEMA if not pa.types.is_nested(field.type)]
    wanted = _want(columns, by, where)
    kept = [name for name in names if is_wanted(name, wanted)]
    trials = read_trials(directory, kept)
    damaged = tuple(f"{path}: damaged: {cause}" for path, cause in trials.damaged)
    if trials.rows.num_rows == 0:
        reason = f"; {damaged[0]}" if damaged else ""
        raise DataError(f"{directory}: the study holds no finished trial yet{reason}")
    rows = _order_rows(trials.rows, settings)
    raw = RawTable(
        source=str(directory),
        columns={name: to_cells(rows.column(name)) for name in kept},
        places=Places(rows=np.arange(1, rows.num_rows + 1), word="trial row"),
        dropped=tuple(name for name in names if name not in kept),
    )
    axis: Axis = "as given"
    if settings.get("axis") in get_args(Axis):
        axis = settings["axis"]
    table, notes = convert(
        raw,
        columns=columns,
        by=by,
        axis=axis,
        # A study has one setting by construction: fixed steps, or fixed tokens per parameter.
        one_budget=False,
        token_axis=token_axis,
        where=where,
    )
    return StudyTable(table=table, damaged=damaged, settings=settings, notes=notes)


def _order_rows(rows: "pa.Table", settings: Mapping[str, Any]) -> "pa.Table":
    """Order rows by the study's parameterizations, so that fits come in the study's order."""
    listed = settings.get("config", {}).get("sweep", {}).get("parameterization", [])
    place = {name: position for position, name in enumerate(listed)}
    names = rows.column("parameterization").to_pylist()
    keys = np.array([place.get(name, len(place)) for name in names])
    return rows.combine_chunks().take(np.argsort(keys, kind="stable"))
