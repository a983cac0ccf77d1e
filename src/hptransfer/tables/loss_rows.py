"""A raw table to a loss table: every row checked, nothing silently dropped."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import ConfigError, DataError
from hptransfer.stats.loss_table import Axis, LossTable
from hptransfer.tables.cell_values import (
    STATES,
    Need,
    explain_number,
    find_blank,
    find_notation,
    is_empty,
    is_fine,
    is_nan,
    parse_names,
    parse_number,
    parse_states,
    read_seeds,
    to_numbers,
)
from hptransfer.tables.notes import TableNote, note
from hptransfer.tables.raw_table import RawTable, count_codes, encode, join_codes
from hptransfer.tables.row_selection import drop_repeats, filter_rows, keep_last, map_values
from hptransfer.tables.table_columns import LOG_BASES, ChosenColumns, choose_columns, normalize
from hptransfer.tables.table_conditions import find_conditions
from hptransfer.tables.wording import clean, suggest

# Whole steps make a fixed ratio of tokens to parameters come out a little uneven.
_BUDGET = 0.05
# Rates that agree this well are one, written with other precisions.
_SAME_RATE = 1e-6
# Fits of fewer rows than this are none: a setting that was drawn at random makes such groups.
_FEWEST, _MANY = 3, 8
_MULTIPLES = {"mult", "multiplier", "multiple", "scale", "factor", "ratio", "rel"}

# Names of a batch and of a sequence's length, looked for where a batch is asked for.
_BATCHES = ("batch", "batch_size", "global_batch_size", "batch_tokens", "tokens_per_batch")
_CONTEXTS = ("context", "seq_len", "sequence_length", "block_size", "context_length", "n_ctx")
# A batch of fewer tokens than this counts sequences.
_FEWEST_TOKENS = 2048.0

_UNITS = {"nats": 1.0, "bits": math.log(2), "bits-per-byte": math.log(2), "perplexity": 0.0}
_UNITS_BY_NAME = {
    **dict.fromkeys(("bpb", "bpc", "byte", "char"), "bits-per-byte"),
    "bits": "bits",
    **dict.fromkeys(("ppl", "perplexity", "perp"), "perplexity"),
    **dict.fromkeys(("acc", "accuracy", "top1", "f1", "bleu"), "accuracy"),
}


class ReadOptions(TypedDict, total=False):
    """How a table is read; each key may be left out.

    Attributes
    ----------
    columns : mapping of str to str
        Our column names to the file's, where they differ: ``{"width": "n_embd"}``.
    by : sequence of str
        Columns that separate fits; ``parameterization`` and ``weight_decay`` always do.
    pool : sequence of str
        Columns of these two that do not separate fits after all.
    where : mapping of str to str
        Values that columns must have, ``{"batch": "512"}``; other rows are left out.
    values : mapping of str to mapping
        Numbers or words to read in place of others, by column: ``{"size": {"tiny": "64"}}``.
    unit : str
        Unit of the loss: ``nats``, ``bits``, ``bits-per-byte:4.4`` (bytes per token) or
        ``perplexity``; by default what the column's name says, else nats.
    last : str
        Column by which the last row of each run is read, of a table of evaluations.
    keep : str
        Which of several rows of a trial to read: ``last``, or ``longest:COLUMN``.
    diverged : sequence of str
        States whose trials count as diverged (``failed``, ``crashed``, …), ``stopped`` for runs
        that log no loss to their end; ``none`` leaves finished trials without a loss out.
    axes : sequence of str
        Which of ``tokens`` and ``batch`` to keep as axes, for `fit_axes`, instead of asking for
        one value.
    """

    columns: Mapping[str, str]
    by: Sequence[str]
    pool: Sequence[str]
    where: Mapping[str, str]
    values: Mapping[str, Mapping[str, str]]
    unit: str | None
    last: str | None
    keep: str | None
    diverged: Sequence[str]
    axes: Sequence[str]


def make_loss_table(
    raw: RawTable,
    options: ReadOptions,
    *,
    axis: Axis = "as given",
    notes: Sequence[TableNote] = (),
    is_study: bool = False,
) -> tuple[LossTable, tuple[TableNote, ...]]:
    """Return the loss table of a raw one, and notes on what it holds beside and what is left out.

    Parameters
    ----------
    raw : RawTable
        Cells as read.
    options : ReadOptions
        How to read them.
    axis : Axis
        Name of the learning-rate axis.
    notes : sequence of TableNote
        What was seen before.
    is_study : bool
        Whether the rows are of a study of ours: it has one setting by construction, and rows
        that are whole.

    Raises
    ------
    ConfigError
        If an option names a column that is not there.
    DataError
        If a column is missing or a cell is not what its column needs.
    """
    columns = {ours: clean(name) for ours, name in options.get("columns", {}).items()}
    raw = filter_rows(map_values(raw, options.get("values", {})), options.get("where", {}), columns)
    chosen = choose_columns(raw, columns, by=options.get("by", ()), pool=options.get("pool", ()))
    told: list[TableNote] = []
    # Runs that differ in their batch alone are not one run's evaluations.
    if not is_study and ("batch" not in options.get("axes", ()) or options.get("last")):
        raw, told = keep_last(raw, chosen, options.get("last"))
    reader = _Reader(raw, chosen, options, [*notes, *chosen.notes, *told], is_study=is_study)
    table = reader.build(axis)
    doubts = tuple(item for item in reader.notes if item.risky)
    return replace(table, doubts=doubts), tuple(reader.notes)


class _Reader:
    """Columns of a table as arrays, each checked where its trial ended; and notes so far."""

    def __init__(
        self, raw: RawTable, chosen: ChosenColumns, options: ReadOptions, notes: list[TableNote],
        *, is_study: bool,
    ) -> None:  # fmt: skip
        self.raw, self.chosen, self.options, self.notes = raw, chosen, options, notes
        self.names, self.is_study = chosen.names, is_study
        self.labels, self.label, self.diverged = self._read_states()
        self.ended = self.label == 0
        if not self.ended.any():
            raise DataError(f"{raw.source}: no finished trial; {'; '.join(self._count_out())}")

    def build(self, axis: Axis) -> LossTable:
        """Return the table of the trials that ended, each once."""
        raw, names = self.raw, self.names
        width = self._read("width", Need.POSITIVE)
        if find_notation(raw.cell(0, names["width"])) == "size":
            self.notes.append(note("params", column=names["width"]))
        lr, is_multiple_ = self._read_rate()
        loss = self._read_loss()
        groups, codes = self._read_groups()
        group = join_codes(np.zeros(len(raw), np.int64), *codes)
        self._place(join_codes(group, width), lr, loss)
        self._check_groups(group[self.ended])
        tokens = self._read_tokens(self.ended & np.isfinite(loss), group)
        batch, unit = self._read_batch()
        known = [self._read_known(name) for name in ("init_loss", "flops", "params", "tokens")]
        flops = 6.0 * known[2] * known[3] if known[2] is not None and known[3] is not None else None
        rows = np.flatnonzero(self.ended)
        raw = raw if len(rows) == len(raw) else raw.take(rows)
        table = take_rows(
            LossTable(
                width=width, lr=lr, loss=loss, seed=np.zeros(len(loss), np.int64), groups=groups,
                axis="multiplier" if is_multiple_ else axis, source=raw.source, tokens=tokens,
                init_loss=known[0], flops=flops if known[1] is None else known[1],
                size=names["width"], batch=batch, batch_unit=unit,
            ),
            rows,
        )  # fmt: skip
        if "seed" in names:
            table = replace(table, seed=read_seeds(raw, names["seed"]))
        group = group[rows]
        axes = [axis for axis in (table.tokens, table.batch) if axis is not None]
        trial = join_codes(group, table.width, table.lr, table.seed, *axes)
        kept, told = drop_repeats(raw, table, trial, self.chosen, self.options.get("keep"))
        self.notes += told
        if len(kept) < len(raw):
            raw, table, group = raw.take(kept), take_rows(table, kept), group[kept]
        if not self.is_study:
            read = {ours for ours in names if ours not in ("batch", "context") or batch is not None}
            used = {*(names[ours] for ours in read), *self.chosen.groups.values()}
            if axes:
                # The steps of a run are its tokens over its batch.
                derived = {"steps", "num_steps", *_BATCHES, *_CONTEXTS}
                used |= {name for name in raw.columns if normalize(name) in derived}
            self.notes += find_conditions(raw, table, group, used)
        return table

    def _check(self, column: str, fine: NDArray[np.bool_], need: Need, hint: str = "") -> None:
        """Refuse the first cell of a trial that ended and is not what it needs to be."""
        bad = self.ended & ~fine
        if bad.any():
            row = int(np.argmax(bad))
            raise explain_number(self.raw, row, column, need, hint or self._hint_job())

    def _read(self, ours: str, need: Need) -> NDArray[np.float64]:
        numbers = to_numbers(self.raw.columns[self.names[ours]])
        self._check(self.names[ours], is_fine(numbers, need), need)
        return numbers

    def _read_states(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.bool_]]:
        """Return words, as which of them each row is left out (0: it is not), and what diverged."""
        raw, name, asked = self.raw, self.names.get("state"), {"diverged"}
        for word in self.options.get("diverged", ()):
            state = STATES.get(word.lower(), word.lower())
            if state not in {*STATES.values(), "stopped", "none"}:
                raise ConfigError(
                    "--diverged: expected failed, crashed, killed, pruned, stopped or none, found "
                    f"{word!r}"
                )
            asked.add(state)
        codes, states = np.zeros(len(raw), np.int64), ["completed"]
        if name is not None:
            codes, states = parse_states(raw, name)
        diverged = np.array([state in asked for state in states])[codes]
        labels = ["", *dict.fromkeys(s for s in states if s not in asked and s != "completed")]
        label = np.array([labels.index(s) if s in labels else 0 for s in states])[codes]
        self.blank = find_blank(raw.columns[self.names["loss"]]) & ~diverged & (label == 0)
        if "none" in asked:
            label = np.where(self.blank, len(labels), label)
            labels.append("unmeasured")
        stopped = self._find_stopped() & (label == 0)
        if stopped.any() and "stopped" in asked:
            diverged |= stopped
        elif stopped.any():
            some = [raw.describe_row(int(raw.rows[row])) for row in np.flatnonzero(stopped)[:3]]
            self.notes.append(note(
                "stops", count=int(stopped.sum()), rows=len(raw), column=self.names["loss"],
                examples=", ".join(some),
            ))  # fmt: skip
        return labels, label, diverged

    def _find_stopped(self) -> NDArray[np.bool_]:
        """Return the runs that log their loss for the last time well before anything else."""
        steps = dict(self.raw.last_steps)
        own = steps.pop(self.names["loss"], None)
        if own is None or not steps:
            return np.zeros(len(self.raw), dtype=bool)
        end = np.fmax.reduce([own, *steps.values()])
        # Runs that go well say how often the loss is logged: where all stop early, none does.
        return np.asarray(end - own > np.fmin.reduce(end - own) + 0.02 * end)

    def _count_out(self) -> list[str]:
        counts = np.bincount(self.label, minlength=len(self.labels))
        return [
            f"{n} {s} trial(s) left out"
            for s, n in zip(self.labels, counts, strict=True)
            if s and n
        ]

    def _place(
        self, cell: NDArray[np.int64], lr: NDArray[np.float64], loss: NDArray[np.float64]
    ) -> None:
        """Note the trials that are left out or lack a loss, and on which side of the best rate."""
        losses = np.where(self.ended & np.isfinite(loss), loss, np.inf)
        best = np.full(count_codes(cell), np.nan)
        order = np.lexsort((-losses, cell))  # of each cell the lowest loss is written last
        best[cell[order]] = np.where(np.isfinite(losses[order]), lr[order], np.nan)
        masks = {label: self.label == k for k, label in enumerate(self.labels) if k}
        blank = {} if "none" in self.options.get("diverged", ()) else {"blank": self.blank}
        for state, rows in {**masks, **blank}.items():
            above, below = (int(np.sum(side[rows])) for side in (lr > best[cell], lr < best[cell]))
            if rows.any():
                self.notes.append(note(
                    "blank" if state == "blank" else "left_out", count=int(rows.sum()), state=state,
                    above=above, below=below, risky=state == "blank" and below > 0,
                ))  # fmt: skip

    def _hint_job(self) -> str:
        """Return advice on rows without a width or a rate: which column tells them apart."""
        empty = find_blank(self.raw.columns[self.names["width"]])
        empty |= find_blank(self.raw.columns[self.names[self.chosen.rate]])
        for name in self.raw.columns if empty.any() else ():
            codes, values = encode(self.raw.columns[name])
            full = np.unique(codes[~empty])
            if len(full) == 1 and not np.isin(codes[empty], full).any():
                value = shlex.quote(f"{name}={clean(str(values[full[0]]))[:60]}")
                return f"; leave such rows out with --where {value}"
        return ""

    def _read_rate(self) -> tuple[NDArray[np.float64], bool]:
        """Return learning rates, those that agree but for rounding being one, and if multiples."""
        name, rate = self.names[self.chosen.rate], self.chosen.rate
        lr = to_numbers(self.raw.columns[name])
        if rate in LOG_BASES:
            self._check(name, is_fine(lr, Need.ANY), Need.ANY)
            with np.errstate(over="ignore", under="ignore"):
                lr = np.asarray(LOG_BASES[rate] ** lr)
            hint = f"; as a logarithm to base {LOG_BASES[rate]:.3g} it is no learning rate"
        else:
            known = lr[np.isfinite(lr)]
            hint = _hint_logs(name, known) if len(known) and (known < 0).all() else ""
        self._check(name, is_fine(lr, Need.POSITIVE), Need.POSITIVE, hint)
        values, inverse = np.unique(lr, return_inverse=True)
        cluster = np.append(0, np.cumsum(~(np.diff(values) <= _SAME_RATE * values[1:])))
        if cluster[-1] + 1 < len(values):
            # Of rates that agree the one written shortest is what was meant.
            short: dict[int, float] = {}
            for code, value in zip(cluster.tolist(), values.tolist(), strict=True):
                short[code] = min(short.get(code, value), value, key=lambda v: len(repr(v)))
            lr = np.array([short[code] for code in cluster.tolist()])[inverse]
            self.notes.append(note("joined", count=len(values), into=len(short)))
        words = set(normalize(name).split("_"))
        multiple = bool(words & _MULTIPLES) or find_notation(self.raw.cell(0, name)) == "multiple"
        if multiple:
            self.notes.append(note("multiplier", column=name))
        return lr, multiple

    def _read_loss(self) -> NDArray[np.float64]:
        """Return losses in nats, NaN where there is none; diverged trials' cells hold anything."""
        name = self.names["loss"]
        numbers = to_numbers(self.raw.columns[name])
        odd = np.flatnonzero(np.isnan(numbers) & self.ended & ~self.diverged)
        if len(odd):  # each is empty, or says that it is not a number, or is an error
            codes, values = encode(self.raw.take(odd).columns[name])
            wrong = [k for k, v in enumerate(values) if not (is_empty(v) or is_nan(v))]
            if wrong:
                row = int(odd[np.argmax(np.isin(codes, wrong))])
                raise explain_number(self.raw, row, name, Need.ANY)
        numbers = self._to_nats(numbers, tell=True)
        return np.where(self.diverged | ~(np.abs(numbers) <= 1e50), np.nan, numbers)

    def _to_nats(self, numbers: NDArray[np.float64], *, tell: bool = False) -> NDArray[np.float64]:
        """Return losses in nats, by ``--unit`` or by what the column's name says."""
        name, unit = self.names["loss"], self.options.get("unit")
        words = normalize(name).split("_")
        unit = unit or next((u for word, u in _UNITS_BY_NAME.items() if word in words), "nats")
        kind, colon, size = unit.partition(":")
        per = parse_number(size) if colon else 1.0
        if kind == "accuracy":
            raise DataError(
                f"{self.raw.source}: column {name!r}: expected a loss, found an accuracy by its "
                "name; name another with --columns loss=NAME, or say --unit nats"
            )
        if kind not in _UNITS or not per > 0 or (colon and kind != "bits-per-byte"):
            raise ConfigError(
                f"--unit: expected {', '.join(_UNITS)} or bits-per-byte:BYTES-OF-A-TOKEN, found "
                f"{unit!r}"
            )
        if tell and kind != "nats":
            risky = kind == "bits-per-byte" and not colon
            self.notes.append(note("byte_unit" if risky else "unit", column=name, unit=kind))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return np.log(numbers) if kind == "perplexity" else numbers * (_UNITS[kind] * per)

    def _read_groups(
        self,
    ) -> tuple[dict[str, NDArray[np.object_]], list[NDArray[np.int64]]]:
        """Return the columns that separate fits, as values and as codes."""
        groups, parts = {}, []
        for ours, theirs in self.chosen.groups.items():
            if ours == "weight_decay" and ours in self.names:
                numbers = self._read(ours, Need.NOT_NEGATIVE)
                values, codes = np.unique(numbers, return_inverse=True)
                names: list[object] = values.tolist()
            else:
                codes, names = parse_names(self.raw.columns[theirs])
            array = np.empty(len(names), dtype=object)
            array[:] = names
            groups[ours] = array[codes]
            parts.append(codes)
        return groups, parts

    def _check_groups(self, group: NDArray[np.int64]) -> None:
        """Refuse groups of a row or two each: their column is a setting drawn at random."""
        count = len(np.unique(group))
        if count <= _MANY or len(group) >= _FEWEST * count:
            return
        sizes = {
            ours: len(encode(self.raw.columns[name])[1])
            for ours, name in self.chosen.groups.items()
        }
        ours = max(sizes, key=sizes.__getitem__)
        name = self.chosen.groups[ours]
        way = f"--pool {ours}" if ours in ("parameterization", "weight_decay") else "no --by"
        raise DataError(
            f"{self.raw.source}: column {name!r}: expected few values with a sweep each, found "
            f"{sizes[ours]} in {len(self.raw)} rows, which makes {count} fits; read all as one fit "
            f"with {way}, or pick one with --where {shlex.quote(name)}=VALUE"
        )

    def _read_tokens(
        self, ended: NDArray[np.bool_], group: NDArray[np.int64]
    ) -> NDArray[np.float64] | None:
        """Return the token axis, or check that each fit has one budget of tokens."""
        raw, name, wanted = self.raw, self.names.get("tokens"), self._wants("tokens")
        if name is None or (self.is_study and not wanted):
            if not wanted or name:
                return None
            raise DataError(
                f"{raw.source}: no column 'tokens'{suggest('tokens', list(raw.columns))}, so there "
                "is no token axis; name it with --columns tokens=NAME"
            )
        tokens = self._read("tokens", Need.POSITIVE)
        if wanted:
            return tokens
        ratio = tokens / self._read("params", Need.POSITIVE) if "params" in self.names else tokens
        # A diverged trial may have stopped early: its tokens are no budget.
        for key in np.unique(group[ended]):
            rows = np.flatnonzero(ended & (group == key))
            if any(v[rows].max() <= v[rows].min() * (1 + _BUDGET) for v in (tokens, ratio)):
                continue
            one, other = (int(rows[find(tokens[rows])]) for find in (np.argmin, np.argmax))
            places = [raw.describe_row(int(raw.rows[row])) for row in (one, other)]
            raise DataError(
                f"{raw.source}: column {name!r}: expected one token budget (or, with a column "
                f"'params', one number of tokens per parameter), found {tokens[one]:g} at "
                f"{places[0]} and {tokens[other]:g} at {places[1]}; split the table by budget with "
                f"--by {shlex.quote(name)}, or pick one with "
                f"--where {shlex.quote(f'{name}={tokens[other]:.17g}')}, or ask for a budget with "
                "recommend --tokens"
            )
        return None

    def _wants(self, axis: str) -> bool:
        return axis in self.options.get("axes", ())

    def _look_for(self, names: Sequence[str]) -> str | None:
        return next((c for name in names for c in self.raw.columns if normalize(c) == name), None)

    def _read_batch(self) -> tuple[NDArray[np.float64] | None, float]:
        """Return the batch in tokens where it is an axis, and the tokens in its unit."""
        raw, name = self.raw, self.names.get("batch") or self._look_for(_BATCHES)
        if not self._wants("batch"):
            if name is not None and "batch" in self.options.get("columns", {}):
                batch = to_numbers(raw.columns[name])[self.ended]
                if not batch.max() <= batch.min():
                    raise DataError(
                        f"{raw.source}: column {name!r}: expected one batch, found {batch.min():g} "
                        f"to {batch.max():g}; ask for the target's with recommend --batch"
                    )
            return None, 1.0
        if name is None:
            raise DataError(
                f"{raw.source}: no column 'batch'{suggest('batch', list(raw.columns))}, so it is "
                "no axis; name it with --columns batch=NAME"
            )
        batch = to_numbers(raw.columns[name])
        self._check(name, is_fine(batch, Need.POSITIVE), Need.POSITIVE)
        context = self.names.get("context") or self._look_for(_CONTEXTS)
        if context is not None and "tokens" not in normalize(name):
            lengths = to_numbers(raw.columns[context])
            self._check(context, is_fine(lengths, Need.POSITIVE), Need.POSITIVE)
            return batch * lengths, float(np.median(lengths[self.ended]))
        middle = float(np.median(batch[self.ended]))
        if middle < _FEWEST_TOKENS:
            raise DataError(
                f"{raw.source}: column {name!r}: expected a batch in tokens, found {middle:g}; if "
                "it counts sequences, name their length with --columns context=NAME"
            )
        return batch, 1.0

    def _read_known(self, ours: str) -> NDArray[np.float64] | None:
        """Return a column of positive numbers, NaN where it has none; None without the column."""
        if ours not in self.names:
            return None
        numbers = to_numbers(self.raw.columns[self.names[ours]])
        known = np.where(is_fine(numbers, Need.POSITIVE), numbers, np.nan)
        return self._to_nats(known) if ours == "init_loss" else known


def take_rows(table: LossTable, rows: NDArray[np.int64]) -> LossTable:
    """Return some rows of a loss table."""
    whole = {field.name: getattr(table, field.name) for field in fields(table)}
    arrays = {name: v[rows] for name, v in whole.items() if isinstance(v, np.ndarray)}
    groups = {name: column[rows] for name, column in table.groups.items()}
    return replace(table, **{**arrays, "groups": groups})  # type: ignore[arg-type]


def _hint_logs(name: str, logs: NDArray[np.float64]) -> str:
    """Return advice on rates below zero: logarithms, and to which base."""
    words = normalize(name).split("_")
    bases = [kind for kind in LOG_BASES if kind.removesuffix("_lr") in words] or list(LOG_BASES)
    ways = []
    for kind in bases:
        with np.errstate(over="ignore", under="ignore"):
            rates = LOG_BASES[kind] ** logs
        ways.append(
            f"--columns {kind}={shlex.quote(name)} ({rates.min():.3g} to {rates.max():.3g})"
        )
    return f"; name logarithms by their base with {' or '.join(ways)}"
