"""Which rows of a table are trials: other shapes made a row a run, values asked for, each once."""

import ast
import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import ConfigError, DataError
from hptransfer.tables import _raw_table as cells
from hptransfer.tables._columns import (
    NAMES,
    RATES,
    SYNONYMS,
    ChosenColumns,
    TableNote,
    choose_columns,
    normalize,
    note,
)
from hptransfer.tables._raw_table import Floats, Ints, RawTable, count_codes, is_empty, join_codes
from hptransfer.tables._table_files import to_cells

_WIDE = re.compile(r"(?:(?:w|d|n|width|dim|d_?model|n_?embd|hidden_size)[ _=:-]?)?(\d+)", re.I)
_CHART = re.compile(r"(.+) - (.+?)(__MIN|__MAX)?")
_IN_NAME = re.compile(
    r"(?<![A-Za-z])([A-Za-z](?:[A-Za-z_]*[A-Za-z])?)[=_-]?(\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?![\d.]*[A-Za-z])"
)
_SHORT = {"w": "width", "d": "width", "h": "width", "dmodel": "width", "s": "seed"}
_MOST_ROWS = 100_000

Reshaped = tuple[RawTable, list[TableNote]]


def reshape(raw: RawTable, columns: Mapping[str, str]) -> Reshaped:
    """Return a table with a row for each run, where it has another known shape, and notes on it.

    Cells that hold dicts become columns; one column a run, as a chart is exported, and one column
    a width become rows; and of a table without widths or rates these are read from its runs' or
    files' names, such as ``w64_lr0.01``.

    Parameters
    ----------
    raw : RawTable
        The table.
    columns : mapping of str to str
        Our names to the file's, as the user gave them.
    """
    if len(raw) > _MOST_ROWS:
        return raw, []
    raw, notes = _split_dicts(raw), []
    for change in (_read_chart, _melt_widths, _read_run_names):
        if {*columns.values()} <= raw.columns.keys():
            raw, found = change(raw, columns)
            notes += found
    return raw, notes


def _split_dicts(raw: RawTable) -> RawTable:
    """Return a table whose cells of dicts, as pandas writes them, are columns ``NAME.KEY``."""
    found: dict[str, list[object]] = {}
    kept = dict(raw.columns)
    for name, column in raw.columns.items():
        first = next((str(c) for c in column[:100].to_pylist() if not is_empty(c)), "")
        if not (first.startswith("{") and first.endswith("}")):
            continue
        parsed = [_parse_dict(cell) for cell in column.to_pylist()]
        if None in parsed:
            continue
        del kept[name]
        for row, item in enumerate(parsed):
            for key, value in (item or {}).items():
                found.setdefault(f"{name}.{key}", [None] * len(raw))[row] = value
    made = {name: cells.make_column(each) for name, each in found.items() if name not in kept}
    return replace(raw, columns={**kept, **made})


def _parse_dict(cell: object) -> dict[str, object] | None:
    """Return a dict that a cell spells, by Python's or JSON's rules; None where it does not."""
    if is_empty(cell):
        return {}
    text = cell if isinstance(cell, str) and len(cell) < 100_000 else ""
    # Python writes nan and inf bare, which are no literals.
    python = re.sub(r"(?<=[:,\[(]\s)nan(?=\s*[,}\])])", "None", text)
    python = re.sub(r"(?<=[:,\[(\s-])inf(?=\s*[,}\])])", "1e999", python)
    for read in (partial(json.loads, text), partial(ast.literal_eval, python)):
        try:
            return dict(to_cells(read()))
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError, AttributeError):
            continue
    return None


def _read_chart(raw: RawTable, columns: Mapping[str, str]) -> Reshaped:
    """Return one row a run of a chart that was exported with one column a run."""
    parts = [(name, part) for name in raw.columns if (part := _CHART.fullmatch(name))]
    runs = {part[1]: name for name, part in parts if not part[3]}
    metrics = {part[2] for _, part in parts}
    if columns or len(runs) < 2 or len(metrics) != 1 or len(raw.columns) > len(runs) * 3 + 2:
        return raw, []
    last: list[object] = []
    for name in runs.values():
        filled = [cell for cell in raw.columns[name].to_pylist() if not is_empty(cell)]
        last.append(cells.parse_number(filled[-1]) if filled else None)
    names, metric = list(runs), metrics.pop()
    table = RawTable(
        source=raw.source,
        columns={"name": cells.make_column(names), metric: cells.make_column(last)},
        describe_row=lambda row: f"column {names[row]!r}",
        rows=np.arange(len(names)),
    )
    return table, [note("chart", metric=metric, count=len(names))]


