"""Which column of a file is which quantity of a loss table: by name, by synonym, or as told."""

import itertools
import math
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hptransfer.errors import ConfigError, DataError
from hptransfer.stats.loss_table import LossTable
from hptransfer.tables import _raw_table as cells
from hptransfer.tables._raw_table import Bools, Floats, Ints, Need, RawTable

# What trackers, trainers and papers call things.
_WORDS: Mapping[str, Any] = tomllib.loads(
    Path(__file__).with_name("vocabulary.toml").read_text("utf-8")
)
#: Names of our columns, likeliest first; and names of other columns, by what they hold.
SYNONYMS: Mapping[str, Sequence[str]] = _WORDS["synonyms"]
NAMES: Mapping[str, Sequence[str]] = _WORDS["names"]
#: States by words; and units of a loss by words of its name.
STATES: Mapping[str, str] = {
    word: state for state, words in _WORDS["states"].items() for word in words
}
UNITS_BY_NAME = {word: unit for unit, words in _WORDS["units"].items() for word in words}
#: Nats in one of a unit of the loss, 0 for its exponential.
UNITS = {
    "nats": 1.0, "bits": math.log(2), "bits-per-byte": math.log(2), "nats-per-byte": 1.0,
    "perplexity": 0.0,
}  # fmt: skip
#: Words of names: ``ids`` tell runs apart, others are of ``results``, ``settings``, ``of_width``.
WORDS = {
    kind: re.compile(rf"\b({'|'.join(words.split())})\b") for kind, words in _WORDS["words"].items()
}

REQUIRED = ("width", "lr", "loss")
#: Every quantity that a column can be read as; a rate may be its logarithm, as `LOG_BASES` says.
CANONICAL = (
    *REQUIRED, "parameterization", "seed", "weight_decay", "params", "tokens", "batch", "context",
    "state", "init_loss", "flops",
)  # fmt: skip
#: Columns that separate fits unasked.
GROUPS = ("parameterization", "weight_decay")
#: What a learning rate may be written as: itself, or its logarithm to a base.
LOG_BASES = {"log2_lr": 2.0, "log10_lr": 10.0, "ln_lr": float(np.e)}
RATES = ("lr", "base_lr", *LOG_BASES)
#: Every name that a column of ours can have.
KNOWN = tuple(dict.fromkeys(CANONICAL + RATES))

# What trackers put before the name of a setting; before that of a metric nothing is taken off.
_SETTING = re.compile(
    r"^(?:(?:config|param(?:eter)?s?|hparams?|hyperparameters?|user_attrs?|args|model|optim(?:izer)?|"
    r"train_loop_config|init_args|value)[_./]+)+"
)
_METRIC = re.compile(r"^(?:summary|metrics?|results?|ray_tune)_")
# A rate's unit after its name: "lr (1e-3)", "lr x 1000"; "lr 1e-3" is a column of one rate.
_RATE_UNIT = re.compile(r"\s*([(\[]\s*[x\u00d7*]?|[x\u00d7*])\s?(1e[-+\u2212]?|10\^|10+\b).*$")
#: Rates that agree this well are one, written with other precisions.
SAME_RATE = 1e-6
# Rows whose cells tell of which kind a column is.
_SAMPLE = 2000


@lru_cache(maxsize=10_000)
def normalize(name: str) -> str:
    """Return a column's name without its tracker's prefix, in lower case and with ``_`` only.

    Examples
    --------
    >>> [normalize(name) for name in ("config.model.n_embd", "eval/loss", "Run seed", "train/lr")]
    ['n_embd', 'eval_loss', 'run_seed', 'train_lr']
    """
    bare = _SETTING.sub("", name.lower()) if len(name) < 200 else ""
    return re.sub(r"[^a-z0-9]+", "_", bare).strip("_")


