"""The results store: a study directory of small files, each written whole or not at all.

```
DIR/study.json              what is studied: name, identity, config, text, versions
DIR/plan/round-NNN.json     which trials train together (see plan.py)
DIR/plan/split-NAME.json    a group that ran out of memory, in halves (see plan.py)
DIR/groups/NAME.parquet     one file per finished group, one row per trial
DIR/checkpoints/NAME.safetensors    a group under way
```
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hptransfer._atomic import atomic_write, sweep_temporary
from hptransfer._documents import (
    PART_PLACEHOLDER,
    DigestError,
    check_digest,
    read_regular,
    require_regular,
    seal_file,
)
from hptransfer._trial_state import TrialState
from hptransfer.scaling import AXES
from hptransfer.study.study_settings import read_identity, read_settings

if TYPE_CHECKING:
    from hptransfer.stats.loss_table import LossTable

GROUPS_FOLDER = "groups"
CHECKPOINTS_FOLDER = "checkpoints"
PLAN_FOLDER = "plan"
CHECKPOINT_SUFFIX = ".safetensors"
RESULTS_SCHEMA = 3
"""Version of the results files; since 2 each carries a digest, since 3 its lists have their own."""
MAX_RESULTS_BYTES = 2**31
"""The largest results file that is read, as stored and as unpacked."""
PERMANENT_COLUMNS = (
    "id", "identity", "parameterization", "width", "base_lr", "log2_lr", "weight_decay", "seed",
    "state", "loss",
)  # fmt: skip
"""Columns that the results files of every version have."""
_METADATA = {"hptransfer.digest": PART_PLACEHOLDER}
DAMAGED_SUFFIX = ".damaged"

TABLE_COLUMNS = (
    "id", "identity", "parameterization", "width", "base_lr", "log2_lr", "weight_decay", "seed",
    "state", "loss", "init_loss", "tokens", "flops",
)  # fmt: skip
"""Columns that a loss table takes, and those that say whose they are. The others, loss curves above
all, make up most of a file."""

GROUP_COLUMNS = ("parameterization", "weight_decay")
"""Columns that separate fits."""

TIMING_COLUMNS = ("seconds",)
"""Columns that two bit-equal runs may differ in."""


_COLUMNS: Mapping[pa.DataType, tuple[str, ...]] = {
    pa.string(): (
        "id", "identity", "parameterization", "state", "axis", "weight_decay_mode", "arch", "text",
        "factory", "optimizer", "group", "trained_as", "resumed_from", "precision", "device",
        "package_version", "torch_version", "data_hash", "code_hash",
    ),
    pa.int64(): (
        "width", "seed", "diverged_step", "base_width", "num_layers", "head_size",
        "base_head_size", "context", "vocab_size", "batch", "steps", "eval_tokens", "num_params",
        "tokens", "flops", "num_stacked", "threads", "spikes", "schema_version",
    ),
    pa.float64(): (
        "base_lr", "log2_lr", "weight_decay", "loss", "init_loss", "warmup", "decay", "beta1",
        "beta2", "eps", "seconds", "spike_size",
    ),
    pa.list_(pa.float32()): ("loss_curve", "probe_values"),
    pa.list_(pa.int32()): ("curve_steps", "probe_steps"),
    pa.list_(pa.string()): ("probe_names",),
}  # fmt: skip
"""Columns of a finished trial, by type; lists, which are most of a file, come last.

Those that do not explain themselves:

id, identity : the trial's content hash, and the study's
state : ``completed`` or ``diverged``
loss : held-out loss after the last step, in nats per token; null where the trial diverged
init_loss : training loss of the first step, before any update, in nats per token
diverged_step : 0-based step at which the trial had diverged; else null
loss_curve, curve_steps : training losses in nats, and the 0-based steps that they are of; a
    non-finite loss is left out
num_params, tokens, flops : learned scalars, training tokens, training FLOPs
spikes, spike_size : loss spikes, and the height of the highest in nats, as the docs of study files
    say; null in files of earlier versions
probe_steps, probe_names, probe_values : steps that were probed, quantities, and their values, step
    by step; null without probes
