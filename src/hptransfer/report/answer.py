"""Say what a table's fits answer: one home for the words, so that page and terminal agree.

`make_answer` turns fits and recommendations into an `Answer`: is the embedding layer held back,
which rates to type, what keeping a rate costs, what would make it surer, what it cannot say.
Every sentence follows from the numbers beside it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np

from hptransfer.report.words import (
    ASYMPTOTICS,
    describe_reach,
    describe_table,
    find_span,
    is_reference,
    join_words,
    measure_price,
    name_groups,
    say_half_open,
    say_interval,
    say_number,
    say_rate,
    say_ratio,
    say_width,
)
from hptransfer.stats import Estimate, Recommendation, TableFit
from hptransfer.stats._advice import USABLE_REGRET
from hptransfer.stats.estimate import BasinFit, half_width
from hptransfer.stats.results import TransferFit

#: Within this of the unigram entropy a model knows word frequencies and little else, in nats.
_LEARNED_MARGIN = 0.3
#: A gap whose whole interval lies within this of 0, in nats, is next to nothing.
_SMALL_GAP = 0.02
#: Groups that a sentence names, settings that a verdict is given for, and further steps named.
_MOST_GROUPS = 6
_MOST_SETTINGS = 3
_MOST_STEPS = 2

_Verdict = Literal["yes", "no", "can't tell"]
EMBEDDING_QUESTION = "Is the embedding layer held back?"
KEEP_QUESTION = f"May the narrowest width's rate be kept at the widest, for {USABLE_REGRET:g} nats?"


@dataclass(frozen=True, kw_only=True)
class EmbeddingVerdict:
    """Whether the embedding layer's learning rate holds SP back, in one setting.

    Attributes
    ----------
    kind : str
        ``yes``, ``no`` or ``can't tell``.
    text : str
        The sentence after the verdict.
    sp, embd : int
        Places of the two groups among the fits.
    width : float
        The widest width at which both have a minimum.
    gap : Estimate
        L* of SP+Embd less that of SP there, in nats, paired by seed.
    """

    kind: _Verdict
    text: str
    sp: int
    embd: int
    width: float
    gap: Estimate


@dataclass(frozen=True, kw_only=True)
class RateRow:
    """What to type into the optimizer for one group, and how wrong that could be.

    Attributes
    ----------
    name : str
        The group.
    rates : tuple of (str, str)
        For which tensors, and the rate; for a table as given its own rate; empty without one.
    note : str
        How the rate came about, where that is short; "" otherwise.
    factor : str
        To what factor the rate is known, at 90 %; "" if unknown.
    price : str
        What it costs at most if it is wrong, at 90 %, such as ``0.013 nats``; "" if unknown.
    verdict, because : str
        ``usable``, ``risky`` or ``unusable``, and why.
    """

    name: str
    rates: tuple[tuple[str, str], ...]
    note: str
    factor: str
    price: str
    verdict: str
    because: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a table answers, in words.

    Attributes
    ----------
    names : tuple of str
        A short name for each group.
    facts : str
        Size and completeness of the table, on one line.
    warning : str
        Why the answer may be none, such as training that was too short; "" otherwise.
    embedding : tuple of EmbeddingVerdict
        One for each setting that has SP and SP+Embd; empty without.
    transfer : tuple of (str, str)
        For each group whether the narrowest width's rate may be reused at the widest, and a
        sentence with the price.
    target : float or None
        Width that the rates are for; None without recommendations.
    reach : str
        How far beyond the trained widths that is.
    rates : tuple of RateRow
        One for each group.
    surer : tuple of str
        The trials that would narrow the rates most.
    unknown : tuple of str
        Symbols of the asymptotic numbers that some group's data do not identify.
    counts : (int, int)
        How many of those numbers are not identified, and how many there are.
    why_unknown, help_unknown : str
        The shared reason, and the data that would help most of them.
    """

    names: tuple[str, ...]
    facts: str
    warning: str
    embedding: tuple[EmbeddingVerdict, ...]
    transfer: tuple[tuple[_Verdict, str], ...]
    target: float | None
    reach: str
    rates: tuple[RateRow, ...]
    surer: tuple[str, ...]
    unknown: tuple[str, ...]
    counts: tuple[int, int]
    why_unknown: str
    help_unknown: str


