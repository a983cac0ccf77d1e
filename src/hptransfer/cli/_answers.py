"""What a table answers, as text: the rates to type first, then all that is known of each group."""

from collections.abc import Sequence
from itertools import islice

from hptransfer.cli._print import COLUMNS, align, count_columns, wrap
from hptransfer.report import Answer
from hptransfer.report.answer import (
    EMBEDDING_QUESTION,
    KEEP_QUESTION,
    RateRow,
    canonical_name,
    group_roles,
    make_row,
    name_steps,
    say_transfer,
)
from hptransfer.report.words import (
    REGRETS,
    describe_reach,
    find_span,
    is_reference,
    list_notes,
    list_reasons,
    list_results,
    measure_price,
    name_groups,
    say,
    say_half_open,
    say_interval,
    say_log2,
    say_rate,
    say_status,
    say_value,
    say_width,
    with_names,
)
from hptransfer.stats import Estimate, LossTable, Recommendation, TableFit
from hptransfer.stats._stability import Stability


def describe_fits(fits: TableFit, answer: Answer) -> str:
    """Return what `fit` prints: a line for each group, and three of summary."""
    widths = sorted({basin.width for fit in fits for basin in fit.basins})
    references = list(dict.fromkeys(fit.reference for fit in fits if fit.reference))
    several = len(references) > 1
    rows = []
    for name, fit in with_names(fits):
        span, price = find_span(fit), measure_price(fit)
        rate = loss = gap = "–"
        known = [*(span or [basin for basin in fit.basins if basin.bracketed][-1:])]
        if known and all(basin.lr.value for basin in known):
            rate = " → ".join(say_rate(basin.lr.value or 0.0) for basin in known)
            rate += f" at {say_width(known[0].width)}" * (span is None and len(widths) > 1)
            loss = _say_at(known[-1].loss, known[-1].width, shown=known[-1].width != widths[-1])
        if fit.gaps and not is_reference(fit):
            gap = _say_at(fit.gaps[max(fit.gaps)], max(fit.gaps))
            gap += f" to {fit.reference}" * (several and gap != "–")
        cost = say_half_open(price) if say_value(price) else say_status(price, brief=True)
        rows.append([name, rate, loss, *([gap] if references else []), cost])
    ends = (
        f", narrowest to widest of widths {say_width(widths[0])} to {say_width(widths[-1])} with a "
        "minimum"
    ) * (len(widths) > 1)
    less = [f"less {'the reference' if several else name}'s" for name in references[:1]]
    return "\n".join([
        wrap(answer.facts),
        align(["group", "best rate", "best loss", *less, "keeping the rate costs"], rows),
        wrap(f"Rates on axis {fits.table.axis}{ends}; losses in nats."),
        *_summarise(answer),
    ])  # fmt: skip


def _say_at(estimate: Estimate, width: float, *, shown: bool = True) -> str:
    value = say_value(estimate)
    return f"{value} at {say_width(width)}" if value and shown else value or "–"


def describe_results(fits: TableFit, stability: Sequence[Stability]) -> str:
    """Return all that is known of the groups, in the tables of the report, and the notes."""
    lines = []
    for table in list_results(fits, stability):
        rows = [[c if isinstance(c, str) else _say_cell(c) for c in row] for row in table.rows]
        lines += ["", table.title, align(table.head, rows)]
        lines += [wrap(table.key)] if table.key else []
    reasons = list_reasons(fits)
    lines += ["", reasons.title] * bool(reasons.rows)
    lines += [wrap(f"{what} of {who}: {why}") for what, who, why in reasons.rows]
    return "\n".join([*lines, "", *(wrap(f"note: {note}") for note in list_notes(fits))])


def _say_cell(estimate: Estimate) -> str:
    """Return an estimate without its reasons, which are listed apart."""
    value, status = say_value(estimate), say_status(estimate, brief=True)
    if not value:
        return status
    weak = f" ({status})" if estimate.status != "identified" else ""
    return f"{value} {say_interval(estimate)}".strip() + weak


#: Lines of 80 columns that the whole answer has at most.
_MOST_LINES = 19


