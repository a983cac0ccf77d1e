"""A raw table to a loss table: every row checked, nothing silently dropped."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import ConfigError, DataError
from hptransfer.stats.loss_table import Axis, LossTable
from hptransfer.tables.budget import check_tokens
from hptransfer.tables.cells import (
    LARGEST,
    Need,
    is_fine,
    is_number,
    parse_all,
    parse_loss,
    parse_name,
    parse_number,
    parse_state,
)
from hptransfer.tables.columns import find_lr, rename, suggest
from hptransfer.tables.raw import RawTable, encode
from hptransfer.tables.repeats import drop_repeats
from hptransfer.tables.seeds import read_seeds
from hptransfer.tables.text import clean, name_some, show
from hptransfer.tables.where import select

GROUPS = ("parameterization", "weight_decay")


def convert(
    raw: RawTable,
    *,
    columns: Mapping[str, str],
    by: Sequence[str],
    axis: Axis = "as given",
    one_budget: bool = True,
    token_axis: bool = False,
    where: Mapping[str, str] | None = None,
) -> tuple[LossTable, tuple[str, ...]]:
    """Return the loss table of a raw one, and notes on the rows left out.

    Parameters
    ----------
    raw : RawTable
        Cells as read.
    columns : mapping of str to str
        Our column names to the file's, where they differ.
    by : sequence of str
        Columns beside ``parameterization`` and ``weight_decay`` that separate fits; those of
        these two that the table lacks are skipped.
    axis : Axis
        Name of the learning-rate axis.
    one_budget : bool
        Whether to refuse a fit whose token budgets differ (where there is a token column).
    token_axis : bool
        Whether to keep the training tokens as an axis of their own instead.
    where : mapping of str to str, optional
        Values that columns must have; other rows are left out.

    Raises
    ------
    ConfigError
        If `by` or `where` names a column that is not there.
    DataError
        If a column is missing or a cell is not what its column needs.
    """
    columns = {ours: clean(theirs) for ours, theirs in columns.items()}
    if where:
        raw = select(raw, where, columns)
    raw = rename(raw, columns)
    by = _find_groups(raw, by, columns)
    raw, diverged, notes = _drop_unfinished(raw, columns)
    reader = _Reader(raw, columns)

    width = reader.read("width", Need.POSITIVE)
    lr_name = find_lr(raw)
    lr = reader.read_log2_lr() if lr_name == "log2_lr" else reader.read(lr_name, Need.POSITIVE)
    loss = np.where(diverged, np.nan, reader.read_loss(diverged))
    has_seed = "seed" in raw.columns
    seed = (
        read_seeds(raw, columns.get("seed", "seed"))
        if has_seed
        else np.zeros(len(raw), dtype=np.int64)
    )
    groups = {
        name: reader.read(name, Need.NOT_NEGATIVE).astype(object)
        if name == "weight_decay"
        else reader.read_names(name)
        for name in by
    }
    tokens = None
    if token_axis:
        if "tokens" not in raw.columns:
            raise DataError(
                f"{raw.source}: no column 'tokens'{suggest('tokens', raw.names)}, so there is no "
                "token axis; name it with --columns tokens=NAME"
            )
        tokens = reader.read("tokens", Need.POSITIVE)
    elif one_budget and "tokens" in raw.columns:
        check_tokens(
            raw.source,
            raw.places,
            tokens=reader.read("tokens", Need.POSITIVE),
            params=reader.read("params", Need.POSITIVE) if "params" in raw.columns else None,
            # A diverged trial may have stopped early: its tokens are no budget.
            ended=np.isfinite(loss),
            groups=_split(groups),
            name=columns.get("tokens", "tokens"),
        )

    table = LossTable(
        width=width,
        lr=lr,
        loss=loss,
        seed=seed,
        groups=groups,
        axis=axis,
        source=raw.source,
        tokens=tokens,
        init_loss=reader.read_known("init_loss"),
        flops=reader.read_flops(),
    )
    unique, more = drop_repeats(raw, table, has_seed=has_seed)
    return unique, (*notes, *more)


class _Reader:
    """Columns of a renamed table as arrays, or the error that names the first bad cell."""

    def __init__(self, raw: RawTable, columns: Mapping[str, str]) -> None:
        self._raw = raw
        self._columns = columns

    def place(self, row: int, column: str) -> str:
        name = self._columns.get(column, column)
        return f"{self._raw.source}: {self._raw.places[row]}: column {name!r}"

    def read(self, column: str, need: Need) -> NDArray[np.float64]:
        """Return a column of numbers, shape (rows,)."""
        codes, values = encode(self._raw.columns[column])
        numbers = parse_all(values)
        bad = ~is_fine(numbers, need)
        if bad.any():
            row = int(np.argmax(bad[codes]))
            # Logarithms are the likeliest learning rates below zero.
            logs = column in ("lr", "base_lr") and bool((numbers < 0).all())
            hint = "; name logarithms to base 2 with --columns log2_lr=NAME" if logs else ""
            try:
                parse_number(values[codes[row]], self.place(row, column), need)
            except DataError as error:
                raise DataError(f"{error}{hint}") from None
            raise AssertionError("a cell that is no number was read as one")
        return numbers[codes]

    def read_known(self, column: str) -> NDArray[np.float64] | None:
        """Return a column of positive numbers, NaN where it has none; None without the column."""
        if column not in self._raw.columns:
            return None
        codes, values = encode(self._raw.columns[column])
        numbers = parse_all(values)
        known = np.where(is_fine(numbers, Need.POSITIVE), numbers, np.nan)
        return np.asarray(known[codes], dtype=np.float64)

    def read_flops(self) -> NDArray[np.float64] | None:
        """Return training FLOPs: the column of that name, or 6·params·tokens; None without."""
        flops = self.read_known("flops")
        if flops is not None:
            return flops
        params, tokens = self.read_known("params"), self.read_known("tokens")
        return None if params is None or tokens is None else 6.0 * params * tokens

    def read_log2_lr(self) -> NDArray[np.float64]:
        """Return learning rates from their logarithms, shape (rows,)."""
        log2_lr = self.read("log2_lr", Need.ANY)
        with np.errstate(over="ignore", under="ignore"):
            lr = np.exp2(log2_lr)
        bad = ~is_fine(lr, Need.POSITIVE)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{self.place(row, 'log2_lr')}: expected the logarithm of a learning rate to "
                f"base 2, found {log2_lr[row]:g}"
            )
        return np.asarray(lr, dtype=np.float64)

    def read_loss(self, diverged: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return losses, NaN where there is none; cells of diverged trials may hold anything."""
        codes, values = encode(self._raw.columns["loss"])
        numbers = parse_all(values)
        numbers[~(np.abs(numbers) <= LARGEST)] = np.nan
        odd = np.isnan(numbers)[codes] & ~diverged
        # Of each odd cell the first: it is empty or not finite, or it is an error.
        _, first = np.unique(codes[odd], return_index=True)
        for row in np.sort(np.flatnonzero(odd)[first]).tolist():
            parse_loss(values[codes[row]], self.place(row, "loss"))
        return numbers[codes]

    def read_names(self, column: str) -> NDArray[np.object_]:
        """Return names of groups, as numbers where all of them are, shape (rows,)."""
        codes, values = encode(self._raw.columns[column])
        names = [parse_name(value) for value in values]
        if all(is_number(name) for name in names):
            numbers = parse_all(names).tolist()
            if np.isfinite(numbers).all():
                names = [int(n) if n.is_integer() and abs(n) < 2**53 else n for n in numbers]
        array = np.empty(len(names), dtype=object)
        array[:] = [name if isinstance(name, str | int | float) else show(name) for name in names]
        return array[codes]