def choose_columns(
    raw: RawTable,
    columns: Mapping[str, str],
    by: Sequence[str] = (),
    pool: Sequence[str] = (),
    *,
    complete: bool = True,
) -> RawTable:
    """Return a table that knows which columns are ours: those named, else by name or synonym.

    A name in other letters (``State``) is ours where nothing else has that name. An optional
    column without any entry is as good as absent.

    Parameters
    ----------
    raw : RawTable
        The table.
    columns : mapping of str to str
        Our names to the file's, as the user gave them.
    by, pool : sequence of str
        Columns that separate fits beside those of `GROUPS`, and those of `GROUPS` that do not.
    complete : bool
        Whether to refuse a table that lacks a required column, and to note what was chosen.

    Returns
    -------
    RawTable
        The table with its `ours` and `groups`; what was chosen is noted.

    Raises
    ------
    DataError
        If a named or a required column is missing; the likeliest names are given.
    """
    for ours, theirs in columns.items():
        raw.require(theirs, f"--columns {ours}={theirs}")
    found, guessed = dict(columns), False
    for ours in CANONICAL:
        rates = RATES if ours == "lr" else (ours,)
        if found.keys() & {*rates}:
            continue
        free = [name for name in raw.columns if name not in found.values()]
        fits = sorted(
            (*score, free.index(name), rate, name)
            for name in free
            for rank, rate in enumerate(rates)
            if (score := _score(rate, name, rank)) and _suits(raw, ours, name, exact=score[0] < 2)
        )
        # Two names that differ in letter case only are neither.
        if fits and not (fits[0][0] == 1 and fits[0][:2] in [other[:2] for other in fits[1:]]):
            kind, _, _, rate, name = fits[0]
            found[rate], guessed = name, guessed or kind > 1
    rate = find_rate(found)
    missing = [name for name in REQUIRED if name not in found and not (name == "lr" and rate)]
    if missing and complete:
        raise _explain_missing(raw, missing, found)
    if not complete:  # who only looks is told nothing
        raw = replace(raw, notes=[])
    if not (missing or raw.is_ours):  # where the names are ours, none needs saying
        if not {*RATES} & columns.keys():
            _compare_rates(raw, found, rate)
        if "loss" not in columns:
            _compare_losses(raw, found["loss"])
        if guessed:
            said = ",".join(f"{o}={theirs}" for o, theirs in found.items() if o != theirs.lower())
            raw.tell("columns", columns=shlex.quote(said))
    groups = _choose_groups(raw, found, rate, by, pool)
    used = {n: theirs for n, theirs in found.items() if n in groups or n not in GROUPS}
    return replace(raw, ours=used, groups=groups)


def find_rate(names: Container[str]) -> str:
    """Return which name of ours a rate has, itself or as a logarithm; "" where there is none."""
    return next((name for name in RATES if name in names), "")


def _score(ours: str, name: str, rank: int) -> tuple[int, int] | None:
    """Return how well a name fits a column of ours, the lower the better; None where not."""
    bare = _RATE_UNIT.sub("", name) if ours in RATES else name
    normal, synonyms = normalize(bare), SYNONYMS.get(ours, ())
    for score, same in enumerate((name == ours, name.lower() == ours, normal == ours)):
        if same:
            return score, rank
    bare = _METRIC.sub("", normal) if ours == "loss" else normal
    return (3, 10 * rank + synonyms.index(bare)) if bare in synonyms else None


def _suits(raw: RawTable, ours: str, name: str, *, exact: bool) -> bool:
    """Tell whether a column's cells are of the kind; those of a required one's own name are."""
    if ours in REQUIRED:
        return exact or _has_numbers(raw.columns[name])
    some = raw.columns[name][: None if exact else _SAMPLE].unique().to_pylist()
    if ours == "state" and not exact:
        return all(cells.is_empty(cell) or str(cell).strip().lower() in STATES for cell in some)
    return not all(cell is None or (isinstance(cell, str) and not cell.strip()) for cell in some)


def _has_numbers(column: pa.Array) -> bool:
    return any(math.isfinite(cells.parse_number(cell)) for cell in column[:_SAMPLE].to_pylist())