def describe_answer(fits: TableFit, answer: Answer) -> str:
    """Return the whole answer in few lines: what the demo prints."""
    text = [wrap(line) for line in (answer.facts, answer.warning) if line]
    for verdict in answer.embedding[:1]:
        widths = fits.groups[verdict.embd].usable
        gaps = ((n, fits.gap(verdict.embd, verdict.sp, width=n)) for n in widths)
        parts = [
            f"{f'{say_value(gap)} {say_interval(gap)}'.strip() or 'not known'} at {say_width(n)}"
            for n, gap in gaps
            if gap.value is not None
        ]
        text.append(_say_embedding(answer))
        one, other = answer.names[verdict.embd], answer.names[verdict.sp]
        text.append(wrap(f"{one} less {other}, nats: {'; '.join(parts)}."))
    if answer.target is not None:
        times = answer.target / float(fits.table.width.max())
        text.append(f"Type at width {say_width(answer.target)}, {times:.3g} times the widest:")
        text.append(_align_rates(answer.rates))
    sp = [k for k, fit in enumerate(fits) if canonical_name(fit.group) == "sp"]
    text += [wrap(f"Keep the rate? {answer.transfer[k][1]}") for k in sp[:1]]
    text += _summarise(answer)[-1:] if answer.unknown else []
    shown = "\n".join(text).splitlines()
    if len(shown) > _MOST_LINES and count_columns() == COLUMNS:
        shown = [*shown[: _MOST_LINES - 1], "… in the report"]
    return "\n".join(shown)


def _say_embedding(answer: Answer) -> str:
    verdict = answer.embedding[0]
    return wrap(f"{EMBEDDING_QUESTION} {verdict.kind.capitalize()}. {verdict.text}")


def _summarise(answer: Answer) -> list[str]:
    """Return the summary of an answer: the embedding, keeping the rate, what is not known."""
    lines = [wrap(answer.warning)] if answer.warning else []
    lines += [_say_embedding(answer)] if answer.embedding else []
    lines.append(wrap(f"{KEEP_QUESTION} {say_transfer(answer)}."))
    if answer.unknown:
        missing, known = answer.counts
        symbols = ", ".join(answer.unknown)
        lines.append(
            wrap(f"It cannot say {symbols} ({missing} of {known} numbers): {answer.why_unknown}")
        )
    return lines


def describe_rates(
    table: LossTable,
    items: Sequence[Recommendation],
    *,
    place: str = "",
    missing: str = "",
    warning: str = "",
    verbose: bool = False,
) -> str:
    """Return what `recommend` prints: the rates of each group, and a few lines of summary."""
    width = items[0].width
    names = name_groups([item.group for item in items])
    rows = [make_row(name, item) for name, item in zip(names, items, strict=True)]
    reach = describe_reach(table, width)
    lines = [wrap(f"The study is not complete: {missing}.")] if missing else []
    lines += [wrap(warning)] if warning else []
    lines.append(wrap(f"Which learning rate at width {say_width(width)}{place}? {reach}"))
    lines.append(_align_rates(rows))
    worried = [row for row in rows if row.verdict != "usable"]
    if worried:
        where = "below" if verbose else "--verbose"
        more = f" ({len(worried) - 1} more: {where})" if len(worried) > 1 else ""
        lines.append(wrap(f"{worried[0].name} {worried[0].verdict}: {worried[0].because}{more}"))
    lines += [
        wrap(f"What would make it surer (--write-next FILE writes it): {line}.")
        for line in islice(name_steps(names, items), 1)
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


def _align_rates(rates: Sequence[RateRow]) -> str:
    """Return the rates to type as a table, a row for each group."""
    rows = [
        [
            row.name,
            f"×{row.factor}" if row.factor else "–",
            row.price or "–",
            row.verdict,
            "; ".join(f"{who} {rate}".strip() for who, rate in row.rates) or "none",
        ]
        for row in rates
    ]
    return align(("group", "known to", "costs ≤", "verdict", "rate to type"), rows)


def describe_advice(items: Sequence[Recommendation]) -> str:
    """Return all that is known of recommendations, a quantity a line."""
    lines = []
    for name, item in with_names(items):
        what = "multiple of the learning rate" if item.axis == "multiplier" else "learning rate"
        lines += ["", f"{name}: {item.verdict}", f"{what}: {say(item.lr)}"]
        lines.append(f"its log2: {say_log2(item.lr) or '–'}")
        if item.lr_by_role:
            roles = ((who, say_rate(rate)) for who, rate in group_roles(item.lr_by_role))
            lines.append(f"to type, by role: {'; '.join(f'{who} {rate}' for who, rate in roles)}")
        if item.forms:
            parts = sorted(item.forms.items(), key=lambda pair: -pair[1])
            said = ", ".join(f"{form} {weight:.2g}" for form, weight in parts if weight >= 0.05)
            lines.append(f"forms that carry it: {said}")
            lines.append(f"scatter {item.scatter:.2g} in ln lr, prior {item.prior}")
        lines.append(f"expected loss: {say(item.loss, 'nats')}")
        prices = ((words, item.regret.get(key)) for key, words in REGRETS.items())
        lines += [f"{words}: {say(price, 'nats')}" for words, price in prices if price is not None]
        lines.append(f"because: {item.because}")
        lines += [f"next: {line}" for line in str(item.next or "").splitlines()]
    return "\n".join(map(wrap, lines))
