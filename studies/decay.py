"""Claim C3 from tables of several weight decays: what optima of narrow widths cost at wide ones."""

import math
from collections.abc import Iterator

import numpy as np
from measured import NAMES, REACH, Fit, Range, Table, mean_range, show, table_of

#: An extra loss of this many nats is what one would act on; seeds differ by a third of it.
MATTERS = 0.02
TOKENS, STEPS = "fixed tokens per parameter", "fixed steps"


def transfer(fit: Fit, width: int) -> tuple[str, Range] | None:
    """Return the extra loss at a width of the optimum from widths up to a quarter of it.

    With one such width its rate is kept (on the swept axis); with more, ln(lr*) goes on as a
    straight line of ln(width).
    """
    proxies = [fit.basins[n] for n in sorted(fit.basins) if 4 * n <= width]
    if not proxies or width not in fit.basins:
        return None
    if len(proxies) == 1:
        return f"{proxies[0].width}", fit.basins[width].regret(proxies[0].x, width)
    t = np.log([each.width for each in proxies])
    design = np.column_stack([np.ones_like(t), t])
    weights = np.linalg.pinv(design)
    at = np.array([1.0, math.log(width)]) @ weights
    value = float(at @ [each.x.value for each in proxies])
    reach = REACH * math.hypot(*(w * each.x.deviation for w, each in zip(at, proxies, strict=True)))
    x = Range(value, value - reach, value + reach)
    words = ", ".join(str(each.width) for each in proxies)
    return words, fit.basins[width].regret(x, width)


def keep(fit: Fit, width: int) -> Range | None:
    """Return the extra loss at a width of keeping the optimum of the widest quarter of it."""
    proxies = [n for n in fit.basins if 4 * n <= width]
    if not proxies or width not in fit.basins:
        return None
    return fit.basins[width].regret(fit.basins[max(proxies)].x, width)


def describe_decay(tables: dict[str, Table]) -> Iterator[str]:
    """Yield what weight decay does to extrapolation, by rule, λ and horizon."""
    found = [t for t in tables.values() if len(t.values("weight_decay")) > 1]
    if not found:
        yield "No table with more than one λ has been run yet: **undecided**, nothing measured."
        yield ""
        return
    for table in found:
        yield from _describe_table(table)
    yield from _describe_modes(tables)


def _describe_modes(tables: dict[str, Table]) -> Iterator[str]:
    """Yield what the way in which λ becomes a tensor's does to the optimum, at equal widths."""
    rows = []
    for table in tables.values():
        mode = table.setting("weight_decay_mode") or "constant"
        plain = tables.get(table.name.removesuffix(f"-{mode}"))
        if plain is None or plain is table:
            continue
        widths = table.values("width")
        bounds = min(widths), max(widths)
        fits = {
            (rule, decay, "none" if decay == 0 else "constant"): fit
            for (rule, decay), fit in plain.fits().items()
        } | {(rule, decay, mode): fit for (rule, decay), fit in table.fits().items()}
        for (rule, decay, how), fit in sorted(fits.items()):
            if not set(bounds) <= set(fit.basins):
                continue
            low, high = (fit.basins[width] for width in bounds)
            octaves = Range(*(v / math.log(2) for v in (high.x - low.x).values))
            rows.append(
                [
                    NAMES.get(rule, rule), how, f"{decay:g}", f"{bounds[0]} to {bounds[1]}",
                    show(octaves, "{:+.2f}"),
                    show(high.regret(low.x, high.width), "{:.4f}"),
                    show(high.loss),
                ]
            )  # fmt: skip
    if not rows:
        return
    modes = ("none", "constant", "coupled", "independent")
    unique = sorted(set(map(tuple, rows)), key=lambda row: (row[0], modes.index(row[1]), row[2:]))
    yield "### Modes of weight decay, fixed steps"
    yield ""
    head = (
        "rule", "mode", "λ", "widths", "optimum moves, octaves",
        "extra loss of keeping the narrowest one's rate, nats", "best loss at the widest",
    )  # fmt: skip
    yield from table_of(head, unique)


