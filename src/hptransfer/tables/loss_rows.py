"""A raw table to a loss table: every row checked, nothing silently dropped."""

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import ConfigError, DataError
from hptransfer.stats.loss_table import Axis, LossTable
from hptransfer.tables.cell_values import (
    EMPTY,
    STATES,
    Need,
    explain_number,
    is_empty,
    is_fine,
    is_multiple,
    is_nan,
    parse_plain,
    parse_state,
    read_names,
    read_numbers,
    read_seeds,
    to_numbers,
)
from hptransfer.tables.notes import TableNote, note
from hptransfer.tables.raw_table import RawTable, encode, join_codes, make_column
from hptransfer.tables.table_columns import LOG_BASES, choose_columns, normalize
from hptransfer.tables.table_conditions import STEPS, find_conditions, find_runs
from hptransfer.tables.wording import clean, name_some, suggest

GROUPS = ("parameterization", "weight_decay")

# Whole steps make a fixed ratio of tokens to parameters come out a little uneven.
_BUDGET = 0.05
# Rates that agree this well are one, written with other precisions.
_SAME_RATE = 1e-6
# Fits of fewer rows than this are none: a setting that was drawn at random makes such groups.
_FEWEST = 3

_UNITS = {
    "nats": ("nats", 1.0),
    "bits": ("bits", math.log(2)),
    "bits-per-byte": ("bits per byte", math.log(2)),
    "perplexity": ("perplexity", 0.0),
}
_BY_NAME = (
    ("bits-per-byte", ("bpb", "bpc", "bits_per_byte", "bits_per_char")),
    ("bits", ("bits", "bits_per_token")),
    ("perplexity", ("ppl", "perplexity", "perp")),
    ("accuracy", ("acc", "accuracy", "top1", "f1", "bleu")),
)


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
    token_axis : bool
        Whether to keep ``tokens`` as an axis, for `fit_tokens`, instead of asking for one budget.
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
    token_axis: bool


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
    reader = _Reader(raw, options, notes, is_study=is_study)
    reader.map_values()
    reader.filter_rows()
    reader.choose_columns()
    if not is_study:
        reader.keep_last()
    return reader.build(axis), tuple(reader.notes)


