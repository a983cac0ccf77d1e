"""How stable training was near each group's best rates, and what a rate off the best costs.

The critical learning rate η_c is the smallest along the optimizer's step that raises the loss of
the batch, so that η/η_c says how near the edge a run was trained (2/η_c is the critical sharpness
of Kalra et al. 2601.16979).

The learning-rate sensitivity of a width, what a rate picked blindly from its sweep costs, is

    mean over the sweep range of min(loss, loss at init) − best loss

(Wortsman et al. 2023, arXiv 2309.14322). The mean is over ln(lr): a learning rate counts for the
part of the range nearest to it, which on an even grid is the plain mean of the source. The best
loss is the basin's L*, which noise does not pull down as it does the lowest of several means; where
the minimum is not bracketed the lowest mean stands in.

Shape letters: C cells, L learning rates of a width, R resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hptransfer.stats._group_fit import GroupFit
from hptransfer.stats.estimate import Estimate, judge, refuse
from hptransfer.stats.loss_table import Floats, LossTable, build_cells
from hptransfer.stats.reasons import Reason, Reasons
from hptransfer.stats.results import Sensitivity, TransferFit


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


# --- Sensitivity to the learning rate


def measure_widths(table: LossTable, fit: GroupFit) -> tuple[Sensitivity, ...]:
    """Estimate the sensitivity at each width of a group of a table, ascending.

    With one seed per cell the noise is that of the basins' scatter.
    """
    data, cells = fit.data, fit.data.cells
    init = np.full(len(table), np.nan) if table.init_loss is None else table.init_loss
    clipped = np.fmin(np.where(np.isfinite(table.loss), table.loss, np.nan), init)
    # The cells depend on width and lr alone, so that these line up with the group's.
    counted = build_cells(replace(table, loss=clipped), data.rows)
    ceiling = np.nan_to_num(build_cells(replace(table, loss=init), data.rows).mean, nan=np.inf)
    drawn = None
    if fit.draws is not None or data.noise.known:
        moved = data.seeds
        if not data.noise.known:
            moved = fit.missed * data.unit / np.sqrt(np.maximum(cells.count, 1))
        # Where trials diverged or were clipped, a mean has its own trials' spread.
        num = np.maximum(counted.count, 1)
        squares = np.where(counted.present, counted.residuals(), 0.0) ** 2
        own = np.sqrt(squares.sum(axis=1) / np.maximum(num - 1, 1) / num) * data.unit
        untouched = cells.clean & (cells.mean == counted.mean)
        drawn = np.minimum(counted.mean + np.where(untouched, moved, own), ceiling)
    out = []
    for width in fit.minima.size.tolist():
        rows = cells.at(width)
        out.append(
            Sensitivity(
                group=dict(data.group),
                width=width,
                sensitivity=_measure_width(width, fit, counted.mean, ceiling, drawn),
                lr_low=float(np.exp(cells.x[rows[0]])),
                lr_high=float(np.exp(cells.x[rows[-1]])),
                num_lrs=len(rows),
                num_diverged=int(np.sum(cells.diverged[rows] > 0)),
            )
        )
    return tuple(out)


def _measure_width(
    width: float, fit: GroupFit, mean: Floats, ceiling: Floats, drawn: Floats | None
) -> Estimate:
    """Estimate the sensitivity from means over trials of min(loss, loss at init), shape (C,)."""
    cells = fit.data.cells
    rows = cells.at(width)
    unknown = np.isnan(mean[rows])
    if np.any(unknown):
        return refuse(Reason("uncounted", trials=int(np.sum(cells.diverged[rows][unknown]))))
    if len(rows) < 2:
        return refuse(Reason("one_lr"))
    clean = rows[cells.clean[rows]]
    if len(clean) == 0:
        return refuse(Reason("width_diverged"))
    caution: Reasons = () if np.all(np.isfinite(ceiling[rows])) else (Reason("unclipped"),)
    weights = share_range(cells.x[rows])
    lowest = int(clean[np.argmin(cells.mean[clean])])
    best, moved = float(cells.mean[lowest]), None
    if width in fit.usable:
        best, moved = fit.losses_at(width)
    else:
        caution = (Reason("unbracketed_best"), *caution)
    samples = None
    if drawn is not None:
        samples = drawn[:, rows] @ weights - (drawn[:, lowest] if moved is None else moved)
    return judge(float(weights @ mean[rows]) - best, samples, "loss", caution=caution)


def share_range(x: Floats) -> Floats:
    """Weight of each learning rate in a mean over the sweep range, shape (L,), summing to 1.

    Each x = ln(lr), ascending, stands for the half-way intervals to its neighbours; an end
    stands for as much outside as inside, so that an even grid gives equal weights.
    """
    gaps = np.diff(x)
    left = np.concatenate([gaps[:1], gaps])
    right = np.concatenate([gaps, gaps[-1:]])
    return np.asarray((left + right) / np.sum(left + right), dtype=np.float64)
