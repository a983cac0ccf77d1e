"""Damaged and hostile tables, each made from its number, and what the command makes of one."""

import contextlib
import csv
import io
import json
import math
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hptransfer.cli.main import main

Columns = dict[str, list[Any]]

# Cells that no table should hold, and some that one may.
CELLS: tuple[Any, ...] = (
    "", " ", "nan", "NaN", "-nan", "inf", "-inf", "Infinity", "1e309", "-1e309", "1e308", "-1e308",
    "1e-308", "5e-324", "0", "-0.0", "-1", "0.5", "1_000", "0x10", "1,5", "1 000", "١٢", "１２",
    "=1+1", "=cmd|' /C calc'!A0", "@SUM(A1:A9)", "+1", "-", "#DIV/0!", "#N/A", "TRUE", "None",
    "null", "<script>alert(1)</script>", "[bold]x[/bold]", "\x00", "a\nb", "a\rb", "a\u2028b",
    "\x1b[31m", "\ufeff64", '"', "'", ",", ";", "\t", "é", "😀", "x" * 5000, "9" * 400, "9" * 5000,
    str(2**53), str(2**63), str(2**64 + 1), "finished", "crashed", "diverged", "running",
    "mean of 3",
    0, -1, 1, 2**31, 2**53 + 1, 2**63, -(2**63), 10**30, 10**400, 0.0, -0.0, 1e308, -1e308, 1e300,
    5e-324, 1e-300, math.inf, -math.inf, math.nan, True, False, None,
)  # fmt: skip

NAMES = (
    "", " ", "width", "Width", "lr", "loss", "LOSS", "seed", "state", "tokens", "params", "log2_lr",
    "base_lr", "weight_decay", "parameterization", "a\nb", "\ufefflr", "=lr", "x" * 300, "é", "1",
)  # fmt: skip

