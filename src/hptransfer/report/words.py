"""Put estimates, groups, tables of results and what was seen in a table in words.

A number is given only to the digits that its interval allows.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from hptransfer.stats._stability import Stability
from hptransfer.stats.estimate import BasinFit, Estimate, half_width, name_values, refuse
from hptransfer.stats.loss_table import Doubt, LossTable
from hptransfer.stats.reasons import Reason
from hptransfer.stats.results import Recommendation, TransferFit


def say_number(value: float, *, step: float | None = None) -> str:
    """Return a number in plain digits.

    Parameters
    ----------
    value : float
        The number.
    step : float, optional
        Its uncertainty, such as the half-width of its interval: the number is given to one
        digit of it, or two where it begins with 1 to 3. Without one, to three digits.
    """
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "none"
    if step is None or not math.isfinite(step) or step <= 0:
        step = 10.0 ** math.floor(math.log10(abs(value)) - 1) if value else 1.0
    # As particle physics rounds: 0.0012 keeps two digits, 0.0064 one.
    place = math.floor(math.log10(step / 3.55)) if step else 0
    decimals = -place
    size = max(abs(value), step)
    if size >= 1e6 or size < 1e-4:
        digits = max(0, math.floor(math.log10(size)) - place)
        text = f"{value:.{min(digits, 12)}e}"
    elif decimals <= 0:
        text = f"{round(value, decimals):.0f}"
    else:
        text = f"{value:.{decimals}f}"
    if not float(text):
        text = text.removeprefix("-")
    return text.replace("-", "−")


def say_interval(estimate: Estimate) -> str:
    """Return ``[low, high]``, an open side as an infinity; "" where there is no bound."""
    low, high = estimate.low, estimate.high
    if low is None and high is None:
        return ""
    step = half_width(estimate)
    left = "−∞" if low is None else say_number(low, step=step)
    right = "∞" if high is None else say_number(high, step=step)
    return f"[{left}, {right}]"


def say_value(estimate: Estimate) -> str:
    """Return the value alone, or "" where it is not identified or absent."""
    if estimate.value is None or estimate.status == "not identified":
        return ""
    return say_number(estimate.value, step=half_width(estimate))


def say_status(estimate: Estimate, *, brief: bool = False) -> str:
    """Return why the value is not to be taken as it stands, in words; "" if it is.

    A `brief` one gives the status alone, or that no drift was seen; the reasons are listed apart.
    """
    absent = estimate.value is None or estimate.status == "not identified"
    if estimate.status == "identified" and not absent:
        return estimate.reason
    first = next(iter(estimate.reasons), None)
    if first is not None and first.kind == "no_drift":  # good news, not a failure to identify
        news = Reason("no_drift", **{**first.numbers, "price": None})
        return str(news) if brief else estimate.reason
    word = "not identified" if absent else estimate.status
    return f"{word}: {estimate.reason}" if estimate.reason and not brief else word


def say(estimate: Estimate, unit: str = "") -> str:
    """Return the estimate on one line: value, interval, unit and status in words."""
    value, status = say_value(estimate), say_status(estimate)
    if not value:
        return status
    parts = [value, say_interval(estimate), unit, f"({status})" if status else ""]
    return " ".join(part for part in parts if part)


def shorten(estimate: Estimate) -> Estimate:
    """Return an estimate with its first reason alone, and that only if it has to stand for it."""
    weak = estimate.status == "weakly identified" and estimate.value is not None
    return replace(estimate, reasons=() if weak else estimate.reasons[:1], remedy=None)


def say_log2(lr: Estimate) -> str:
    """Return the base-2 logarithm of a learning rate, as sweeps name it; "" without one."""
    return say_value(lr.transform(math.log2))


def list_flags(basin: BasinFit) -> list[str]:
    """Return all that a reader must know of a basin, each fact once."""
    flags = list(basin.flags)
    if not basin.bracketed and Reason("not_bracketed") not in flags:
        flags.append(Reason("not_bracketed"))
    if basin.num_diverged:
        flags.append(Reason("num_diverged", num=basin.num_diverged))
    return [str(flag) for flag in flags]


def tell_once(basin: BasinFit, estimate: Estimate) -> Estimate:
    """Return an estimate of a basin without the reasons that the basin's flags give already."""
    lr = None if estimate is basin.lr else basin.lr
    given = (*basin.flags, *(() if lr is None else lr.reasons))
    told = tuple(reason for reason in estimate.reasons if reason not in given)
    repeated = lr is not None and estimate.remedy == lr.remedy
    return replace(estimate, reasons=told, remedy=None if repeated else estimate.remedy)


