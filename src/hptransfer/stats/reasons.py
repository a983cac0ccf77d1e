"""Why a number is not known, and which data would help: kinds with numbers, and their sentences.

Statistics hand on a `Reason`, a kind with its numbers, and decide by the kind; `SENTENCES` is the
one place where kinds become English.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: How every remedy begins, at the end of the reasons.
HELP = "would help: "


@dataclass(init=False)
class Reason:
    """Store why something is as it is: a kind, and the numbers that its sentence needs.

    Parameters
    ----------
    kind : str
        A key of `SENTENCES`.
    **numbers
        What the sentence names; may hold other reasons.

    Examples
    --------
    >>> print(Reason("half_width", half=0.31, limit=0.2))
    90 % half-width 0.31 is above 0.2
    """

    kind: str
    numbers: Mapping[str, Any]

    def __init__(self, kind: str, **numbers: Any) -> None:
        assert kind in SENTENCES, kind
        self.kind, self.numbers = kind, numbers

    def __hash__(self) -> int:
        return hash(self.kind)

    def __str__(self) -> str:
        sentence = SENTENCES[self.kind]
        return sentence(**self.numbers) if callable(sentence) else sentence.format(**self.numbers)


Reasons = tuple[Reason, ...]


def join_reasons(reasons: Iterable[Reason], remedy: Reason | None = None) -> str:
    """Return reasons as one line, the remedy at its end.

    Returns
    -------
    str
        Empty where there are neither reasons nor a remedy.

    Examples
    --------
    >>> join_reasons([Reason("no_losses"), Reason("not_bracketed")])
    'no losses; not bracketed'
    """
    parts = [str(reason) for reason in reasons]
    return "; ".join(parts if remedy is None else [*parts, f"{HELP}{remedy}"])


def say_lr(x: float) -> str:
    """Return a learning rate, given as ln(lr), as sweeps write it: ``2^-7`` where it is one.

    Examples
    --------
    >>> import math
    >>> say_lr(math.log(2**-7)), say_lr(math.log(0.003))
    ('2^-7', '0.003')
    """
    log2 = x / math.log(2.0)
    if abs(4.0 * log2 - round(4.0 * log2)) < 1e-4:
        return f"2^{round(4.0 * log2) / 4.0:g}"
    return f"{math.exp(x):.3g}"


_BOUNDS = {
    "loss_inf": "L∞ hit its bound of 0",
    "A": "the best loss does not fall with width",
}


def _say_bound(
    parameter: str,
    low: float | None = None,
    high: float | None = None,
    percent: float | None = None,
) -> str:
    said = _BOUNDS.get(parameter) or (
        f"{parameter} hit a bound of its range"
        + ("" if low is None or high is None else f" {low:g} to {high:g}")
    )
    return said if percent is None else f"{said} in {percent:.0f} % of the resamples"


def _say_half_width(half: float, limit: float, relative: bool = False) -> str:
    return f"90 % half-width {half:.2g}{' of its value' * relative} is above {limit:.2g}"


def _say_no_drift(about: str, known: bool = True, price: Reason | None = None) -> str:
    if about == "beta":
        return "no drift seen, so that beta has no meaning"
    # Only a drift known to be small is good news; one lost in noise is not.
    news = ", which is good news" if known else " above the noise"
    return f"no drift seen{news}" + ("" if price is None else f": {price}")


def _say_no_reference(missing: str | None = None) -> str:
    return "no reference" + ("" if missing is None else f": {missing} is missing in this setting")


def _say_uncounted(trials: int) -> str:
    said = "1 diverged trial" if trials == 1 else f"{trials} diverged trials"
    return f"{said} cannot be counted without the loss at init"


_NUMBERS = ("no", "one", "two", "three", "four")


def _say_widths(num: int, width: float) -> str:
    return f"{_NUMBERS[num]} more width{'s' * (num > 1)} above {width:g}"


def _say_times(times: int | None, most: int, width: float | None = None) -> str:
    said = f"more than {most}" if times is None else f"about {times}"
    return f"{said} times the trials" + ("" if width is None else f" at width {width:g}")


SENTENCES: dict[str, str | Callable[..., str]] = {
    # Words from outside: a coordinate check that was read from a file.
    "text": "{text}",
    # Of any estimate.
    "no_value": "the fit gave no finite value",
    "no_noise": "no interval: one seed and no spare points to judge the noise by",
    "failed_resamples": "no value in {percent:.0f} % of the resamples",
    "half_width": _say_half_width,
    "at_bound": _say_bound,
    "side_missing": "a side is missing",
    "not_positive": "zero or not finite",
    # Of a basin.
    "all_diverged": "every learning rate diverged",
    "no_losses": "no losses",
    "not_bracketed": "not bracketed",
    "diverged_below": "a trial diverged below the best learning rate",
    "bounded_by_divergence": "bounded on the right by divergence only",
    "bounded_by_disagreement": "bounded on the right only where seeds disagree",
    "best_at_end": "the best learning rate is the {side} measured",
    "seeds_disagree": lambda lr, broke: (
        f"seeds disagree at lr {lr:.3g}{': one broke down' * broke}"
    ),
    "few_points": "only {num} points",
    "basin_needs_points": "a basin needs 3 points, found {num}",
    "not_convex": "not convex",
    "not_convex_here": "the loss near its lowest point is not convex",
    "minimum_outside": "minimum outside the points fitted",
    "minimum_outside_here": "the fitted minimum lies outside the points fitted",
    "no_minimum": "no minimum",
    "num_diverged": "trials diverged at {num} of the learning rates",
    # Of the exponents and metrics.
    "few_widths": "exponents need {needed} widths with a bracketed minimum, found {found}",
    "few_widths_out": "E_out needs {needed} widths with a bracketed minimum, found {found}",
    "few_points_out": "too few points without the widest width",
    "no_residual": "{points} points for {parameters} parameters leave no residual",
    "converging_only": "{name} exists only in the converging form",
    "no_drift": _say_no_drift,
    "no_reference": _say_no_reference,
    "no_gap": "no gap",
    "of_reference": lambda of: f"the reference's {join_reasons(of)}",
    # Of prices.
    "keeping_costs": "keeping the narrowest width's lr at width {width:g} costs at most {most:.2g} "
    "nats (90 %)",
    "diverged_there": "a trial diverged at that learning rate or below it",
    "outside_measured": "that learning rate lies outside those measured at this width",
    "no_loss_over_axes": "the loss over several axes is not predicted",
    "no_slope": "compute needs two widths with a minimum",
    "regret_unknown": "the regret in nats is not known",
    "below_narrowest": "it compares with a width below {width:g}, the narrowest measured",
    "few_optima": "fewer than two widths have an optimum inside the swept range",
    # Of the sensitivity to the learning rate.
    "uncounted": _say_uncounted,
    "one_lr": "one learning rate is no range",
    "width_diverged": "every trial of this width diverged",
    "unbracketed_best": "the minimum is not bracketed: the best loss may lie below the lowest one",
    "unclipped": "the loss at init is unknown: losses above it are counted whole",
    # Of the effect of a switch.
    "pairs_independent": "pairs taken as independent: {found} setting(s) of {needed} or more that "
    "would be needed to allow for what pairs of one share",
    "few_pairs": "{found} pair(s), {needed} or more are needed",
    # Which data would help.
    "missing": lambda parts: " and ".join(map(str, parts)),
    "widths": _say_widths,
    "times": _say_times,
    "widths_or_times": lambda widths, times: f"{widths}, or {times}",
    "neither": "more than {most} times the trials, or widths further apart",
    "right": lambda x, width: f"a point to the right of {say_lr(x)} at width {width:g}",
    "left": lambda x, width: f"a point to the left of {say_lr(x)} at width {width:g}",
    "sides": lambda x, width: f"points on both sides of {say_lr(x)} at width {width:g}",
    "lower": lambda x, width: (
        f"learning rates below {say_lr(x)} at width {width:g}, where none diverges"
    ),
    "near": lambda x, width: f"more points within a factor of 4 of {say_lr(x)} at width {width:g}",
    "between": lambda x, end, width: (
        f"a point between {say_lr(x)} and {say_lr(end)} at width {width:g}"
    ),
    "seed": "a second seed, or more learning rates than the fit has parameters",
    "reference": "a second group of the same setting, or one whose L∞ is identified",
    "at": lambda x, width: f"a point at {say_lr(x)} at width {width:g}",
    "points": "more learning rates at each width",
    "flat": "longer training, or widths further apart: here a wider model is no better",
}
