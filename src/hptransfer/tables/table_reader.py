"""Any source of losses to a loss table: files, a frame, a study directory, or a tracker's runs."""

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, Unpack, get_args

from hptransfer.errors import DataError, StoreError
from hptransfer.scaling import AXES
from hptransfer.stats.loss_table import Axis, LossTable
from hptransfer.tables.loss_rows import ReadOptions, make_loss_table
from hptransfer.tables.notes import TableNote, note
from hptransfer.tables.rates import attach_rates
from hptransfer.tables.raw_table import RawTable, make_raw
from hptransfer.tables.table_columns import describe_columns
from hptransfer.tables.table_files import TABLE_SUFFIXES, read_arrow, read_file, read_files
from hptransfer.tables.table_shapes import reshape
from hptransfer.tables.wording import name_some

#: The journal in a search's folder, and how each journal begins.
SEARCH_JOURNAL, SEARCH_START = "search.jsonl", b'{"event": "search"'
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
        Contents of a study's ``study.json``; empty for a table of any other source.
    notes : tuple of TableNote
        What was left out, chosen, or seen to vary beside what is fitted; ``str`` says it.
    """

    table: LossTable
    damaged: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[TableNote, ...] = ()

    @property
    def risks(self) -> tuple[TableNote, ...]:
        """Notes with which an answer from the table is risky at best."""
        return tuple(item for item in self.notes if item in self.table.doubts)


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
        If a file of a study is damaged; `read_study` reads the rest.

    Examples
    --------
    >>> read_table("losses.csv", columns={"width": "n_embd"}, by=["optimizer"])  # doctest: +SKIP
    """
    loaded = read_source(source, **options)
    if loaded.damaged:
        raise StoreError(loaded.damaged[0])
    return loaded.table


def read_source(source: TableSource, **options: Unpack[ReadOptions]) -> LoadedTable:
    """Read what `read_table` reads, with notes, settings and damaged files beside it."""
    paths = _find_paths(source)
    if len(paths) == 1 and (paths[0] / "study.json").is_file():
        return read_study(paths[0], **options)
    if len(paths) == 1 and is_search(paths[0]):
        return _read_search(paths[0], options)
    raw, damaged, notes = _read_raw(paths)
    return _load(raw, options, damaged, notes)


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
    return _load(read_arrow(frame), options)


def list_columns(source: TableSource) -> list[dict[str, Any]]:
    """Return what each column of a source holds, and as which of ours it would be read.

    Returns
    -------
    list of dict
        Of each column ``name``, ``used_as`` ("" where it is not used), ``distinct``, ``empty``
        and ``examples``, the most frequent three.
    """
    return describe_columns(reshape(_read_raw(_find_paths(source))[0], {})[0])


def _load(
    raw: RawTable,
    options: ReadOptions,
    damaged: Sequence[str] = (),
    notes: Sequence[TableNote] = (),
) -> LoadedTable:
    raw, found = reshape(raw, options.get("columns") or {})
    settings = _find_settings(raw)
    axis: Axis = settings.get("axis", "as given")
    table, told = make_loss_table(raw, options, axis=axis, notes=[*notes, *found])
    return LoadedTable(table=attach_rates(table, settings), damaged=tuple(damaged), notes=told)


def _find_settings(raw: RawTable) -> dict[str, Any]:
    """Return what a study's published table says of its rates; empty for any other table.

    Its columns ``axis`` and ``base_width`` hold one value each, a swept ``base_lr`` beside them.
    """
    import pyarrow.compute as pc

    found = {}
    for name in ("axis", "base_width", "num_layers"):
        values = pc.unique(raw.columns[name]).to_pylist() if name in raw.columns else []
        found[name] = values[0] if len(values) == 1 else None
    known = found["axis"] in AXES and isinstance(found["base_width"], int)
    if not known or "base_lr" not in raw.columns:
        return {}
    return {
        "axis": found["axis"],
        "config": {
            "sweep": {"base_width": found["base_width"]},
            "model": {"num_layers": found["num_layers"]},
        },
    }


def _find_paths(source: TableSource) -> list[Path]:
    """Return the paths that a source names; a pattern that is no file's name is a glob."""
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    paths: list[Path] = []
    for item in [str(os.fspath(one)) for one in sources]:
        if "\0" in item:
            raise DataError("expected a path, found a zero byte in it")
        found = [item]
        if any(mark in item for mark in "*?[") and not os.path.lexists(item):
            found = sorted(glob.glob(item, recursive=True))  # noqa: PTH207 - of any root
            if not found:
                raise DataError(f"{item}: no file of this pattern; expected one table or more")
        paths += map(Path, found)
    if not paths:
        raise DataError("expected the path of a table or more, found none")
    return paths