factory, optimizer : the function that made the model, and what trained it; null for the GPT and
    AdamW
code_hash : hash of the user's own source files; null for the GPT
resumed_from : what else has trained the group before, where a checkpoint was made by other versions
    or on another device, so that its bits may differ; else null
seconds : wall time of the group over its stacked runs
group : the plan's group, also the file's name
num_stacked : K, runs in the program
trained_as : id of the trial whose run this row shares: its own, or one with equal numbers
"""

Row = Mapping[str, Any]
"""A finished trial's values by column; a column that it lacks is null."""

ARROW_SCHEMA: pa.Schema = pa.schema(
    [(name, kind) for kind, names in _COLUMNS.items() for name in names]
)
"""The results files' columns, in order."""
SCALAR_COLUMNS = tuple(field.name for field in ARROW_SCHEMA if not pa.types.is_nested(field.type))
"""Columns that hold one value per trial."""

#: Files of few rows read fastest without dictionaries and statistics, which nothing uses; all but
#: the loss curves is too short for zstd to gain what it costs.
_WRITING: Mapping[str, Any] = {
    "compression": {
        **dict.fromkeys(ARROW_SCHEMA.names, "snappy"),
        **{
            f"{field.name}.list.element": "zstd"
            for field in ARROW_SCHEMA
            if pa.types.is_list(field.type)
        },
    },
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
    "store_schema": False,  # a third of the footer, and nothing that Parquet's own types lack
}


@dataclass(frozen=True, kw_only=True)
class ReadTrials:
    """What a study directory holds.

    Attributes
    ----------
    directory : Path
        The study's.
    rows : pyarrow.Table
        One row per finished trial, columns of `ARROW_SCHEMA` or those that were asked for; what
        an older file lacks is null.
    damaged : tuple of (Path, str)
        Results files that are not what was written, and why.
    foreign : tuple of (Path, str)
        Other Parquet files in the folder of results, and why they are none of the study.
    num_unchecked : int
        Files of an older version, which carry no digest.
    """

    directory: Path
    rows: pa.Table
    damaged: tuple[tuple[Path, str], ...] = ()
    foreign: tuple[tuple[Path, str], ...] = ()
    num_unchecked: int = 0

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Content of the directory's ``study.json``."""
        return read_settings(self.directory)

    @cached_property
    def ids(self) -> frozenset[str]:
        """Ids of all finished trials."""
        return frozenset(self.rows.column("id").to_pylist())

    @cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Columns that hold one value per trial, in the order of the study's parameterizations.

        Text as objects, whole numbers as int64, others as float64. A missing number is NaN, as
        the loss of a diverged trial is, which makes a column of whole numbers one of floats; a
        missing text is None.
        """
        listed = self.settings["config"].get("sweep", {}).get("parameterization", [])
        place = {name: position for position, name in enumerate(listed)}
        found = self.rows.column("parameterization").to_pylist()
        order = np.argsort([place.get(name, len(place)) for name in found], kind="stable")
        arrays = {}
        for field in self.rows.schema:
            if not pa.types.is_nested(field.type):
                column = self.rows.column(field.name).take(order)
                if column.null_count and not pa.types.is_string(field.type):
                    column = column.cast(pa.float64())
                arrays[field.name] = column.to_numpy(zero_copy_only=False)
        return arrays

    def to_loss_table(
        self, rows: NDArray[Any] | None = None, *, by: Sequence[str] = GROUP_COLUMNS
    ) -> "LossTable":
        """Return the trials, or some of them, as the table that fits start from.

        Parameters
        ----------
        rows : ndarray, optional
            Which trials to take, as places in `arrays` or as a mask; by default all.
        by : sequence of str
            Columns that separate fits.
        """
        # Statistics are imported where they are needed: a grid starts without them.
        from hptransfer.stats.loss_table import LossTable

        def take(name: str, kind: Any = np.float64) -> NDArray[Any]:
            column = self.arrays[name]
            return (column if rows is None else column[rows]).astype(kind)

        axis: Any = self.settings.get("axis")
        return LossTable(
            width=take("width"),
            lr=take("base_lr"),
            loss=take("loss"),
            seed=take("seed", np.int64),
            groups={name: take(name, object) for name in by},
            axis=axis if axis in AXES else "as given",
            source=str(self.directory),
            init_loss=take("init_loss"),
            budget=take("tokens"),
            flops=take("flops"),
        )


class _ForeignError(ValueError):
    """A file in the folder of results was not written as results of this study."""


def group_path(directory: Path, name: str) -> Path:
    """Return where a group's results are or will be."""
    return directory / GROUPS_FOLDER / f"{name}.parquet"


