"""Tables of metrics over the lattice: which row has which switches on, at which setting."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import ConfigError, DataError
from hptransfer.scaling import LATTICE, SWITCHES, parse_parameterization
from hptransfer.stats.switch_effects import EFFECTS, Effect, MetricsTable
from hptransfer.tables.cell_values import (
    LARGEST,
    Need,
    explain_number,
    is_empty,
    is_nan,
    parse_number,
    to_numbers,
)
from hptransfer.tables.raw_table import RawTable, make_column, make_raw
from hptransfer.tables.row_selection import filter_rows
from hptransfer.tables.table_files import read_file
from hptransfer.tables.wording import clean, name_some, show, suggest

#: What a switch's 0/1 column may also be called: the source's names.
ALIASES = {
    "embd": "embedding_lr",
    "ln": "norm_lr",
    "attn": "attention_scale",
    "last": "readout_init",
}
#: Always part of the setting, as it always separates fits.
WEIGHT_DECAY = "weight_decay"
# Other results of a fit: never a setting, since no two rows would share it.
_RESULTS = frozenset({"alpha", "beta", "b", "gamma", "loss_inf", "noise_floor", *EFFECTS})
#: Columns that ``--columns`` can name.
OURS = ("parameterization", *SWITCHES, WEIGHT_DECAY, *EFFECTS)
_CELLS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def read_metrics(
    path: str | os.PathLike[str],
    *,
    columns: Mapping[str, str] | None = None,
    metrics: Mapping[str, Effect] | None = None,
    by: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
) -> tuple[MetricsTable, tuple[str, ...]]:
    """Read metrics over the lattice from CSV, Parquet, or what ``fit --json`` printed.

    A row's switches are four 0/1 columns ``embd``, ``ln``, ``attn`` and ``last`` (or the names
    of `ALIASES`), or a column ``parameterization`` with a name of the lattice such as
    ``sp+embd``.

    Parameters
    ----------
    path : str or path
        The file.
    columns : mapping of str to str, optional
        Our column names to the file's, where they differ.
    metrics : mapping of str to Effect, optional
        The metrics to read; by default those of `EFFECTS` that the file has.
    by : sequence of str
        Columns of the setting beside ``weight_decay``; by default every column that is neither
        a switch nor a metric.
    where : mapping of str to str, optional
        Values by column: only rows that have them are read.

    Returns
    -------
    table : MetricsTable
        Each cell once.
    notes : tuple of str
        What was left out, in words.

    Raises
    ------
    DataError
        If a column is missing, a cell is not what its column needs, or two rows of one cell
        disagree; the message names file, column and row.
    ConfigError
        If `by` names a column that is not there.
    """
    path = Path(path)
    raw = _rename(_read_raw(path), columns or {})
    raw = filter_rows(raw, where or {}, {})
    if not metrics:
        metrics = {name: effect for name, effect in EFFECTS.items() if name in raw.columns}
    for name in metrics or ["E"]:
        if name not in raw.columns:
            raise DataError(
                f"{path}: no column {name!r}{suggest(name, list(raw.columns))}; found "
                f"{name_some(raw.columns)}; name it with --metric NAME or --columns {name}=NAME"
            )
    switches, used, notes = _read_switches(raw)
    setting = _read_setting(raw, by, used={*used, *metrics})
    values = {name: _read_values(raw, name, effect) for name, effect in metrics.items()}
    for name, numbers in values.items():
        if absent := int(np.isnan(numbers).sum()):
            notes.append(f"{name}: {absent} of {len(raw)} rows have no value that is identified")
    table = MetricsTable(
        switches=switches, setting=setting, metrics=values, effects=dict(metrics), source=str(path)
    )
    table, repeats = _drop_repeats(raw, table)
    return table, (*notes, *repeats)


def _read_raw(path: Path) -> RawTable:
    if path.is_dir():
        raise DataError(
            f"{path}: expected a table of metrics, found a directory; hptransfer fit {path} "
            f"--json > metrics.json makes one of a study"
        )
    if path.suffix.lower() != ".json" or not path.is_file():
        return read_file(path)
    try:
        fits = json.loads(path.read_text(encoding="utf-8-sig"))["fits"]
        return _flatten(path, [(fit["group"], fit["metrics"]) for fit in fits])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: expected what hptransfer fit --json prints, found other JSON or none "
            f"({type(error).__name__})"
        ) from error


def _flatten(
    path: Path, fits: Sequence[tuple[Mapping[str, object], Mapping[str, Mapping[str, object]]]]
) -> RawTable:
    """Return fits as a table; a metric that was not identified is an empty cell."""
    if not fits:
        raise DataError(f"{path}: empty table; expected a fit for each row, found none")
    columns = {
        name: make_column([group.get(name) for group, _ in fits])
        for name in dict.fromkeys(name for group, _ in fits for name in group)
    }
    for name in dict.fromkeys(name for _, metrics in fits for name in metrics):
        columns[name] = make_column([
            None
            if name not in metrics or metrics[name]["status"] == "not identified"
            else metrics[name]["value"]
            for _, metrics in fits
        ])  # fmt: skip
    return make_raw(path, list(columns.items()), lambda row: f"fit {row + 1}")


def _rename(raw: RawTable, columns: Mapping[str, str]) -> RawTable:
    for ours, theirs in columns.items():
        if theirs not in raw.columns:
            raise DataError(
                f"{raw.source}: no column {theirs!r} (wanted as {ours})"
                f"{suggest(theirs, list(raw.columns))}; found {name_some(list(raw.columns))}"
            )
    moved = set(columns) | set(columns.values())
    renamed = {name: cells for name, cells in raw.columns.items() if name not in moved}
    renamed |= {ours: raw.columns[theirs] for ours, theirs in columns.items()}
    return replace(raw, columns=renamed)


def _read_switches(raw: RawTable) -> tuple[dict[str, NDArray[np.bool_]], set[str], list[str]]:
    """Return the switches, the columns that are no setting because of them, and notes."""
    found = {
        switch: switch if switch in raw.columns else alias
        for switch, alias in ALIASES.items()
        if switch in raw.columns or alias in raw.columns
    }
    used = {"parameterization", *found.values()}
    if "parameterization" in raw.columns:
        entries = _parse_entries(raw, needed=len(found) < len(SWITCHES))
    elif len(found) == len(SWITCHES):
        entries = None
    else:
        absent = ", ".join(switch for switch in SWITCHES if switch not in found)
        raise DataError(
            f"{raw.source}: expected a column 'parameterization' or the 0/1 columns "
            f"{', '.join(SWITCHES)}, found no {absent} among {name_some(raw.columns)}; name it "
            f"with --columns"
        )
    if entries and len(found) < len(SWITCHES):
        notes = [f"column {name!r} left out: parameterization says it" for name in found.values()]
        return {s: np.array([s in entry for entry in entries]) for s in SWITCHES}, used, notes
    on = {switch: np.zeros(len(raw), dtype=bool) for switch in SWITCHES}
    for switch, states in on.items():
        for row, cell in enumerate(raw.columns[found[switch]].to_pylist()):
            states[row] = state = _parse_switch(raw, found[switch], row)
            if entries and state != (switch in entries[row]):
                raise DataError(
                    f"{raw.place(row, found[switch])}: expected {int(not state)} as "
                    f"parameterization {show(raw.cell(row, 'parameterization'))} says, found "
                    f"{show(cell)}"
                )
    return on, used, []


def _parse_entries(raw: RawTable, *, needed: bool) -> list[frozenset[str]] | None:
    """Return the switches that each row's name turns on; None for labels that need not tell."""
    known: dict[str, frozenset[str]] = {}
    names = [_say(cell)[:60] for cell in raw.columns["parameterization"].to_pylist()]
    for row, name in enumerate(names):
        if name in known:
            continue
        try:
            canonical = parse_parameterization(name).name
            if canonical not in LATTICE:
                raise ConfigError(f"parameterization: expected one of the 16, found {name!r}")
        except ConfigError as error:
            if not needed:
                return None
            raise DataError(f"{raw.place(row)}: {error}") from error
        first, *rest = canonical.replace("-", "+").split("+")
        known[name] = frozenset(rest if first == "sp" else set(SWITCHES) - set(rest))
    return [known[name] for name in names]


