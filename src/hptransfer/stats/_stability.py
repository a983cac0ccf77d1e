"""How stable training was near each group's best rates, from what was probed on the way.

The critical learning rate η_c is the smallest along the optimizer's step that raises the loss of
the batch, so that η/η_c says how near the edge a run was trained (2/η_c is the critical sharpness
of Kalra et al. 2601.16979).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hptransfer.stats.results import TransferFit


@dataclass(frozen=True, kw_only=True)
class ProbedTrial:
    """A trial that was probed.

    Attributes
    ----------
    group : mapping of str to object
        Its parameterization, weight decay and what else separates fits.
    width : int
    lr : float
        The learning rate on the swept axis.
    seed : int
    diverged : bool
    spikes : int or None
        Loss spikes; None where they were not counted.
    spike_size : float or None
        Height of the highest, in nats.
    medians : mapping of str to float
        Median over the probes after the warm-up of each quantity, by the names of
        `hptransfer.train._probes`; NaN where nothing was measured.
    """

    group: Mapping[str, object]
    width: int
    lr: float
    seed: int
    diverged: bool
    spikes: int | None
    spike_size: float | None
    medians: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Stability:
    """A group's trials at a width, at the swept rate nearest its optimum; medians over seeds.

    Attributes
    ----------
    group : mapping of str to object
    width : int
    lr : float
        That rate.
    num_trials : int
        Trials at it.
    spikes : float or None
        Loss spikes a trial, their mean.
    spike_size : float or None
        Height of the highest of all, in nats.
    edge : float or None
        η/η_c.
    grad_norm : mapping of str to float
        Norm of the gradient by role.
    logit_scale : float or None
        Root mean square of the logits less their mean.
    attention_entropy : float or None
        Mean over layers; 1 where attention is even.
    """

    group: Mapping[str, object]
    width: int
    lr: float
    num_trials: int
    spikes: float | None
    spike_size: float | None
    edge: float | None
    grad_norm: Mapping[str, float]
    logit_scale: float | None
    attention_entropy: float | None


def summarise_stability(
    trials: Sequence[ProbedTrial], fits: Sequence[TransferFit]
) -> tuple[Stability, ...]:
    """Return how stable training was near each fit's optima.

    Parameters
    ----------
    trials : sequence of ProbedTrial
        What was probed.
    fits : sequence of TransferFit
        Fits of the same table, whose groups say which trials are theirs.

    Returns
    -------
    tuple of Stability
        By fit and width; nothing for a width without a bracketed optimum or without probes.

    Examples
    --------
    >>> summarise_stability([], [])
    ()
    """
    found = []
    for fit in fits:
        # A trial is of a fit's group by the columns that both have.
        own = [
            each
            for each in trials
            if all(str(each.group.get(k, v)) == str(v) for k, v in fit.group.items())
        ]
        for basin in fit.basins:
            here = [each for each in own if each.width == basin.width]
            if not here or not basin.bracketed or not basin.lr.value:
                continue
            best = math.log(basin.lr.value)
            rate = min((each.lr for each in here), key=lambda lr: abs(math.log(lr) - best))
            found.append(_summarise([each for each in here if each.lr == rate], fit.group))
    return tuple(found)


def _summarise(trials: Sequence[ProbedTrial], group: Mapping[str, object]) -> Stability:
    names = sorted({name for each in trials for name in each.medians})
    found = {name: _median([each.medians.get(name, math.nan) for each in trials]) for name in names}
    known = {name: value for name, value in found.items() if value is not None}
    layers = [value for name, value in known.items() if name.startswith("attention_entropy/")]
    edges = [
        each.medians.get("lr", math.nan) / each.medians.get("critical_lr", math.nan)
        for each in trials
    ]
    counts = [each.spikes for each in trials if each.spikes is not None]
    sizes = [each.spike_size for each in trials if each.spike_size is not None]
    return Stability(
        group=group,
        width=trials[0].width,
        lr=trials[0].lr,
        num_trials=len(trials),
        spikes=float(np.mean(counts)) if counts else None,
        spike_size=max(sizes, default=None),
        edge=_median(edges),
        grad_norm={
            name.removeprefix("grad_norm/"): value
            for name, value in known.items()
            if name.startswith("grad_norm/")
        },
        logit_scale=known.get("logit_scale"),
        attention_entropy=float(np.mean(layers)) if layers else None,
    )


def _median(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.median(finite)) if finite else None