def _choose_groups(
    raw: RawTable, names: Mapping[str, str], rate: str, by: Sequence[str], pool: Sequence[str]
) -> dict[str, str]:
    """Return the file's names of the columns that separate fits, under ours where there is one."""
    ours = {theirs: name for name, theirs in names.items()}
    core = {names.get(name) for name in ("width", rate, "loss", "seed")}
    known = [ours.get(name, name) for name in raw.columns if name not in core]
    asked, pooled = ([ours.get(n, n) for n in map(cells.clean, each)] for each in (by, pool))
    for option, columns, allowed in (("by", asked, {*known, *GROUPS}), ("pool", pooled, {*GROUPS})):
        for name in columns:
            if name not in allowed:
                place, have = f"{raw.source}: --{option}", sorted(allowed)
                raise ConfigError(cells.lack_column(place, name, have, why=" to group by"))
    both = [name for name in GROUPS if name in names and name not in pooled]
    return {n: names.get(n, n) for n in [*both, *asked] if n in both or n in known}


def _compare_rates(raw: RawTable, found: dict[str, str], rate: str) -> None:
    """Take the rate that was swept where another's column stands beside it, and say so."""
    used = found[rate]
    if rate in ("log10_lr", "ln_lr"):
        raw.tell("logarithms", column=used, base=rate.removesuffix("_lr").strip("log"))
    others = [n for n in raw.columns if n != used and normalize(n) in ("lr", *SYNONYMS["lr"])]
    logs = list_logs(raw, found["width"]) if others else []
    for name in others if rate == "lr" else ():
        if is_scheduled(raw, name, logs):
            raw.tell("logged_rate", other=name, used=used)
            continue
        if is_scheduled(raw, used, logs) and Need.POSITIVE.fits(raw.numbers(name)).all():
            found[rate] = name
            raw.tell("logged_rate", other=used, used=name)
            break
        one, other = raw.numbers(used), raw.numbers(name)
        both = np.isfinite(one) & np.isfinite(other) & (one > 0) & (other > 0)
        ratio = other[both] / one[both]
        if not len(ratio) or np.allclose(ratio, 1, rtol=1e-5):
            continue
        first = float(ratio[0])
        if not np.allclose(ratio, first, rtol=1e-4):
            raw.tell("other_rate", other=name, used=used)
        elif first < 1:
            raw.tell("final_rate", other=name, used=used, ratio=first)
        else:  # the one that is used is where a schedule ended
            found[rate] = name
            raw.tell("final_rate", other=used, used=name, ratio=1 / first)
            break


def list_logs(raw: RawTable, width: str | None) -> list[tuple[Ints, Floats]]:
    """Return each row's run and step, by each pair of columns that may be those of a log.

    A log has several rows of a run, of one width, and nearly each at a step of its own: a run that
    was begun anew logs some twice, a sweep under one name has each step once a rate.
    """
    columns = {
        kind: [name for name in raw.columns if normalize(name) in NAMES[kind]]
        for kind in ("runs", "steps")
    }
    widths = raw.encode(width)[0] if width else np.zeros(len(raw), np.int64)
    logs = []
    for name, column in itertools.product(columns["runs"], columns["steps"]):
        runs, steps = raw.encode(name)[0], raw.numbers(column)
        if cells.count_codes(cells.join_codes(runs, widths)) == cells.count_codes(runs):
            told = np.isfinite(steps)
            pairs = cells.count_codes(cells.join_codes(runs[told], steps[told]))
            if pairs > cells.count_codes(runs) and pairs > 0.75 * told.sum():
                logs.append((runs, steps))
    return logs