def _read_raw(paths: Sequence[Path]) -> tuple[RawTable, Sequence[str], Sequence[TableNote]]:
    """Return the rows of files or of a directory, files that are damaged, and notes."""
    from hptransfer.tables.trackers import read_runs

    if len(paths) > 1:
        return read_files(paths), (), ()
    path = paths[0]
    if (runs := read_runs(path)) is not None:
        return runs
    if not path.is_dir():
        return read_file(path), (), ()
    tables = sorted(p for p in path.iterdir() if p.suffix.lower() in TABLE_SUFFIXES)
    if tables:
        return read_files(tables), (), ()
    inside = sorted(p.name for p in path.iterdir())
    raise DataError(
        f"{path}: no study.json in it, nor runs of Weights & Biases, MLflow, TensorBoard, Ray "
        "Tune, Lightning, Hydra or the Hugging Face trainer, nor table files; expected one of "
        f"these, found {name_some(inside, 4) or 'nothing'}; of logs write a row for each run, "
        "such as width,lr,loss"
    )


def read_study(directory: str | os.PathLike[str], **options: Unpack[ReadOptions]) -> LoadedTable:
    """Read a study directory; a damaged file of it is named, and the rest still reads.

    Parameters
    ----------
    directory : str or path
        The study's.
    **options
        As for `read_table`.

    Returns
    -------
    LoadedTable
        The loss table with the study's settings.

    Raises
    ------
    DataError
        If the directory is no study, or holds no finished trial.
    StoreError
        If the study's settings cannot be read.
    """
    # Imported here: they need Arrow.
    import pyarrow as pa

    from hptransfer.study.store import ARROW_SCHEMA, read_columns

    path = Path(directory)
    if not (path / "study.json").is_file():
        raise DataError(f"{path}: no study.json in it; expected a study directory, or a table file")
    # Loss curves are no cells of a table.
    stored = read_columns(path, [f.name for f in ARROW_SCHEMA if not pa.types.is_nested(f.type)])
    damaged = tuple(f"{file}: damaged: {cause}" for file, cause in stored.damaged)
    about = [note("foreign", file=file.name, reason=why) for file, why in stored.foreign]
    if stored.num_unchecked:
        about.append(note("unchecked", count=stored.num_unchecked))
    columns = [(name, pa.array(cells, from_pandas=True)) for name, cells in stored.arrays.items()]
    if not columns or not len(columns[0][1]):
        reason = f"; {damaged[0]}" if damaged else ""
        raise DataError(f"{path}: the study holds no finished trial yet{reason}")
    raw = make_raw(path, columns, lambda row: f"trial row {row + 1}")
    axis: Any = stored.settings.get("axis")
    known: Axis = axis if axis in get_args(Axis) else "as given"
    table, notes = make_loss_table(raw, options, axis=known, is_study=True)
    table = attach_rates(table, stored.settings)
    return LoadedTable(
        table=table, damaged=damaged, settings=stored.settings, notes=(*about, *notes)
    )


def is_search(path: Path) -> bool:
    """Whether a path is a search's journal, or a folder that holds one."""
    journal = path / SEARCH_JOURNAL if path.is_dir() else path
    if journal.suffix != ".jsonl" or not journal.is_file():
        return False
    with journal.open("rb") as file:
        return file.read(len(SEARCH_START)) == SEARCH_START


def _read_search(path: Path, options: ReadOptions) -> LoadedTable:
    """Read the losses that a search was told; its keys separate fits."""
    import pyarrow as pa

    from hptransfer.search.search_state import read_search

    state = read_search(path / SEARCH_JOURNAL if path.is_dir() else path)
    told = state.table()
    if not len(told):
        raise DataError(f"{path}: the search holds no finished trial yet")
    cells = {"width": told.width, "lr": told.lr, "loss": told.loss, "seed": told.seed}
    columns = [(name, pa.array(each, from_pandas=True)) for name, each in cells.items()]
    columns += [(name, pa.array(values.tolist())) for name, values in told.groups.items()]
    raw = make_raw(path, columns, lambda row: f"trial {row + 1}")
    by = list(dict.fromkeys([*options.get("by", ()), *told.groups]))
    table, notes = make_loss_table(raw, {**options, "by": by}, is_study=True)
    return LoadedTable(table=table, damaged=tuple(state.damaged), notes=notes)