def say_width(width: float) -> str:
    """Return a width as written: whole numbers without a point."""
    return f"{width:.0f}" if float(width).is_integer() else f"{width:g}"


def name_groups(groups: Sequence[Mapping[str, object]]) -> list[str]:
    """Return a short name for each group: what is the same in all of them is left out."""
    columns: Iterable[str] = dict.fromkeys(name for group in groups for name in group)
    telling = [
        name
        for name in columns
        if name == "parameterization" or len({str(group.get(name)) for group in groups}) > 1
    ]
    names = []
    for group in groups:
        parts = name_values({name: group[name] for name in telling if name in group})
        names.append(", ".join(parts) or "all trials")
    return names


class _Grouped(Protocol):
    @property
    def group(self) -> Mapping[str, object]: ...


_Result = TypeVar("_Result", bound=_Grouped)


def with_names(results: Sequence[_Result]) -> Iterator[tuple[str, _Result]]:
    """Yield each result of a group after the group's short name, as of `name_groups`."""
    return zip(name_groups([each.group for each in results]), results, strict=True)


def say_rate(rate: float) -> str:
    """Return a learning rate to type, to two digits.

    Examples
    --------
    >>> say_rate(0.0396), say_rate(0.00244), say_rate(3.2e-6)
    ('0.040', '0.0024', '3.2e-06')
    """
    if not (math.isfinite(rate) and rate > 0):
        return "none"
    place = math.floor(math.log10(float(f"{rate:.1e}")))
    return f"{rate:.1e}" if place < -5 or place > 3 else f"{rate:.{max(0, 1 - place)}f}"


def say_ratio(ratio: float) -> str:
    """Return a factor that a rate is known to, such as ``1.21``."""
    return f"{ratio:.2f}" if ratio < 9.995 else f"{ratio:.3g}"


def say_half_open(estimate: Estimate, unit: str = "") -> str:
    """Return a price with its interval; one that only its upper bound is known of is so said."""
    unit = f" {unit}" if unit else ""
    if estimate.value is None:
        return say(estimate)
    if estimate.low is None or estimate.high is None:
        return f"{say_number(estimate.value)}{unit} (no interval)"
    step = half_width(estimate)
    if estimate.low <= 0.05 * estimate.high:
        return f"at most {say_number(estimate.high, step=step)}{unit}"
    return f"{say_number(estimate.value, step=step)}{unit} {say_interval(estimate)}"


def join_words(names: Sequence[str], most: int) -> str:
    """Return names as a list in words; more than `most` are counted.

    Examples
    --------
    >>> join_words(["sp", "mup", "sp+embd"], 6)
    'sp, mup and sp+embd'
    >>> join_words(["sp, depth 2", "sp, depth 4"], 6)
    '(sp, depth 2) and (sp, depth 4)'
    """
    names = [f"({name})" if ", " in name else name for name in names]
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# What is compared in a group, and its results as tables: a page and a terminal show the same ones.


def is_reference(fit: TransferFit) -> bool:
    """Tell whether a group is what the gaps and R of its setting are measured against."""
    name = fit.group.get("parameterization", next(iter(fit.group.values()), ""))
    return bool(fit.reference) and fit.reference == str(name)


def find_span(fit: TransferFit) -> tuple[BasinFit, BasinFit] | None:
    """Return the basins of the narrowest and the widest width whose minimum is known, or None."""
    known = [basin for basin in fit.basins if basin.bracketed and basin.width in fit.regrets]
    return (known[0], known[-1]) if len(known) > 1 else None