def make_answer(
    fits: TableFit,
    recommendations: Sequence[Recommendation] = (),
    settings: Mapping[str, Any] | None = None,
) -> Answer:
    """Say what the fits of a table answer.

    Parameters
    ----------
    fits : TableFit
        The groups of the table.
    recommendations : sequence of Recommendation
        One for each group, for one width; may be empty.
    settings : mapping, optional
        Contents of the study's ``study.json``.

    Returns
    -------
    Answer

    Examples
    --------
    >>> import numpy as np
    >>> from hptransfer import LossTable, fit_table
    >>> width, lr = np.meshgrid([64.0, 128.0, 256.0], 2.0 ** np.arange(-9, -3), indexing="ij")
    >>> loss = 3 - 0.1 * np.log(width / 64) + 0.05 * np.log(lr * 128) ** 2
    >>> table = LossTable.from_columns(width=width.ravel(), lr=lr.ravel(), loss=loss.ravel())
    >>> fits = fit_table(table)
    >>> [row.verdict for row in make_answer(fits, fits.recommend(width=512)).rates]
    ['usable']
    """
    settings = settings or {}
    names = name_groups([fit.group for fit in fits])
    limits = [*_asymptotics(fits)]
    missing = [(key, estimate) for key, estimate in limits if estimate.status == "not identified"]
    unknown = tuple(symbol for key, symbol in ASYMPTOTICS.items() if key in dict(missing))
    target = recommendations[0].width if recommendations else None
    return Answer(
        names=tuple(names),
        facts=describe_table(fits.table, settings),
        warning=warn_of_learning(fits, settings),
        embedding=tuple(_judge_settings(fits, names))[:_MOST_SETTINGS],
        transfer=tuple(_describe_transfer(fits, k, name) for k, name in enumerate(names)),
        target=target,
        reach="" if target is None else describe_reach(fits.table, target),
        rates=tuple(
            make_row(name, item) for name, item in zip(names, recommendations, strict=False)
        ),
        surer=tuple(islice(name_steps(names, recommendations), _MOST_STEPS)),
        unknown=unknown,
        counts=(len(missing), len(limits)),
        why_unknown=_explain_unknown(fits) if unknown else "",
        help_unknown=_most_common_help(estimate for _, estimate in missing),
    )


def warn_of_learning(fits: Sequence[TransferFit], settings: Mapping[str, Any]) -> str:
    """Return that the models have learned too little to judge, and where; "" if they have not."""
    entropy = settings.get("data", {}).get("unigram_entropy")
    basins = [basin for fit in fits for basin in fit.basins]
    losses = [(b.width, b.loss.value) for b in basins if b.loss.value is not None]
    if not isinstance(entropy, float | int) or not losses:
        return ""
    near = f"within {_LEARNED_MARGIN} nats of the unigram entropy of the text ({entropy:.2f} nats)"
    short = [(width, loss) for width, loss in losses if loss > entropy - _LEARNED_MARGIN]
    if len(short) == len(losses):
        return (
            f"Too short to judge: the best losses, {min(loss for _, loss in losses):.2f} nats at "
            f"the lowest, stay {near}, so the models have learned little beyond how often each "
            "token occurs. Train longer; what follows is no answer yet."
        )
    if short:
        widths = ", ".join(say_width(width) for width in sorted({width for width, _ in short}))
        return (
            f"At width {widths} some best losses stay {near}: too short a training there to weigh "
            "much."
        )
    return ""


def canonical_name(group: Mapping[str, object]) -> str:
    """Return a group's parameterization in the lattice's spelling: ``µP`` is ``mup``.

    Examples
    --------
    >>> canonical_name({"parameterization": "µP"})
    'mup'
    """
    name = str(group.get("parameterization", "")).strip().lower()
    return name.replace("\N{MICRO SIGN}p", "mup").replace("\N{GREEK SMALL LETTER MU}p", "mup")