def _find_groups(raw: RawTable, by: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    """Return our names of the columns that separate fits; `by` may use the file's names."""
    ours = {theirs: name for name, theirs in columns.items()}
    known = [name for name in raw.columns if name not in ("width", "loss", "seed", find_lr(raw))]
    found = []
    for name in map(clean, by):
        one = name if name in known else ours.get(name, name)
        if one not in known and one not in GROUPS:
            raise ConfigError(
                f"{raw.source}: --by: no column {name!r} to group by"
                f"{suggest(name, [*known, *raw.dropped])}; "
                f"found {name_some([*known, *raw.dropped]) or 'none'}"
            )
        found.append(one)
    return [name for name in dict.fromkeys((*GROUPS, *found)) if name in raw.columns]


def _drop_unfinished(
    raw: RawTable, columns: Mapping[str, str]
) -> tuple[RawTable, NDArray[np.bool_], list[str]]:
    """Return the rows that ended, which of them diverged, and a note on the rest."""
    if "state" not in raw.columns:
        return raw, np.zeros(len(raw), dtype=bool), []
    codes, values = encode(raw.columns["state"])
    name = columns.get("state", "state")
    states = []
    for code, value in enumerate(values):
        row = int(np.argmax(codes == code)) if isinstance(value, str) else 0
        states.append(parse_state(value, f"{raw.source}: {raw.places[row]}: column {name!r}"))
    count = np.bincount(codes, minlength=len(values)).tolist()
    left_out: Counter[str] = Counter()
    for state, number in zip(states, count, strict=True):
        if state in ("pending", "failed"):
            left_out[state] += number
    notes = [f"{number} {state} trial(s) left out" for state, number in sorted(left_out.items())]
    ended = np.array([state not in left_out for state in states])[codes]
    if not ended.any():
        raise DataError(f"{raw.source}: no finished trial; {'; '.join(notes)}")
    diverged = np.array([state == "diverged" for state in states])[codes]
    if ended.all():
        return raw, diverged, notes
    return raw.take(np.flatnonzero(ended)), diverged[ended], notes


def _split(groups: Mapping[str, NDArray[np.object_]]) -> list[NDArray[np.int64]]:
    """Return the rows of each combination of group values."""
    if not groups:
        return []
    columns = [column.tolist() for column in groups.values()]
    codes, values = encode(list(zip(*columns, strict=True)))
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(values)))[:-1]
    return np.split(order, ends)
