"""Any source of losses to a loss table: files, a frame, a study directory, or a tracker's runs."""

import ast
import glob
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, Unpack

import numpy as np
import pyarrow as pa

from hptransfer.errors import DataError, StoreError
from hptransfer.scaling import AXES
from hptransfer.stats.estimate import COLUMNS, TidyResult, join_columns
from hptransfer.stats.loss_table import LossTable
from hptransfer.tables import _columns as known
from hptransfer.tables import _raw_table as cells
from hptransfer.tables import _stored_trials as own
from hptransfer.tables import _table_files as files
from hptransfer.tables._columns import GROUPS, RATES, choose_columns, normalize
from hptransfer.tables._loss_rows import ReadOptions, make_loss_table
from hptransfer.tables._raw_table import RawTable, TableNote, filter_rows, is_empty

#: What a table is read from: a path or a glob, or several of them.
TableSource: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"


@dataclass(frozen=True, kw_only=True)
class LoadedTable:
    """A loss table, and what its source says beside it.

    Attributes
    ----------
    table : LossTable
        The trials that ended, diverged ones as NaN.
    damaged : tuple of str
        One line for each file of the source that could not be read.
    settings : mapping
        Contents of a study's ``study.json``, and as ``rows_chosen`` the ``where`` that chose among
        its trials; empty for a table of any other source.
    notes : tuple of TableNote
        What was left out, chosen, or seen to vary beside what is fitted.

    Examples
    --------
    >>> import pyarrow as pa
    >>> frame = pa.table({"dim": [64, 64], "lr": [0.01, 0.02], "loss": [3.5, 3.4]})
    >>> [note.kind for note in read_frame(frame).notes]
    ['columns']
    """

    table: LossTable
    damaged: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[TableNote, ...] = ()

    @property
    def risks(self) -> tuple[TableNote, ...]:
        """Notes with which an answer from the table is risky at best."""
        return tuple(note for note in self.notes if note.risky)


def read_table(source: TableSource, **options: Unpack[ReadOptions]) -> LossTable:
    """Read a loss table: CSV, TSV, JSON or Parquet files, a study, or a tracker's runs.

    Columns are ``width``, ``lr`` (or ``base_lr``, or ``log2_lr``, ``log10_lr``, ``ln_lr``) and
    ``loss``, and optionally ``parameterization``, ``seed``, ``weight_decay``, ``params``,
    ``tokens`` and ``state``; what trackers and trainers call them is known. A missing or
    non-finite loss, or the state ``diverged``, is a diverged trial: NaN. Rows whose state is
    ``pending`` or ``failed`` are left out; `read_source` says how many.

    Parameters
    ----------
    source : str, path or sequence of them
        A file or a pipe, several or a glob as one table, or the directory of a study, of tables,
        or of the runs of a tracker or trainer.
    **options
        `ReadOptions`: ``columns``, ``by``, ``where`` and others, by name.

    Returns
    -------
    LossTable
        One row for each trial that ended.

    Raises
    ------
    ConfigError
        If an option names what is not there.
    DataError
        If the table is wrong; the message names file, column and row.
    StoreError
        If a file of a study is damaged; `read_source` reads the rest.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "runs.csv")
    ...     _ = path.write_text("n_embd,lr,val/loss\\n64,2^-7,3.5\\n64,2^-6,nan\\n")
    ...     read_table(path).loss
    array([3.5, nan])
    """
    loaded = read_source(source, **options)
    if loaded.damaged:
        raise StoreError(loaded.damaged[0])
    return loaded.table


def read_source(source: TableSource, **options: Unpack[ReadOptions]) -> LoadedTable:
    """Read what `read_table` reads, with notes, settings and damaged files beside it.

    Parameters
    ----------
    source, **options
        As for `read_table`.

    Returns
    -------
    LoadedTable
        The loss table, and what is to be said of it.

    Raises
    ------
    ConfigError, DataError
        As for `read_table`.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "runs.csv")
    ...     _ = path.write_text("width,lr,loss,state\\n64,0.1,3.5,finished\\n64,0.2,,crashed\\n")
    ...     [dict(note.values)["above"] for note in read_source(path).notes]
    [1]
    """
    paths = _find_paths(source)
    return _read_study(paths, options) or _load(_read_rows(paths), options)