OPTIONS: tuple[tuple[str, ...], ...] = (
    ("--by", "depth"), ("--by", "seed"), ("--by", "state,lr"), ("--where", "depth=2"),
    ("--where", "width=64"), ("--where", "loss="), ("--columns", "width=depth"),
    ("--columns", "loss=val/loss,seed=lr"), ("--columns", "log2_lr=lr"),
    ("--columns", "weight_decay=loss"), ("--form", "power"), ("--reference", "mup"),
    ("--columns", "parameterization=seed"), ("--by", "run"), ("--columns", "tokens=width"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """One table: its file's name and bytes, and the options it is read with."""

    name: str
    data: bytes
    options: tuple[str, ...]


def make_hostile(number: int) -> Hostile:
    """Return the table of a number."""
    rng = np.random.default_rng([20_261, number])
    columns = _make_columns(rng)
    for _ in range(int(rng.choice(5, p=(0.2, 0.5, 0.2, 0.05, 0.05)))):
        _damage(rng, columns)
    suffix = str(rng.choice([".csv", ".tsv", ".txt", ".jsonl", ".parquet"], p=[0.4, *[0.15] * 4]))
    if suffix == ".parquet":
        data = _write_parquet(columns)
    elif suffix == ".jsonl":
        data = _write_jsonl(rng, columns)
    else:
        data = _write_text(rng, columns, suffix)
    if rng.random() < 0.1:
        data = _break_bytes(rng, data)
    if rng.random() < 0.04:
        suffix = str(rng.choice([".json", ".xlsx", ".parquet", ".jsonl", ".csv", ""]))
    options = tuple(_pick(rng, OPTIONS)) if rng.random() < 0.25 else ()
    return Hostile(name=f"t{suffix}", data=data, options=options)


def judge(table: Hostile, directory: Path) -> str:
    """Return "result" or "error", or what went wrong with a table, in words and lines."""
    path = directory / table.name
    path.write_bytes(table.data)
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(["fit", str(path), "--json", *table.options])
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 1
        except Exception:
            return f"traceback: {traceback.format_exc()}"
        finally:
            path.unlink()
    if warned:
        where = f"{Path(warned[0].filename).name}:{warned[0].lineno}"
        return f"warning: {where}: {warned[0].message}"
    lines = err.getvalue().splitlines()
    if code == 0:
        document = json.loads(out.getvalue())
        fine = document["schema"] == 1 and all(": note: " in line for line in lines)
        return "result" if fine else f"not a result: {lines}"
    # A note on rows left out may stand before the error.
    errors = [line for line in lines if ": note: " not in line]
    fine = code in (1, 2) and len(errors) == 1 and errors[0].startswith("hptransfer")
    return "error" if fine and not out.getvalue() else f"not one line: code {code}: {lines}"


def _pick(rng: np.random.Generator, some: Sequence[Any]) -> Any:
    return some[int(rng.integers(len(some)))]


def _make_columns(rng: np.random.Generator) -> Columns:
    """Return a table that is right: a bowl in ln(lr) at each width, with noise."""
    widths = [32 * 2**k for k in range(int(rng.integers(1, 7)))]
    lrs = [2.0 ** (-10 + k) for k in range(int(rng.integers(1, 9)))]
    kinds = ["sp", "mup"][: int(rng.integers(1, 3))]
    seeds = range(int(rng.integers(1, 4)))
    rows = [(p, n, lr, s) for p in kinds for n in widths for lr in lrs for s in seeds]
    loss = [
        2 + 3 * n**-0.4 + 0.1 * (math.log2(lr) + 7) ** 2 + 0.01 * rng.standard_normal()
        for _, n, lr, _ in rows
    ]
    columns: Columns = {
        "parameterization": [row[0] for row in rows],
        "width": [row[1] for row in rows],
        "lr": [row[2] for row in rows],
        "seed": [row[3] for row in rows],
        "loss": [float(value) for value in loss],
    }
    constant = rng.random() < 0.7
    optional: Columns = {
        "weight_decay": [0.1] * len(rows),
        "state": ["finished"] * len(rows),
        "params": [row[1] ** 2 for row in rows],
        "tokens": [10**6 if constant else 20 * row[1] ** 2 for row in rows],
        "depth": [2 + k % 2 for k in range(len(rows))],
        "run": [f"run-{k}" for k in range(len(rows))],
    }
    columns |= {name: cells for name, cells in optional.items() if rng.random() < 0.3}
    return columns


def _damage(rng: np.random.Generator, columns: Columns) -> None:
    """Spoil cells, a column, a name or the rows, in place."""
    name = _pick(rng, list(columns)) if columns else ""
    cells = columns.get(name, [])
    what = int(rng.integers(9))
    if what <= 2:
        for _ in range(int(rng.integers(1, 4)) if cells else 0):
            cells[int(rng.integers(len(cells)))] = _pick(rng, CELLS)
    elif what == 3:
        cells[:] = [_pick(rng, CELLS)] * len(cells)
    elif what == 4:
        cells[:] = [_pick(rng, CELLS) for _ in cells]
    elif what == 5:
        columns.pop(name, None)
    elif what == 6:
        # "header#k" is written as "header": names may stand twice in a file.
        columns[f"{_pick(rng, NAMES)}#{rng.integers(1000)}"] = columns.pop(name, [])
    elif what == 7:
        keep = rng.random(max(map(len, columns.values()), default=0)) < rng.choice([0.02, 0.3, 0.9])
        for column in columns.values():
            column[:] = [cell for cell, kept in zip(column, keep, strict=True) if kept]
    else:
        scale = _pick(rng, (1e-300, 1e300, -1.0, 0.0, 1e-9, 1e9))
        cells[:] = [
            cell * scale if isinstance(cell, float | int) and abs(cell) < 1e300 else cell
            for cell in cells
        ]


def _rows(columns: Columns) -> list[list[Any]]:
    return [list(row) for row in zip(*columns.values(), strict=True)]


def _write_text(rng: np.random.Generator, columns: Columns, suffix: str) -> bytes:
    file = io.StringIO()
    delimiter = "\t" if suffix == ".tsv" else str(rng.choice([",", ",", ",", ";", "\t", "|"]))
    end = str(rng.choice(["\n", "\r\n", "\r"], p=[0.7, 0.2, 0.1]))
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
    rows = [[name.partition("#")[0] for name in columns], *_rows(columns)]
    for row in rows:
        if rng.random() < 0.1 / len(rows):
            row = [*row, "more"] if rng.random() < 0.5 else row[:-1]
        # A number too long to write out is what a broken logger might print.
        writer.writerow(["9" * 400 if isinstance(c, int) and abs(c) > 10**300 else c for c in row])
    text = file.getvalue()
    encoding = str(
        rng.choice(["utf-8", "utf-8-sig", "utf-16", "latin-1"], p=[0.7, 0.2, 0.05, 0.05])
    )
    return text.encode(encoding, "replace")


def _write_jsonl(rng: np.random.Generator, columns: Columns) -> bytes:
    lines = []
    for row in _rows(columns):
        cells = ", ".join(
            f"{json.dumps(name.partition('#')[0])}: {json.dumps(cell)}"
            for name, cell in zip(columns, row, strict=True)
            if cell is not None
        )
        lines.append("{" + cells + "}")
    if lines and rng.random() < 0.2:
        odd = (
            "[1]",
            "{",
            "3",
            '"x"',
            "[" * 5000,
            '{"a": {"b": [1]}}',
            "{}",
            '{"\\ud800": "\\ud800"}',
        )
        lines[int(rng.integers(len(lines)))] = _pick(rng, (*odd, '{"width": ' + "9" * 5000 + "}"))
    return ("\ufeff" * int(rng.random() < 0.1) + "\n".join(lines)).encode()


def _write_parquet(columns: Columns) -> bytes:
    arrays = []
    for cells in columns.values():
        try:
            arrays.append(pa.array(cells))
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            arrays.append(pa.array([None if cell is None else str(cell)[:9999] for cell in cells]))
    sink = io.BytesIO()
    names = [name.partition("#")[0] for name in columns]
    pq.write_table(pa.Table.from_arrays(arrays, names=names), sink)
    return sink.getvalue()


def _break_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    broken = bytearray(data)
    for _ in range(int(rng.integers(1, 8)) if broken else 0):
        broken[int(rng.integers(len(broken)))] = int(rng.integers(256))
    if rng.random() < 0.3:
        del broken[int(rng.integers(len(broken) + 1)) :]
    return bytes(broken)
