"""What a table holds that its fit does not see: settings that vary, runs cut short, odd losses."""

import re

import numpy as np
from numpy.typing import NDArray

from hptransfer.stats.loss_table import LossTable
from hptransfer.tables.cell_values import parse_number, to_numbers
from hptransfer.tables.notes import TableNote, note
from hptransfer.tables.raw_table import RawTable, count_codes, encode, find_first, join_codes
from hptransfer.tables.row_selection import STEPS
from hptransfer.tables.table_columns import RATES, SYNONYMS, normalize
from hptransfer.tables.wording import name_some

# Words of names: what tells runs apart, what they resulted in, what a setting is called, and what
# belongs to a width. A setting's word counts before a result's.
_IDS = re.compile(
    r"\b(id|uuid|run|name|trial|number|index|idx|rank|host|hostname|user|created|date|datetime|time|"
    r"timestamp|tags?|notes?|job|url|commit|sha|hash|path|dir|folder|source|experiment|group|project|"
    r"device|gpu|node|worker|start|complete|attempt|retry|logs?|logdir|seed|color|stacked|threads)\b"
)
_RESULTS = re.compile(
    r"\b(loss|losses|acc|accuracy|ppl|perplexity|bpb|nll|ce|err|error|mse|time|runtime|duration|speed|"
    r"throughput|sec|seconds|hours|mfu|flops|grad|norm|memory|mem|best|final|min|max|mean|std|score|"
    r"metric|summary|diverged|quality|rms|digitize|fit|px|raw|entropy|value|objective|count|"
    r"spikes?)\b"
)
_SETTINGS = re.compile(
    r"\b(optimizer|optim|decay|wd|batch|bs|warmup|beta\d?|eps|momentum|dropout|steps|epochs|tokens|"
    r"layers?|depth|context|seq|length|clip|schedule|scheduler|augmentation|init|tied?|act|activation|"
    r"precision|dtype|vocab|data|dataset|corpus|ema|accum)\b"
)
_OF_WIDTH = re.compile(r"\b(width|heads?|ffn?h?|mlp|intermediate|params|parameters|n)\b")

# Values beyond which an unnamed column is no setting but a measurement.
_MOST_VALUES = 20
# Rows looked at before a column is encoded whole.
_SAMPLE = 4096
# Nats and times the usual by which a named loss is off its curve, and where curves are looked at.
_OFF = 0.1
_TIMES = 4.0
_WINDOW = 1.35