def _judge_settings(fits: TableFit, names: Sequence[str]) -> Iterator[EmbeddingVerdict]:
    for members in fits.settings():
        found = {canonical_name(fits[k].group): k for k in members}
        if "sp" in found and "sp+embd" in found:
            shared = _find_shared(fits, found["sp"], found["sp+embd"])
            if shared is not None:
                yield _judge_embedding(fits, names, found, shared)


def _find_shared(fits: TableFit, one: int, other: int) -> float | None:
    """Return the widest width at which both groups have a minimum, or None."""
    return max({*fits.groups[one].usable} & {*fits.groups[other].usable}, default=None)


def _judge_embedding(
    fits: TableFit, names: Sequence[str], found: Mapping[str, int], width: float
) -> EmbeddingVerdict:
    """Judge one setting at a width at which both groups have a minimum."""
    sp, embd = found["sp"], found["sp+embd"]
    gap = fits.gap(embd, sp, width=width)
    name, there = names[sp], f"at width {say_width(width)}"
    kind: _Verdict = "can't tell"
    text = f"changes {name}'s loss by {_say_signed(gap)} {there}, within its error."
    if gap.low is None or gap.high is None:
        text = (
            f"makes {name} {_say_change(gap)} {there} by the best means, but there is no interval: "
            "one seed for each point."
        )
    elif gap.high < 0:
        rest = _say_rest(fits, names, found, width)
        kind, text = "yes", f"makes {name} {_say_change(gap)} {there}{rest}."
    elif gap.low > 0:
        kind, text = "no", f"makes {name} {_say_change(gap)} {there}."
    elif max(-gap.low, gap.high) <= _SMALL_GAP:
        kind = "no"
        text = f"changes {name}'s loss by next to nothing {there}, {_say_signed(gap)}."
    text = f"Raising its learning rate alone {text}"
    return EmbeddingVerdict(kind=kind, text=text, sp=sp, embd=embd, width=width, gap=gap)


def _say_rest(fits: TableFit, names: Sequence[str], found: Mapping[str, int], width: float) -> str:
    """Return what the rest of µP adds at a width; "" without µP there."""
    mup, embd = found.get("mup"), found["sp+embd"]
    shared = None if mup is None else _find_shared(fits, mup, embd)
    if mup is None or shared is None:
        return ""
    rest = fits.gap(mup, embd, width=shared)
    if rest.low is None or rest.high is None:
        return ""
    name = f"the rest of {names[mup]}"
    there = "" if shared == width else f" at width {say_width(shared)}"
    if rest.high < 0 or rest.low > 0:
        return f"; {name} makes it {_say_change(rest)}{there}"
    if max(-rest.low, rest.high) <= _SMALL_GAP:
        return f"; {name} adds next to nothing{there}, {_say_signed(rest)}"
    return f"; what {name} adds{there} is within its error, {_say_signed(rest)}"


def _say_change(gap: Estimate) -> str:
    """Return a difference of losses as ``0.077 nats [0.053, 0.100] better``, or worse."""
    assert gap.value is not None
    if gap.value >= 0:
        return f"{_say_signed(gap)} worse"
    low, high = (None if end is None else -end for end in (gap.high, gap.low))
    return f"{_say_signed(replace(gap, value=-gap.value, low=low, high=high))} better"


def _say_signed(gap: Estimate) -> str:
    assert gap.value is not None
    return f"{say_number(gap.value, step=half_width(gap))} nats {say_interval(gap)}".strip()


# Whether a rate may be kept.


def _judge_transfer(fit: TransferFit) -> _Verdict:
    """Judge whether the narrowest width's best rate may be reused at the widest.

    It may where the whole interval of its price lies below `USABLE_REGRET`, and may not where it
    lies above, or where a trial diverged at that rate; else one cannot tell.
    """
    price = measure_price(fit)
    if any(reason.kind == "diverged_there" for reason in price.reasons):
        return "no"
    if price.low is None or price.high is None or price.status == "not identified":
        return "can't tell"
    if price.high <= USABLE_REGRET:
        return "yes"
    return "no" if price.low > USABLE_REGRET else "can't tell"


