"""The paragraph at the top: does the learning rate transfer, is the embedding the reason?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Literal

from hptransfer.report.compare import (
    find_span,
    measure_drift,
    measure_gap,
    measure_price,
    widest_shared,
)
from hptransfer.report.words import name_groups, say_number, say_width
from hptransfer.stats._advice import USABLE_REGRET
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.identifiability import half_width
from hptransfer.stats.results import TransferFit

# Within this of the unigram entropy a model knows word frequencies and little else, in nats.
LEARNED_MARGIN = 0.3
# A drift known to no better than this factor from end to end says nothing, either way.
_VAGUE_RATIO = 4.0
_MOST_GROUPS = 6

Verdict = Literal["transfers", "does not transfer", "can't tell"]


def summarise(fits: Sequence[TransferFit], settings: Mapping[str, Any]) -> str:
    """Return one paragraph of plain text that answers the two questions.

    Parameters
    ----------
    fits : sequence of TransferFit
        The groups of one table.
    settings : mapping
        Contents of the study's ``study.json``, for its entropies; may be empty.
    """
    if not fits:
        return "There is nothing to judge: no group of the table could be fitted."
    parts = [_judge_learning(fits, settings), _judge_transfer(fits), _judge_embedding(fits)]
    return " ".join(part for part in parts if part)


def judge(fit: TransferFit) -> Verdict:
    """Say whether the narrowest width's best learning rate may be reused at the widest.

    It may when the 90 % interval of its price there lies below `USABLE_REGRET`, and may not when
    it lies above. Where there is no price the drift decides: it says "may" when its interval
    holds 1 and is no vaguer than 4x from end to end, "may not" when it leaves 1 out.
    """
    drift, price = measure_drift(fit), measure_price(fit)
    if price.low is not None and price.high is not None:
        if price.high <= USABLE_REGRET:
            return "transfers"
        return "does not transfer" if price.low > USABLE_REGRET else "can't tell"
    if drift.low is None or drift.high is None:
        return "can't tell"
    if not drift.low <= 1 <= drift.high:
        return "does not transfer"
    return "transfers" if drift.high / drift.low <= _VAGUE_RATIO else "can't tell"


def _judge_learning(fits: Sequence[TransferFit], settings: Mapping[str, Any]) -> str:
    entropy = settings.get("data", {}).get("unigram_entropy")
    best = {
        (index, basin.width): basin.loss.value
        for index, fit in enumerate(fits)
        for basin in fit.basins
        if basin.loss.value is not None
    }
    if entropy is None or not best:
        return ""
    short = {key for key, loss in best.items() if loss > entropy - LEARNED_MARGIN}
    if len(short) == len(best):
        return (
            f"Too short to judge: the best losses, {min(best.values()):.2f} nats at the lowest, "
            f"stay within {LEARNED_MARGIN} nats of the unigram entropy of the text "
            f"({entropy:.2f} nats), so the models have learned little beyond how often each token "
            "occurs. Train longer; what follows is no answer yet."
        )
    if short:
        widths = ", ".join(say_width(width) for width in sorted({width for _, width in short}))
        return (
            f"At width {widths} some best losses stay within {LEARNED_MARGIN} nats of the unigram "
            f"entropy of the text ({entropy:.2f} nats): too short a training there to weigh much."
        )
    return ""


def _judge_transfer(fits: Sequence[TransferFit]) -> str:
    names = name_groups([fit.group for fit in fits])
    verdicts = [judge(fit) for fit in fits]
    answers = []
    words = {
        "transfers": "yes", "does not transfer": "no", "can't tell": "can't tell",
    }  # fmt: skip
    for verdict, word in words.items():
        members = [name for name, v in zip(names, verdicts, strict=True) if v == verdict]
        if members:
            answers.append(f"with {_join(members)}, {word}")
    opening = (
        "Does the learning rate transfer, so that the narrowest width's best may be reused at the "
        f"widest for at most {USABLE_REGRET:g} nats? {_capitalise('; '.join(answers))}."
    )
    details = [_describe(name, fit) for name, fit in zip(names, fits, strict=True)]
    if len(details) > _MOST_GROUPS:
        more = len(details) - _MOST_GROUPS
        details = [*details[:_MOST_GROUPS], f"The other {more} groups are in the tables."]
    return " ".join([opening, *details])


def _describe(name: str, fit: TransferFit) -> str:
    """Return drift and price of one group in a sentence."""
    span = find_span(fit)
    if span is None:
        outside = [say_width(basin.width) for basin in fit.basins if not basin.bracketed]
        edge = f": at width {', '.join(outside)} the best learning rate" if outside else ""
        return f"{name} has fewer than two widths with an optimum inside the swept range" + (
            f"{edge} lies at its edge." if edge else "."
        )
    drift, price = measure_drift(fit), measure_price(fit)
    narrow, wide = (say_width(basin.width) for basin in span)
    where = f"from width {narrow} to {wide}"
    if drift.value is None or drift.low is None or drift.high is None:
        text = f"Under {name} the drift {where} has no interval"
    else:
        ratio = f"×{say_number(drift.value, step=half_width(drift))} ({_range(drift)})"
        if drift.high < 1:
            text = f"Under {name} the best learning rate falls {where}, {ratio}"
        elif drift.low > 1:
            text = f"Under {name} the best learning rate rises {where}, {ratio}"
        elif drift.high / drift.low <= _VAGUE_RATIO:
            text = f"Under {name} no drift of the best learning rate is seen {where}, {ratio}"
        else:
            text = f"Under {name} the drift {where} is too uncertain to call, {ratio}"
    reuse = f"reusing width {narrow}'s at {wide} costs"
    if _is_sure(price):
        return f"{text}; {reuse} {_say(price)} nats ({_range(price)})."
    return f"{text}; what {reuse} can't be told ({price.reason})."


def _judge_embedding(fits: Sequence[TransferFit]) -> str:
    def setting(fit: TransferFit) -> str:
        return ", ".join(f"{k} {v}" for k, v in fit.group.items() if k != "parameterization")

    question = "Is the embedding layer the reason?"
    by_setting = {
        name: {_canonical(fit): fit for fit in members}
        for name, members in groupby(sorted(fits, key=setting), key=setting)
    }
    wanted = ("sp", "sp+embd", "mup")
    whole = {k: v for k, v in by_setting.items() if all(name in v for name in wanted)}
    if not whole:
        return f"{question} Can't tell: that takes sp, sp+embd and mup in one setting."
    answers = []
    for name, members in whole.items():
        answer = _explain(*(members[wanted_name] for wanted_name in wanted))
        answers.append(f"{question} {answer}" if len(whole) == 1 else f"At {name}: {answer}")
    if len(whole) > 1:
        answers = [question, *answers[:_MOST_GROUPS]]
    return " ".join(answers)


def _explain(sp: TransferFit, embd: TransferFit, mup: TransferFit) -> str:
    """Return the embedding layer's part in the gap between SP and µP, in words."""
    width = widest_shared((sp, embd, mup))
    if width is None:
        return "Can't tell: there is no width at which all three have a bracketed optimum."
    whole, rest, closed = (
        measure_gap(one, other, width) for one, other in ((sp, mup), (embd, mup), (sp, embd))
    )
    if whole.low is None or rest.low is None or closed.low is None:
        return "Can't tell: the best losses have no intervals."
    at = f"at width {say_width(width)}"
    facts = f"{at} sp ends {_above(whole)} mup, and sp+embd {_above(rest)} mup"
    drift = _compare_drift(sp, embd)
    if whole.high is not None and whole.high < 0:
        return f"There is no gap to explain: {facts}.{drift}"
    if whole.low <= 0:
        return f"Can't tell: the gap between sp and mup is within its error; {facts}.{drift}"
    # A difference with one bound has all three numbers.
    assert closed.high is not None
    assert closed.value is not None
    assert whole.value is not None
    if closed.high < 0:
        return f"No: raising the embedding's learning rate alone makes it worse; {facts}.{drift}"
    if closed.low <= 0:
        return (
            "Can't tell: the effect of raising the embedding's learning rate is within its "
            f"error; {facts}.{drift}"
        )
    if rest.low > 0:
        share = f"{100 * closed.value / whole.value:.0f} %"
        return f"In part: its learning rate alone closes {share} of the gap; {facts}.{drift}"
    return (
        "Yes, as far as this can tell: raising the embedding's learning rate alone leaves no "
        f"gap that stands out; {facts}.{drift}"
    )