def read_frame(frame: Any, **options: Unpack[ReadOptions]) -> LoadedTable:
    """Read a loss table from a pandas, polars or Arrow frame in memory.

    Parameters
    ----------
    frame : pandas.DataFrame, polars.DataFrame or pyarrow.Table
        A row for each training run.
    **options
        As for `read_table`.

    Returns
    -------
    LoadedTable
        The loss table, and notes on it.

    Raises
    ------
    ConfigError, DataError
        As for `read_table`.

    Examples
    --------
    >>> import pyarrow as pa
    >>> frame = pa.table({"width": [64, 64], "lr": [0.01, 0.02], "loss": [3.5, 3.4]})
    >>> read_frame(frame).table.loss
    array([3.5, 3.4])
    """
    return _load(files.read_arrow(frame), options)


def list_columns(source: TableSource) -> list[dict[str, Any]]:
    """Return what each column of a source holds, and as which of ours it would be read.

    Parameters
    ----------
    source : str, path or sequence of them
        As for `read_table`.

    Returns
    -------
    list of dict
        Of each column ``name``, ``used_as`` ("" where it is not used), ``distinct``, ``empty``
        and ``examples``, the most frequent three.

    Raises
    ------
    DataError
        If the source is no table.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "runs.csv")
    ...     _ = path.write_text("n_embd,lr,eval/loss\\n64,0.1,3.5\\n")
    ...     {column["name"]: column["used_as"] for column in list_columns(path)}
    {'n_embd': 'width', 'lr': 'lr', 'eval/loss': 'loss'}
    """
    raw = _read_rows(_find_paths(source))
    return known.describe_columns(raw if raw.is_ours else reshape(raw, {}))


def _read_study(paths: Sequence[Path], options: ReadOptions) -> LoadedTable | None:
    """Return a study's trials as its store has them, whole and typed.

    None for other sources, and under options that ask for more than rows and groups of ours.
    """
    where, by = options.get("where") or {}, {*(options.get("by") or ())}
    asked = {name for name, value in options.items() if value} - {"where", "by"}
    if len(paths) > 1 or not own.is_study(paths[0]) or asked or by - {*GROUPS}:
        return None
    from hptransfer.study.store import SCALAR_COLUMNS, TABLE_COLUMNS, read_trials

    told = {"id", "identity", "code_hash", *where}
    if not told <= {*SCALAR_COLUMNS}:
        told = {*SCALAR_COLUMNS}  # of a name that is none, all are listed
    stored = read_trials(paths[0], {*TABLE_COLUMNS, *told})
    chosen = filter_rows(own.list_trials(stored, told), where, {})
    known.tell_codes(chosen)
    table = stored.to_loss_table(chosen.rows, by=GROUPS)
    return LoadedTable(
        table=replace(table, **own.make_rates(stored.settings)),
        damaged=tuple(chosen.damaged),
        settings={**stored.settings, **({"rows_chosen": dict(where)} if where else {})},
        notes=tuple(chosen.notes),
    )


def _load(raw: RawTable, options: ReadOptions) -> LoadedTable:
    if not raw.is_ours:
        raw = reshape(raw, options.get("columns") or {})
    settings = dict(raw.settings)
    told = settings or own.find_settings(raw)
    axis: Any = told.get("axis")
    table = make_loss_table(raw, options, axis if axis in AXES else "as given")
    if settings and (where := options.get("where")):
        settings["rows_chosen"] = dict(where)
    return LoadedTable(
        table=replace(table, **own.make_rates(told)),
        damaged=tuple(raw.damaged),
        settings=settings,
        notes=tuple(raw.notes),
    )


def _find_paths(source: TableSource) -> list[Path]:
    """Return the paths that a source names; a pattern that is no file's name is a glob."""
    if not isinstance(source, str | os.PathLike | Sequence):
        found = f"{type(source).__name__}; of a frame in memory, read_frame(FRAME)"
        raise DataError(f"expected the path of a table or more, found {found}")
    paths: list[str] = []
    for item in [source] if isinstance(source, str | os.PathLike) else source:
        name = str(os.fspath(item))
        if "\0" in name:
            raise DataError("expected a path, found a zero byte in it")
        if not name.strip():
            raise DataError("expected a study or a loss table, found an empty name")
        is_glob = any(mark in name for mark in "*?[") and not os.path.lexists(name)
        found = sorted(glob.glob(name, recursive=True)) if is_glob else [name]  # noqa: PTH207
        if not found:
            raise DataError(f"{name}: no file of this pattern; expected one table or more")
        paths += found
    if not paths:
        raise DataError("expected the path of a table or more, found none")
    return [*map(Path, paths)]


