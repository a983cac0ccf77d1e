"""Fit one group of a loss table: its basins, the joint model, the exponents and metrics.

Shape letters: C cells, N points of the joint fit, R resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hptransfer.errors import FitError
from hptransfer.stats._fisher import Design, design_of
from hptransfer.stats._joint_fit import Solution, near_minima, refit_joint, shape_fails, solve_joint
from hptransfer.stats._joint_model import JointFit
from hptransfer.stats._metrics import (
    WIDTHS_FOR_JOINT,
    WIDTHS_FOR_OUT,
    describe_bound,
    estimate_drift,
    estimate_error,
    estimate_error_out,
    estimate_exponents,
    estimate_kappa,
    measure_drift,
    price_transfer,
)
from hptransfer.stats._misfit import Misfit, cell_variances
from hptransfer.stats._suggestions import explain
from hptransfer.stats.basin import BasinSet, fit_basins
from hptransfer.stats.cells import DEFAULT_WINDOW, Bools, Cells, Floats
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.group_data import (
    DEFAULT_RESAMPLES,
    DEFAULT_SEED,
    GroupData,
    gather_groups,
    split_table,
)
from hptransfer.stats.identifiability import TOLERATED_SHARE, refuse
from hptransfer.stats.loss_table import LossTable
from hptransfer.stats.minima import REAL, Minima, Trust, find_minima
from hptransfer.stats.reasons import Reason, join_reasons
from hptransfer.stats.results import Form, TransferFit
from hptransfer.stats.seed_noise import Noise

#: Share of the seed variance that a width's learning rates have in common, from which it is said.
SHARED_WORTH_SAYING = 0.3


@dataclass(frozen=True, kw_only=True)
class GroupFit:
    """A `TransferFit` with the arrays that comparing and recommending need.

    Attributes
    ----------
    data : GroupData
        The group's trials, noise and resamples.
    result : TransferFit
        What the user sees.
    basins : BasinSet
        Basins with resamples.
    joint, samples : JointFit or None
        Point fit and its resamples; None where there is none.
    losses : ndarray, shape (N,)
        Cell means the point fit saw; empty where there is none.
    resampled : ndarray, shape (R, N), or None
        Those that `samples` saw.
    misfit : Misfit or None
        Scatter around the point fit beyond seed noise.
    prices : mapping of float to ndarray, shape (R,), or None
        Resamples of the result's regrets, by width.
    design : Design or None
        The trials behind the point fit, for what more of them would tell.
    minima : Minima
        Each width's minimum with its best loss free, which recommendations rest on.
    wide : Solution or None
        The joint fit to the whole window, which E and E_out are of; None where there is none.
    """

    data: GroupData
    result: TransferFit
    basins: BasinSet
    minima: Minima
    joint: JointFit | None
    samples: JointFit | None
    losses: Floats
    resampled: Floats | None = None
    misfit: Misfit | None = None
    prices: Mapping[float, Floats | None]
    design: Design | None = None
    wide: Solution | None = None

    def explained(self, result: TransferFit) -> TransferFit:
        """Return the result, or one made from it, with the data that would help in each reason."""
        return explain(result, self.basins, self.data.cells, self.design)

    def error_out(self) -> Estimate:
        """Return E_out: refit without the widest width and score the fit there."""
        if self.wide is None:
            return self.result.metrics["E_out"]
        return _leave_out(self.wide, self.basins)


#: Largest shift of ln(lr*) that is said in figures; a joint model astray can mean any.
_MOST_MOVED = 20.0


def fit_group(data: GroupData, *, form: Form = "converging") -> GroupFit:
    """Fit one group; its E_out is left to `GroupFit.error_out`, which costs as much again."""
    cells, noise = data.cells, data.noise
    basins = fit_basins(data)
    minima = find_group_minima(data)
    prices = price_transfer(cells, basins)
    regrets = {width: price.estimate for width, price in prices.items()}
    drawn = {width: price.drawn for width, price in prices.items()}
    notes = _describe_data(cells, basins, noise)
    inside = cells.in_window(data.window)
    usable = np.isin(cells.width, basins.usable)
    points = inside & usable
    result = TransferFit(
        group=dict(data.group),
        axis=data.axis,
        form=form,
        basins=basins.basins,
        exponents={},
        metrics={},
        noise_floor=_noise_floor(cells, noise, points if np.any(points) else inside),
        regrets=regrets,
        drift=measure_drift(minima),
    )
    if len(basins.usable) < WIDTHS_FOR_JOINT:
        problem = Reason("few_widths", needed=WIDTHS_FOR_JOINT, found=len(basins.usable))
        names = ("alpha", "b" if form == "power" else "beta", "gamma", "loss_inf")
        result = replace(
            result,
            exponents={name: refuse(problem) for name in names},
            metrics={
                **{name: refuse(problem) for name in ("E", "E_out", "kappa")},
                "R_inf": refuse(Reason("no_reference")),
            },
            notes=(*notes, str(problem)),
        )
        return GroupFit(
            data=data,
            result=result,
            basins=basins,
            minima=minima,
            joint=None,
            samples=None,
            losses=np.zeros(0),
            prices=drawn,
        )

    wide = solve_joint(data, basins, points, form=form)
    marked = usable & near_minima(cells, basins)
    fit, chosen = wide, points
    if shape_fails(wide.misfit, basins.misfit) and marked.sum() > wide.joint.num_parameters + 1:
        fit = solve_joint(data, basins, marked, form=form)
        chosen = marked
        notes.append(
            "the joint model does not hold across the window: E is its error there, all else "
            "comes from the points near the minima"
        )
    drift = estimate_drift(fit.joint, fit.samples, basins.usable[0], basins.usable[-1])
    widest = basins.usable[-1]
    price = describe_bound(regrets[widest], widest)
    metrics = {
        "E": estimate_error(wide.joint, wide.losses, wide.samples, wide.resampled),
        "E_out": refuse(),
        "kappa": estimate_kappa(fit.joint, fit.samples, drift, price),
        "R_inf": refuse(Reason("no_reference")),
    }
    notes += _describe_fit(fit, noise, wide)
    own = measure_drift(minima)
    if own is not None and own.low is not None and own.high is not None and drift.value is not None:
        ends = minima.size[minima.found][[0, -1]]
        moved = float((fit.joint.optimum(ends[1]) - fit.joint.optimum(ends[0]))[0])
        if not own.low <= moved <= own.high:
            moved = float(np.clip(moved, -_MOST_MOVED, _MOST_MOVED))
            notes.append(
                f"from width {ends[0]:g} to {ends[1]:g} the joint model moves the optimum by "
                f"×{np.exp(moved):.2f}, the basins by ×{np.exp(own.value or 0.0):.2f}: the basins "
                "count"
            )
    result = replace(
        result,
        exponents=estimate_exponents(fit.joint, fit.samples, drift),
        metrics=metrics,
        notes=tuple(notes),
        drift=own,
        model=fit.joint.model(),
    )
    return GroupFit(
        data=data,
        result=result,
        basins=basins,
        minima=minima,
        joint=fit.joint,
        samples=fit.samples,
        losses=fit.losses,
        resampled=fit.resampled,
        misfit=fit.misfit,
        prices=drawn,
        design=design_of(fit.joint, cells, noise, fit.misfit, chosen),
        wide=wide,
    )


def find_group_minima(data: GroupData, trust: Trust = REAL) -> Minima:
    """Find the minima of a group's widths, cells weighed by what their seeds say of them."""
    cells = data.cells
    weight = 1.0 / cell_variances(cells, data.noise)
    # What the seeds say of a mean is no less than its noise; unsettled cells say it themselves.
    variance = data.noise.sigma**2 / np.maximum(cells.count, 1) if data.noise.known else None
    return find_minima(cells.width, cells.x, cells.mean, weight, variance=variance, trust=trust)