def checkpoint_path(directory: Path, name: str) -> Path:
    """Return where a group under way is saved."""
    return directory / CHECKPOINTS_FOLDER / f"{name}{CHECKPOINT_SUFFIX}"


def write_group(directory: Path, name: str, rows: Sequence[Row]) -> None:
    """Store a finished group: its file appears whole, or not at all, and carries a digest.

    Raises
    ------
    KeyError
        If a row has a column that results do not have.
    """
    if unknown := {name for row in rows for name in row}.difference(ARROW_SCHEMA.names):
        raise KeyError(f"no column of results: {', '.join(sorted(unknown))}")
    versioned = [{"schema_version": RESULTS_SCHEMA, **row} for row in rows]
    table = pa.Table.from_pylist(versioned, schema=ARROW_SCHEMA)
    with atomic_write(group_path(directory, name)) as tmp:
        with pq.ParquetWriter(tmp, ARROW_SCHEMA, **_WRITING) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata(_METADATA)
        seal_file(tmp, context=name_context(rows[0]["identity"], name), part=_find_lists(tmp))


def _find_lists(path: Path) -> tuple[int, int]:
    """Return where the columns of lists begin and end in a results file."""
    with pq.ParquetFile(path) as file:
        columns = file.metadata.row_group(0)
        first, last = (columns.column(j) for j in (len(SCALAR_COLUMNS), columns.num_columns - 1))
    return first.data_page_offset, last.data_page_offset + last.total_compressed_size


def name_context(identity: str, name: str) -> str:
    """Return what the digest of a group's file covers beside its content: study and group."""
    return f"{identity}/{name}"


def read_states(directory: Path, name: str, trial_ids: Collection[str]) -> list[TrialState]:
    """Return the final states of the given trials of a stored group."""
    schema = pa.schema([field for field in ARROW_SCHEMA if field.name in ("id", "state")])
    identity = read_identity(directory)
    table, _ = _read_file(group_path(directory, name), schema, identity)
    rows = zip(*(table.column(each).to_pylist() for each in ("id", "state")), strict=True)
    return [TrialState(state) for trial, state in rows if trial in trial_ids]


def read_trials(
    directory: Path, columns: Collection[str] | None = None, *, whole: bool = False
) -> ReadTrials:
    """Return all finished trials of a study directory, and the files that are damaged.

    Parameters
    ----------
    directory : Path
        The study's.
    columns : collection of str, optional
        Columns of `ARROW_SCHEMA` to read; by default all of them.
    whole : bool
        Whether loss curves and probes must be undamaged where they are not read, too.

    Raises
    ------
    StoreError
        If the directory is no study's.
    """
    identity = read_identity(directory)
    schema = pa.schema(
        [field for field in ARROW_SCHEMA if columns is None or field.name in {"id", *columns}]
    )
    tables, damaged, foreign, num_unchecked = [], [], [], 0
    for path in sorted((directory / GROUPS_FOLDER).glob("*.parquet")):
        try:
            table, checked = _read_file(path, schema, identity, whole=whole)
        except FileNotFoundError:  # another process set it aside
            continue
        except _ForeignError as error:
            foreign.append((path, str(error)))
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            damaged.append((path, (str(error).splitlines() or [type(error).__name__])[0][:200]))
        else:
            tables.append(table)
            num_unchecked += not checked
    rows = pa.concat_tables(tables) if tables else schema.empty_table()
    return ReadTrials(
        directory=directory,
        rows=_keep_first(rows),
        damaged=tuple(damaged),
        foreign=tuple(foreign),
        num_unchecked=num_unchecked,
    )