def _describe_table(table: Table) -> Iterator[str]:
    horizon = STEPS if table.setting("steps") is not None else TOKENS
    yield f"### `{table.name}`: {horizon}"
    yield ""
    fits = dict(sorted(table.fits().items()))
    rows = []
    for (rule, decay), fit in fits.items():
        for width in sorted(fit.basins):
            priced = transfer(fit, width)
            if priced is None:
                continue
            e, out = (fit.number("metrics", key) for key in ("E", "E_out"))
            rows.append(
                [
                    NAMES.get(rule, rule), f"{decay:g}", priced[0], f"{width}",
                    show(priced[1], "{:.4f}"),
                    show(keep(fit, width), "{:.4f}"),
                    show(fit.number("drift"), "{:+.2f}"),
                    show(fit.basins[width].loss),
                    *("–" if v is None else f"{math.sqrt(max(v.value, 0)):.4f}" for v in (e, out)),
                    show(fit.number("exponents", "gamma"), "{:+.2f}"),
                ]
            )  # fmt: skip
    head = (
        "rule", "λ", "from widths", "used at", "extra loss, nats",
        "of keeping the widest one's rate", "drift", "best loss there", "√E", "√E_out", "γ",
    )  # fmt: skip
    yield from table_of(head, rows)
    for decay in table.values("weight_decay"):
        if decay > 0:
            yield from _judge(fits, decay, horizon)


def _judge(fits: dict[tuple[str, float], Fit], decay: float, horizon: str) -> Iterator[str]:
    """Yield what one λ changes, and the claim's three verdicts on it."""
    changes, kept = [], []
    for (rule, at), fit in fits.items():
        plain = fits.get((rule, 0.0))
        if at != decay or plain is None:
            continue
        for width in fit.basins:
            with_decay, without = transfer(fit, width), transfer(plain, width)
            # A pair starts from the same widths; one may lack an optimum that is not bracketed.
            if with_decay is None or without is None or with_decay[0] != without[0]:
                continue
            changes.append(with_decay[1] - without[1])
            pair = keep(fit, width), keep(plain, width)
            assert pair[0] is not None
            assert pair[1] is not None
            kept.append(pair[0] - pair[1])
    worse = sum(change.low > 0 for change in changes)
    better = sum(change.high < 0 for change in changes)
    pooled = mean_range([change.value for change in changes])
    same = mean_range([each.value for each in kept])
    yield (
        f"λ = {decay:g} against none, {len(changes)} pairs of rule and width that have an "
        f"interval: the extra loss grows in {worse}, falls in {better}, and stays within its "
        f"interval in {len(changes) - worse - better}; mean change {show(pooled, '{:+.4f}')} nats, "
        f"and {show(same, '{:+.4f}')} where the widest one's rate is kept. Pairs share seeds and "
        "narrow runs, so intervals of means over them are too narrow."
    )
    yield ""
    for way, change in (
        ("ln(lr*) going on as a straight line of ln(width)", pooled),
        ("the widest one's rate kept", same),
    ):
        if change is not None:
            yield f"C3 here, λ = {decay:g}, {way}: **{judge_decay(horizon, change)}**."
            yield ""
    if ratio := _compare_fit(fits, decay):
        verdict = "holds" if ratio.high < 1 else "fails" if ratio.low > 1 else "undecided"
        yield (
            f"C3 here, λ = {decay:g}, weight decay makes for a better fit: **{verdict}**: "
            f"E is multiplied by {ratio.show('{:.2f}')}, the mean over rules."
        )
        yield ""


def _compare_fit(fits: dict[tuple[str, float], Fit], decay: float) -> Range | None:
    """Return by what a λ multiplies E, over rules; None where E is not known in both."""
    logs = []
    for (rule, at), fit in fits.items():
        plain = fits.get((rule, 0.0))
        pair = [each and each.number("metrics", "E") for each in (fit, plain)]
        if at == decay and pair[0] and pair[1] and min(p.value for p in pair if p) > 0:
            logs.append(math.log(pair[0].value / pair[1].value))
    ratio = mean_range(logs)
    if ratio is None:
        return None
    return Range(*(math.exp(v) for v in (ratio.value, ratio.low, ratio.high)))


def judge_decay(horizon: str, change: Range) -> str:
    """Judge C3 by the change of the extra loss that a λ makes."""
    span = f"[{change.low:+.4f}, {change.high:+.4f}] nats"
    if max(abs(change.low), abs(change.high)) < MATTERS / 10:
        return f"no effect that matters, {span}"
    if change.low <= 0 <= change.high:
        return f"undecided, {span}"
    grows = change.value > 0
    claim = grows if horizon == TOKENS else not grows
    return f"{'holds' if claim else 'fails'}, {span}"