def _read_rows(paths: Sequence[Path]) -> RawTable:
    """Return the rows of files, or of a directory of whatever kind."""
    from hptransfer.tables._trackers import read_runs

    path = paths[0]
    if len(paths) > 1:
        return files.read_files(paths)
    if raw := own.read_study(path) or own.read_journal(path) or read_runs(path):
        return raw
    if not path.is_dir():
        return files.read_file(path)
    inside = sorted(path.iterdir())
    documents = [p for p in inside if p.suffix.lower() == ".json"]  # a run in each
    tables = [p for p in inside if p.suffix.lower() in files.TABLE_SUFFIXES]
    if tables or len(documents) > 1:
        return files.read_files(tables or documents)
    raise DataError(
        f"{path}: no study.json in it, nor runs of Weights & Biases, MLflow, TensorBoard, Ray "
        "Tune, Lightning, Hydra or the Hugging Face trainer, nor table files; expected one of "
        f"these, found {cells.name_some([p.name for p in inside], 4) or 'nothing'}; of logs write "
        "a row for each run, such as width,lr,loss"
    )


def to_frame(results: TidyResult | Iterable[TidyResult]) -> pa.Table:
    """Return results as a PyArrow table, one row for each estimate.

    Parameters
    ----------
    results : result or iterable of results
        What `fit_table` and the methods of its result return, mixed as one likes.

    Returns
    -------
    pyarrow.Table
        The columns of the results' groups, as text, then ``width``, ``quantity``, ``unit``,
        ``value``, ``low``, ``high``, ``status`` and ``reason``; null where a result has none.
        ``.to_pandas()`` and ``polars.from_arrow`` take it from there.

    Examples
    --------
    >>> to_frame([]).column_names[:3]
    ['width', 'quantity', 'unit']
    """
    several = [results] if isinstance(results, TidyResult) else results
    columns = join_columns([{n: [] for n in COLUMNS}, *(r.to_columns() for r in several)])
    groups = [name for name in columns if name not in COLUMNS]
    text = {n: [None if v is None else str(v) for v in columns[n]] for n in groups}
    numbers = ("width", "value", "low", "high")
    kinds = {name: pa.float64() if name in numbers else pa.string() for name in (*groups, *COLUMNS)}
    return pa.table({n: pa.array({**columns, **text}[n], kind) for n, kind in kinds.items()})


# --- Tables of other shapes

_WIDE = re.compile(r"(?:(?:w|d|n|width|dim|d_?model|n_?embd|hidden_size)[ _=:-]?)?(\d+)", re.I)
_WIDE_LR = re.compile(r"(?:(?:lr|learning[ _]?rate|eta|η)[ _=:]*)?(\d.*|\.\d.*)", re.I)
_CHART = re.compile(r"(.+) - (.+?)(__MIN|__MAX)?")
_IN_NAME = re.compile(
    r"(?<![A-Za-z])([A-Za-z](?:[A-Za-z_]*[A-Za-z])?)[=_-]?(\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?![\d.]*[A-Za-z])"
)
# A run's own word before its width: "gpt_d512".
_RUN_WORD = re.compile(r"(?:^|(?<=/))[A-Za-z]{3,}_(?=[wd][1-9]\d+(?:_|-|$))")
_SHORT = {"w": "width", "d": "width", "h": "width", "dmodel": "width", "s": "seed"}
_MOST_ROWS = 100_000


