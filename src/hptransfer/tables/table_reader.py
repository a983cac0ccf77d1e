"""Any source of losses to a loss table: files, a frame, a study directory, or a tracker's runs."""

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack, get_args

import pyarrow as pa
import pyarrow.compute as pc

from hptransfer.errors import ConfigError, DataError, StoreError
from hptransfer.scaling import AXES, build_rule, resolve
from hptransfer.stats.estimate import COLUMNS, TidyResult, join_columns
from hptransfer.stats.loss_table import Axis, LossTable
from hptransfer.tables._columns import GROUPS, TableNote, describe_columns, find_codes, note
from hptransfer.tables._loss_rows import ReadOptions, make_loss_table
from hptransfer.tables._raw_table import RawTable, filter_rows, make_raw, name_some
from hptransfer.tables._table_files import TABLE_SUFFIXES, read_arrow, read_file, read_files
from hptransfer.tables._table_rows import reshape

if TYPE_CHECKING:
    from hptransfer.study.store import ReadTrials

# The journal in a search's folder, and how each journal begins.
_JOURNAL, _START = "search.jsonl", b'{"event": "search"'
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
    return _load(_read_rows(_find_paths(source), options), options)


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
    return _load(_Rows(read_arrow(frame)), options)


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
    rows = _read_rows(_find_paths(source))
    return describe_columns(rows.raw if rows.is_ours else reshape(rows.raw, {})[0])


@dataclass(frozen=True)
class _Rows:
    """Rows of any source with what it says beside; those of a study or a search are ours."""

    raw: RawTable
    damaged: Sequence[str] = ()
    notes: Sequence[TableNote] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    by: Sequence[str] = ()
    is_ours: bool = False
    stored: "ReadTrials | None" = None


def _load(rows: _Rows, options: ReadOptions) -> LoadedTable:
    raw, notes, settings = rows.raw, [*rows.notes], dict(rows.settings)
    if not rows.is_ours:
        raw, found = reshape(raw, options.get("columns") or {})
        notes += found
    told = settings or _find_settings(raw)
    axis: Any = told.get("axis")
    by = [*dict.fromkeys([*options.get("by", ()), *rows.by])]
    if rows.stored:
        # Trials of the store are whole and typed: only which of them are wanted is to be found.
        chosen = filter_rows(raw, options.get("where", {}), {})
        table = rows.stored.to_loss_table(chosen.rows, by=GROUPS)
        notes += find_codes(chosen)
    else:
        known: Axis = axis if axis in get_args(Axis) else "as given"
        options = {**options, "by": by}
        table, notes = make_loss_table(raw, options, known, notes, is_study=rows.is_ours)
    table = attach_rates(table, told)
    if settings and (where := options.get("where")):
        settings["rows_chosen"] = dict(where)
    return LoadedTable(
        table=table, damaged=tuple(rows.damaged), settings=settings, notes=tuple(notes)
    )


def _find_settings(raw: RawTable) -> dict[str, Any]:
    """Return what a study's published table says of its rates; empty for any other table.

    Its columns ``axis`` and ``base_width`` hold one value each, a swept ``base_lr`` beside them;
    rows of several optimizers have rates by several rules.
    """
    values = {
        name: pc.unique(raw.columns[name]).to_pylist() if name in raw.columns else [None]
        for name in ("axis", "base_width", "num_layers", "optimizer")
    }
    one = {name: cells[0] for name, cells in values.items() if len(cells) == 1}
    is_known = one.get("axis") in AXES and isinstance(one.get("base_width"), int)
    if not is_known or "optimizer" not in one or "base_lr" not in raw.columns:
        return {}
    config = {
        "sweep": {"base_width": one["base_width"]},
        "model": {"num_layers": one.get("num_layers")},
        "train": {"optimizer": one["optimizer"] or "adamw"},
    }
    return {"axis": one["axis"], "config": config}


def _find_paths(source: TableSource) -> list[Path]:
    """Return the paths that a source names; a pattern that is no file's name is a glob."""
    paths: list[str] = []
    for item in [source] if isinstance(source, str | os.PathLike) else source:
        name = str(os.fspath(item))
        if "\0" in name:
            raise DataError("expected a path, found a zero byte in it")
        is_glob = any(mark in name for mark in "*?[") and not os.path.lexists(name)
        found = sorted(glob.glob(name, recursive=True)) if is_glob else [name]  # noqa: PTH207
        if not found:
            raise DataError(f"{name}: no file of this pattern; expected one table or more")
        paths += found
    if not paths:
        raise DataError("expected the path of a table or more, found none")
    return [*map(Path, paths)]


