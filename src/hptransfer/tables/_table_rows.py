"""Which rows of a table are trials: other shapes made a row a run, values asked for, each once."""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa

from hptransfer.tables import _raw_table as cells
from hptransfer.tables._columns import (
    NAMES,
    RATES,
    SYNONYMS,
    TableNote,
    choose_columns,
    normalize,
    note,
)
from hptransfer.tables._raw_table import RawTable, is_empty
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
    columns = dict(raw.columns)
    for name, column in raw.columns.items():
        first = next((str(c) for c in column[:100].to_pylist() if not is_empty(c)), "")
        if not (first.startswith("{") and first.endswith("}")):
            continue
        parsed = [_parse_dict(cell) for cell in column.to_pylist()]
        items = [item for item in parsed if item is not None]
        if len(items) == len(parsed):
            del columns[name]
            for key in dict.fromkeys(key for item in items for key in item):
                made = cells.make_column([item.get(key) for item in items])
                columns.setdefault(f"{name}.{key}", made)
    return replace(raw, columns=columns)


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
    made = {"name": cells.make_column(names), metric: cells.make_column(last)}
    table = RawTable(raw.source, made, lambda k: f"column {names[k]!r}", np.arange(len(names)))
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
    melted, sizes = rest.take(rows[kept]), np.repeat([*widths.values()], len(raw))[kept]
    made = {"width": pa.array(sizes), "loss": cells.make_column([losses[k] for k in kept])}
    melted = replace(melted, columns={**melted.columns, **made})
    return melted, [note("wide", count=len(widths), blank=len(losses) - len(kept))]


def _read_run_names(raw: RawTable, columns: Mapping[str, str]) -> Reshaped:
    """Return a table with the width, rate and seed that its runs' names tell, if it lacks them."""
    found = choose_columns(raw, columns, complete=False).names.keys()
    wanted = {"width"} - found | (set() if found & {*RATES} else {"lr"})
    for name in raw.columns if wanted else ():
        if normalize(name) not in NAMES["runs"]:
            continue
        told = raw.map_cells(name, lambda cell: _parse_name(str(cell)))
        common = set.intersection(*map(set, told))
        if wanted <= common:
            extra = sorted(wanted | ({"seed"} & common) - found)
            made = {ours: pa.array([item[ours] for item in told]) for ours in extra}
            about = {"what": " and ".join(extra), "column": name}
            said = note("names", **about, example=str(raw.cell(0, name))[:60])
            return replace(raw, columns={**raw.columns, **made}), [said]
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
