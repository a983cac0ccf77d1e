"""A raw table to a loss table: every row checked, nothing silently dropped."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import ConfigError, DataError
from hptransfer.stats.loss_table import Axis, LossTable
from hptransfer.tables import _columns as known
from hptransfer.tables import _raw_table as cells
from hptransfer.tables._columns import LOG_BASES, NAMES, STATES, normalize
from hptransfer.tables._raw_table import Bools, Floats, Ints, Need, RawTable, join_codes

# Whole steps make a fixed ratio of tokens to parameters come out a little uneven.
_BUDGET = 0.05
# Fits of fewer rows than this are none: a setting that was drawn at random makes such groups.
_FEWEST, _MANY = 3, 8
# A rate's unit in its column's name: "lr (1e-3)", "lr x 1000".
_POWER_OF_TEN = re.compile(r"1e[-+\u2212]?\d|10\^|[x\u00d7*] ?10+\b")
# A batch of fewer tokens than this counts sequences.
_FEWEST_TOKENS = 2048.0


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
        Unit of the loss: ``nats``, ``bits``, ``bits-per-byte:4.4`` or ``nats-per-byte:4.4`` (bytes
        per token), or ``perplexity``; by default what the column's name says, else nats.
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

    Examples
    --------
    >>> ReadOptions(columns={"width": "n_embd"}, by=["optimizer"])
    {'columns': {'width': 'n_embd'}, 'by': ['optimizer']}
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


def make_loss_table(raw: RawTable, options: ReadOptions, axis: Axis = "as given") -> LossTable:
    """Return the loss table of a raw one, and note what it holds beside and what is left out.

    Parameters
    ----------
    raw : RawTable
        Cells as read.
    options : ReadOptions
        How to read them.
    axis : Axis
        Name of the learning-rate axis.

    Raises
    ------
    ConfigError
        If an option names a column that is not there.
    DataError
        If a column is missing or a cell is not what its column needs.
    """
    columns = {ours: cells.clean(name) for ours, name in options.get("columns", {}).items()}
    raw = cells.map_values(raw, options.get("values", {}))
    raw = cells.filter_rows(raw, options.get("where", {}), columns)
    by = [*options.get("by", ()), *raw.by]
    known.tell_codes(raw)
    raw = known.choose_columns(raw, columns, by, options.get("pool", ()))
    return _Reader(raw, options).build(axis)


class _Reader:
    """Columns of a table as arrays, those of trials that ended each checked."""

    def __init__(self, raw: RawTable, options: ReadOptions) -> None:
        self.raw, self.options, self.names = raw, options, raw.ours
        self.rate = known.find_rate(raw.ours)
        self.diverged: Bools = np.zeros(len(raw), dtype=bool)

    def build(self, axis: Axis) -> LossTable:
        """Return the table of the trials that ended, each once."""
        names, axes = self.names, self.options.get("axes", ())
        # Runs that differ in their batch alone are not one run's evaluations.
        if not self.raw.is_ours and ("batch" not in axes or self.options.get("last")):
            self._keep_last()
        self._leave_out()
        raw = self.raw
        width = raw.read(names["width"], Need.POSITIVE)
        if cells.read_notation(raw.cell(0, names["width"]))[0] == "size":
            self.raw.tell("params", column=names["width"])
        lr, loss, (groups, group) = self._read_rate(), self._read_loss(), self._read_groups()
        if multiple := self._is_multiple():
            self.raw.tell("multiplier", column=names[self.rate])
        read: dict[str, Any] = {"width": width, "lr": lr, "loss": loss, "seed": self._read_seeds()}
        if "tokens" in axes:
            read["tokens"] = raw.read(self._find("tokens", required=True), Need.POSITIVE)
        else:
            read["budget"] = self._read_known("tokens")
            self._check_budget(np.isfinite(loss), group, width)
        read |= self._read_batch(wanted="batch" in axes)
        added = [read[name] for name in ("tokens", "batch") if name in read]
        kept = self._drop_repeats(loss, join_codes(group, width, lr, read["seed"], *added))
        read |= {"init_loss": self._read_known("init_loss"), "flops": self._read_flops()}
        read |= {n: each[kept] for n, each in read.items() if isinstance(each, np.ndarray)}
        table = LossTable(
            **read,
            groups={name: column[kept] for name, column in groups.items()},
            axis="multiplier" if multiple else axis,
            source=raw.source,
            size=names["width"],
        )
        if not raw.is_ours:
            used = {*self.raw.groups.values()}
            used |= {n for ours, n in names.items() if ours not in ("batch", "context")}
            if added:  # the steps of a run are its tokens over its batch
                sizes = ("steps", "num_steps", *NAMES["batches"], *NAMES["contexts"])
                used |= {name for name in raw.columns if normalize(name) in sizes}
            known.tell_conditions(raw.take(kept), table, group[kept], used)
        return replace(table, doubts=tuple(each for each in raw.notes if each.risky))

    def _refuse(self, column: str, expected: str, found: object, hint: str = "") -> DataError:
        """Return the error of a whole column."""
        return cells.unexpected(f"{self.raw.source}: column {column!r}", expected, found, hint)

    def _keep_last(self) -> None:
        """Keep each run's last evaluation where rows are evaluations, and note it.

        Rows are evaluations where several of one run differ in a column that counts steps, which
        is the one of ``--last`` or one that is called so; an evaluation without a loss is none.
        """
        raw, last = self.raw, self.options.get("last")
        names = {**self.names, **self.raw.groups}
        free = (name for name in raw.columns if name not in names.values())
        counts = (name for name in free if normalize(name) in NAMES["steps"])
        column = raw.require(last, "--last", names) if last else next(counts, None)
        if column is None:
            return
        settings = ("width", self.rate, "seed", *self.raw.groups)
        trials = join_codes(*(raw.encode(names[name])[0] for name in settings if name in names))
        runs, steps = self._find_runs(trials), raw.numbers(column)
        # Rows of one run at one step are no evaluations, and neither are steps without numbers.
        count, differing = cells.count_codes(runs), cells.count_codes(join_codes(runs, steps))
        is_history = np.isfinite(steps).all() and differing == len(raw)
        steps = np.where(np.isnan(steps), -np.inf, steps)  # NaN would rank highest
        if count < len(raw) and (last or is_history):
            raw.tell("history", rows=len(raw), count=count, column=column)
            self.raw = raw.take(_take_last(runs, steps, ~raw.blanks(names["loss"])))

    def _find_runs(self, trials: Ints) -> Ints:
        """Return the run of each row: by a column that names runs, else by its trial."""
        for name in self.raw.columns:
            if normalize(name) in NAMES["runs"]:
                codes = self.raw.encode(name)[0]
                # A name that holds several trials, such as a sweep's, is no run's.
                if cells.count_codes(join_codes(codes, trials)) == cells.count_codes(codes):
                    return codes
        rate = self.names[self.rate]
        is_guessed = self.rate not in self.options.get("columns", {})
        logs = known.list_logs(self.raw, self.names["width"]) if is_guessed else ()
        if known.is_scheduled(self.raw, rate, logs):
            hint = f"name the rate that was swept with --columns {self.rate}=NAME"
            found = "several in one, as a schedule logs them"
            raise self._refuse(rate, "one learning rate for each run", found, hint)
        return trials

    def _leave_out(self) -> None:
        """Keep the trials that ended; note the others and those that lack a loss."""
        asked = map(str.lower, self.options.get("diverged", ()))
        wanted = {"diverged", *(STATES.get(word, word) for word in asked)}
        if odd := wanted - {*STATES.values(), "stopped", "none"}:
            expected = "failed, crashed, killed, pruned, stopped or none"
            raise ConfigError(f"--diverged: expected {expected}, found {min(odd)!r}")
        raw, state, column = self.raw, self._read_states(), self.names["loss"]
        completed = state == "completed"
        blank, stopped = raw.blanks(column) & completed, self._find_stopped() & completed
        if "none" in wanted:
            state[blank], blank = "unmeasured", np.zeros_like(blank)
        if "stopped" in wanted:
            state[stopped] = "stopped"
        elif stopped.any():
            some = ", ".join(map(raw.say_row, np.flatnonzero(stopped)[:3]))
            counts = {"count": int(stopped.sum()), "rows": len(raw)}
            self.raw.tell("stops", **counts, column=column, examples=some)
        diverged = np.isin(state, [*wanted])
        ended = diverged | (state == "completed")
        left = {word: state == word for word in dict.fromkeys(state[~ended])}
        if not ended.any():
            told = [f"{rows.sum()} {word} trial(s) left out" for word, rows in left.items()]
            ends = {"failed", "crashed", "killed", "pruned"}
            if named := [word for word in left if word in ends]:
                told.append(f"if they diverged, --diverged {','.join(named)}")
            raise DataError(f"{raw.source}: no finished trial; {'; '.join(told)}")
        if left or blank.any():
            self._place(ended & ~diverged, {**left, "blank": blank})
        self.diverged = diverged[ended]
        self.raw = raw if ended.all() else raw.take(np.flatnonzero(ended))

    def _read_states(self) -> NDArray[np.object_]:
        """Return what each row's state is called here; one that says nothing was completed."""

        def read(cell: object) -> str:
            word = "completed" if cells.is_empty(cell) else cells.clean(str(cell)).lower()
            if word not in STATES or not isinstance(cell, str | None):
                near = cells.suggest(word, STATES).removeprefix("; ")
                raise ValueError(f"a state ({', '.join(dict.fromkeys(STATES.values()))})", near)
            return STATES[word]

        column = self.names.get("state")
        states = self.raw.map_cells(column, read) if column else ["completed"] * len(self.raw)
        return np.array(states, object)

    def _find_stopped(self) -> Bools:
        """Return the runs that log their loss for the last time well before anything else."""
        steps = {name: steps[self.raw.rows] for name, steps in self.raw.last_steps.items()}
        own = steps.pop(self.names["loss"], None)
        if own is None or not steps:
            return np.zeros(len(self.raw), dtype=bool)
        end = np.fmax.reduce([own, *steps.values()])
        # Runs that go well say how often the loss is logged: where all stop early, none does.
        return np.asarray(end - own > np.fmin.reduce(end - own) + 0.02 * end)

    def _place(self, finished: Bools, kinds: Mapping[str, Bools]) -> None:
        """Note trials that are left out or lack a loss, and on which side of the best rate."""
        raw, names = self.raw, self.names
        lr, loss = self._to_rates(raw.numbers(names[self.rate])), raw.numbers(names["loss"])
        groups = [raw.name_cells(name)[0] for name in self.raw.groups.values()]
        cell = join_codes(*groups, raw.numbers(names["width"]))
        loss = np.where(finished & np.isfinite(loss), loss, np.inf)
        order = np.lexsort((-loss, cell))  # of each cell the lowest loss is written last
        best = np.full(cells.count_codes(cell), np.nan)
        best[cell[order]] = np.where(np.isfinite(loss[order]), lr[order], np.nan)
        for state, rows in kinds.items():
            above, below = (int(np.sum(side[rows])) for side in (lr > best[cell], lr < best[cell]))
            kind = "blank" if state == "blank" else "left_out"
            about = {"count": int(rows.sum()), "state": state, "above": above, "below": below}
            if rows.any():
                self.raw.tell(kind, **about, risky=kind == "blank" and below > 0)

    def _to_rates(self, numbers: Floats, rate: str = "") -> Floats:
        base = LOG_BASES.get(rate or self.rate)
        with np.errstate(over="ignore", under="ignore"):
            return numbers if base is None else np.asarray(base**numbers)

    def _read_rate(self) -> Floats:
        """Return learning rates; those that agree but for rounding are one."""
        rate, name = self.rate, self.names[self.rate]
        numbers = self.raw.numbers(name)
        if rate in LOG_BASES:
            self.raw.read(name, Need.ANY, numbers)
            hint = f"as a logarithm to base {LOG_BASES[rate]:.3g} it is no learning rate"
        else:
            hint = self._hint_logs(name, numbers[np.isfinite(numbers)])
        lr = self.raw.read(name, Need.POSITIVE, self._to_rates(numbers), hint)
        values, inverse = np.unique(lr, return_inverse=True)
        cluster = np.append(0, np.cumsum(np.diff(values) > known.SAME_RATE * values[1:])).tolist()
        if cluster[-1] + 1 == len(values):
            return lr
        # Of rates that agree the one written shortest is what was meant: it is taken last.
        pairs = [*zip(cluster, values.tolist(), strict=True)][::-1]
        short = dict(sorted(pairs, key=lambda pair: -len(repr(pair[1]))))
        self.raw.tell("joined", count=len(values), into=len(short))
        return np.array([short[code] for code in cluster])[inverse]

    def _hint_logs(self, name: str, rates: Floats) -> str:
        """Return advice on rates that are all below zero: logarithms, and to which base."""
        if not len(rates) or not (rates < 0).all():
            return ""
        words, ways = normalize(name).split("_"), []
        named = [kind for kind in LOG_BASES if kind.removesuffix("_lr") in words]
        for kind in named or LOG_BASES:
            low, high = np.sort(self._to_rates(rates, kind))[[0, -1]]
            ways.append(f"--columns {kind}={shlex.quote(name)} ({low:.3g} to {high:.3g})")
        return f"name logarithms by their base with {' or '.join(ways)}"

    def _is_multiple(self) -> bool:
        """Tell whether rates are multiples of one that is not in the table."""
        name = self.names[self.rate]
        named = not {*normalize(name).split("_")}.isdisjoint(NAMES["multiples"])
        named |= _POWER_OF_TEN.search(name) is not None
        return named or cells.read_notation(self.raw.cell(0, name))[0] == "multiple"

    def _read_loss(self) -> Floats:
        """Return losses in nats, NaN where there is none; diverged trials' cells hold anything."""
        name = self.names["loss"]
        written = self.raw.read_measured(name, self.diverged)
        numbers = self._to_nats(written, tell=True)
        loss = np.where(self.diverged | ~(np.abs(numbers) <= cells.LARGEST), np.nan, numbers)
        # A perplexity of 0 or less has no logarithm.
        odd = ~self.diverged & np.isfinite(written) & ((loss <= 0) | (written <= 0))
        kind = "mark" if (loss > 0).any() else "score"
        # Marks are whole numbers; a quantity that may be negative has many values, and few are.
        marks = np.unique(written[odd])
        is_marked = len(marks) == 1 or (marks == np.floor(marks)).all()
        is_difference = not {*normalize(name).split("_")}.isdisjoint(NAMES["differences"])
        if odd.any() and not is_difference and (kind == "score" or is_marked):
            told = ",".join(f"{cells.say(mark).removesuffix('.0')}=nan" for mark in marks[:12])
            about = {"count": int(odd.sum()), "rows": len(loss), "marks": told}
            self.raw.tell(kind, column=name, **about)
        return loss

    def _to_nats(self, numbers: Floats, *, tell: bool = False) -> Floats:
        """Return losses in nats, by ``--unit`` or by what the column's name says."""
        name, words = self.names["loss"], normalize(self.names["loss"]).split("_")
        # A perplexity's logarithm is in nats.
        by_name = (unit for word, unit in known.UNITS_BY_NAME.items() if word in words)
        found = "nats" if {"log", "ln"} & {*words} else next(by_name, "nats")
        found = found.replace("bits", "nats") if "nats" in words else found
        unit = self.options.get("unit") or found
        kind, colon, size = unit.partition(":")
        per = cells.parse_number(size) if colon else 1.0
        if kind.startswith(("a ", "an ")):
            hint = "name another with --columns loss=NAME, or say --unit nats"
            raise self._refuse(name, "a loss", f"{kind} by its name", hint)
        is_per_byte = kind.endswith("-per-byte")
        if kind not in known.UNITS or not per > 0 or (colon and not is_per_byte):
            expected = f"{', '.join(known.UNITS)} or bits-per-byte:BYTES-OF-A-TOKEN"
            raise ConfigError(f"--unit: expected {expected}, found {unit!r}")
        if tell and kind != "nats":
            alone = is_per_byte and not colon
            self.raw.tell("byte_unit" if alone else "unit", column=name, unit=kind)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return np.log(numbers) if kind == "perplexity" else numbers * (known.UNITS[kind] * per)

    def _read_groups(self) -> tuple[dict[str, NDArray[np.object_]], Ints]:
        """Return the columns that separate fits, and which fit each row is in."""
        groups: dict[str, NDArray[np.object_]] = {}
        parts, sizes = [np.zeros(len(self.raw), np.int64)], {}
        for ours, theirs in self.raw.groups.items():
            codes, names = self.raw.name_cells(theirs)
            if ours == "weight_decay" and ours in self.names:
                decays = self.raw.read(theirs, Need.NOT_NEGATIVE)
                codes = np.unique(decays, return_inverse=True)[1]
                names = np.unique(decays).tolist()
            groups[ours], sizes[ours] = np.array(names, object)[codes], len(names)
            parts.append(codes)
        group = join_codes(*parts)
        count = cells.count_codes(group)
        if count > _MANY and len(group) < _FEWEST * count:
            ours = max(sizes, key=sizes.__getitem__)
            name = self.raw.groups[ours]
            found = f"{sizes[ours]} in {len(group)} rows, which makes {count} fits"
            way = f"--pool {ours}" if ours in known.GROUPS else "no --by"
            hint = f"read all as one fit with {way}, or pick one with --where "
            hint += f"{shlex.quote(name)}=VALUE"
            raise self._refuse(name, "few values with a sweep each", found, hint)
        return groups, group

    def _read_seeds(self) -> Ints:
        """Return a seed for each row, shape (rows,).

        A seed only says which trials belong together, so a column of words ("mean of 3") is one
        of labels, numbered in order of appearance, as are hashes too large for a machine's
        integer. One bad cell among numbers stays an error.
        """
        column = self.names.get("seed")
        if column is None:
            return np.zeros(len(self.raw), np.int64)
        numbers = self.raw.numbers(column)
        is_label = np.isnan(numbers).all()
        if not is_label and np.abs(self.raw.read(column, Need.WHOLE, numbers)).max() <= 2.0**53:
            return numbers.astype(np.int64)
        return self.raw.encode(column)[0]

    def _check_budget(self, ended: Bools, group: Ints, width: Floats) -> None:
        """Check that each fit has one budget of tokens at a width, or of tokens per parameter."""
        name, params = map(self.names.get, ("tokens", "params"))
        if name is None or self.raw.is_ours:
            return
        tokens = self.raw.read(name, Need.POSITIVE)
        ratio = tokens if params is None else tokens / self.raw.read(params, Need.POSITIVE)

        def find_uneven(values: Floats, codes: Ints) -> Bools:
            most, least = np.zeros(len(codes)), np.full(len(codes), np.inf)
            # A diverged trial may have stopped early: its tokens are no budget.
            np.maximum.at(most, codes[ended], values[ended])
            np.minimum.at(least, codes[ended], values[ended])
            return np.asarray((most > least * (1 + _BUDGET))[codes] & ended)

        cell = join_codes(group, width)
        odd = find_uneven(ratio, group) & find_uneven(tokens, cell)
        if odd.any():
            rows = np.flatnonzero(odd & (cell == cell[np.argmax(odd)]))
            ends = rows[np.argsort(tokens[rows], kind="stable")[[0, -1]]]
            least, most = (f"{tokens[row]:g} at {self.raw.say_row(row)}" for row in ends)
            value = shlex.quote(f"{name}={tokens[ends[1]]:.17g}")
            raise self._refuse(
                name,
                "one token budget at each width (or, with a column 'params', one number of "
                "tokens per parameter)",
                f"{least} and {most}",
                f"split the table by budget with --by {shlex.quote(name)}, or pick one with "
                f"--where {value}, or ask for a budget with recommend --tokens",
            )
        if find_uneven(tokens, group).any():
            self.raw.tell("with_width", columns=name)

    def _find(self, ours: str, others: Sequence[str] = (), *, required: bool = False) -> str:
        """Return the file's name of a column: the one chosen, else the likeliest of some names."""
        likely = (c for name in others for c in self.raw.columns if normalize(c) == name)
        name = self.names.get(ours) or next(likely, "")
        if required and not name:
            about = {"why": " to be an axis", "hint": f"; name it with --columns {ours}=NAME"}
            raise DataError(cells.lack_column(self.raw.source, ours, self.raw.columns, **about))
        return name

    def _read_batch(self, *, wanted: bool) -> dict[str, Any]:
        """Return the batch in tokens where it is an axis, and the tokens in its unit."""
        name = self._find("batch", NAMES["batches"], required=wanted)
        if not wanted:
            if "batch" in self.options.get("columns", {}):
                batch = self.raw.read(name, Need.POSITIVE)
                if batch.max() > batch.min():
                    found = f"{batch.min():g} to {batch.max():g}"
                    hint = "ask for the target's with recommend --batch"
                    raise self._refuse(name, "one batch", found, hint)
            return {}
        batch = self.raw.read(name, Need.POSITIVE)
        context = self._find("context", NAMES["contexts"])
        if context and "tokens" not in normalize(name):
            lengths = self.raw.read(context, Need.POSITIVE)
            return {"batch": batch * lengths, "batch_unit": float(np.median(lengths))}
        if np.median(batch) < _FEWEST_TOKENS:
            hint = "if it counts sequences, name their length with --columns context=NAME"
            raise self._refuse(name, "a batch in tokens", f"{np.median(batch):g}", hint)
        return {"batch": batch}

    def _read_known(self, ours: str) -> Floats | None:
        """Return a column of positive numbers, NaN where it has none; None without the column."""
        if ours not in self.names:
            return None
        numbers = self.raw.numbers(self.names[ours])
        found = np.where(Need.POSITIVE.fits(numbers), numbers, np.nan)
        return self._to_nats(found) if ours == "init_loss" else found

    def _read_flops(self) -> Floats | None:
        """Return training FLOPs, else 6 times parameters times tokens; None where unknown."""
        flops, params, tokens = map(self._read_known, ("flops", "params", "tokens"))
        if flops is not None or params is None or tokens is None:
            return flops
        return 6.0 * params * tokens

    def _drop_repeats(self, loss: Floats, trial: Ints) -> Ints:
        """Return the rows to keep: each trial once, and of several rows the one asked for.

        Raises
        ------
        DataError
            If a trial has two losses and ``--keep`` does not choose; the message says what else
            the rows differ in.
        """
        raw, keep, count = self.raw, self.options.get("keep"), cells.count_codes(trial)
        if count == len(trial):
            return np.arange(count)
        if keep:
            rule, _, column = keep.partition(":")
            if rule not in ("last", "longest") or (rule == "longest") != bool(column):
                raise ConfigError(f"--keep: expected last or longest:COLUMN, found {keep!r}")
            name = raw.require(column, "--keep", self.names) if column else ""
            size = raw.numbers(name) if name else np.zeros(len(trial))
            self.raw.tell("kept", count=len(trial) - count, rule=keep)
            return _take_last(trial, np.nan_to_num(size, nan=-np.inf))
        kept, differ = cells.find_repeats(trial, loss)
        if len(differ):
            one, other = int(kept[trial[differ[0]]]), int(differ[0])
            seed = ", seed" if "seed" in self.names else ""
            raise DataError(
                f"{raw.place(one)} and {raw.say_row(other)} have the same width, lr{seed} and "
                f"group but losses {loss[one]:g} and {loss[other]:g}; expected each trial once"
                f"{self._explain_repeat(one, other)}"
            )
        self.raw.tell("repeated", count=len(trial) - count)
        return kept

    def _explain_repeat(self, one: int, other: int) -> str:
        """Return what two rows of one trial differ in, as advice."""
        raw, known = self.raw, {*self.names.values(), *self.raw.groups.values()}
        rest = [name for name in raw.columns if name not in known]
        differ = [name for name in rest if raw.cell(one, name) != raw.cell(other, name)]
        sizes = {name: len(raw.encode(name)[1]) for name in differ}
        # A run's id or time stamp differs in every row, a log of its end in most: neither groups.
        name = min(differ, key=lambda n: (sizes[n], len(str(raw.cell(one, n)))), default="")
        advice = ""
        if name and sizes[name] <= len(raw) // 2:
            value = shlex.quote(f"{name}={cells.say(raw.cell(one, name))}")
            advice = f"; they differ in {name!r}: group with --by {shlex.quote(name)}, "
            advice += f"or pick one with --where {value}"
        step = next((n for n in differ if normalize(n) in NAMES["steps"]), None)
        if step or not advice:
            advice += f"; of retries, --keep {shlex.quote(f'longest:{step}') if step else 'last'}"
        if "seed" not in self.names:
            advice += "; if these are seeds, name their column with --columns seed=NAME"
        return advice


def _take_last(codes: Ints, *ranks: NDArray[np.generic]) -> Ints:
    """Return the row of each code that ranks highest, the last rank first, then the last row."""
    order = np.lexsort((*ranks, codes))
    return np.sort(order[np.append(np.flatnonzero(np.diff(codes[order])), len(order) - 1)])