def _melt_widths(raw: RawTable, columns: Mapping[str, str]) -> Reshaped:
    """Return one row a width and rate of a table with one column a width."""
    found = choose_columns(raw, columns, complete=False).names
    matches = {name: _WIDE.fullmatch(name) for name in raw.columns if name not in columns.values()}
    widths = {name: int(match[1]) for name, match in matches.items() if match and int(match[1])}
    named = {found.get(ours) for ours in ("width", "loss")} <= {None, *widths}
    unique = len(widths) > 1 and len({*widths.values()}) == len(widths)
    if not (named and unique and found.keys() & {*RATES}):
        return raw, []
    rows = np.tile(np.arange(len(raw)), len(widths))
    losses = [cell for name in widths for cell in raw.columns[name].to_pylist()]
    kept = [k for k, cell in enumerate(losses) if not is_empty(cell) or cells.is_nan(cell)]
    rest = replace(raw, columns={n: c for n, c in raw.columns.items() if n not in widths})
    sizes = np.repeat(list(widths.values()), len(raw))[kept]
    made = {"width": sizes.tolist(), "loss": [losses[k] for k in kept]}
    melted = rest.take(rows[kept]).holding(made, np.arange(len(kept)))
    return melted, [note("wide", count=len(widths), blank=len(losses) - len(kept))]


def _read_run_names(raw: RawTable, columns: Mapping[str, str]) -> Reshaped:
    """Return a table with the width, rate and seed that its runs' names tell, if it lacks them."""
    found = choose_columns(raw, columns, complete=False).names.keys()
    wanted = {"width"} - found | (set() if found & {*RATES} else {"lr"})
    for name in raw.columns if wanted else ():
        if normalize(name) not in NAMES["runs"]:
            continue
        codes, values = raw.encode(name)
        told = [_parse_name(str(value)) for value in values]
        common = set.intersection(*(set(item) for item in told))
        if wanted <= common:
            extra = sorted(wanted | ({"seed"} & common) - found)
            new = {ours: [item[ours] for item in told] for ours in extra}
            what, example = " and ".join(extra), str(values[0])[:60]
            return raw.holding(new, codes), [note("names", what=what, column=name, example=example)]
    return raw, []


def _parse_name(name: str) -> dict[str, float]:
    """Return the width, rate and seed that a run's name tells.

    Examples
    --------
    >>> _parse_name("gpt-w64_lr0.01_s3")
    {'width': 64.0, 'lr': 0.01, 'seed': 3.0}
    """
    found: dict[str, float] = {}
    for key, number in _IN_NAME.findall(name):
        bare = normalize(key)
        for ours in ("width", "lr", "seed"):
            if ours == _SHORT.get(bare, bare) or bare in SYNONYMS[ours]:
                found.setdefault(ours, float(number))
    return found


def map_values(raw: RawTable, changes: Mapping[str, Mapping[str, str]]) -> RawTable:
    """Return a table with other values in some cells, by column and old value.

    Raises
    ------
    ConfigError
        If there is no such column, or no such value in it.
    """
    for column, words in changes.items():
        name = raw.require(column, "--map")
        codes, values = raw.encode(name)
        for word, new in words.items():
            same = [_is_value(value, word) for value in values]
            if not any(same):
                raise ConfigError(
                    f"{raw.source}: --map: no cell of {name!r} is {word!r}; found "
                    f"{cells.name_some(values)}"
                )
            values = [new if is_it else v for v, is_it in zip(values, same, strict=True)]
        raw = raw.holding({name: values}, codes)
    return raw


def filter_rows(raw: RawTable, where: Mapping[str, str], columns: Mapping[str, str]) -> RawTable:
    """Return the rows in which each named column, by the file's name or ours, has its value.

    Numbers are compared as numbers (``512`` is ``5.12e2``), all else as text without its outer
    blanks; an empty value asks for empty cells.

    Raises
    ------
    ConfigError
        If a column is not there.
    DataError
        If no row is left; the values that the column has are given.
    """
    for ours, value in where.items():
        name = raw.require(ours, "--where", columns)
        codes, values = raw.encode(name)
        rows = np.flatnonzero(np.array([_is_value(cell, value) for cell in values])[codes])
        if not len(rows):
            seen = list(dict.fromkeys(map(_show, values[:100_000])))
            raise DataError(
                f"{raw.source}: --where: no row in which {name!r} is {cells.clean(value)!r}"
                f"{cells.suggest(value, seen)}; found {cells.name_some(seen)}"
            )
        raw = raw if len(rows) == len(raw) else raw.take(rows)
    return raw


def keep_last(
    raw: RawTable, chosen: ChosenColumns, last: str | None
) -> tuple[RawTable, list[TableNote]]:
    """Return each run's last evaluation, where rows are evaluations, and a note on it.

    Rows are evaluations where several of one run differ in a column that counts steps, which is
    `last` or one that is called so; an evaluation without a loss is none.
    """
    names = {**chosen.names, **chosen.groups}
    counts = [n for n in raw.columns if normalize(n) in NAMES["steps"] and n not in names.values()]
    column = raw.require(last, "--last", names) if last else next(iter(counts), None)
    if column is None:
        return raw, []
    settings = ("width", chosen.rate, "seed", *chosen.groups)
    trials = join_codes(*(raw.encode(names[name])[0] for name in settings if name in names))
    runs, steps = _find_runs(raw, trials), raw.numbers(column)
    # Rows of one run at one step are no evaluations, and neither are steps without numbers.
    is_history = np.isfinite(steps).all() and count_codes(join_codes(runs, steps)) == len(steps)
    steps = np.where(np.isnan(steps), -np.inf, steps)  # NaN would rank highest
    if count_codes(runs) == len(raw) or not (last or is_history):
        return raw, []
    kept = _take_last(runs, steps, ~raw.blanks(names["loss"]))
    return raw.take(kept), [note("history", rows=len(raw), count=count_codes(runs), column=column)]