def _describe_transfer(fits: TableFit, k: int, name: str) -> tuple[_Verdict, str]:
    fit = fits[k]
    verdict, span, price = _judge_transfer(fit), find_span(fit), measure_price(fit)
    if span is None:
        outside = [basin for basin in fit.basins if not basin.bracketed]
        lost = [each for each in outside if any(f.kind == "all_diverged" for f in each.flags)]
        kinds = {
            "every trial diverged": lost,
            "the best rate lies at the edge": [each for each in outside if each not in lost],
        }
        said = [
            f"{why} at width {', '.join(say_width(each.width) for each in basins)}"
            for why, basins in kinds.items()
            if basins
        ]
        edge = f": {', and '.join(said)}" if said else ""
        return verdict, f"{name}: fewer than two widths have a minimum in the swept range{edge}."
    narrow, wide = (say_width(basin.width) for basin in span)
    if any(reason.kind == "diverged_there" for reason in price.reasons):
        cost = "lets trials diverge"
    elif price.value is None or price.status == "not identified":
        cost = f"costs what can't be told ({price.reasons[0] if price.reasons else 'no interval'})"
    else:
        cost = f"costs {say_half_open(price, 'nats')}"
    raw = _price_raw(fits, k, span)
    if not raw:
        axis = "on the axis " if fits.table.rates is not None else ""
        return verdict, f"{name}: keeping width {narrow}'s rate {axis}at {wide} {cost}."
    return verdict, (
        f"{name}: width {narrow}'s rate, divided by the width ratio, {cost} at {wide}; typed "
        f"unchanged it {raw}."
    )


def _price_raw(fits: TableFit, k: int, span: tuple[BasinFit, BasinFit]) -> str:
    """Return what the same typed rate costs at the wide end, for rules with one rate for all."""
    data, table = fits.groups[k].data, fits.table
    narrow, wide = span
    if table.rates is None or narrow.lr.value is None:
        return ""
    rates = [table.rates(data.group, basin.width, 1.0) for basin in span]
    if any(each is None or len(set(each.values())) > 1 for each in rates):
        return ""
    ratio = rates[0]["hidden"] / rates[1]["hidden"] if rates[0] and rates[1] else 1.0
    if ratio == 1.0:
        return ""
    x = narrow.coefficients[0] + math.log(ratio)
    cells = data.cells
    rows = cells.at(wide.width)
    diverged = cells.x[rows][cells.diverged[rows] > 0]
    if np.any(diverged <= x + 1e-6):
        return "lets trials diverge"
    clean = rows[cells.clean[rows]]
    places, mean = cells.x[clean], cells.mean[clean]
    # Beyond the rates that were measured the loss is at least that of the last.
    rise = float(np.interp(min(x, places[-1]), places, mean)) - wide.coefficients[1]
    more = " or more" if x > places[-1] + 1e-6 else ""
    return f"costs {say_number(max(rise, 0.0))} nats{more}"


# The rates to type.

_ROLES = ("embedding", "norm", "bias", "hidden", "readout")
_PLURAL = {"norm": "norms", "bias": "biases"}


