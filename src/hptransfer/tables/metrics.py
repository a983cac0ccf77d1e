"""Tables of metrics over the lattice: which row has which switches on, at which setting."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import ConfigError, DataError
from hptransfer.scaling import LATTICE, SWITCHES, parse_parameterization
from hptransfer.stats.switch_effects import EFFECTS, Effect, MetricsTable
from hptransfer.tables import _raw_table as cells
from hptransfer.tables._loss_rows import find_repeats
from hptransfer.tables._raw_table import Floats, Ints, Need, RawTable, filter_rows, show
from hptransfer.tables._table_files import read_file, tabulate

# What a switch's 0/1 column may also be called: the source's names.
_ALIASES = {
    "embd": "embedding_lr", "ln": "norm_lr", "attn": "attention_scale", "last": "readout_init",
}  # fmt: skip
# Always part of the setting, as it always separates fits.
_WEIGHT_DECAY = "weight_decay"
# Other results of a fit: never a setting, since no two rows would share it.
_RESULTS = frozenset({"alpha", "beta", "b", "gamma", "loss_inf", "noise_floor", *EFFECTS})
#: Columns that ``--columns`` can name.
OURS = ("parameterization", *SWITCHES, _WEIGHT_DECAY, *EFFECTS)
_ON = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}

Switches = dict[str, NDArray[np.bool_]]


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
    ``embedding_lr``, ``norm_lr``, ``attention_scale`` and ``readout_init``), or a column
    ``parameterization`` with a name of the lattice such as ``sp+embd``.

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

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "metrics.csv")
    ...     _ = path.write_text("parameterization,weight_decay,E\\nsp,0,0.5\\nsp+embd,0,0.1\\n")
    ...     read_metrics(path)[0].metrics["E"]
    array([0.5, 0.1])
    """
    path = Path(path)
    raw = filter_rows(_rename(_read_raw(path), columns or {}), where or {}, {})
    wanted = metrics or {name: how for name, how in EFFECTS.items() if name in raw.columns}
    for name in wanted or ["E"]:
        if name not in raw.columns:
            hint = f"; name it with --metric NAME or --columns {name}=NAME"
            raise DataError(cells.lack_column(path, name, raw.columns, hint=hint))
    switches, used, notes = _read_switches(raw)
    setting = _read_setting(raw, by, {*used, *wanted})
    values = {name: _read_values(raw, name, effect) for name, effect in wanted.items()}
    for name, numbers in values.items():
        if absent := int(np.isnan(numbers).sum()):
            notes.append(f"{name}: {absent} of {len(raw)} rows have no value that is identified")
    kept = _find_once(raw, switches, setting, values)
    if len(kept) < len(raw):
        notes.append(f"{len(raw) - len(kept)} repeated row(s) left out")
    table = MetricsTable(
        switches={name: on[kept] for name, on in switches.items()},
        setting={name: column[kept] for name, column in setting.items()},
        metrics={name: numbers[kept] for name, numbers in values.items()},
        effects=dict(wanted),
        source=str(path),
    )
    return table, tuple(notes)


def _read_raw(path: Path) -> RawTable:
    """Return the cells of a file, or of what ``fit --json`` printed.

    A metric that was not identified is an empty cell.
    """
    if path.is_dir():
        found = f"a directory; hptransfer fit {path} --json > metrics.json makes one of a study"
        raise cells.unexpected(path, "a table of metrics", found)
    if path.suffix.lower() != ".json" or not path.is_file():
        return read_file(path)
    try:
        fits = json.loads(path.read_text(encoding="utf-8-sig"))["fits"]
        rows = [
            {**fit["group"], **{name: _take_value(each) for name, each in fit["metrics"].items()}}
            for fit in fits
        ]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        found = f"other JSON or none ({type(error).__name__})"
        raise cells.unexpected(path, "what hptransfer fit --json prints", found) from error
    return tabulate(path, ((f"fit {k}", row.items()) for k, row in enumerate(rows, start=1)))


def _rename(raw: RawTable, columns: Mapping[str, str]) -> RawTable:
    columns = {o: raw.require(name, f"--columns {o}={name}") for o, name in columns.items()}
    moved = columns.keys() | {*columns.values()}
    renamed = {name: column for name, column in raw.columns.items() if name not in moved}
    renamed |= {ours: raw.columns[theirs] for ours, theirs in columns.items()}
    return replace(raw, columns=renamed)