def _noise_floor(cells: Cells, noise: Noise, points: Bools) -> float | None:
    """Mean variance of the points' means over seeds, in nats²; None with one seed.

    Unsettled cells are left out: one broken trial would stand for the noise of them all.
    """
    points = points & ~noise.unsettled
    if not noise.known or not np.any(points):
        return None
    return float(np.mean(noise.sigma[points] ** 2 / cells.count[points]))


def _leave_out(fit: Solution, basins: BasinSet) -> Estimate:
    """Refit without the widest width and score the fit there."""
    num = len(basins.usable)
    if num < WIDTHS_FOR_OUT:
        return refuse(Reason("few_widths_out", needed=WIDTHS_FOR_OUT, found=num))
    widest = basins.usable[-1]
    out = fit.width == widest
    if int(np.sum(~out)) < fit.joint.num_parameters:
        return refuse(Reason("few_points_out"))
    point = refit_joint(fit.joint, fit.losses[None, :], keep=~out)
    drawn = fit.resampled
    samples = None if drawn is None else refit_joint(fit.joint, drawn, keep=~out)
    return estimate_error_out(point, fit.losses, samples, drawn, width=widest, x=fit.x, out=out)


def _describe_data(cells: Cells, basins: BasinSet, noise: Noise) -> list[str]:
    """Say what the data lack."""
    notes = []
    for basin in basins.basins:
        if basin.width not in basins.usable:
            why = join_reasons(basin.flags or (Reason("no_minimum"),))
            notes.append(f"width {basin.width:g} is left out of the joint fit: {why}")
    if not noise.known:
        notes.append("one seed per point: intervals come from the scatter around the fits")
    elif noise.shared > SHARED_WORTH_SAYING:
        notes.append(
            f"{100 * noise.shared:.0f} % of the seed variance moves all learning rates of a width "
            "together"
        )
    if basins.misfit.sigma > 0.0 and noise.known:
        notes.append(
            f"basins scatter by {basins.misfit.sigma:.2g} nats beyond seed noise; "
            "their intervals include it"
        )
    return notes