def is_scheduled(raw: RawTable, rate: str, logs: Sequence[tuple[Ints, Floats]]) -> bool:
    """Tell whether a rate is a schedule's in the runs of a log.

    It then changes within most of them, with one turn at most as in warm-up and decay, and all have
    more than twice the rates of one: peaks differ by run, where grids share their rates.
    """
    rates = raw.numbers(rate)
    for runs, steps in logs:
        told = np.flatnonzero(np.isfinite(steps) & np.isfinite(rates))
        order = told[np.lexsort((steps[told], runs[told]))]
        run, lr = cells.join_codes(runs[order]), rates[order]
        first = np.unique(cells.join_codes(run, lr), return_index=True)[1]
        each = np.bincount(run[first])  # rates of each run
        if not len(lr) or (each > 1).mean() < 0.75 or len(np.unique(lr)) <= 2 * each.mean():
            continue
        moves = np.flatnonzero((np.diff(run) == 0) & (np.diff(lr) != 0))
        ways, within = np.sign(np.diff(lr))[moves], run[moves]
        turned = (np.diff(ways) != 0) & (np.diff(within) == 0)
        turns = np.bincount(within[1:][turned], minlength=len(each))
        # Two rows a run turn nowhere: a log's steps are then those of other runs.
        is_long = len(order) >= 3 * len(each) or 2 * len(np.unique(steps[told])) <= len(told)
        if is_long and (turns <= 1).mean() >= 0.75:
            return True
    return False


def _compare_losses(raw: RawTable, used: str) -> None:
    """Say where a loss on training data, or on any, is read beside a held-out one."""
    names = {name: _METRIC.sub("", normalize(name)) for name in raw.columns}
    held_out = [n for n, bare in names.items() if bare in SYNONYMS["loss"] and "train" not in bare]
    other = next((n for n in held_out if n != used and _has_numbers(raw.columns[n])), "")
    if other and (names[used] == "loss" or "train" in names[used]):
        raw.tell("other_loss", other=other, used=used)


def _explain_missing(raw: RawTable, missing: Sequence[str], found: Mapping[str, str]) -> DataError:
    """Return the error of required columns that are not there, with the line that names them."""
    ours = missing[0]
    numeric = [name for name, column in raw.columns.items() if _has_numbers(column)]
    other = " (or base_lr, log2_lr, log10_lr or ln_lr)" if ours == "lr" else ""
    known = [f"{name}={theirs}" for name, theirs in found.items() if name != theirs.lower()]
    likely = [name for name in numeric if name not in found.values()]
    have = [*likely, *(name for name in raw.columns if name not in likely)]
    # The last part of a nested name says it, as "config.gpt.n_embd"; a logged "train/lr" does not.
    bare = [name for name in likely if not re.match("train[./:]", name, re.I)]
    nested = {name: normalize(re.split(r"[./:]", name)[-1]) for name in bare}
    for each in missing[::-1]:
        near = [
            f"{rate}={name}"
            for rate in (RATES if each == "lr" else (each,))
            for name, last in nested.items()
            if last in (rate, *SYNONYMS.get(rate, ()))
        ]
        known.insert(0, near[0] if len(near) == 1 else f"{each}=NAME")
    line = shlex.quote(",".join(known))
    more = "; hptransfer columns FILE lists all" if len(have) > 12 else ""
    return DataError(
        f"{raw.source}: no column {ours!r}{other}{cells.suggest(ours, likely)}; found "
        f"{cells.name_some(have)}{more}; name it with --columns {line}"
    )


def describe_columns(raw: RawTable) -> list[dict[str, Any]]:
    """Return what each column of a table holds, and as which of ours it would be read.

    Returns
    -------
    list of dict
        Of each column ``name``, ``used_as`` ("" where it is not used), ``distinct``, ``empty``
        and ``examples``, the most frequent three.
    """
    ours = {theirs: name for name, theirs in choose_columns(raw, {}, complete=False).ours.items()}
    rows = []
    for name, column in raw.columns.items():
        counts = {cell["values"]: cell["counts"] for cell in pc.value_counts(column).to_pylist()}
        filled = [c for c in sorted(counts, key=lambda c: -counts[c]) if not cells.is_empty(c)]
        rows.append({
            "name": name, "used_as": ours.get(name, ""), "distinct": len(filled),
            "empty": len(column) - sum(counts[cell] for cell in filled),
            "examples": [cells.clean(str(cell))[:30] for cell in filled[:3]],
        })  # fmt: skip
    return rows


# --- What a table holds that its fit does not see

