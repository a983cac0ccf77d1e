"""Tables of other shapes to a row a run: widths as columns, dict cells, charts, run names."""

import ast
import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hptransfer.tables.cell_values import is_empty, parse_number
from hptransfer.tables.json_tables import parse_object, to_cells
from hptransfer.tables.notes import TableNote, note
from hptransfer.tables.raw_table import RawTable, encode, make_column
from hptransfer.tables.table_columns import RATES, SYNONYMS, choose_columns, normalize

_WIDE = re.compile(r"(?:(?:w|d|n|width|dim|d_?model|n_?embd|hidden_size)[ _=:-]?)?(\d+)", re.I)
_CHART = re.compile(r"(.+) - (.+?)(__MIN|__MAX)?")
_IN_NAME = re.compile(
    r"(?<![A-Za-z])([A-Za-z](?:[A-Za-z_]*[A-Za-z])?)[=_-]?(\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?![\d.]*[A-Za-z])"
)
_SHORT = {"w": "width", "d": "width", "h": "width", "dmodel": "width", "s": "seed"}
_MOST_ROWS = 100_000


def reshape(raw: RawTable, columns: Mapping[str, str]) -> tuple[RawTable, list[TableNote]]:
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
    raw = _split_dicts(raw)
    notes: list[TableNote] = []
    for change in (_read_chart, _melt_widths, _read_run_names):
        if set(columns.values()) <= set(raw.columns):
            raw, found = change(raw, columns)
            notes += found
    return raw, notes


def _find(raw: RawTable, columns: Mapping[str, str]) -> Mapping[str, str]:
    known = {ours: theirs for ours, theirs in columns.items() if theirs in raw.columns}
    return choose_columns(raw, known, complete=False).names


def _split_dicts(raw: RawTable) -> RawTable:
    """Return a table whose cells of dicts, as pandas writes them, are columns ``NAME.KEY``."""
    found: dict[str, list[object]] = {}
    gone = []
    for name, cells in raw.columns.items():
        first = next((c for c in cells[:100].to_pylist() if not is_empty(c)), None)
        if not (isinstance(first, str) and first.startswith("{") and first.endswith("}")):
            continue
        parsed = [_parse_dict(cell) for cell in cells.to_pylist()]
        if any(item is None for item in parsed):
            continue
        gone.append(name)
        for row, item in enumerate(parsed):
            for key, value in (item or {}).items():
                found.setdefault(f"{name}.{key}", [None] * len(raw))[row] = value
    if not gone:
        return raw
    kept = {name: cells for name, cells in raw.columns.items() if name not in gone}
    new = {name: make_column(cells) for name, cells in found.items() if name not in kept}
    return replace(raw, columns={**kept, **new})


def _parse_dict(cell: object) -> dict[str, object] | None:
    """Return a dict that a cell spells, by Python's or JSON's rules; None where it does not."""
    if is_empty(cell):
        return {}
    if not isinstance(cell, str) or len(cell) > 100_000:
        return None
    try:
        return parse_object(cell)
    except ValueError:
        pass
    try:
        # Python writes nan and inf bare, which are no literals.
        text = re.sub(r"(?<=[:,\[(]\s)nan(?=\s*[,}\])])", "None", cell)
        found = ast.literal_eval(re.sub(r"(?<=[:,\[(\s-])inf(?=\s*[,}\])])", "1e999", text))
        return dict(to_cells(found)) if isinstance(found, dict) else None
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def _read_chart(raw: RawTable, columns: Mapping[str, str]) -> tuple[RawTable, list[TableNote]]:
    """Return one row a run of a chart that was exported with one column a run."""
    parts = {name: _CHART.fullmatch(name) for name in raw.columns}
    runs = {name: part[1] for name, part in parts.items() if part and not part[3]}
    metrics = {part[2] for part in parts.values() if part}
    if columns or len(runs) < 2 or len(metrics) != 1 or len(raw.columns) > len(runs) * 3 + 2:
        return raw, []
    last: list[object] = []
    for name in runs:
        filled = [cell for cell in raw.columns[name].to_pylist() if not is_empty(cell)]
        last.append(parse_number(filled[-1]) if filled else None)
    names = list(runs.values())
    metric = metrics.pop()
    table = RawTable(
        source=raw.source,
        columns={"name": make_column(names), metric: make_column(last)},
        describe_row=lambda row: f"column {names[row]!r}",
        rows=np.arange(len(names)),
    )
    return table, [note("chart", metric=metric, count=len(names))]


def _melt_widths(raw: RawTable, columns: Mapping[str, str]) -> tuple[RawTable, list[TableNote]]:
    """Return one row a width and rate of a table with one column a width."""
    import pyarrow as pa

    found = _find(raw, columns)
    widths = {
        name: int(match[1])
        for name in raw.columns
        if (match := _WIDE.fullmatch(name)) and int(match[1]) > 0
        and name not in columns.values()
    }  # fmt: skip
    if "width" in found and found["width"] not in widths:
        return raw, []
    if len(widths) < 2 or len(set(widths.values())) < len(widths):
        return raw, []
    loss = found.get("loss")
    if (loss and loss not in widths) or not any(rate in found for rate in RATES):
        return raw, []
    rest = [name for name in raw.columns if name not in widths]
    rows = np.tile(np.arange(len(raw)), len(widths))
    losses = [cell for name in widths for cell in raw.columns[name].to_pylist()]
    filled = np.array([not is_empty(cell) or cell in ("nan", "NaN") for cell in losses])
    kept = np.flatnonzero(filled)
    picked = pa.array(rows[kept])
    sizes = np.repeat(list(widths.values()), len(raw))[kept]
    melted = RawTable(
        source=raw.source,
        columns={
            **{name: raw.columns[name].take(picked) for name in rest},
            "width": pa.array(sizes),
            "loss": make_column([losses[k] for k in kept.tolist()]),
        },
        describe_row=lambda row: raw.describe_row(int(rows[row])),
        rows=kept,
    )
    return melted, [note("wide", count=len(widths), blank=len(losses) - len(kept))]


def _read_run_names(raw: RawTable, columns: Mapping[str, str]) -> tuple[RawTable, list[TableNote]]:
    """Return a table with the width, rate and seed that its runs' names tell, if it lacks them."""
    found = _find(raw, columns)
    wanted = {"width"} - found.keys() | (set() if set(RATES) & found.keys() else {"lr"})
    if not wanted:
        return raw, []
    for name, cells in raw.columns.items():
        if normalize(name) not in ("run", "name", "run_name", "file", "folder", "id", "run_id"):
            continue
        codes, values = encode(cells)
        told = [_parse_name(str(value)) for value in values]
        if not told or not all(wanted <= item.keys() for item in told):
            continue
        extra = wanted | ({"seed"} if all("seed" in t for t in told) else set()) - found.keys()
        new = {
            ours: make_column([item[ours] for item in told]).take(_to_array(codes))
            for ours in sorted(extra)
        }
        what = " and ".join(sorted(extra))
        return replace(raw, columns={**raw.columns, **new}), [
            note("names", what=what, column=name, example=str(values[0])[:60])
        ]
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
        ours = _SHORT.get(bare, bare)
        ours = next((o for o in ("width", "lr", "seed") if ours == o or bare in SYNONYMS[o]), "")
        if ours:
            found.setdefault(ours, float(number))
    return found


def _to_array(rows: "np.typing.NDArray[np.int64]") -> object:
    import pyarrow as pa

    return pa.array(rows)