def _read_switches(raw: RawTable) -> tuple[Switches, set[str], list[str]]:
    """Return what each row switches on, the columns that are no setting for it, and notes."""
    both = {switch: (switch, alias) for switch, alias in _ALIASES.items()}
    columns = {s: n for s, names in both.items() for n in names[::-1] if n in raw.columns}
    used, is_whole = {"parameterization", *columns.values()}, len(columns) == len(SWITCHES)
    entries: list[frozenset[str] | None] = []
    if "parameterization" in raw.columns:
        entries = raw.map_cells("parameterization", _parse_entry).tolist()
    elif not is_whole:
        absent = ", ".join(switch for switch in SWITCHES if switch not in columns)
        expected = f"a column 'parameterization' or the 0/1 columns {', '.join(SWITCHES)}"
        told = f"no {absent} among {cells.name_some(raw.columns)}"
        raise cells.unexpected(raw.source, expected, told, "name it with --columns")
    known = [entry for entry in entries if entry is not None]
    if len(known) < len(entries) and not is_whole:
        row = entries.index(None)
        near = cells.suggest(_say(raw.cell(row, "parameterization")), LATTICE).removeprefix("; ")
        raise raw.refuse(row, "parameterization", "a name of the lattice, as sp+embd", near)
    said = {switch: np.array([switch in entry for entry in known]) for switch in SWITCHES}
    if not is_whole:
        left = [f"column {name!r} left out: parameterization says it" for name in columns.values()]
        return said, used, left
    found = {switch: raw.map_cells(name, _read_switch, bool) for switch, name in columns.items()}
    for switch, on in found.items() if len(known) == len(raw) else ():
        if (on != said[switch]).any():
            row = int(np.argmax(on != said[switch]))
            name = show(raw.cell(row, "parameterization"))
            expected = f"{int(not on[row])} as parameterization {name} says"
            raise raw.refuse(row, columns[switch], expected)
    return found, used, []


def _read_switch(cell: object) -> bool:
    state = _ON.get(str(cell).strip().lower())
    if state is None:
        raise ValueError("0 or 1")
    return state


def _parse_entry(cell: object) -> frozenset[str] | None:
    """Return the switches that a name of the lattice turns on; None for another name."""
    try:
        name = parse_parameterization(_say(cell)[:60]).name
    except ConfigError:
        return None
    first, *rest = name.replace("-", "+").split("+")
    on = rest if first == "sp" else {*SWITCHES} - {*rest}
    return frozenset(on) if name in LATTICE else None


def _read_setting(
    raw: RawTable, by: Sequence[str], used: set[str]
) -> dict[str, NDArray[np.object_]]:
    free = [name for name in raw.columns if name not in used | _RESULTS]
    for name in by:
        if name not in free:
            place, why = f"{raw.source}: --by", " that could be a setting"
            raise ConfigError(cells.lack_column(place, name, free, why=why))
    setting = {}
    for name in free:
        if not by or name in by or name == _WEIGHT_DECAY:
            # Numbers where they are: 1e-4 and 0.0001 are one weight decay.
            pairs = zip(raw.columns[name].to_pylist(), raw.numbers(name).tolist(), strict=True)
            setting[name] = np.empty(len(raw), dtype=object)
            setting[name][:] = [_say(cell) if math.isnan(n) else n for cell, n in pairs]
    return setting


def _read_values(raw: RawTable, name: str, effect: Effect) -> Floats:
    values = raw.numbers(name)
    values = np.where(np.abs(values) <= cells.LARGEST, values, np.nan)
    for row in np.flatnonzero(np.isnan(values)).tolist():
        cell = raw.cell(row, name)
        if not (cells.is_empty(cell) or cells.is_nan(cell) or math.isinf(cells.parse_number(cell))):
            raise raw.refuse(row, name, Need.ANY)
    if effect == "ratio" and (values <= 0).any():
        expected = "a positive number, since its effect is a ratio"
        raise raw.refuse(int(np.argmax(values <= 0)), name, expected)
    return values


def _take_value(estimate: Mapping[str, Any]) -> Any:
    return None if estimate["status"] == "not identified" else estimate["value"]


def _say(cell: object) -> str:
    return "" if cell is None else cells.clean(str(cell))


def _find_once(
    raw: RawTable, switches: Switches, setting: Mapping[str, Any], metrics: Mapping[str, Floats]
) -> Ints:
    """Return the first row of each cell; a cell with two values is refused."""
    index: dict[object, int] = {}
    keys = zip(*switches.values(), *setting.values(), strict=True)
    codes = np.array([index.setdefault(key, len(index)) for key in keys])
    for name, values in metrics.items():
        kept, odd = find_repeats(codes, values)
        if len(odd):
            one, other = kept[codes[odd[0]]], odd[0]
            raise DataError(
                f"{raw.place(one)} and {raw.say_row(other)} have the same switches and setting "
                f"({', '.join(setting) or 'no column'}) but {name} {values[one]:g} and "
                f"{values[other]:g}; expected each cell once; name all columns of the setting "
                "with --by COLUMN"
            )
    return kept