def reshape(raw: RawTable, columns: Mapping[str, str]) -> RawTable:
    """Return a table with a row for each run, where it has another known shape, and says so.

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
    changes = (_split_dicts, _read_chart, _melt, _read_run_names)
    for change in changes if len(raw) <= _MOST_ROWS else ():
        if change is _split_dicts or {*columns.values()} <= raw.columns.keys():
            raw = change(raw, columns)
    return raw


def _split_dicts(raw: RawTable, _: Mapping[str, str]) -> RawTable:
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
            return dict(files.to_cells(read()))
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError, AttributeError):
            continue
    return None


def _read_chart(raw: RawTable, columns: Mapping[str, str]) -> RawTable:
    """Return one row a run of a chart that was exported with one column a run."""
    parts = [(name, part) for name in raw.columns if (part := _CHART.fullmatch(name))]
    runs = {part[1]: name for name, part in parts if not part[3]}
    metrics = {part[2] for _, part in parts}
    if columns or len(runs) < 2 or len(metrics) != 1 or len(raw.columns) > len(runs) * 3 + 2:
        return raw
    last: list[object] = []
    for name in runs.values():
        filled = [cell for cell in raw.columns[name].to_pylist() if not is_empty(cell)]
        last.append(cells.parse_number(filled[-1]) if filled else None)
    names, metric = list(runs), metrics.pop()
    raw.tell("chart", metric=metric, count=len(names))
    made = [("name", cells.make_column(names)), (metric, cells.make_column(last))]
    return cells.make_raw(raw.source, made, lambda k: f"column {names[k]!r}", notes=raw.notes)


def _melt(raw: RawTable, columns: Mapping[str, str]) -> RawTable:
    """Return one row a width and rate of a table with one column a width, or one a rate."""
    found = choose_columns(raw, columns, complete=False).ours
    # A rate stands in its column's name where widths have a column, and the other way round.
    ours, form = ("width", _WIDE) if found.keys() & {*RATES} else ("lr", _WIDE_LR)
    matches = {name: form.fullmatch(name) for name in raw.columns if name not in columns.values()}
    texts = {name: match[1] for name, match in matches.items() if match}
    values = {name: cells.parse_number(text) for name, text in texts.items()}
    values = {name: value for name, value in values.items() if value > 0}
    named = {found.get(each) for each in (ours, "loss")} <= {None, *values}
    unique = len(values) > 1 and len({*values.values()}) == len(values)
    # Two fractions are as likely quantiles, and no basin.
    is_rate = "width" in found and max(values.values(), default=2) <= 1 and len(values) > 2
    if not (named and unique and (is_rate or ours == "width")):
        return raw
    rows = np.tile(np.arange(len(raw)), len(values))
    losses = [cell for name in values for cell in raw.columns[name].to_pylist()]
    kept = [k for k, cell in enumerate(losses) if not is_empty(cell) or cells.is_nan(cell)]
    rest = replace(raw, columns={n: c for n, c in raw.columns.items() if n not in values})
    # Rates stay as they are written: "0.25x" is a multiple.
    written = values.values() if ours == "width" else (texts[name] for name in values)
    settings = cells.make_column([each for each in written for _ in range(len(raw))]).take(kept)
    made = {ours: settings, "loss": cells.make_column([losses[k] for k in kept])}
    kind = "wide" if ours == "width" else "wide_rates"
    raw.tell(kind, count=len(values), blank=len(losses) - len(kept))
    return rest.take(rows[kept]).add(made)


def _read_run_names(raw: RawTable, columns: Mapping[str, str]) -> RawTable:
    """Return a table with the width, rate and seed that its runs' names tell, if it lacks them.

    A rate that changes within a run is a schedule's, which a log has beside its losses.
    """
    found = choose_columns(raw, columns, complete=False).ours
    rate = known.find_rate(found)
    for name in raw.columns:
        if normalize(name) not in known.NAMES["runs"]:
            continue
        told = raw.map_cells(name, lambda cell: _parse_name(str(cell)))
        common = set.intersection(*map(set, told))
        is_guessed = "lr" in common and rate in found.keys() - columns.keys()
        is_logged = is_guessed and known.is_scheduled(
            raw, found[rate], known.list_logs(raw, found.get("width"))
        )
        wanted = {"width"} - found.keys() | ({"lr"} if not rate or is_logged else set())
        if wanted and wanted <= common:
            extra = sorted(wanted | ({"seed"} & common) - found.keys())
            made = {ours: pa.array([item[ours] for item in told]) for ours in extra}
            example = str(raw.cell(0, name))[:60]
            raw.tell("names", what=" and ".join(extra), column=name, example=example)
            return raw.add(made)
    return raw


def _parse_name(name: str) -> dict[str, float]:
    """Return the width, rate and seed that a run's name tells.

    Examples
    --------
    >>> _parse_name("gpt-w64_lr0.01_s3") == _parse_name("gpt_w64_lr0.01_s3")
    True
    """
    found: dict[str, float] = {}
    for key, number in _IN_NAME.findall(_RUN_WORD.sub("", name)):
        bare = normalize(key)
        for ours in ("width", "lr", "seed"):
            if ours == _SHORT.get(bare, bare) or bare in known.SYNONYMS[ours]:
                found.setdefault(ours, float(number))
    return found