def _read_rows(paths: Sequence[Path], options: ReadOptions | None = None) -> _Rows:
    """Return the rows of files, or of a directory of whatever kind.

    With options those of a study hold what its loss table is made of under them, no more.
    """
    from hptransfer.tables._trackers import read_runs

    path = paths[0]
    if len(paths) > 1:
        return _Rows(read_files(paths))
    if (path / "study.json").is_file():
        return _read_study(path, options)
    if journal := _find_journal(path):
        return _read_search(path, journal)
    if runs := read_runs(path):
        return _Rows(*runs)
    if not path.is_dir():
        return _Rows(read_file(path))
    if tables := sorted(p for p in path.iterdir() if p.suffix.lower() in TABLE_SUFFIXES):
        return _Rows(read_files(tables))
    inside = name_some(sorted(p.name for p in path.iterdir()), 4) or "nothing"
    raise DataError(
        f"{path}: no study.json in it, nor runs of Weights & Biases, MLflow, TensorBoard, Ray "
        "Tune, Lightning, Hydra or the Hugging Face trainer, nor table files; expected one of "
        f"these, found {inside}; of logs write a row for each run, such as width,lr,loss"
    )


def _read_study(path: Path, options: ReadOptions | None) -> _Rows:
    """Read a study's finished trials; a damaged file of it is named, and the rest still reads."""
    from hptransfer.study.store import SCALAR_COLUMNS, TABLE_COLUMNS, read_trials

    asked: ReadOptions = options or {}
    where = {*asked.get("where", {})}
    is_plain = (
        options is not None
        and {name for name, value in asked.items() if value} <= {"by", "where"}
        and {*asked.get("by", ())} <= {*GROUPS}
    )
    few = is_plain and where <= {*SCALAR_COLUMNS}  # of a name that is none, all are listed
    needed = {*TABLE_COLUMNS, "identity", "code_hash", *where}
    stored = read_trials(path, needed if few else SCALAR_COLUMNS)
    damaged = [f"{file}: damaged: {cause}" for file, cause in stored.damaged]
    if not len(stored.rows):
        reason = "".join(f"; {line}" for line in damaged[:1])
        raise DataError(f"{path}: the study holds no finished trial yet{reason}")
    notes = [note("foreign", file=file.name, reason=why) for file, why in stored.foreign]
    if stored.num_unchecked:
        notes.append(note("unchecked", count=stored.num_unchecked))
    raw = _make_raw(path, stored.arrays, "trial row")
    return _Rows(
        raw, damaged, notes, stored.settings, is_ours=True, stored=stored if is_plain else None
    )


def _make_raw(path: Path, arrays: Mapping[str, Any], row: str) -> RawTable:
    columns = [(name, pa.array(cells, from_pandas=True)) for name, cells in arrays.items()]
    return make_raw(path, columns, lambda number: f"{row} {number + 1}")


def _find_journal(path: Path) -> Path | None:
    """Return the journal of a search that a path is or holds; None where there is none."""
    journal = path / _JOURNAL if path.is_dir() else path
    if journal.suffix != ".jsonl" or not journal.is_file():
        return None
    with journal.open("rb") as file:
        return journal if file.read(len(_START)) == _START else None


def _read_search(path: Path, journal: Path) -> _Rows:
    """Read the losses that a search was told; its keys separate fits."""
    from hptransfer.search import read_search

    state = read_search(journal)
    told = state.table()
    if not len(told):
        raise DataError(f"{path}: the search holds no finished trial yet")
    cells = {name: getattr(told, name) for name in ("width", "lr", "loss", "seed")}
    raw = _make_raw(path, {**cells, **told.groups}, "trial")
    return _Rows(raw, state.damaged, by=[*told.groups], is_ours=True)


def _find_rates(
    settings: Mapping[str, Any],
    rules: Mapping[str, Mapping[str, Any]],
    group: Mapping[str, object],
    width: float,
    lr: float,
) -> dict[str, float] | None:
    """Return the learning rate of each role at a width; None where no rule is known."""
    name = str(group.get("parameterization", ""))
    try:
        rule = build_rule({**rules[name], "name": name}, source=name) if name in rules else name
        found = resolve(rule, width=round(width), base_lr=lr, head_size=1, **settings)
    except ConfigError:
        return None
    return {role: numbers.lr for role, numbers in found.roles.items()}


def attach_rates(table: LossTable, settings: Mapping[str, Any]) -> LossTable:
    """Return a study's loss table with its way from rates on the axis to rates per role.

    Parameters
    ----------
    table : LossTable
        The study's losses.
    settings : mapping
        Contents of its ``study.json``.

    Returns
    -------
    LossTable
        The table as it is where the settings name no axis and base width.

    Examples
    --------
    >>> table = LossTable.from_columns(width=[64], lr=[0.04], loss=[3.5])
    >>> settings = {"axis": "hidden-aligned", "config": {"sweep": {"base_width": 32}}}
    >>> attach_rates(table, settings).rates({"parameterization": "sp+embd"}, 512, 0.04)["hidden"]
    0.0025
    """
    config, axis = settings.get("config", {}), settings.get("axis")
    base_width = config.get("sweep", {}).get("base_width")
    if not (isinstance(axis, str) and isinstance(base_width, int)):
        return table
    meant = {
        "axis": axis,
        "base_width": base_width,
        "optimizer": str(config.get("train", {}).get("optimizer", "adamw")),
        "num_layers": int(config.get("model", {}).get("num_layers") or 1),
    }
    rates = partial(_find_rates, meant, config.get("rules", {}))
    return replace(table, rates=rates, base_width=float(base_width))


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