# Values beyond which an unnamed column is no setting but a measurement, and the rows looked at
# before a column is encoded whole.
_MOST_VALUES, _MOST_ROWS = 20, 4096
# Nats and times the usual by which a named loss is off its curve, and where curves are looked at.
_OFF, _TIMES, _WINDOW = 0.1, 4.0, 1.35


def tell_codes(raw: RawTable) -> None:
    """Note where a study's trials are by more than one code of the user's own."""
    if {"identity", "code_hash"} <= raw.columns.keys():
        counts = Counter(str(code or "") for code in raw.columns["code_hash"].to_pylist())
        if len(counts) > 1:
            raw.tell("codes", counts=dict(counts))


def tell_conditions(raw: RawTable, table: LossTable, group: Ints, used: Set[str]) -> None:
    """Note what the rows of a loss table differ in beside what is fitted.

    These are columns that vary at one width, columns that change with it, runs cut short, losses
    far off their curves, and groups whose names are one but for spelling.

    Parameters
    ----------
    raw : RawTable
        All columns of the table's rows.
    table : LossTable
        The same rows.
    group : ndarray of int, shape (rows,)
        Which fit each row is in.
    used : set of str
        The file's names of the columns that are fitted.
    """
    found = _Conditions(raw, table, group)
    # Metrics of runs are no settings, and neither are other names of a rate or a loss.
    known = {*RATES, *SYNONYMS["lr"], *SYNONYMS["loss"]}
    kinds: dict[str, list[str]] = {"varies": [], "with_width": [], "": []}
    for name in raw.columns:
        if name in used or name in raw.last_steps or normalize(name) in known:
            continue
        if normalize(name) in NAMES["steps"]:
            found.tell_partial(name)
        else:
            kinds[found.compare(name)].append(name)
    if varying := kinds["varies"]:
        said, groups = cells.name_some(varying), found.name_groups(found.mixed)
        raw.tell("varies", columns=said, first=varying[0], groups=groups)
    if kinds["with_width"]:
        raw.tell("with_width", columns=cells.name_some(kinds["with_width"]))
    if not varying and len(found.kept):
        found.tell_outliers()
    _tell_spellings(raw, table)