class _Reader:
    """A table on its way: rows that are left, columns of ours, and notes so far."""

    def __init__(
        self, raw: RawTable, options: ReadOptions, notes: Sequence[TableNote], *, is_study: bool
    ) -> None:
        self.raw = raw
        self.options = options
        self.is_study = is_study
        self.notes = list(notes)
        self.columns = {ours: clean(name) for ours, name in options.get("columns", {}).items()}
        self.names: dict[str, str] = {}
        self.groups: dict[str, str] = {}
        self.rate = "lr"

    def map_values(self) -> None:
        """Replace cells as ``--map`` says."""
        for column, words in self.options.get("values", {}).items():
            name = self._find(column, "--map")
            codes, values = encode(self.raw.columns[name])
            for word in words:
                if not any(_is_value(value, word) for value in values):
                    raise ConfigError(
                        f"{self.raw.source}: --map: no cell of {name!r} is {word!r}; found "
                        f"{name_some(values)}"
                    )
            new = [next((n for w, n in words.items() if _is_value(v, w)), v) for v in values]
            mapped = make_column(new).take(_indices(codes))
            self.raw = replace(self.raw, columns={**self.raw.columns, name: mapped})

    def filter_rows(self) -> None:
        """Leave out the rows in which a column has not the value that ``--where`` names.

        Numbers are compared as numbers (``512`` is ``5.12e2``), all else as text without its
        outer blanks; an empty value asks for empty cells.
        """
        self.raw = filter_rows(self.raw, self.options.get("where", {}), self.columns)

    def _find(self, name: str, option: str) -> str:
        """Return the file's name of a column, given that or ours."""
        return find_column(self.raw, name, {**self.columns, **self.names}, option)

    def choose_columns(self) -> None:
        """Find our columns, and those that separate fits; ``--by`` may use the file's names."""
        chosen = choose_columns(self.raw, self.columns)
        self.names, self.rate = dict(chosen.names), chosen.rate
        self.notes += chosen.notes
        ours = {theirs: name for name, theirs in self.names.items()}
        core = {
            self.names[name] for name in ("width", "loss", self.rate, "seed") if name in self.names
        }
        known = [ours.get(name, name) for name in self.raw.columns if name not in core]
        pooled = {ours.get(name, name) for name in map(clean, self.options.get("pool", ()))}
        for name in pooled - set(GROUPS):
            raise ConfigError(
                f"{self.raw.source}: --pool: expected parameterization or weight_decay, which "
                f"separate fits unasked, found {name!r}"
            )
        wanted = [name for name in GROUPS if name in self.names and name not in pooled]
        for name in map(clean, self.options.get("by", ())):
            one = ours.get(name, name)
            if one not in known:
                if one in GROUPS:
                    continue
                raise ConfigError(
                    f"{self.raw.source}: --by: no column {name!r} to group by"
                    f"{suggest(name, known)}; found {name_some(known) or 'none'}"
                )
            wanted.append(one)
        self.groups = {name: self.names.get(name, name) for name in wanted}

    def keep_last(self) -> None:
        """Leave out all but each run's last evaluation, where rows are evaluations."""
        named = self.options.get("last")
        column = self._find(named, "--last") if named else None
        if column is None:
            used = {*self.names.values(), *self.groups.values()}
            column = next(
                (n for n in self.raw.columns if normalize(n) in STEPS and n not in used), None
            )
            if column is None:
                return
        setting = [self.names["width"], self.names[self.rate], *self.groups.values()]
        setting += [self.names["seed"]] if "seed" in self.names else []
        trials = join_codes(*(encode(self.raw.columns[name])[0] for name in setting))
        runs = find_runs(self.raw, trials)
        steps = to_numbers(self.raw.columns[column])
        count = int(runs.max()) + 1
        again = count < len(self.raw)
        # Rows of one run at one step are no evaluations, and neither are steps without numbers.
        is_history = again and len(np.unique(join_codes(runs, steps))) == len(steps)
        if not named and not (is_history and np.isfinite(steps).all()):
            return
        blank = _find_blank(self.raw, self.names["loss"])
        order = np.lexsort((np.arange(len(steps)), steps, ~blank, runs))
        last = order[np.append(np.flatnonzero(np.diff(runs[order])), len(order) - 1)]
        if again:
            self.notes.append(note("history", rows=len(self.raw), count=count, column=column))
            self.raw = self.raw.take(np.sort(last))

    def build(self, axis: Axis) -> LossTable:
        """Return the table of the trials that ended, each once."""
        raw, names = self.raw, self.names
        left, diverged = self._read_states()
        out = _Out(raw, names, self.rate, self.groups)
        out.add("left_out", left)
        blank = _find_blank(raw, names["loss"]) & ~diverged & (left == "")
        if "none" in self.options.get("diverged", ()):
            left = np.where(blank, "unmeasured", left)
            out.add("left_out", np.where(blank, "unmeasured", ""))
        else:
            out.add("blank", np.where(blank, "blank", ""))
        ended = np.flatnonzero(left == "")
        if not len(ended):
            words = Counter(left.tolist())
            counts = "; ".join(f"{n} {word} trial(s) left out" for word, n in sorted(words.items()))
            raise DataError(f"{raw.source}: no finished trial; {counts}")
        if len(ended) < len(raw):
            self.raw = raw = raw.take(ended)
            diverged = diverged[ended]
        width = read_numbers(raw, names["width"], Need.POSITIVE, self._hint_job())
        lr = self._read_rate()
        axis = "multiplier" if any(item.kind == "multiplier" for item in self.notes) else axis
        loss = self._read_loss(diverged)
        groups = {
            ours: read_numbers(raw, theirs, Need.NOT_NEGATIVE).astype(object)
            if ours == "weight_decay"
            else read_names(raw, theirs)
            for ours, theirs in self.groups.items()
        }
        codes = [encode(make_column(column.tolist()))[0] for column in groups.values()]
        group = join_codes(np.zeros(len(raw)), *codes)
        tokens = self._read_tokens(np.isfinite(loss), group)
        seeds = read_seeds(raw, names["seed"]) if "seed" in names else np.zeros(len(raw), np.int64)
        table = LossTable(
            width=width, lr=lr, loss=loss, seed=seeds, groups=groups, axis=axis,
            source=raw.source, tokens=tokens, init_loss=self._read_known("init_loss"),
            flops=self._read_flops(),
        )  # fmt: skip
        self._check_groups(group)
        kept = self._drop_repeats(table, group)
        if len(kept) < len(raw):
            self.raw, table, group = raw.take(kept), take_rows(table, kept), group[kept]
        self.notes += out.describe(table, self.options.get("diverged", ()))
        used = {*names.values(), *self.groups.values()}
        if not self.is_study:
            self.notes += find_conditions(self.raw, table, group, used)
        return table

    def _read_states(self) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
        """Return as what each row is left out ("" where it is not), and which rows diverged."""
        raw, name = self.raw, self.names.get("state")
        as_diverged = {"diverged"}
        for word in self.options.get("diverged", ()):
            state = STATES.get(word.lower(), word.lower()) or word.lower()
            if state not in (*STATES, *STATES.values(), "preempted", "stopped", "none"):
                raise ConfigError(
                    f"--diverged: expected failed, crashed, killed, pruned, stopped or none, "
                    f"found {word!r}"
                )
            as_diverged.add(state)
        states = np.full(len(raw), "completed", dtype="<U12")
        if name is not None:
            codes, values = encode(raw.columns[name])
            words = []
            for code, value in enumerate(values):
                row = int(np.argmax(codes == code)) if value is not None else 0
                place = raw.place(row, name) if not _is_state(value) else ""
                words.append(parse_state(value, place))
            states = np.array(words, dtype="<U12")[codes]
        diverged = np.isin(states, sorted(as_diverged))
        left = np.where(diverged | (states == "completed"), "", states)
        stopped = self._find_stopped() & (left == "")
        if stopped.any() and "stopped" in as_diverged:
            diverged |= stopped
        elif stopped.any():
            first = np.flatnonzero(stopped)[:3].tolist()
            self.notes.append(note(
                "stops", count=int(stopped.sum()), rows=len(raw), column=self.names["loss"],
                examples=", ".join(raw.describe_row(int(raw.rows[row])) for row in first),
            ))  # fmt: skip
        return left, diverged

    def _find_stopped(self) -> NDArray[np.bool_]:
        """Return the runs that log their loss for the last time well before anything else."""
        own = self.raw.last_steps.get(self.names["loss"])
        others = [
            steps for name, steps in self.raw.last_steps.items() if name != self.names["loss"]
        ]
        if own is None or not others:
            return np.zeros(len(self.raw), dtype=bool)
        end = np.fmax.reduce([own, *others])
        behind = end - own
        # Runs that go well say how often the loss is logged: where all stop early, none does.
        usual = np.fmin.reduce(behind)
        return np.asarray(behind > usual + 0.02 * end)

    def _hint_job(self) -> str:
        """Return advice on rows without a width or a rate: which column tells them apart."""
        empty = _find_blank(self.raw, self.names["width"]) | _find_blank(
            self.raw, self.names[self.rate]
        )
        for name in self.raw.columns:
            codes, values = encode(self.raw.columns[name])
            full = np.unique(codes[~empty])
            if empty.any() and len(full) == 1 and not np.isin(codes[empty], full).any():
                value = shlex.quote(f"{name}={clean(str(values[full[0]]))[:60]}")
                return f"; leave such rows out with --where {value}"
        return ""

    def _read_rate(self) -> NDArray[np.float64]:
        """Return learning rates, those that agree but for rounding being one."""
        raw, name = self.raw, self.names[self.rate]
        if self.rate in LOG_BASES:
            base, logs = LOG_BASES[self.rate], read_numbers(raw, name, Need.ANY, self._hint_job())
            with np.errstate(over="ignore", under="ignore"):
                lr = np.asarray(base**logs)
            bad = ~is_fine(lr, Need.POSITIVE)
            if bad.any():
                row = int(np.argmax(bad))
                raise DataError(
                    f"{raw.place(row, name)}: expected the logarithm of a learning rate to base "
                    f"{base:.3g}, found {logs[row]:g}"
                )
        else:
            lr = to_numbers(raw.columns[name])
            bad = ~is_fine(lr, Need.POSITIVE)
            if bad.any():
                row = int(np.argmax(bad))
                known = lr[np.isfinite(lr)]
                is_log = len(known) and (known < 0).all()
                hint = _hint_logs(name, known) if is_log else self._hint_job()
                raise explain_number(raw, row, name, Need.POSITIVE, hint)
        words = set(normalize(name).split("_"))
        if words & {"mult", "multiplier", "multiple", "scale", "factor", "ratio", "rel"} or (
            is_multiple(raw.cell(0, name))
        ):
            self.notes.append(note("multiplier", column=name))
        values, inverse = np.unique(lr, return_inverse=True)
        cluster = np.append(0, np.cumsum(np.diff(values) > _SAME_RATE * values[1:]))
        if cluster[-1] + 1 < len(values):
            # Of rates that agree the one written shortest is what was meant.
            short: dict[int, float] = {}
            for code, value in zip(cluster.tolist(), values.tolist(), strict=True):
                short[code] = min(short.get(code, value), value, key=lambda v: len(repr(v)))
            lr = np.array([short[code] for code in cluster.tolist()])[inverse]
            self.notes.append(note("joined", count=len(values), into=len(short)))
        return lr

    def _read_loss(self, diverged: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return losses in nats, NaN where there is none; diverged trials' cells hold anything."""
        raw, name = self.raw, self.names["loss"]
        numbers = to_numbers(raw.columns[name])
        odd = np.flatnonzero(np.isnan(numbers) & ~diverged)
        if len(odd):
            codes, values = encode(raw.columns[name].take(_indices(odd)))
            for code, value in enumerate(values):  # empty or not a number, or an error
                if not (is_empty(value) or is_nan(value)):
                    row = int(odd[np.argmax(codes == code)])
                    raise explain_number(raw, row, name, Need.ANY)
        numbers = self._to_nats(numbers, tell=True)
        return np.where(diverged | ~(np.abs(numbers) <= 1e50), np.nan, numbers)

    def _to_nats(self, numbers: NDArray[np.float64], *, tell: bool) -> NDArray[np.float64]:
        """Return losses in nats, by ``--unit`` or by what the column's name says."""
        name, unit = self.names["loss"], self.options.get("unit")
        bare = normalize(name)
        if unit is None:
            parts = {bare, *bare.split("_")}
            unit = next((u for u, words in _BY_NAME if any(w in parts for w in words)), "nats")
            unit = "bits-per-byte" if "bits_per_byte" in bare else unit
        kind, _, size = unit.partition(":")
        per = parse_plain(size) if size else 1.0
        if kind == "accuracy":
            raise DataError(
                f"{self.raw.source}: column {name!r}: expected a loss, found the name of an "
                "accuracy; name a loss with --columns loss=NAME, or say --unit nats"
            )
        if kind not in _UNITS or not per > 0 or (size and kind != "bits-per-byte"):
            raise ConfigError(
                f"--unit: expected {', '.join(_UNITS)} (or bits-per-byte:BYTES, the bytes of a "
                f"token), found {unit!r}"
            )
        if tell and kind != "nats":
            open_size = kind == "bits-per-byte" and not size
            self.notes.append(note(
                "unit", column=name, unit=_UNITS[kind][0], risky=open_size,
                per=" per byte, where verdicts are in nats per token: say how long one is with "
                "--unit bits-per-byte:BYTES" if open_size else " per token",
            ))  # fmt: skip
        if kind == "perplexity":
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.asarray(np.log(numbers))
        with np.errstate(over="ignore"):
            return numbers * _UNITS[kind][1] * per

    def _read_tokens(
        self, ended: NDArray[np.bool_], group: NDArray[np.int64]
    ) -> NDArray[np.float64] | None:
        """Return the token axis, or check that each fit has one budget of tokens."""
        raw, name = self.raw, self.names.get("tokens")
        if name is None:
            if not self.options.get("token_axis"):
                return None
            raise DataError(
                f"{raw.source}: no column 'tokens'{suggest('tokens', list(raw.columns))}, so there "
                "is no token axis; name it with --columns tokens=NAME"
            )
        tokens = read_numbers(raw, name, Need.POSITIVE)
        if self.options.get("token_axis"):
            return tokens
        if self.is_study:
            return None
        params = self.names.get("params")
        sizes = None if params is None else read_numbers(raw, params, Need.POSITIVE)
        # A diverged trial may have stopped early: its tokens are no budget.
        for key in np.unique(group[ended]):
            rows = np.flatnonzero(ended & (group == key))
            if _is_constant(tokens[rows]) or (
                sizes is not None and _is_constant(tokens[rows] / sizes[rows])
            ):
                continue
            one, other = int(rows[np.argmin(tokens[rows])]), int(rows[np.argmax(tokens[rows])])
            places = [raw.describe_row(int(raw.rows[row])) for row in (one, other)]
            raise DataError(
                f"{raw.source}: column {name!r}: expected one token budget (or, with a column "
                f"'params', one number of tokens per parameter), found {tokens[one]:g} at "
                f"{places[0]} and {tokens[other]:g} at {places[1]}; split the table by budget with "
                f"--by {shlex.quote(name)}, or pick one with "
                f"--where {shlex.quote(f'{name}={tokens[other]:.17g}')}, or fit tokens as an axis "
                "with fit --token-axis"
            )
        return None

    def _read_known(self, ours: str) -> NDArray[np.float64] | None:
        """Return a column of positive numbers, NaN where it has none; None without the column."""
        if ours not in self.names:
            return None
        numbers = to_numbers(self.raw.columns[self.names[ours]])
        known = np.where(is_fine(numbers, Need.POSITIVE), numbers, np.nan)
        return self._to_nats(known, tell=False) if ours == "init_loss" else known

    def _read_flops(self) -> NDArray[np.float64] | None:
        """Return training FLOPs: the column of that name, or 6·params·tokens; None without."""
        flops, params, tokens = map(self._read_known, ("flops", "params", "tokens"))
        if flops is not None or params is None or tokens is None:
            return flops
        return 6.0 * params * tokens

    def _check_groups(self, group: NDArray[np.int64]) -> None:
        """Refuse groups of a row or two each: their column is a setting drawn at random."""
        count = int(group.max()) + 1
        if count <= 8 or len(group) >= _FEWEST * count:
            return
        distinct = {n: len(encode(self.raw.columns[n])[1]) for n in self.groups.values()}
        name = max(distinct, key=distinct.__getitem__)
        ours = next(ours for ours, theirs in self.groups.items() if theirs == name)
        way = f"--pool {ours}" if ours in GROUPS else f"no --by {shlex.quote(name)}"
        raise DataError(
            f"{self.raw.source}: column {name!r}: expected few values, each with a sweep of its "
            f"own, found {distinct[name]} in {len(group)} rows, which makes {count} fits; read all "
            f"as one fit with {way}, or pick one with --where {shlex.quote(name)}=VALUE"
        )

    def _drop_repeats(self, table: LossTable, group: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows to keep: each trial once, and of several rows the one that is asked for.

        Raises
        ------
        DataError
            If a trial has two losses; the message says what else the rows differ in.
        """
        axes = () if table.tokens is None else (table.tokens,)
        trial = join_codes(group, table.width, table.lr, table.seed, *axes)
        if int(trial.max()) + 1 == len(trial):
            return np.arange(len(trial))
        keep = self.options.get("keep")
        if keep:
            rule, _, column = keep.partition(":")
            if rule not in ("last", "longest") or (rule == "longest") != bool(column):
                raise ConfigError(f"--keep: expected last or longest:COLUMN, found {keep!r}")
            size = np.zeros(len(trial))
            if column:
                size = read_numbers(self.raw, self._find(column, "--keep"), Need.ANY)
            order = np.lexsort((np.arange(len(trial)), size, trial))
            last = order[np.append(np.flatnonzero(np.diff(trial[order])), len(order) - 1)]
            self.notes.append(note("kept", count=len(trial) - len(last), rule=keep))
            return np.sort(last)
        first = np.unique(trial, return_index=True)[1][trial]
        before, after = table.loss[first], table.loss
        differ = (before != after) & ~(np.isnan(before) & np.isnan(after))
        if differ.any():
            other = int(np.argmax(differ))
            one = int(first[other])
            seed = ", seed" if "seed" in self.names else ""
            raise DataError(
                f"{self.raw.place(one)} and {self.raw.describe_row(int(self.raw.rows[other]))} "
                f"have the same width, lr{seed} and group but losses {before[other]:g} and "
                f"{after[other]:g}; expected each trial once{self._explain(one, other)}"
            )
        kept = np.unique(first)
        self.notes.append(note("repeated", count=len(trial) - len(kept)))
        return kept

    def _explain(self, one: int, other: int) -> str:
        """Return what two rows of one trial differ in, as advice."""
        known = {*self.names.values(), *self.groups.values()}
        differ = [
            name
            for name in self.raw.columns
            if name not in known and self.raw.cell(one, name) != self.raw.cell(other, name)
        ]
        sizes = {name: len(encode(self.raw.columns[name])[1]) for name in differ}
        # A run's id or time stamp differs in every row, a log of its end in most: neither groups.
        name = min(differ, key=lambda n: (sizes[n], len(str(self.raw.cell(one, n)))), default="")
        advice = ""
        if name and sizes[name] <= len(self.raw) // 2:
            value = shlex.quote(f"{name}={clean(str(self.raw.cell(one, name)))[:60]}")
            advice = (
                f"; they differ in {name!r}: group with --by {shlex.quote(name)}, "
                f"or pick one with --where {value}"
            )
        step = next((n for n in differ if set(normalize(n).split("_")) & _LENGTHS), "")
        if step:
            advice += f"; of runs cut short or retried, --keep {shlex.quote(f'longest:{step}')}"
        elif not advice:
            advice += "; of retries, --keep last"
        if "seed" not in self.names:
            advice += "; if these are seeds, name their column with --columns seed=NAME"
        return advice


_LENGTHS = {"step", "steps", "epoch", "epochs", "iter", "iteration", "iterations", "tokens"}


class _Out:
    """Rows that are left out or count as diverged, until it is known where the best rates are."""

    def __init__(
        self, raw: RawTable, names: Mapping[str, str], rate: str, groups: Mapping[str, str]
    ) -> None:
        self._found: list[tuple[str, str, NDArray[np.int64]]] = []
        self._raw, self._names, self._rate, self._groups = raw, names, rate, groups

    def add(self, kind: str, states: NDArray[np.str_]) -> None:
        """Remember rows by the state that they are in, "" being none."""
        for state in np.unique(states[states != ""]).tolist():
            self._found.append((kind, state, np.flatnonzero(states == state)))

    def describe(self, table: LossTable, counted: Sequence[str]) -> list[TableNote]:
        """Return a note for each kind, with how many lie above and below the best rate."""
        if not self._found:
            return []
        best: dict[tuple[object, ...], tuple[float, float]] = {}
        columns = [column.tolist() for column in table.groups.values()]
        for *cells, loss, lr in zip(
            table.width.tolist(), *columns, table.loss, table.lr, strict=True
        ):
            if math.isfinite(loss) and loss < best.get(tuple(cells), (math.inf, 0.0))[0]:
                best[tuple(cells)] = (loss, lr)
        notes = []
        for kind, state, rows in self._found:
            part = self._raw.take(rows[:10_000])
            width = to_numbers(part.columns[self._names["width"]])
            lr = to_numbers(part.columns[self._names[self._rate]])
            with np.errstate(over="ignore"):
                lr = LOG_BASES[self._rate] ** lr if self._rate in LOG_BASES else lr
            names = [
                to_numbers(part.columns[theirs]).astype(object)
                if ours == "weight_decay"
                else read_names(part, theirs)
                for ours, theirs in self._groups.items()
            ]
            sides = Counter(
                "above" if rate > best[key][1] else "below"
                for *cells, rate in zip(width.tolist(), *names, lr.tolist(), strict=True)
                if (key := tuple(cells)) in best and math.isfinite(rate)
            )
            notes.append(note(
                kind, count=len(rows), state=state, above=sides["above"], below=sides["below"],
                risky=kind == "blank" and sides["below"] > 0,
            ))  # fmt: skip
        return notes


def filter_rows(raw: RawTable, where: Mapping[str, str], columns: Mapping[str, str]) -> RawTable:
    """Return the rows in which each named column has its value.

    Parameters
    ----------
    raw : RawTable
        Cells as read.
    where : mapping of str to str
        Values by column, by the file's name or by ours.
    columns : mapping of str to str
        Our column names to the file's.

    Raises
    ------
    ConfigError
        If a column is not there.
    DataError
        If no row is left; the values that the column has are given.
    """
    chosen = np.arange(len(raw))
    for ours, value in where.items():
        name = find_column(raw, ours, columns, "--where")
        codes, values = encode(raw.columns[name])
        same = np.array([_is_value(cell, value) for cell in values], dtype=bool)
        left = chosen[same[codes[chosen]]]
        if not len(left):
            seen = [
                _show_cell(values[code]) for code in np.unique(codes[chosen])[:100_000].tolist()
            ]
            seen = sorted(set(seen), key=seen.index)
            raise DataError(
                f"{raw.source}: --where: no row in which {name!r} is {clean(value)!r}"
                f"{suggest(value, seen)}; found {name_some(seen)}"
            )
        chosen = left
    return raw if len(chosen) == len(raw) else raw.take(chosen)


def find_column(raw: RawTable, name: str, columns: Mapping[str, str], option: str) -> str:
    """Return the file's name of a column, given that or ours.

    Raises
    ------
    ConfigError
        If there is no such column; the message names the option that asked for it.
    """
    found = name if name in raw.columns else columns.get(name, clean(name))
    if found not in raw.columns:
        raise ConfigError(
            f"{raw.source}: {option}: no column {clean(name)!r}{suggest(name, list(raw.columns))}; "
            f"found {name_some(raw.columns)}"
        )
    return found


def take_rows(table: LossTable, rows: NDArray[np.int64]) -> LossTable:
    """Return some rows of a loss table."""
    return replace(
        table,
        width=table.width[rows],
        lr=table.lr[rows],
        loss=table.loss[rows],
        seed=table.seed[rows],
        groups={name: column[rows] for name, column in table.groups.items()},
        tokens=None if table.tokens is None else table.tokens[rows],
        init_loss=None if table.init_loss is None else table.init_loss[rows],
        flops=None if table.flops is None else table.flops[rows],
    )


def parse_where(texts: Sequence[str]) -> dict[str, str]:
    """Return the filter that ``--where COLUMN=VALUE`` asks for.

    Parameters
    ----------
    texts : sequence of str
        Each ``COLUMN=VALUE``; the value may hold anything, commas and ``=`` included.

    Raises
    ------
    ConfigError
        If one is not of that form, or one column is to have two values.
    """
    where: dict[str, str] = {}
    for text in texts:
        name, equals, value = (piece.strip() for piece in text.partition("="))
        if not (name and equals):
            raise ConfigError(f"--where: expected COLUMN=VALUE such as batch=512, found {text!r}")
        if where.setdefault(name, value) != value:
            raise ConfigError(
                f"--where: {name} is to be both {where[name]!r} and {value!r}; expected one value"
            )
    return where


def parse_values(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the cells to replace, by column, that ``--map COLUMN:OLD=NEW,…`` asks for.

    Raises
    ------
    ConfigError
        If one is not of that form.
    """
    values: dict[str, dict[str, str]] = {}
    for text in texts:
        column, colon, rest = text.partition(":")
        for pair in rest.split(","):
            old, equals, new = (piece.strip() for piece in pair.partition("="))
            if not (colon and column and old and equals):
                raise ConfigError(
                    "--map: expected COLUMN:OLD=NEW,… such as size:tiny=64,small=128, found "
                    f"{text!r}"
                )
            values.setdefault(column.strip(), {})[old] = new
    return values


def _hint_logs(name: str, logs: NDArray[np.float64]) -> str:
    """Return advice on rates below zero: logarithms, and to which base."""
    bare = normalize(name)
    bases = [kind for kind in LOG_BASES if kind.removesuffix("_lr") in bare.split("_")] or LOG_BASES
    ways = []
    for kind in bases:
        with np.errstate(over="ignore", under="ignore"):
            rates = LOG_BASES[kind] ** logs
        ways.append(
            f"--columns {kind}={shlex.quote(name)} ({rates.min():.3g} to {rates.max():.3g})"
        )
    return f"; name logarithms by their base with {' or '.join(ways)}"


def _find_blank(raw: RawTable, column: str) -> NDArray[np.bool_]:
    """Return the rows in which a cell is empty, which is less than not being a number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = raw.columns[column]
    blank = cells.is_null()
    if pa.types.is_string(cells.type):
        words = pa.array(sorted(EMPTY - {"nan"}))
        blank = pc.or_(blank, pc.is_in(pc.utf8_lower(pc.utf8_trim_whitespace(cells)), words))
    return np.asarray(blank.to_numpy(zero_copy_only=False), dtype=bool)


def _is_value(cell: object, value: str) -> bool:
    one, other = parse_plain(cell), parse_plain(value)
    if not (math.isnan(one) or math.isnan(other)):
        return one == other
    return _show_cell(cell) == clean(value)[:60]


def _show_cell(cell: object) -> str:
    return "" if cell is None else clean(str(cell))[:60]


def _is_state(cell: object) -> bool:
    return is_empty(cell) or (isinstance(cell, str) and clean(cell).lower() in STATES)


def _is_constant(values: NDArray[np.float64]) -> bool:
    return bool(values.max() <= values.min() * (1 + _BUDGET))


def _indices(rows: NDArray[np.int64]) -> Any:
    import pyarrow as pa

    return pa.array(rows)