def find_conditions(
    raw: RawTable, table: LossTable, group: NDArray[np.int64], used: set[str]
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
    notes: list[TableNote] = []
    kept = np.flatnonzero(np.isfinite(table.loss))  # a diverged trial may have stopped early
    axes = [axis for axis in (table.tokens, table.batch) if axis is not None]
    group, cell = group[kept], join_codes(group, table.width, *axes)[kept]
    varying: list[str] = []
    changing: list[str] = []
    mixed = np.zeros(len(kept), dtype=bool)
    rates, widths = join_codes(table.lr[kept]), len(np.unique(table.width[kept]))
    for name, cells in raw.columns.items():
        if name in used or name in raw.last_steps:  # metrics of runs are no settings
            continue
        bare = normalize(name)
        words = bare.replace("_", " ")
        if bare in STEPS:
            notes += _find_partial(table, group, cell, kept, name, to_numbers(cells)[kept])
            continue
        if bare in (*RATES, *SYNONYMS["lr"], *SYNONYMS["loss"]) or "lr" in words.split():
            continue
        is_setting = _SETTINGS.search(words) is not None
        if not is_setting and (_IDS.search(words) or _RESULTS.search(words)):
            continue
        if not is_setting and len(cells[:_SAMPLE].unique()) > max(_MOST_VALUES, 0.5 * _SAMPLE):
            continue
        codes, values = encode(cells)
        codes = join_codes(codes[kept])
        most = len(kept) if is_setting else min(_MOST_VALUES, len(raw) // 2)
        if not 2 <= count_codes(codes) <= most:
            continue
        pairs = find_first(join_codes(cell, codes))
        if len(pairs) > len(np.unique(cell)):
            # One value for each rate and one rate for each value is the rate in other words.
            most = max(count_codes(codes), count_codes(rates))
            if is_setting or count_codes(join_codes(rates, codes)) > most:
                varying.append(name)
                mixed |= np.bincount(cell[pairs], minlength=int(cell.max()) + 1)[cell] > 1
        elif count_codes(join_codes(group, codes)) > len(np.unique(group)):
            # One word for each width is the width's name.
            is_label = len(values) >= widths and np.isnan([parse_number(v) for v in values]).any()
            if not (is_label or _OF_WIDTH.search(words)):
                changing.append(name)
    if varying:
        groups = _name_groups(table, group, kept, mixed)
        notes.append(note("varies", columns=name_some(varying), first=varying[0], groups=groups))
    if changing:
        notes.append(note("with_width", columns=name_some(changing)))
    if not varying and len(kept):
        notes += _find_outliers(raw, table, group, cell, kept)
    return notes + _find_spellings(table)


def _name_groups(
    table: LossTable, group: NDArray[np.int64], kept: NDArray[np.int64], odd: NDArray[np.bool_]
) -> list[dict[str, object]]:
    """Return the groups that odd rows are in, as a fit names them."""
    rows = kept[[np.argmax(group == code) for code in np.unique(group[odd])[:1000]]]
    return [{name: column[row] for name, column in table.groups.items()} for row in rows.tolist()]


def _find_partial(
    table: LossTable, group: NDArray[np.int64], cell: NDArray[np.int64], kept: NDArray[np.int64],
    name: str, steps: NDArray[np.float64],
) -> list[TableNote]:  # fmt: skip
    """Return a note on finished runs that ended before others at their width."""
    most = np.zeros(int(cell.max(initial=0)) + 1)
    np.maximum.at(most, cell, steps)
    short = steps < 0.98 * most[cell]
    if not short.any() or not np.isfinite(steps).all():
        return []
    return [note(
        "partial", count=int(short.sum()), rows=len(steps), column=name,
        least=float(steps[short].min()), most=float(most[cell[short][0]]),
        groups=_name_groups(table, group, kept, short),
    )]  # fmt: skip


def _find_outliers(
    raw: RawTable, table: LossTable, group: NDArray[np.int64], cell: NDArray[np.int64],
    kept: NDArray[np.int64],
) -> list[TableNote]:  # fmt: skip
    """Return a note on the loss of each width that is far off the line between its neighbours.

    A basin is convex: its points lie below those lines. One above, or one below between two that
    are above, is no part of it, and is named where it is off by 0.1 nats and by four times what
    is usual in the table. Only points between two that are no worse than 1.35 times the second
    best loss are looked at (beyond, losses jump), and where a rate has one row: of several seeds
    the fit itself sees which are unsettled.
    """
    lr, loss = table.lr[kept], table.loss[kept]
    order = np.lexsort((lr, cell))
    usual: list[float] = []
    odd: list[tuple[float, int]] = []
    for rows in np.split(order, np.flatnonzero(np.diff(cell[order])) + 1):
        rates, start, count = np.unique(lr[rows], return_index=True, return_counts=True)
        if len(rates) < 5:
            continue
        x = np.log(rates)
        ends = zip(start.tolist(), (start + count).tolist(), strict=True)
        y = np.array([np.median(loss[rows[one:end]]) for one, end in ends])
        part = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
        off = y[1:-1] - y[:-2] - part * (y[2:] - y[:-2])
        off[np.maximum(y[:-2], y[2:]) > _WINDOW * np.sort(y)[1]] = 0
        off[count[1:-1] > 1] = 0
        usual += np.abs(off).tolist()
        at = int(np.argmax(np.abs(off)))
        beside = np.append(off, 0)[[at - 1, at + 1]]
        if off[at] > 0 or beside.min() > 0:
            odd.append((float(off[at]), int(rows[start[at + 1]])))
    least = max(_OFF, _TIMES * float(np.median(usual))) if usual else 0.0
    return [
        note(
            "outlier", place=raw.describe_row(int(raw.rows[kept[row]])), loss=float(loss[row]),
            off=abs(off), groups=_name_groups(table, group, kept, np.arange(len(kept)) == row),
        )
        for off, row in odd
        if abs(off) > least
    ]  # fmt: skip


def _find_spellings(table: LossTable) -> list[TableNote]:
    """Return notes on groups whose names differ in case, blanks or µ against μ and u only."""
    notes = []
    for column, names in table.groups.items():
        seen: dict[str, str] = {}
        for name in dict.fromkeys(map(str, names[:: max(1, len(names) // 100_000)])):
            bare = re.sub(r"[\s_-]+", "", name.lower().replace("µ", "u").replace("μ", "u"))
            bare = bare.replace("mup", "up")
            one = seen.setdefault(bare, name)
            if one != name:
                notes.append(note("spelling", column=column, one=one, other=name))
    return notes
