"""Fit one group of a loss table: basins, joint model, exponents and metrics.

Shape letters: C cells, N points of the joint fit, R resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hptransfer.errors import FitError
from hptransfer.stats.basins import (
    DEFAULT_RESAMPLES,
    DEFAULT_SEED,
    BasinSet,
    Draws,
    draw,
    fit_basins,
)
from hptransfer.stats.cells import DEFAULT_WINDOW, Bools, Cells, Floats, build_cells, split_groups
from hptransfer.stats.design import Design, design_of
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.explain import explain
from hptransfer.stats.joint import refit_joint
from hptransfer.stats.joint_model import JointFit
from hptransfer.stats.judge import TOLERATED_SHARE, refuse
from hptransfer.stats.measure import measure_noise
from hptransfer.stats.metrics import (
    NO_REFERENCE,
    WIDTHS_FOR_JOINT,
    WIDTHS_FOR_OUT,
    describe_bound,
    estimate_drift,
    estimate_error,
    estimate_error_out,
    estimate_exponents,
    estimate_kappa,
)
from hptransfer.stats.misfit import Misfit
from hptransfer.stats.noise import Noise
from hptransfer.stats.regret import price_transfer
from hptransfer.stats.results import Form, TransferFit
from hptransfer.stats.solution import Solution, near_minima, shape_fails, solve_joint
from hptransfer.stats.table import Axis, LossTable

#: Share of the seed variance that a width's learning rates have in common, from which it is said.
SHARED_WORTH_SAYING = 0.3


@dataclass(frozen=True, kw_only=True)
class GroupFit:
    """A `TransferFit` with the arrays that comparing and recommending need.

    Attributes
    ----------
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
    cells : Cells
        The group's trials.
    prices : mapping of float to ndarray, shape (R,), or None
        Resamples of the result's regrets, by width.
    design : Design or None
        The trials behind the point fit, for what more of them would tell.
    """

    result: TransferFit
    basins: BasinSet
    joint: JointFit | None
    samples: JointFit | None
    losses: Floats
    resampled: Floats | None = None
    misfit: Misfit | None = None
    cells: Cells
    prices: Mapping[float, Floats | None]
    design: Design | None = None

    def explained(self, result: TransferFit) -> TransferFit:
        """The result, or one made from it, with the data that would help in each reason."""
        return explain(result, self.basins, self.cells, self.design)


def fit_group(
    cells: Cells,
    noise: Noise,
    draws: Draws,
    *,
    group: Mapping[str, object],
    axis: Axis,
    form: Form = "converging",
    window: float = DEFAULT_WINDOW,
    seed: int = DEFAULT_SEED,
) -> GroupFit:
    """Fit one group whose noise is known and drawn; see `fit_transfer` for the parameters."""
    basins = fit_basins(cells, noise, draws, seed=seed)
    prices = price_transfer(cells, basins)
    regrets = {width: price.estimate for width, price in prices.items()}
    drawn = {width: price.drawn for width, price in prices.items()}
    notes = _describe_data(cells, basins, noise)
    inside = cells.in_window(window)
    usable = np.isin(cells.width, basins.usable)
    points = inside & usable
    result = TransferFit(
        group=dict(group),
        axis=axis,
        form=form,
        basins=basins.basins,
        exponents={},
        metrics={},
        noise_floor=_noise_floor(cells, noise, points if np.any(points) else inside),
        regrets=regrets,
    )
    if len(basins.usable) < WIDTHS_FOR_JOINT:
        problem = (
            f"exponents need {WIDTHS_FOR_JOINT} widths with a bracketed minimum, "
            f"found {len(basins.usable)}"
        )
        names = ("alpha", "b" if form == "power" else "beta", "gamma", "loss_inf")
        result = replace(
            result,
            exponents={name: refuse(problem) for name in names},
            metrics={
                **{name: refuse(problem) for name in ("E", "E_out", "kappa")},
                "R_inf": refuse(NO_REFERENCE),
            },
            notes=(*notes, problem),
        )
        return GroupFit(
            result=result,
            basins=basins,
            joint=None,
            samples=None,
            losses=np.zeros(0),
            cells=cells,
            prices=drawn,
        )

    wide = solve_joint(cells, noise, draws, basins, points, form=form, seed=seed)
    marked = usable & near_minima(cells, basins)
    fit, chosen = wide, points
    if shape_fails(wide.misfit, basins.misfit) and marked.sum() > wide.joint.num_parameters + 1:
        fit = solve_joint(cells, noise, draws, basins, marked, form=form, seed=seed)
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
        "E_out": _leave_out(wide, basins),
        "kappa": estimate_kappa(fit.joint, fit.samples, drift, price),
        "R_inf": refuse(NO_REFERENCE),
    }
    notes += _describe_fit(fit, noise, wide)
    result = replace(
        result,
        exponents=estimate_exponents(fit.joint, fit.samples, drift),
        metrics=metrics,
        notes=tuple(notes),
        drift=drift,
        model=fit.joint.model(),
    )
    return GroupFit(
        result=result,
        basins=basins,
        joint=fit.joint,
        samples=fit.samples,
        losses=fit.losses,
        resampled=fit.resampled,
        misfit=fit.misfit,
        cells=cells,
        prices=drawn,
        design=design_of(fit.joint, cells, noise, fit.misfit, chosen),
    )


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
        return refuse(f"E_out needs {WIDTHS_FOR_OUT} widths with a bracketed minimum, found {num}")
    widest = basins.usable[-1]
    out = fit.width == widest
    if int(np.sum(~out)) < fit.joint.num_parameters:
        return refuse("too few points without the widest width")
    point = refit_joint(fit.joint, fit.losses[None, :], keep=~out)
    drawn = fit.resampled
    samples = None if drawn is None else refit_joint(fit.joint, drawn, keep=~out)
    return estimate_error_out(point, fit.losses, samples, drawn, width=widest, x=fit.x, out=out)


def _describe_data(cells: Cells, basins: BasinSet, noise: Noise) -> list[str]:
    """Say what the data lack."""
    notes = []
    for basin in basins.basins:
        if basin.width not in basins.usable:
            why = "; ".join(basin.flags) or "no minimum"
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
    (group,) = split_groups(table, tuple(table.groups))
    cells = build_cells(table)
    (noise,) = measure_noise([cells], window=window)
    fit = fit_group(
        cells,
        noise,
        draw(cells, noise, num_resamples=num_resamples, seed=seed),
        group=dict(group.key),
        axis=table.axis,
        form=form,
        window=window,
        seed=seed,
    )
    return fit.explained(fit.result)