def _find_runs(raw: RawTable, trials: Ints) -> Ints:
    """Return the run of each row: by a column that names runs, else by its trial."""
    for name in raw.columns:
        if normalize(name) in NAMES["runs"]:
            codes = raw.encode(name)[0]
            # A name that holds several trials, such as a sweep's, is no run's.
            if count_codes(join_codes(codes, trials)) == count_codes(codes):
                return codes
    return trials


def _take_last(codes: Ints, *ranks: NDArray[np.generic]) -> Ints:
    """Return the row of each code that ranks highest, the last rank first, then the last row."""
    order = np.lexsort((*ranks, codes))
    return np.sort(order[np.append(np.flatnonzero(np.diff(codes[order])), len(order) - 1)])


def drop_repeats(
    raw: RawTable, loss: Floats, trial: Ints, chosen: ChosenColumns, keep: str | None
) -> tuple[Ints, list[TableNote]]:
    """Return the rows to keep: each trial once, and of several rows the one that is asked for.

    Parameters
    ----------
    raw : RawTable
        Cells of the rows, for the message.
    loss : ndarray of float, shape (rows,)
        Their losses.
    trial : ndarray of int, shape (rows,)
        Which trial each row is.
    chosen : ChosenColumns
        Columns that are read.
    keep : str or None
        ``last``, or ``longest:COLUMN``.

    Raises
    ------
    DataError
        If a trial has two losses and `keep` does not choose; the message says what else the rows
        differ in.
    """
    count = count_codes(trial)
    if count == len(trial):
        return np.arange(count), []
    if keep:
        rule, _, column = keep.partition(":")
        if rule not in ("last", "longest") or (rule == "longest") != bool(column):
            raise ConfigError(f"--keep: expected last or longest:COLUMN, found {keep!r}")
        name = raw.require(column, "--keep", chosen.names) if column else ""
        size = raw.numbers(name) if name else np.zeros(len(trial))
        kept = _take_last(trial, np.nan_to_num(size, nan=-np.inf))
        return kept, [note("kept", count=len(trial) - count, rule=keep)]
    kept = np.unique(trial, return_index=True)[1]
    before = loss[kept[trial]]
    differ = np.flatnonzero((before != loss) & ~(np.isnan(before) & np.isnan(loss)))
    if len(differ):
        one, other = int(kept[trial[differ[0]]]), int(differ[0])
        seed = ", seed" if "seed" in chosen.names else ""
        raise DataError(
            f"{raw.place(one)} and {raw.say_row(other)} have the same width, lr{seed} and group "
            f"but losses {loss[one]:g} and {loss[other]:g}; expected each trial once"
            f"{_explain_repeat(raw, one, other, chosen)}"
        )
    return kept, [note("repeated", count=len(trial) - count)]


def _explain_repeat(raw: RawTable, one: int, other: int, chosen: ChosenColumns) -> str:
    """Return what two rows of one trial differ in, as advice."""
    known = {*chosen.names.values(), *chosen.groups.values()}
    rest = [name for name in raw.columns if name not in known]
    differ = [name for name in rest if raw.cell(one, name) != raw.cell(other, name)]
    sizes = {name: len(raw.encode(name)[1]) for name in differ}
    # A run's id or time stamp differs in every row, a log of its end in most: neither groups.
    name = min(differ, key=lambda n: (sizes[n], len(str(raw.cell(one, n)))), default="")
    advice = ""
    if name and sizes[name] <= len(raw) // 2:
        group, value = shlex.quote(name), shlex.quote(f"{name}={_show(raw.cell(one, name))}")
        advice = f"; they differ in {name!r}: group with --by {group}, or pick one with --where "
        advice += value
    step = next((n for n in differ if normalize(n) in NAMES["steps"]), None)
    if step or not advice:
        advice += f"; of retries, --keep {shlex.quote(f'longest:{step}') if step else 'last'}"
    if "seed" not in chosen.names:
        advice += "; if these are seeds, name their column with --columns seed=NAME"
    return advice


def _is_value(cell: object, value: str) -> bool:
    one, other = cells.parse_plain(cell), cells.parse_plain(value)
    if not (math.isnan(one) or math.isnan(other)):
        return one == other
    return _show(cell) == cells.clean(value)[:60]


def _show(cell: object) -> str:
    return "" if cell is None else cells.clean(str(cell))[:60]