def _parse_switch(raw: RawTable, column: str, row: int) -> bool:
    cell = raw.cell(row, column)
    if not isinstance(cell, str) and cell in (0, 1):
        return bool(cell)
    word = cell.strip().lower() if isinstance(cell, str) else ""
    if word not in _CELLS:
        raise DataError(f"{raw.place(row, column)}: expected 0 or 1, found {show(cell)}")
    return _CELLS[word]


def _read_setting(
    raw: RawTable, by: Sequence[str], *, used: set[str]
) -> dict[str, NDArray[np.object_]]:
    # A column without a name is an index that a data frame wrote.
    free = [name for name in raw.columns if name and name not in used | _RESULTS]
    for name in by:
        if name not in free:
            raise ConfigError(
                f"{raw.source}: --by: no column {name!r} that could be a setting"
                f"{suggest(name, free)}; found {name_some(free) or 'none'}"
            )
    setting = {}
    for name in free:
        if not by or name in by or name == WEIGHT_DECAY:
            cells = raw.columns[name]
            setting[name] = np.empty(len(raw), dtype=object)
            # Numbers where they are: 1e-4 and 0.0001 are one weight decay.
            setting[name][:] = [
                _say(cell) if math.isnan(number) else number
                for cell, number in zip(cells.to_pylist(), to_numbers(cells).tolist(), strict=True)
            ]
    return setting


