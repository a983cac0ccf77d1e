"""What commands share of printing: JSON documents, tables in 80 columns, and answers.

No line is longer than a terminal has columns, and no number is ever cut.
"""

import argparse
import json
import math
import re
import sys
import textwrap
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hptransfer.report import Answer
    from hptransfer.report.answer import RateRow
    from hptransfer.stats import LossTable, Recommendation, TableFit, TransferFit

#: Exit code of a command that has answered, and met a damaged file.
EXIT_DAMAGED = 3
#: Columns of a terminal that every output fits.
COLUMNS = 80
#: Letters that a word may have before a column breaks it; no number has as many.
LONGEST_WORD = 24
#: Seconds that nothing needs to be said for.
NOTICE_SECONDS = 2.0
RATES_HEAD = ("group", "known to", "costs ≤", "verdict", "rate to type")

_QUANTITIES = {
    "E": ("E, fit error", "nats²"),
    "E_out": ("E_out, widest left out", "nats²"),
    "kappa": ("κ, robustness", ""),
    "R_inf": ("R(∞), degradation", "nats"),
    "alpha": ("α, loss", ""),
    "beta": ("β, drift", ""),
    "b": ("b, drift", ""),
    "gamma": ("γ, curvature", ""),
    "loss_inf": ("L∞", "nats"),
}
REGRETS = {
    "recommended": "price of using it",
    "same_lr": "price of the proxy's optimum unchanged",
    "inverse_width": "price of the proxy's optimum over the width ratio",
}


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how much is printed."""
    parser.add_argument(
        "--verbose", action="store_true", help="print every number of every group, with its reason"
    )


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document; what is no finite number is null."""
    print(json.dumps(_clean(document), ensure_ascii=False, allow_nan=False, indent=2))


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _whole(item) if key == "width" else _clean(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _whole(width: Any) -> Any:
    width = _clean(width)
    return int(width) if isinstance(width, float) and width.is_integer() else width


def say_measuring() -> threading.Timer:
    """Say on stderr, a little later unless cancelled, what a study does before its first step."""
    text = "reading the text, and measuring how fast each new width trains here"
    timer = threading.Timer(NOTICE_SECONDS, print, (f"hptransfer: {text}",), {"file": sys.stderr})
    timer.daemon = True
    timer.start()
    return timer


def say_clock(seconds: float) -> str:
    """Return a time as ``4:05`` or ``1:04:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def wrap(text: str, *, indent: int = 2) -> str:
    """Return a paragraph in lines of `COLUMNS`, the later ones indented; numbers stay whole."""
    return textwrap.fill(
        _INTERVAL.sub(_join, text), COLUMNS, subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    ).replace(_JOINT, " ")  # fmt: skip


#: An interval stays on one line: its space is this meanwhile, which no line breaks at.
_INTERVAL, _JOINT = re.compile(r"\[[^][ ]+, [^][ ]+\]"), "\N{NO-BREAK SPACE}"


def _join(interval: re.Match[str]) -> str:
    return interval[0].replace(" ", _JOINT)


def align(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows as columns two spaces apart, of words to the left and of numbers to the right.

    Texts that are too long for their column go on below themselves. What has too many columns for
    one table is several, each with the first column.

    Examples
    --------
    >>> print(align(["group", "loss"], [["sp", "3.25"], ["sp+embd", "3.1"]]))
    group    loss
    sp       3.25
    sp+embd   3.1
    """
    cells = [[_INTERVAL.sub(_join, text) for text in row] for row in (head, *rows)]
    columns = list(zip(*cells, strict=True))
    least = [_longest_word(column) for column in columns]
    tables, shown = [], [0]
    for k in range(1, len(columns)):
        if least[0] + sum(least[j] + 2 for j in (*shown[1:], k)) > COLUMNS:
            tables.append(shown)
            shown = [0]
        shown.append(k)
    return "\n\n".join(
        _align_columns([columns[k] for k in table], [least[k] for k in table])
        for table in (*tables, shown)
    )


def _align_columns(columns: Sequence[Sequence[str]], least: Sequence[int]) -> str:
    sizes = [max(map(len, column)) for column in columns]
    # Headings give way where that is enough, else the widest column does.
    headed = [
        max(low, *map(len, column[1:]), 0) for low, column in zip(least, columns, strict=True)
    ]
    room = COLUMNS - 2 * (len(sizes) - 1)
    floor = headed if sum(headed) <= room else least
    while sum(sizes) > max(room, sum(floor)):
        wide = max(range(len(sizes)), key=lambda k: (sizes[k] > floor[k], sizes[k]))
        sizes[wide] -= 1
    right = [all(map(_NUMBER.fullmatch, column[1:])) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        parts = [
            textwrap.wrap(text, size, break_on_hyphens=False)
            for text, size in zip(row, sizes, strict=True)
        ]
        for line in zip_longest(*parts, fillvalue=""):
            padded = (
                text.rjust(size) if number else text.ljust(size)
                for text, size, number in zip(line, sizes, right, strict=True)
            )
            lines.append("  ".join(padded).rstrip())
    return "\n".join(lines).replace(_JOINT, " ")


#: A cell of a column of numbers: a number with its unit, a share, or none.
_NUMBER = re.compile(r"[×<≤+−-]?[\d.,]+(e[+−-]?\d+)?( ?(%|MiB|nats))?|[–-]?|\d+ × \d+")


def _longest_word(column: Sequence[str]) -> int:
    words = (len(word) for text in column for word in text.split())
    return max(1, min(LONGEST_WORD, max(words, default=1)))


def describe_fits(fits: "TableFit", answer: "Answer") -> str:
    """Return what `fit` prints: a line for each group, and three of summary."""
    from hptransfer.report.answer import find_span, measure_price
    from hptransfer.report.words import (
        name_groups,
        say_half_open,
        say_rate,
        say_status,
        say_value,
        say_width,
    )

    names = name_groups([fit.group for fit in fits])
    gaps = find_gaps(fits)
    head = ["group", "best rate", "best loss", *(["less SP's"] if gaps else [])]
    head.append("keeping the rate costs")
    rows = []
    widest = max(basin.width for fit in fits for basin in fit.basins)
    for k, (name, fit) in enumerate(zip(names, fits, strict=True)):
        span = find_span(fit)
        rate = loss = "–"
        if span is not None and span[0].lr.value and span[1].lr.value:
            rate = f"{say_rate(span[0].lr.value)} → {say_rate(span[1].lr.value)}"
            loss = say_value(span[1].loss) or "–"
            if span[1].width != widest:
                loss += f" at {say_width(span[1].width)}"
        row = [name, rate, loss]
        if gaps:
            row.append(gaps.get(k, "–"))
        price = measure_price(fit)
        row.append(say_half_open(price) if say_value(price) else say_status(price).split(":")[0])
        rows.append(row)
    lines = [wrap(answer.facts), align(head, rows)]
    widths = sorted({basin.width for fit in fits for basin in fit.basins})
    lines.append(
        wrap(
            f"Rates on axis {fits.table.axis}, narrowest to widest of widths "
            f"{say_width(widths[0])} to {say_width(widths[-1])} with a minimum; losses in nats."
        )
    )
    lines += summarise(answer, names)
    return "\n".join(lines)


def describe_answer(fits: "TableFit", answer: "Answer", *, most: int = 19) -> str:
    """Return the whole answer in at most so many lines: what the demo prints."""
    from hptransfer.report.answer import canonical_name
    from hptransfer.report.words import name_groups, say_width

    lines = [answer.facts, *([answer.warning] if answer.warning else [])]
    for verdict in answer.embedding[:1]:
        word = verdict.kind[:1].upper() + verdict.kind[1:]
        lines.append(f"Is the embedding layer held back? {word}. {verdict.text}")
        lines.append(_list_gaps(fits, verdict.embd, verdict.sp))
    names = name_groups([fit.group for fit in fits])
    text = [wrap(line) for line in lines]
    if answer.target is not None:
        times = answer.target / float(fits.table.width.max())
        text.append(f"Type at width {say_width(answer.target)}, {times:.3g} times the widest:")
        text.append(align(RATES_HEAD, list_rates(answer.rates)))
    sp = [k for k, fit in enumerate(fits) if canonical_name(fit.group) == "sp"]
    text += [wrap(f"Keep the rate? {answer.transfer[k][1]}") for k in sp[:1]]
    text += summarise(answer, names)[-1:] if answer.unknown else []
    shown = "\n".join(text).splitlines()
    return "\n".join(shown if len(shown) <= most else [*shown[: most - 1], "… in the report"])


def _list_gaps(fits: "TableFit", one: int, other: int) -> str:
    from hptransfer.report.words import name_groups, say_interval, say_value, say_width

    names = name_groups([fit.group for fit in fits])
    parts = []
    for width in fits.groups[one].usable:
        gap = fits.gap(one, other, width=width)
        if gap.value is not None:
            said = f"{say_value(gap)} {say_interval(gap)}".strip()
            parts.append(f"{said or 'not known'} at {say_width(width)}")
    return f"{names[one]} less {names[other]}, nats: {'; '.join(parts)}."


def find_gaps(fits: "TableFit") -> dict[int, str]:
    """Return each group's best loss less SP's at the widest width of both, by its place."""
    from hptransfer.report.answer import canonical_name
    from hptransfer.report.words import say_value, say_width

    found = {}
    for members in fits.split.settings():
        for sp in [k for k in members if canonical_name(fits[k].group) == "sp"]:
            for k in members:
                both = set(fits.groups[k].usable) & set(fits.groups[sp].usable)
                if k != sp and both:
                    gap = say_value(fits.gap(k, sp, width=max(both)))
                    found[k] = f"{gap} at {say_width(max(both))}" if gap else "–"
    return found


def summarise(answer: "Answer", names: Sequence[str]) -> list[str]:
    """Return the summary of an answer: the embedding, keeping the rate, what is not known."""
    from hptransfer.report.answer import say_transfer

    lines = [wrap(answer.warning)] if answer.warning else []
    for verdict in answer.embedding[:1]:
        word = verdict.kind[:1].upper() + verdict.kind[1:]
        lines.append(wrap(f"Is the embedding layer held back? {word}. {verdict.text}"))
    lines.append(
        wrap(
            "May the narrowest width's rate be kept at the widest, for 0.02 nats? "
            f"{say_transfer(answer, names)}."
        )
    )
    if answer.unknown:
        missing, known = answer.counts
        lines.append(
            wrap(
                f"It cannot say {', '.join(answer.unknown)} ({missing} of {known} numbers): "
                f"{answer.why_unknown}"
            )
        )
    return lines


def describe_rates(
    table: "LossTable", items: Sequence["Recommendation"], *, place: str = "", missing: str = ""
) -> str:
    """Return what `recommend` prints: the rates of each group, and a few lines of summary."""
    from hptransfer.report.answer import make_row, name_steps
    from hptransfer.report.words import describe_reach, name_groups, say_width

    width = items[0].width
    names = name_groups([item.group for item in items])
    rows = [make_row(name, item) for name, item in zip(names, items, strict=True)]
    reach = describe_reach(table, width)
    lines = [wrap(f"The study is not complete: {missing}.")] if missing else []
    lines.append(wrap(f"Which learning rate at width {say_width(width)}{place}? {reach}"))
    lines.append(align(RATES_HEAD, list_rates(rows)))
    worried = [row for row in rows if row.verdict != "usable"]
    if worried:
        more = f" ({len(worried) - 1} more: --verbose)" if len(worried) > 1 else ""
        lines.append(wrap(f"{worried[0].name} {worried[0].verdict}: {worried[0].because}{more}"))
    lines += [
        wrap(f"What would make it surer (--write-next FILE writes it): {line}.")
        for line in [*name_steps(names, items)][:1]
    ]
    if table.axis == "multiplier":
        lines.append("Rates are multiples of one that is not in the table.")
    elif table.rates is None:
        lines.append("Rates are as the table gives them, on its own axis.")
    elif any(item.lr.value is not None and not item.lr_by_role for item in items):
        lines.append(
            wrap(
                f"A rate that names no tensors is on the axis {table.axis}, and is not to be typed "
                "as it is: the rule of its group is not known."
            )
        )
    return "\n".join(lines)


def list_rates(rates: Sequence["RateRow"]) -> list[list[str]]:
    """Return the rates to type as rows of text, one for each group."""
    return [
        [
            row.name,
            f"×{row.factor}" if row.factor else "–",
            f"{row.price} nats" if row.price else "–",
            row.verdict,
            _say_rates(row.rates),
        ]
        for row in rates
    ]


def _say_rates(rates: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{who} {rate}".strip() for who, rate in rates) or "none"


def describe_fit(fit: "TransferFit") -> str:
    """Return all that is known of one group, a quantity a line."""
    from hptransfer.report.answer import is_reference
    from hptransfer.report.words import (
        list_flags,
        say,
        say_log2,
        say_number,
        say_width,
        take_root,
        tell_once,
    )

    lines = [f"\n{fit.name or 'all trials'}", f"axis {fit.axis}, form {fit.form}"]
    for key, estimate in {**fit.metrics, **fit.exponents}.items():
        name, unit = _QUANTITIES.get(key, (key, ""))
        own = key == "R_inf" and is_reference(fit)
        lines.append(f"{name}: {'this is the reference' if own else say(estimate, unit)}")
        if key == "E" and estimate.value is not None and estimate.status != "not identified":
            lines.append(f"√E: {say(take_root(estimate), 'nats')}")
    if fit.noise_floor is not None:
        lines.append(f"s²/S, noise floor: {say_number(fit.noise_floor)} nats²")
    for width, gap in fit.gaps.items():
        if not is_reference(fit):
            lines.append(f"R({say_width(width)}): {say(gap, 'nats')}")
    for width, price in fit.regrets.items():
        lines.append(f"price of the narrowest rate at {say_width(width)}: {say(price, 'nats')}")
    for basin in fit.basins:
        # An optimum outside the swept range is no number to print.
        where = f"width {say_width(basin.width)}"
        if basin.bracketed:
            log2 = say_log2(basin.lr)
            lines.append(f"{where}: lr* {say(basin.lr)}" + (f", log2 lr* {log2}" if log2 else ""))
        else:
            lines.append(f"{where}: lr* at the edge")
        lines.append(
            f"{where}: L* {say(tell_once(basin, basin.loss), 'nats')}; curvature "
            f"{say(tell_once(basin, basin.curvature))}; {basin.num_points} points"
        )
        if flags := list_flags(basin):
            lines.append(f"{where}: {'; '.join(flags)}")
    lines += [f"note: {note}" for note in fit.notes]
    return "\n".join(wrap(line) if line.strip() == line else line for line in lines)


def describe_advice(name: str, item: "Recommendation") -> str:
    """Return all that is known of one recommendation, a quantity a line."""
    from hptransfer.report.answer import group_roles
    from hptransfer.report.words import say, say_log2, say_rate

    is_multiple = item.axis == "multiplier"
    lines = [
        f"{name}: {item.verdict}",
        f"{'multiple of the given rate' if is_multiple else 'learning rate'}: {say(item.lr)}",
        f"its log2: {say_log2(item.lr) or '–'}",
    ]
    if item.lr_by_role:
        roles = "; ".join(f"{who} {say_rate(rate)}" for who, rate in group_roles(item.lr_by_role))
        lines.append(f"to type, by role: {roles}")
    if item.forms:
        parts = sorted(item.forms.items(), key=lambda pair: -pair[1])
        said = ", ".join(f"{form} {weight:.2g}" for form, weight in parts if weight >= 0.05)
        lines.append(f"forms that carry it: {said}")
        lines.append(f"scatter {item.scatter:.2g} in ln lr, prior {item.prior}")
    lines.append(f"expected loss: {say(item.loss, 'nats')}")
    lines += [
        f"{words}: {say(item.regret[key], 'nats')}"
        for key, words in REGRETS.items()
        if key in item.regret
    ]
    lines.append(f"because: {item.because}")
    if item.next is not None:
        lines += [f"next: {line}" for line in str(item.next).splitlines()]
    return "\n" + "\n".join(map(wrap, lines))
