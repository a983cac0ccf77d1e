"""Tables of metrics over the lattice: which row has which switches on, at which setting."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hptransfer.errors import ConfigError, DataError
from hptransfer.scaling import LATTICE, SWITCHES, parse_parameterization
from hptransfer.stats.switch_effects import EFFECTS, Effect, MetricsTable
from hptransfer.tables import _raw_table as cells
from hptransfer.tables._raw_table import Floats, RawTable
from hptransfer.tables._table_files import read_file, tabulate

# Columns that say what the parameterization's name says: ours, and the source's.
_SAID = frozenset({*SWITCHES, "embedding_lr", "norm_lr", "attention_scale", "readout_init"})
# Always part of the setting, as it always separates fits.
_WEIGHT_DECAY = "weight_decay"
# Other results of a fit: never a setting, since no two rows would share it.
_RESULTS = frozenset({"alpha", "beta", "b", "gamma", "loss_inf", "noise_floor", *EFFECTS})
#: Columns that ``--columns`` can name.
OURS = ("parameterization", _WEIGHT_DECAY, *EFFECTS)


def read_metrics(
    path: str | os.PathLike[str],
    *,
    columns: Mapping[str, str] | None = None,
    metrics: Mapping[str, Effect] | None = None,
    by: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
) -> tuple[MetricsTable, tuple[str, ...]]:
    """Read metrics over the lattice from CSV, Parquet, or what ``fit --json`` printed.

    A row's switches are told by its column ``parameterization``, a name of the lattice such as
    ``sp+embd``; columns of 0 and 1 that say the same are not read.

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
    raw = _rename(cells.filter_rows(_read_raw(path), where or {}, columns or {}), columns or {})
    wanted = metrics or {name: how for name, how in EFFECTS.items() if name in raw.columns}
    for name in ("parameterization", *(wanted or ["E"])):
        if name not in raw.columns:
            hint = f"; name it with --columns {name}=NAME"
            raise DataError(cells.lack_column(path, name, raw.columns, hint=hint))
    entries = raw.map_cells("parameterization", _parse_entry)
    switches = {switch: np.array([switch in on for on in entries]) for switch in SWITCHES}
    used = {"parameterization", *_SAID, *_RESULTS, *wanted}
    free = [name for name in raw.columns if name not in used]
    for name in by:
        if name not in free:
            why = " that could be a setting"
            raise ConfigError(cells.lack_column(f"{path}: --by", name, free, why=why))
    chosen = [name for name in free if not by or name in by or name == _WEIGHT_DECAY]
    named = {name: raw.name_cells(name, each=True) for name in chosen}
    values = {name: _read_values(raw, name, effect) for name, effect in wanted.items()}
    code = cells.join_codes(*switches.values(), *(codes for codes, _ in named.values()))
    for name, numbers in values.items():
        kept, odd = cells.find_repeats(code, numbers)
        if len(odd):
            one, other = kept[code[odd[0]]], odd[0]
            raise DataError(
                f"{raw.place(one)} and {raw.say_row(other)} have the same switches and setting "
                f"({', '.join(named) or 'no column'}) but {name} {numbers[one]:g} and "
                f"{numbers[other]:g}; expected each cell once; name all columns of the setting "
                "with --by COLUMN"
            )
    notes = [
        f"{name}: {absent} of {len(raw)} rows have no value that is identified"
        for name, numbers in values.items()
        if (absent := int(np.isnan(numbers).sum()))
    ]
    if len(kept) < len(raw):
        notes.append(f"{len(raw) - len(kept)} repeated row(s) left out")
    table = MetricsTable(
        switches={name: on[kept] for name, on in switches.items()},
        setting={n: np.array(names, object)[codes[kept]] for n, (codes, names) in named.items()},
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


def _parse_entry(cell: object) -> frozenset[str]:
    """Return the switches that a name of the lattice turns on."""
    with suppress(ConfigError):
        if (name := parse_parameterization(cells.say(cell)).name) in LATTICE:
            first, *rest = name.replace("-", "+").split("+")
            return frozenset(rest if first == "sp" else {*SWITCHES} - {*rest})
    near = cells.suggest(cells.say(cell), LATTICE).removeprefix("; ")
    raise ValueError("a name of the lattice, as sp+embd", near)


def _read_values(raw: RawTable, name: str, effect: Effect) -> Floats:
    values = raw.read_measured(name)
    if effect == "ratio" and (values <= 0).any():
        expected = "a positive number, since its effect is a ratio"
        raise raw.refuse(int(np.argmax(values <= 0)), name, expected)
    return np.where(np.abs(values) <= cells.LARGEST, values, np.nan)


def _take_value(estimate: Mapping[str, Any]) -> Any:
    return None if estimate["status"] == "not identified" else estimate["value"]