def group_roles(rates: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Return learning rates by role as few lines as they need: the words for the roles, the rate.

    Examples
    --------
    >>> group_roles({"embedding": 0.04, "norm": 0.0025, "bias": 0.0025, "hidden": 0.0025,
    ...              "hidden_residual": 0.0025, "readout": 0.0025})
    (('embedding', 0.04), ('all else', 0.0025))
    """
    known = {role: rates[role] for role in _ROLES if role in rates}
    lines: dict[float, list[str]] = {}
    for role, rate in known.items():
        lines.setdefault(rate, []).append(role)
    if rates.get("hidden_residual", rates.get("hidden")) != rates.get("hidden"):
        lines.setdefault(rates["hidden_residual"], []).append("residual projections")
    if len(lines) == 1:
        return (("all", next(iter(lines))),)
    named, most = [], []
    for rate, roles in lines.items():
        if len(roles) >= 3 and len(roles) == len(known) - 1:
            most.append(("all else", rate))
        else:
            named.append((", ".join(_PLURAL.get(r, r) for r in roles), rate))
    return (*named, *most)


def make_row(name: str, item: Recommendation) -> RateRow:
    """Return what to type for a group, by its recommendation, in words."""
    value = item.lr.value
    rates: tuple[tuple[str, str], ...] = ()
    note = ""
    if value is not None and item.lr_by_role:
        rates = tuple((who, say_rate(rate)) for who, rate in group_roles(item.lr_by_role))
        if len(rates) == 1 and item.base_width and rates[0][1] != say_rate(value):
            times = item.width / item.base_width
            note = f"{say_rate(value)} ÷ {times:.4g}, the width over {say_width(item.base_width)}"
    elif value is not None:
        rates = (("", say_rate(value)),)
        given = item.axis in ("as given", "multiplier")
        note = "as the table gives rates" if given else f"on the axis {item.axis}, not to type"
    half = half_width(item.lr, log=True)
    price = item.regret["recommended"].high
    return RateRow(
        name=name,
        rates=rates,
        note=note,
        factor="" if half is None else say_ratio(math.exp(half)),
        price="" if price is None else _say_most(price),
        verdict=item.verdict,
        because=item.because,
    )


def _say_most(price: float) -> str:
    """Return an upper bound of a price, to two digits; what nobody would notice, as below that."""
    return f"{'<0.0001' if price < 1e-4 else say_rate(price)} nats"


def name_steps(names: Sequence[str], items: Sequence[Recommendation]) -> Iterator[str]:
    """Name the trials that would narrow the rates most; the least certain groups first."""

    def rank(pair: tuple[str, Recommendation]) -> float:
        half = None if pair[1].next is None else pair[1].next.half_width
        return -math.inf if half is None else -half

    for name, item in sorted(zip(names, items, strict=False), key=rank):
        following = item.next
        if following is None:
            continue
        if following.missing:
            yield f"{name}: {'; '.join(map(str, following.missing))}"
        elif following.steps and following.half_width is not None:
            step = following.steps[0]
            now, then = (say_ratio(math.exp(h)) for h in (following.half_width, step.half_width))
            if now != then:
                yield (
                    f"{name}: {step.describe()}, {100 * step.cost:.2g} % more compute: "
                    f"lr* is then open to a factor of {then} in place of {now}"
                )


# What it cannot say.


def _asymptotics(fits: Sequence[TransferFit]) -> Iterator[tuple[str, Estimate]]:
    for fit in fits:
        for key, estimate in {**fit.metrics, **fit.exponents}.items():
            # A group is compared with another alone, and no drift is good news.
            own = key == "R_inf" and (is_reference(fit) or not fit.reference)
            still = estimate.reasons and estimate.reasons[0].kind == "no_drift"
            if key in ASYMPTOTICS and not own and not still:
                yield key, estimate


def _explain_unknown(fits: TableFit) -> str:
    widths = np.unique(fits.table.width)
    if len(widths) < 3:
        few = "one width" if len(widths) == 1 else "two widths"
        return f"{few} cannot show an exponent."
    usable = max((len(fit.usable) for fit in fits.groups), default=0)
    if usable < 3:
        return "fewer than three widths have a minimum inside the swept range."
    ratio = widths[-1] / widths[0]
    return (
        f"{len(widths)} widths within a factor of {ratio:.3g} do not tell an exponent from a "
        "constant."
    )


def _most_common_help(missing: Iterable[Estimate]) -> str:
    remedies = Counter(str(each.remedy) for each in missing if each.remedy is not None)
    return remedies.most_common(1)[0][0] if remedies else ""


def say_transfer(answer: Answer) -> str:
    """Return in which groups the narrowest width's rate may be kept, in one sentence."""
    parts = []
    for kind in ("yes", "no", "can't tell"):
        members = [n for n, (v, _) in zip(answer.names, answer.transfer, strict=True) if v == kind]
        if members:
            parts.append(f"{join_words(members, _MOST_GROUPS)} {kind}")
    return "; ".join(parts)
