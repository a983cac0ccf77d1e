"""Claim C2 from the probes that a table stores: SP beside SP+Embd, and µP−Embd beside µP."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from measured import Range, Table, mean_range

from hptransfer.stats._stability import ProbedTrial
from hptransfer.tables import read_probes

PAIRS = (("sp", "sp+embd"), ("mup-embd", "mup"))
#: Octaves from a rule's own optimum at which two rules are held against each other, and how far
#: a swept rate may lie from there.
OFFSETS = (-1.0, 0.0, 1.0, 2.0, 3.0)
NEAREST = 0.4


@dataclass(frozen=True)
class Measure:
    """A quantity that is told: its words, its value from a trial's probes, which way is calm."""

    words: str
    quantity: str
    over: str = ""
    calmer: int = 0
    """-1: a smaller one is calmer; +1: a larger one; 0: it says nothing of stability."""


MEASURES = (
    Measure("η/η_c, how near the critical rate", "lr", "critical_lr", calmer=-1),
    Measure("gradient norm, embedding", "grad_norm/embedding", calmer=-1),
    Measure("gradient norm, hidden", "grad_norm/hidden", calmer=-1),
    Measure(
        "step over size, token embedding",
        "update_rms/token_embedding",
        "weight_rms/token_embedding",
    ),
    Measure("step over size, readout", "update_rms/readout", "weight_rms/readout"),
    Measure("change of the embedding's output in a step", "activation_change/embedding"),
    Measure("change of the logits in a step", "activation_change/readout"),
    Measure("scale of the logits", "logit_scale"),
    Measure("entropy of attention, first layer", "attention_entropy/layers.0"),
)


def measure(trial: ProbedTrial, what: Measure) -> float:
    """Return the ln of a measure in a trial; NaN where it is not known."""
    value = trial.medians.get(what.quantity, math.nan)
    if what.over:
        value /= trial.medians.get(what.over, math.nan) or math.nan
    return math.log(value) if value > 0 else math.nan


def describe_dynamics(tables: dict[str, Table]) -> Iterator[str]:
    """Yield a table of ratios for each pair of rules and each distance from the optimum."""
    probed = {name: trials for name, table in tables.items() if (trials := read_probes(table.path))}
    if not probed:
        yield "No table with probes has been run yet: **undecided**, nothing measured."
        yield ""
        return
    for name, trials in probed.items():
        for off, on in PAIRS:
            if {off, on} <= {trial.group["parameterization"] for trial in trials}:
                yield from _describe_pair(tables[name], trials, off, on)


def _describe_pair(table: Table, trials: Sequence[ProbedTrial], off: str, on: str) -> Iterator[str]:
    cells = {rule: _place(table, trials, rule) for rule in (off, on)}
    common = [key for key in cells[off] if key in cells[on]]
    offsets = [offset for offset in OFFSETS if any(key[0] == offset for key in common)]
    yield f"### `{table.name}`: {on} over {off}"
    yield ""
    yield (
        "| measure, median after the warmup | "
        + " | ".join(f"at ×{2.0**offset:g} of each one's optimum" for offset in offsets)
        + " |"
    )
    yield "|---|" + "---|" * len(offsets)
    votes: list[int] = []
    for what in MEASURES:
        shown = []
        for offset in offsets:
            logs = [
                measure(cells[on][key], what) - measure(cells[off][key], what)
                for key in common
                if key[0] == offset
            ]
            ratio = mean_range([value for value in logs if math.isfinite(value)])
            if ratio is None:
                shown.append("–")
                continue
            if what.calmer and offset == 0.0:
                votes.append(_vote(ratio) * what.calmer)
            ratio = Range(*(math.exp(v) for v in (ratio.value, ratio.low, ratio.high)))
            shown.append(f"× {ratio.show('{:.2f}')}")
        yield f"| {what.words} | " + " | ".join(shown) + " |"
    for words, found, form, counts in (
        ("loss spikes a trial, difference", _count_spikes, "{:+.2f}", True),
        # Swept rates lie at unequal distances from ×2, of which this says more than of the rule.
        ("loss above the seed's best rate, nats, difference", _lose(table), "{:+.3f}", False),
    ):
        shown = []
        for offset in offsets:
            changes = [
                found(cells[on][key]) - found(cells[off][key]) for key in common if key[0] == offset
            ]
            change = mean_range([value for value in changes if math.isfinite(value)])
            if change is not None and counts and offset == 1.0:
                votes.append(-_vote(change))
            shown.append("–" if change is None else change.show(form))
        yield f"| {words} | " + " | ".join(shown) + " |"
    yield ""
    yield (
        f"{len(common)} pairs of trials of equal width and seed; ratios and differences with 90 % "
        "intervals over them."
    )
    yield ""
    yield (
        f"C2 here: **{judge_votes(votes)}**: of the measures that say something of stability, "
        f"{votes.count(1)} are calmer with `embd`, {votes.count(-1)} are less calm, "
        f"{votes.count(0)} can't be told apart."
    )
    yield ""


def _count_spikes(trial: ProbedTrial) -> float:
    return float(trial.spikes or 0)


def _lose(table: Table) -> Callable[[ProbedTrial], float]:
    """Return a function that says how far a trial's loss lies above the best of its seed."""
    names = ("parameterization", "width", "weight_decay", "seed", "base_lr", "loss")
    losses: dict[tuple[Any, ...], dict[float, float]] = {}
    for *cell, lr, loss in zip(*(table.column(name) for name in names), strict=True):
        if loss is not None:
            losses.setdefault(tuple(cell), {})[lr] = loss

    def above(trial: ProbedTrial) -> float:
        cell = losses.get(
            (trial.group["parameterization"], trial.width, trial.group["weight_decay"], trial.seed),
            {},
        )
        return cell[trial.lr] - min(cell.values()) if trial.lr in cell else math.nan

    return above


def judge_votes(votes: Sequence[int]) -> str:
    """Judge C2 by measures that are calmer (1), less calm (-1) or not told apart (0) with `embd`.

    It holds where three or more are calmer and none is less calm, and fails where more are less
    calm than calmer.
    """
    if votes.count(-1) > votes.count(1):
        return "fails"
    return "holds" if votes.count(1) >= 3 and -1 not in votes else "undecided"


def _vote(found: Range) -> int:
    return 1 if found.low > 0 else -1 if found.high < 0 else 0


def _place(
    table: Table, trials: Sequence[ProbedTrial], rule: str
) -> dict[tuple[float, int, int], ProbedTrial]:
    """Return a rule's trials by (offset from its optimum at that width, width, seed)."""
    fit = table.fits()[rule, 0.0]
    found: dict[tuple[float, int, int], ProbedTrial] = {}
    for width, basin in fit.basins.items():
        if width == table.setting("base_width"):
            continue  # all rules are one there
        own = [
            each
            for each in trials
            if (each.group["parameterization"], each.width, each.group["weight_decay"])
            == (rule, width, 0.0)
        ]
        rates = np.array(sorted({each.lr for each in own}))
        for offset in OFFSETS:
            away = np.abs(np.log2(rates) - basin.x.value / math.log(2) - offset)
            if len(rates) and away.min() <= NEAREST:
                rate = rates[away.argmin()]
                found |= {(offset, width, each.seed): each for each in own if each.lr == rate}
    return found
