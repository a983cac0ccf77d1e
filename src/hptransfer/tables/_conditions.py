"""What a table holds that its fit does not see: settings that vary, runs cut short, odd losses."""

import re
from collections.abc import Set

import numpy as np

from hptransfer.stats.loss_table import LossTable
from hptransfer.tables import _raw_table as cells
from hptransfer.tables._columns import NAMES, RATES, SYNONYMS, WORDS, TableNote, normalize, note
from hptransfer.tables._raw_table import Bools, Floats, Ints, RawTable, count_codes, join_codes

# Values beyond which an unnamed column is no setting but a measurement, and the rows looked at
# before a column is encoded whole.
_MOST_VALUES, _SAMPLE = 20, 4096
# Nats and times the usual by which a named loss is off its curve, and where curves are looked at.
_OFF, _TIMES, _WINDOW = 0.1, 4.0, 1.35


def find_conditions(
    raw: RawTable, table: LossTable, group: Ints, used: Set[str]
) -> list[TableNote]:
    """Return notes on what the rows of a loss table differ in beside what is fitted.

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

    Returns
    -------
    list of TableNote
        Columns that vary at one width, columns that change with it, runs cut short, losses far
        off their curves, and groups whose names are one but for spelling.
    """
    found = _Conditions(raw, table, group)
    # Metrics of runs are no settings, and neither are other names of a rate or a loss.
    known = {*RATES, *SYNONYMS["lr"], *SYNONYMS["loss"]}
    kinds: dict[str, list[str]] = {"varies": [], "with_width": [], "": []}
    notes = []
    for name in raw.columns:
        if name in used or name in raw.last_steps or normalize(name) in known:
            continue
        if normalize(name) in NAMES["steps"]:
            notes += found.find_partial(name)
        else:
            kinds[found.compare(name)].append(name)
    if varying := kinds["varies"]:
        said, groups = cells.name_some(varying), found.name_groups(found.mixed)
        notes.append(note("varies", columns=said, first=varying[0], groups=groups))
    if kinds["with_width"]:
        notes.append(note("with_width", columns=cells.name_some(kinds["with_width"])))
    if not varying and len(found.kept):
        notes += found.find_outliers()
    return notes + _find_spellings(table)


class _Conditions:
    """Rows of a table that did not diverge, with the fit and the cell that each is in."""

    def __init__(self, raw: RawTable, table: LossTable, group: Ints) -> None:
        self.raw, self.table = raw, table
        # A diverged trial may have stopped early.
        self.kept = kept = np.flatnonzero(np.isfinite(table.loss))
        axes = [axis for axis in (table.tokens, table.batch) if axis is not None]
        self.cell = join_codes(join_codes(group, table.width, *axes)[kept])
        self.group, self.lr, self.loss = join_codes(group[kept]), table.lr[kept], table.loss[kept]
        self.mixed = np.zeros(len(kept), dtype=bool)

    def compare(self, name: str) -> str:
        """Return whether a setting ``varies`` in a cell or differs ``with_width``, or nothing."""
        words = normalize(name).replace("_", " ")
        known = {kind for kind, form in WORDS.items() if form.search(words)}
        is_setting = "settings" in known
        if "lr" in words.split() or (not is_setting and known & {"ids", "results"}):
            return ""
        sample = self.raw.columns[name][:_SAMPLE]
        if not is_setting and len(sample.unique()) > max(_MOST_VALUES, 0.5 * _SAMPLE):
            return ""
        codes, values = self.raw.encode(name)
        codes = join_codes(codes[self.kept])
        count, rates = count_codes(codes), join_codes(self.lr)
        if not 2 <= count <= (len(codes) if is_setting else min(_MOST_VALUES, len(self.raw) // 2)):
            return ""
        pairs = np.unique(join_codes(self.cell, codes), return_index=True)[1]
        if len(pairs) > count_codes(self.cell):
            # One value for each rate and one rate for each value is the rate in other words.
            both = count_codes(join_codes(rates, codes))
            if not is_setting and both <= max(count, count_codes(rates)):
                return ""
            self.mixed |= np.bincount(self.cell[pairs])[self.cell] > 1
            return "varies"
        # One word for each width is the width's name.
        has_word = np.isnan([cells.parse_number(value) for value in values]).any()
        is_label = has_word and len(values) >= len(np.unique(self.table.width[self.kept]))
        differs = count_codes(join_codes(self.group, codes)) > count_codes(self.group)
        return "with_width" if differs and not (is_label or "of_width" in known) else ""

    def name_groups(self, odd: Bools) -> list[dict[str, object]]:
        """Return the groups that odd rows are in, as a fit names them."""
        found = np.unique(self.group[odd])[:1000]
        rows = [int(self.kept[np.argmax(self.group == code)]) for code in found]
        return [{n: column[row] for n, column in self.table.groups.items()} for row in rows]

    def find_partial(self, name: str) -> list[TableNote]:
        """Return a note on finished runs that ended before others at their width."""
        steps = self.raw.numbers(name)[self.kept]
        most = np.zeros(count_codes(self.cell))
        np.maximum.at(most, self.cell, steps)
        short = steps < 0.98 * most[self.cell]
        if not short.any() or not np.isfinite(steps).all():
            return []
        least, longest = float(steps[short].min()), float(most[self.cell[short][0]])
        about = {"count": int(short.sum()), "rows": len(steps), "column": name}
        groups = self.name_groups(short)
        return [note("partial", **about, least=least, most=longest, groups=groups)]

    def find_outliers(self) -> list[TableNote]:
        """Return a note on the loss of each width that is far off the line between its neighbours.

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
        notes = []
        for off, row in odd:
            if abs(off) > least:
                about = {"place": self.raw.say_row(self.kept[row]), "loss": float(self.loss[row])}
                groups = self.name_groups(np.arange(len(self.kept)) == row)
                notes.append(note("outlier", **about, off=abs(off), groups=groups))
        return notes


def _find_spellings(table: LossTable) -> list[TableNote]:
    """Return notes on groups whose names differ in case, blanks or µ against μ and u only."""
    notes = []
    for column, names in table.groups.items():
        seen: dict[str, str] = {}
        for name in dict.fromkeys(map(str, names[:: max(1, len(names) // 100_000)])):
            bare = re.sub(r"[\s_-]+", "", re.sub("[µμ]", "u", name.lower())).replace("mup", "up")
            one = seen.setdefault(bare, name)
            if one != name:
                notes.append(note("spelling", column=column, one=one, other=name))
    return notes