def _compare_drift(sp: TransferFit, embd: TransferFit) -> str:
    """Return whether the embedding's learning rate also changes how the optimum drifts."""
    verdicts = judge(sp), judge(embd)
    if verdicts == ("does not transfer", "transfers"):
        return " And the learning rate transfers with sp+embd where it does not with sp."
    if verdicts == ("does not transfer", "does not transfer"):
        return " The learning rate transfers with neither of sp and sp+embd."
    return ""


def _canonical(fit: TransferFit) -> str:
    name = str(fit.group.get("parameterization", "")).strip().lower()
    return name.replace("\N{MICRO SIGN}p", "mup").replace("\N{GREEK SMALL LETTER MU}p", "mup")


def _is_sure(estimate: Estimate) -> bool:
    return estimate.value is not None and estimate.status != "not identified"


def _say(estimate: Estimate) -> str:
    assert estimate.value is not None
    return say_number(estimate.value, step=half_width(estimate))


def _above(gap: Estimate) -> str:
    """Return a gap in loss as ``0.12 nats (90 % interval …) above``, or below."""
    assert gap.value is not None
    if gap.value >= 0:
        return f"{_say(gap)} nats ({_range(gap)}) above"
    turned = replace(gap, value=-gap.value, low=_minus(gap.high), high=_minus(gap.low))
    return f"{_say(turned)} nats ({_range(turned)}) below"


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _range(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "no interval"
    step = half_width(estimate)
    low, high = (say_number(end, step=step) for end in (estimate.low, estimate.high))
    return f"90 % interval {low} to {high}"


def _join(names: Sequence[str]) -> str:
    if len(names) > _MOST_GROUPS:
        names = [*names[: _MOST_GROUPS - 1], f"{len(names) - _MOST_GROUPS + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]