def _read_values(raw: RawTable, name: str, effect: Effect) -> NDArray[np.float64]:
    values = to_numbers(raw.columns[name])
    values = np.where(np.abs(values) <= LARGEST, values, np.nan)
    for row, cell in enumerate(raw.columns[name].to_pylist()):
        if math.isnan(values[row]):
            if not (is_empty(cell) or is_nan(cell) or math.isinf(parse_number(cell))):
                raise explain_number(raw, row, name, Need.ANY)
        elif effect == "ratio" and values[row] <= 0:
            raise DataError(
                f"{raw.place(row, name)}: expected a positive number, since its effect is a "
                f"ratio, found {show(cell)}"
            )
    return values


def _say(cell: object) -> str:
    return "" if cell is None else clean(str(cell))


def _drop_repeats(raw: RawTable, table: MetricsTable) -> tuple[MetricsTable, list[str]]:
    """Return the table with each cell once; a cell with two values is refused."""
    first: dict[tuple[object, ...], int] = {}
    keep = []
    columns = [*table.switches.values(), *table.setting.values()]
    for row, cell in enumerate(zip(*columns, strict=True)):
        before = first.setdefault(cell, row)
        if before == row:
            keep.append(row)
            continue
        for name, values in table.metrics.items():
            pair = values[[before, row]]
            if pair[0] != pair[1] and not np.isnan(pair).all():
                raise DataError(
                    f"{raw.place(before)} and {raw.describe_row(int(raw.rows[row]))} have the same "
                    f"switches and setting ({', '.join(table.setting) or 'no column'}) but {name} "
                    f"{pair[0]:g} and {pair[1]:g}; expected each cell once; name all columns of "
                    f"the setting with --by COLUMN"
                )
    if len(keep) == len(table):
        return table, []
    return replace(
        table,
        switches={name: column[keep] for name, column in table.switches.items()},
        setting={name: column[keep] for name, column in table.setting.items()},
        metrics={name: column[keep] for name, column in table.metrics.items()},
    ), [f"{len(table) - len(keep)} repeated row(s) left out"]