class _Conditions:
    """Rows of a table that did not diverge, with the fit and the cell that each is in."""

    def __init__(self, raw: RawTable, table: LossTable, group: Ints) -> None:
        self.raw, self.table = raw, table
        # A diverged trial may have stopped early.
        self.kept = kept = np.flatnonzero(np.isfinite(table.loss))
        axes = [axis for axis in (table.tokens, table.batch) if axis is not None]
        self.cell = cells.join_codes(cells.join_codes(group, table.width, *axes)[kept])
        self.group, self.lr = cells.join_codes(group[kept]), table.lr[kept]
        self.loss = table.loss[kept]
        self.mixed = np.zeros(len(kept), dtype=bool)

    def compare(self, name: str) -> str:
        """Return whether a setting ``varies`` in a cell or differs ``with_width``, or nothing."""
        words = normalize(name).replace("_", " ")
        known = {kind for kind, form in WORDS.items() if form.search(words)}
        is_setting = "settings" in known
        if "lr" in words.split() or (not is_setting and known & {"ids", "results"}):
            return ""
        sample = self.raw.columns[name][:_MOST_ROWS]
        if not is_setting and len(sample.unique()) > max(_MOST_VALUES, 0.5 * _MOST_ROWS):
            return ""
        codes, values = self.raw.encode(name)
        codes = cells.join_codes(codes[self.kept])
        count, rates = cells.count_codes(codes), cells.join_codes(self.lr)
        if not 2 <= count <= (len(codes) if is_setting else min(_MOST_VALUES, len(self.raw) // 2)):
            return ""
        pairs = np.unique(cells.join_codes(self.cell, codes), return_index=True)[1]
        if len(pairs) > cells.count_codes(self.cell):
            # One value for each rate and one rate for each value is the rate in other words.
            both = cells.count_codes(cells.join_codes(rates, codes))
            if not is_setting and both <= max(count, cells.count_codes(rates)):
                return ""
            self.mixed |= np.bincount(self.cell[pairs])[self.cell] > 1
            return "varies"
        # One word for each width is the width's name.
        has_word = np.isnan([cells.parse_number(value) for value in values]).any()
        is_label = has_word and len(values) >= len(np.unique(self.table.width[self.kept]))
        split = cells.join_codes(self.group, codes)
        differs = cells.count_codes(split) > cells.count_codes(self.group)
        return "with_width" if differs and not (is_label or "of_width" in known) else ""

    def name_groups(self, odd: Bools) -> list[dict[str, object]]:
        """Return the groups that odd rows are in, as a fit names them."""
        found = np.unique(self.group[odd])[:1000]
        rows = [int(self.kept[np.argmax(self.group == code)]) for code in found]
        return [{n: column[row] for n, column in self.table.groups.items()} for row in rows]

    def tell_partial(self, name: str) -> None:
        """Note finished runs that ended before others at their width."""
        steps = self.raw.numbers(name)[self.kept]
        if not np.isfinite(steps).all():
            return
        most = np.zeros(cells.count_codes(self.cell))
        np.maximum.at(most, self.cell, steps)
        short = steps < 0.98 * most[self.cell]
        if short.any():
            least, longest = float(steps[short].min()), float(most[self.cell[short][0]])
            about = {"count": int(short.sum()), "rows": len(steps), "column": name}
            groups = self.name_groups(short)
            self.raw.tell("partial", **about, least=least, most=longest, groups=groups)

    def tell_outliers(self) -> None:
        """Note the loss of each width that is far off the line between its neighbours.

        A basin is convex: its points lie below those lines. One above, or one below between two
        that are above, is no part of it, and is named where it is off by 0.1 nats and by four
        times what is usual in the table. Only points between two that are no worse than 1.35
        times the second best loss are looked at (beyond, losses jump), and where a rate has one
        row: of several seeds the fit itself sees which are unsettled.
        """
        order = np.lexsort((self.lr, self.cell))
        usual: list[Floats] = [np.zeros(0)]
        odd: list[tuple[float, int]] = []
        for rows in np.split(order, np.flatnonzero(np.diff(self.cell[order])) + 1):
            rates, start, count = np.unique(self.lr[rows], return_index=True, return_counts=True)
            if len(rates) < 5:
                continue
            x = np.log(rates)
            y = np.array([np.median(part) for part in np.split(self.loss[rows], start[1:])])
            part = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
            off = y[1:-1] - y[:-2] - part * (y[2:] - y[:-2])
            far = np.maximum(y[:-2], y[2:]) > _WINDOW * np.sort(y)[1]
            off[far | (count[1:-1] > 1)] = 0
            usual.append(np.abs(off))
            at = int(np.argmax(np.abs(off)))
            if off[at] > 0 or np.append(off, 0)[[at - 1, at + 1]].min() > 0:
                odd.append((float(off[at]), int(rows[start[at + 1]])))
        every = np.concatenate(usual)
        least = max(_OFF, _TIMES * float(np.median(every))) if len(every) else 0.0
        for off, row in odd:
            if abs(off) > least:
                about = {"place": self.raw.say_row(self.kept[row]), "loss": float(self.loss[row])}
                groups = self.name_groups(np.arange(len(self.kept)) == row)
                self.raw.tell("outlier", **about, off=abs(off), groups=groups)


def _tell_spellings(raw: RawTable, table: LossTable) -> None:
    """Note groups whose names differ in case, blanks or µ against μ and u only."""
    for column, names in table.groups.items():
        seen: dict[str, str] = {}
        for name in dict.fromkeys(map(str, names[:: max(1, len(names) // 100_000)])):
            bare = re.sub(r"[\s_-]+", "", re.sub("[µμ]", "u", name.lower())).replace("mup", "up")
            one = seen.setdefault(bare, name)
            if one != name:
                raw.tell("spelling", column=column, one=one, other=name)