def _describe_fit(fit: Solution, noise: Noise, wide: Solution) -> list[str]:
    """Say what the joint fit ran into; `wide` is the fit to the whole window."""
    joint, samples, misfit = fit.joint, fit.samples, wide.misfit
    notes = [
        f"{name} sits at a bound of the fit" for name, hit in joint.at_bound().items() if hit[0]
    ]
    if joint.skewed:
        notes.append("the basins are lopsided: one skew shared by all widths was kept")
    if misfit.sigma > 0.0 and noise.known:
        notes.append(
            f"the joint model misses by {misfit.sigma:.2g} nats beyond seed noise in the window; "
            "the intervals include it"
        )
    if samples is not None:
        for name, hits in samples.at_bound().items():
            share = float(np.mean(hits))
            if share > TOLERATED_SHARE and not joint.at_bound()[name][0]:
                notes.append(f"{name} sits at a bound in {100 * share:.0f} % of the resamples")
    return notes


def fit_transfer(
    table: LossTable,
    *,
    form: Form = "converging",
    window: float = DEFAULT_WINDOW,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = DEFAULT_SEED,
) -> TransferFit:
    """Fit the joint model to a table that holds one group.

    Parameters
    ----------
    table : LossTable
        Trials of one group; group columns hold one value each.
    form : Form
        Form of the optimum against width.
    window : float
        Points with a mean loss up to this multiple of their width's best are fitted.
    num_resamples, seed : int
        Number and seed of the resamples behind the 90 % intervals.

    Raises
    ------
    FitError
        The table is empty, or a group column holds several values.
    """
    if len(table) == 0:
        raise FitError(f"{table.source}: expected at least one trial, found none")
    for name, values in table.groups.items():
        found = sorted({str(v) for v in values})
        if len(found) > 1:
            raise FitError(
                f"{table.source}: column {name}: expected one value, found {', '.join(found[:4])}; "
                "fit_table splits groups"
            )
    split = split_table(table, tuple(table.groups))
    (data,) = gather_groups(table, split, window=window, num_resamples=num_resamples, seed=seed)
    fit = fit_group(data, form=form)
    metrics = {**fit.result.metrics, "E_out": fit.error_out()}
    return fit.explained(replace(fit.result, metrics=metrics))