def measure_price(fit: TransferFit) -> Estimate:
    """Return the loss, in nats, of reusing the narrowest optimum at the widest width."""
    span = find_span(fit)
    return refuse(Reason("few_optima")) if span is None else fit.regrets[span[1].width]


#: Symbols of the numbers that are seldom known: exponents and limits.
ASYMPTOTICS = {"kappa": "κ", "R_inf": "R(∞)", "loss_inf": "L∞", "alpha": "α", "beta": "β",
               "b": "b", "gamma": "γ"}  # fmt: skip
_SYMBOLS = {
    **ASYMPTOTICS, "lr": "lr*", "loss": "L*", "gap": "R", "regret": "price of transfer",
    "extra_compute": "price of transfer as compute", "fast_transfer_margin": "β − α/2",
    "lr_sensitivity": "learning-rate sensitivity",
}  # fmt: skip
#: What the regrets of a recommendation are called, by their keys.
REGRETS = {
    "recommended": "price of using it",
    "same_lr": "price of the proxy's rate unchanged",
    "inverse_width": "price of the proxy's rate over the width ratio",
}


class ResultTable(NamedTuple):
    """A table of results: a heading, rows of text and estimates, and what to know of them.

    A column's heading may end in its unit, after a comma. What is minor may be folded away.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Estimate]]
    key: str = ""
    minor: bool = False


def list_results(
    fits: Sequence[TransferFit], stability: Sequence[Stability] = ()
) -> list[ResultTable]:
    """Return all that is known of the groups as tables; those without a row are left out."""
    tables = (
        _list_metrics(fits), _list_asymptotics(fits), _list_basins(fits),
        _list_stability(stability),
    )  # fmt: skip
    return [table for table in tables if table.rows]


def _list_metrics(fits: Sequence[TransferFit]) -> ResultTable:
    """Return what small studies identify; errors are given as their roots."""
    widest = max((width for fit in fits for width in fit.gaps), default=None)
    gap = [] if widest is None else [f"R({say_width(widest)}), nats"]
    rows: list[list[str | Estimate]] = []
    for name, fit in with_names(fits):
        row: list[str | Estimate] = [name]
        row += (fit.metrics[key].transform(math.sqrt) for key in ("E", "E_out"))
        if widest is not None:
            row.append(_tell_gap(fit, fit.gaps.get(widest, refuse(Reason("no_gap")))))
        rows.append([*row, measure_price(fit)])
    return ResultTable(
        "Fit and transfer",
        ["group", "√E, nats", "√E_out, nats", *gap, "price of transfer, nats"],
        rows,
        "√E: error of the joint fit; √E_out: the same at the widest width, left out of the fit; R: "
        "loss given up against the reference at a trained width; price of transfer: what the "
        "narrowest width's best rate costs at the widest.",
    )


def _tell_gap(fit: TransferFit, gap: Estimate) -> str | Estimate:
    """Return a gap, or that the group is what others are compared with."""
    return "the reference" if is_reference(fit) else gap


def _list_asymptotics(fits: Sequence[TransferFit]) -> ResultTable:
    """Return exponents and limits."""
    found: list[dict[str, str | Estimate]] = [{**fit.metrics, **fit.exponents} for fit in fits]
    keys = [key for key in ASYMPTOTICS if any(key in each for each in found)]
    rows: list[list[str | Estimate]] = []
    for (name, fit), each in zip(with_names(fits), found, strict=True):
        if "R_inf" in each:
            each["R_inf"] = _tell_gap(fit, fit.metrics["R_inf"])
        rows.append([name, *(each.get(key, "") for key in keys)])
    nats = ("R_inf", "loss_inf")
    return ResultTable(
        f"Exponents and limits: {', '.join(map(ASYMPTOTICS.__getitem__, keys))}",
        ["group", *(ASYMPTOTICS[key] + ", nats" * (key in nats) for key in keys)],
        rows,
        "κ below 0: the price of transfer vanishes with width; L∞ + A·n^−α is the best loss, β (or "
        "b) the drift of the optimum, γ the growth of the curvature.",
        minor=True,
    )


def _list_basins(fits: Sequence[TransferFit]) -> ResultTable:
    """Return all that is known of each group at each width."""
    rows: list[list[str | Estimate]] = []
    for name, fit in with_names(fits):
        for basin in fit.basins:
            # An optimum outside the swept range is no number to print.
            optimum = [basin.lr, say_log2(basin.lr)] if basin.bracketed else ["at the edge", ""]
            rows.append([
                f"{name} at {say_width(basin.width)}", *optimum, tell_once(basin, basin.loss),
                tell_once(basin, basin.curvature),
                *([_tell_gap(fit, fit.gaps[basin.width])] if basin.width in fit.gaps else [""]),
                fit.regrets.get(basin.width, ""), str(basin.num_points),
                "; ".join(list_flags(basin)),
            ])  # fmt: skip
    head = ["group at width", "lr*", "log2 lr*", "L*, nats", "curvature, nats", "R, nats",
            "price of the narrowest rate, nats", "points", "flags"]  # fmt: skip
    return ResultTable("Basins", head, rows)


def _list_stability(stability: Sequence[Stability]) -> ResultTable:
    """Return how stable training was near each optimum."""
    head = ["group at width", "log2 lr", "η/η_c", "spikes a trial", "highest, nats",
            "|g| embedding", "|g| hidden", "logits", "entropy"]  # fmt: skip
    rows = []
    for name, each in with_names(stability):
        numbers = (
            math.log2(each.lr), each.edge, each.spikes, each.spike_size,
            each.grad_norm.get("embedding"), each.grad_norm.get("hidden"), each.logit_scale,
            each.attention_entropy,
        )  # fmt: skip
        shown = ["" if v is None else f"{v:.3g}".replace("-", "−") for v in numbers]
        rows.append([f"{name} at {say_width(each.width)}", *shown])
    return ResultTable(
        "Stability",
        head,
        rows,
        "At the swept rate nearest each optimum, median after the warm-up. η_c: the smallest rate "
        "along the optimizer's step that raises the loss of its batch; |g|: norm of the gradient; "
        "logits: their root mean square; entropy of attention: 1 where it is even.",
    )


def list_reasons(fits: Sequence[TransferFit]) -> ResultTable:
    """Return why numbers are not known and what would help: quantity, groups and reason."""
    members: dict[tuple[str, str], list[str]] = {}
    for name, fit in with_names(fits):
        for width, quantity, _, estimate in fit.quantities():
            if estimate.status != "identified" and estimate.reasons:
                where = "" if width is None else f" at width {say_width(width)}"
                what = f"{_SYMBOLS.get(quantity, quantity)}{where}"
                members.setdefault((what, estimate.reason), []).append(name)
    rows = [[what, ", ".join(who), reason] for (what, reason), who in members.items()]
    title = "Reasons in full, and the data that would help"
    return ResultTable(title, ["quantity", "group", "reason"], rows)


def list_recommendations(items: Sequence[Recommendation]) -> ResultTable:
    """Return the recommendations: learning rate, loss, regrets, verdict and its reason."""
    head = ["group", "learning rate", "loss, nats", *(f"{each}, nats" for each in REGRETS.values()),
            "verdict", "because"]  # fmt: skip
    rows = [
        [name, item.lr, item.loss, *(item.regret.get(key, "") for key in REGRETS), item.verdict,
         item.because]
        for name, item in with_names(items)
    ]  # fmt: skip
    width = say_width(items[0].width) if items else ""
    return ResultTable(f"Recommended at width {width}", head, rows)


def list_notes(fits: Sequence[TransferFit], notes: Iterable[str] = ()) -> list[str]:
    """Return what the reading of a table and its fits note, each fact once with its groups."""
    members: dict[str, list[str]] = {}
    for name, fit in with_names(fits):
        for note in fit.notes:
            members.setdefault(note, []).append(name)
    floors = [
        f"{name} {say_number(fit.noise_floor)}"
        for name, fit in with_names(fits)
        if fit.noise_floor is not None
    ]
    said = [f"noise floor s²/S of E, in nats²: {', '.join(floors)}"] if floors else []
    return [*notes, *(f"{', '.join(who)}: {note}" for note, who in members.items()), *said]


# How large a table is, how complete, and how far a target lies beyond it.


def describe_table(table: LossTable, settings: Mapping[str, Any]) -> str:
    """Return the size of a table on one line; a study that is not complete is said to be so."""
    widths = sorted({float(width) for width in table.width})
    span = "–".join(say_width(width) for width in dict.fromkeys((widths[0], widths[-1])))
    num_seeds, num_lrs = len(np.unique(table.seed)), len(np.unique(table.lr))
    parts = [
        describe_missing(table, settings) or f"{len(table)} trial{'s' * (len(table) != 1)}",
        f"{np.sum(~np.isfinite(table.loss))} diverged",
        f"{'width' if len(widths) == 1 else 'widths'} {span}",
        f"{num_lrs} learning rate{'s' * (num_lrs != 1)} × {num_seeds} seed{'s' * (num_seeds != 1)}",
    ]
    return " · ".join(parts)


def describe_missing(table: LossTable, settings: Mapping[str, Any]) -> str:
    """Return what a study's table lacks, such as ``218 of 320 planned trials, width 64: none``.

    Returns
    -------
    str
        Empty for a complete study, for a table of which no plan is known, and where rows were
        chosen by what no plan says.
    """
    config, chosen = settings.get("config", {}), settings.get("rows_chosen", {})
    sweep = config.get("sweep", {})
    axes = ("width", "parameterization", "weight_decay", "seed", "base_lr")
    grids = [{**sweep, **points} for points in config.get("points", ())]
    grids += [sweep] * ("base_lr" in sweep)
    listed = all(isinstance(grid.get(key), list) for grid in grids for key in axes)
    if not listed or not chosen.keys() <= set(axes):
        return ""
    planned = {
        cell
        for grid in grids
        for cell in itertools.product(*(grid[key] for key in axes))
        if all(_is_value(cell[axes.index(key)], text) for key, text in chosen.items())
    }
    if len(planned) <= len(table):
        return ""
    missing = sorted({float(cell[0]) for cell in planned} - set(table.width.tolist()))
    empty = f", width {', '.join(map(say_width, missing))}: none" if missing else ""
    return f"{len(table)} of {len(planned)} planned trials{empty}"


def _is_value(cell: object, text: str) -> bool:
    """Tell whether a cell is what a text says, numbers by their value."""
    try:
        return cell == float(text)
    except ValueError:
        return str(cell) == text


def describe_reach(table: LossTable, target: float) -> str:
    """Return whether a target width lies beyond the trained ones, and how far, as a sentence."""
    narrowest, factor = float(table.width.min()), target / float(table.width.max())
    if target < narrowest:
        return (
            f"{say_width(target)} lies below {say_width(narrowest)}, the narrowest width that was "
            "trained: an extrapolation."
        )
    if factor <= 1.0:
        return f"{say_width(target)} lies within the widths that were trained."
    return (
        f"{say_width(target)} is {factor:.3g} times the widest width that was trained: an "
        "extrapolation."
    )


# What was seen in a table, and what of it makes an answer doubtful.

_SENTENCES = {
    "columns": "read as with --columns {columns}; name other columns in the same way",
    "other_rate": "column {other!r} is a learning rate too, and {used!r} is read; "
    "to choose, --columns lr=NAME",
    "other_loss": "column {other!r} is a loss too, and {used!r} is read; to choose, --columns "
    "loss={other}",
    "mark": "{count} of {rows} values of {column!r} are 0 or less, as no loss in nats is; where "
    "they stand for diverged trials, --map {column}:{marks}",
    "score": "no value of {column!r} is above 0, as a loss in nats is; of a score to be maximised "
    "write the negative",
    "final_rate": "column {other!r} is {ratio:.3g} times {used!r} in every row, as where a "
    "schedule ended; {used!r} is read",
    "logged_rate": "column {other!r} changes within a run, as a schedule logs it; {used!r} is read",
    "multiplier": "{column!r} holds multiples of a rate that is not in it: the answer is one too",
    "params": "{column!r} counts parameters, not width: the answer holds for that size",
    "logarithms": "{column!r} is read as logarithms of the learning rate to base {base}",
    "unit": "{column!r} is read as {unit}, and made nats per token",
    "byte_unit": "{column!r} is read as {unit}, a loss in nats per byte; verdicts are in "
    "nats per token, so say how long one is with --unit {unit}:BYTES",
    "names": "{what} read from the names in {column!r}, such as {example!r}",
    "wide": "widths are columns: {count} of them, {blank} blank cell(s) left out as not run",
    "wide_rates": "learning rates are columns: {count} of them, {blank} blank cell(s) left out as "
    "not run",
    "chart": "one column a run: the last value of {metric!r} of each of {count} runs is read",
    "history": "{rows} rows are evaluations of {count} runs: the last by {column!r} of each is "
    "read",
    "partial": "{count} of {rows} runs end at {column} {least:g}, before the {most:g} of others at "
    "their width; leave them out with --where {column}={most:g}",
    "stops": "{count} of {rows} runs log {column!r} for the last time before their other metrics, "
    "as where NaN is not logged ({examples}); if they diverged, --diverged stopped",
    "left_out": "{count} {state} trial(s) left out{placed}",
    "blank": "{count} finished trial(s) have no loss and count as diverged{placed}; to leave them "
    "out, --diverged none",
    "repeated": "{count} repeated row(s) left out",
    "kept": "{count} further row(s) of a trial left out by --keep {rule}",
    "joined": "{count} learning rates that agree within 1e-6 are read as {into}",
    "varies": "not the same at one width, and not used: {columns}; the fit mixes their values: fit "
    "them apart with --by {first}, or choose one with --where {first}=VALUE",
    "with_width": "changes with width: {columns}; the answer holds where they change likewise",
    "outlier": "{place}: loss {loss:g} is {off:.2g} nats off the curve of its width; if the run "
    "failed, leave it out",
    "spelling": "groups {one!r} and {other!r} of {column!r} differ in spelling only; if they are "
    "one, --map {column}:{other}={one}",
    "tracker": "{what}; a metric is its last value",
    "no_settings": "{count} run(s) without settings left out",
    "foreign": "groups/{file} holds no results of this study ({reason}) and is left alone",
    "unchecked": "{count} results file(s) of an older version carry no digest: unchecked",
    "codes": "more than one code of your own trained these: {told}",
}


def describe_note(note: Doubt) -> str:
    """Return a note as one line, with what to type where something can be done."""
    values = dict(note.values)
    if "above" in values:
        values["placed"] = _describe_sides(values)
    if "counts" in values:
        values["told"] = say_codes(values["counts"])
    return _SENTENCES[note.kind].format(**values)


def say_codes(counts: Mapping[str, int]) -> str:
    """Return how many trials are by which code, by its hash; "" where that is not recorded.

    Examples
    --------
    >>> say_codes({"1a2b3c4d5e6f7a8b": 12, "": 3})
    '12 trials by code 1a2b3c4d5e6f…, 3 by code that is not recorded'
    """
    told = [
        f"{count} by code {f'{code[:12]}…' if code else 'that is not recorded'}"
        for code, count in counts.items()
    ]
    first = next(iter(counts.values()), 0)
    return ", ".join(told).replace(" by", " trial by" if first == 1 else " trials by", 1)


def _describe_sides(values: Mapping[str, Any]) -> str:
    """Return where trials without a loss lie, and how to count those left out as diverged."""
    above, below, count = values["above"], values["below"], values["count"]
    sides = {"above": above, "below": below}
    told = [f"{'all' if n == count else n} {side}" for side, n in sides.items() if n]
    where = f", {' and '.join(told)} the best learning rate of their width" if told else ""
    if values["state"] in ("blank", "pending", "unmeasured"):
        return where
    return f"{where}; if they diverged, --diverged {values['state']}"


def tell_doubts(advice: Sequence[Recommendation]) -> list[Recommendation]:
    """Return recommendations whose reasons say first what is in doubt about their table."""
    told = []
    for item in advice:
        doubts = [describe_note(doubt).partition("; ")[0] for doubt in item.doubts]
        told.append(replace(item, because="; ".join([*doubts, item.because])))
    return told