def _read_file(
    path: Path, schema: pa.Schema, identity: str, *, whole: bool = False
) -> tuple[pa.Table, bool]:
    """Return a results file's columns of `schema`, and whether its digest proved them.

    What the file lacks is null. Lists are checked where they are read, and with `whole`.
    """
    try:
        require_regular(path)
    except DigestError as error:
        raise _ForeignError(str(error)) from None
    # Whole, in one call: a file is small, and shared folders answer slowly.
    content = read_regular(path, limit=MAX_RESULTS_BYTES)
    whole = whole or any(pa.types.is_nested(field.type) for field in schema)
    checked = check_digest(content, context=name_context(identity, path.stem), whole=whole)
    with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=not checked) as file:
        names = file.schema_arrow.names
        if not checked:
            _check_unproved(file.metadata, names)
        table = file.read(columns=["identity", "schema_version", *schema.names], use_threads=False)
    if pc.unique(table.column("identity")).to_pylist() != [identity]:
        raise _ForeignError("expected rows of this study, found another study's")
    if not checked and pc.max(table.column("schema_version")).as_py() != 1:
        raise ValueError("expected a digest, found none")
    if set(schema.names) <= set(names) and (same := table.select(schema.names)).schema == schema:
        return same.replace_schema_metadata(), checked
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema), checked


def _check_unproved(metadata: pq.FileMetaData, names: Sequence[str]) -> None:
    """Check what can be checked of a file without a digest before it is unpacked."""
    if not {"id", "identity"} & set(names):
        raise _ForeignError("expected a results file, found other columns")
    if missing := [name for name in (*PERMANENT_COLUMNS, "schema_version") if name not in names]:
        raise ValueError(f"expected column {missing[0]}, found none")
    unpacked = 0
    for i in range(metadata.num_row_groups):
        for j in range(metadata.num_columns):
            column = metadata.row_group(i).column(j)
            # A dictionary may hold one long text for all rows.
            repeats = column.num_values if column.has_dictionary_page else 1
            texts = column.total_uncompressed_size * repeats
            is_text = column.physical_type == "BYTE_ARRAY"
            unpacked += texts if is_text else 8 * column.num_values
    if unpacked > MAX_RESULTS_BYTES:
        raise ValueError(
            f"expected at most {MAX_RESULTS_BYTES:,} bytes when unpacked, found {unpacked:,}"
        )


def _keep_first(rows: pa.Table) -> pa.Table:
    """Drop further rows of a trial, should two groups ever hold one: the first by name counts.

    They are equal, unless other versions, another device or other code trained the second.
    """
    ids = rows.column("id").to_pylist()
    first = {trial: index for index, trial in reversed(list(enumerate(ids)))}
    if len(first) == len(ids):
        return rows
    return rows.take(sorted(first.values()))


def recover_finished(directory: Path, planned: Collection[str]) -> ReadTrials:
    """Read the trials that are stored, and rename the damaged files of `planned` groups.

    Those are `damaged` under their new names, and their trials train again; all other files that
    do not count are `foreign`, and left alone.
    """
    stored = read_trials(directory, TABLE_COLUMNS, whole=True)
    moved, foreign = [], []
    for path, reason in (*stored.damaged, *stored.foreign):
        if path.stem not in planned:
            foreign.append((path, reason))
            continue
        aside = path.with_name(path.name + DAMAGED_SUFFIX)
        with contextlib.suppress(FileNotFoundError):  # another process was first
            path.replace(aside)
            moved.append((aside, reason))
    return replace(stored, damaged=tuple(moved), foreign=tuple(foreign))


def sweep_leftovers(directory: Path, finished: Collection[str]) -> None:
    """Remove what killed processes left: files half written, checkpoints of `finished` groups."""
    for folder in (".", PLAN_FOLDER, GROUPS_FOLDER, CHECKPOINTS_FOLDER):
        sweep_temporary(directory / folder)
    for path in (directory / CHECKPOINTS_FOLDER).glob(f"*{CHECKPOINT_SUFFIX}"):
        if path.stem in finished:
            path.unlink(missing_ok=True)
