"""Fit one group of a loss table: noise, minima and basins, laws of width, exponents and metrics.

Shape letters: C cells, R resamples, W widths.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeGuard, cast

import numpy as np

from hptransfer._messages import show_value
from hptransfer.errors import FitError
from hptransfer.stats._metrics import (
    estimate_exponents,
    estimate_kappa,
    judge_fast,
    list_bounds,
    measure_drift,
    price_transfer,
)
from hptransfer.stats._power_laws import Laws, MinimaDraws, fit_laws, resample_minima
from hptransfer.stats.estimate import BasinFit, exponentiate, f_limit, judge, refuse
from hptransfer.stats.fit_window import Sweep, find_neighbourhood, sweep_of
from hptransfer.stats.joint_model import WIDTHS_FOR_JOINT, measure_errors
from hptransfer.stats.loss_table import (
    DEFAULT_WINDOW,
    Axis,
    Bools,
    Cells,
    Floats,
    Group,
    Ints,
    LossTable,
    build_cells,
    list_settings,
    split_table,
)
from hptransfer.stats.minima import EXACT, REAL, Minima, Trust, find_minima
from hptransfer.stats.reasons import Reason, join_reasons
from hptransfer.stats.results import FastTransfer, Form, TransferFit
from hptransfer.stats.seed_noise import Noise, cell_variances, draw_noise, is_silent, measure_noise

#: The ends of an interval from 500 draws lie within 4 % of where more would put them.
DEFAULT_RESAMPLES = 500
DEFAULT_SEED = 0
#: Share of the seed variance that a width's learning rates have in common, from which it is said.
_SHARED_WORTH_SAYING = 0.3
#: Scatter of ln lr* from width to width from which it is said.
_SCATTER_WORTH_SAYING = 0.02
#: Skew per unit of ln(lr) from which it is said.
_SKEW_WORTH_SAYING = 0.05
#: Levels of the tests that the basins' shape, or the joint model, misses by more than noise does.
_SHAPE_LEVEL, _MISFIT_LEVEL = 1e-3, 0.01
#: Level of the shape's where a scatter of 0 is held: it gives way to no chance.
_HELD_LEVEL = 1e-6
#: Basins of one shape near their minima.
_NEAR = EXACT._replace(reach=REAL.reach)
#: What data may say against basins of one shape: the first, beyond chance, ends that of a held 0.
_WRONG, _UNTESTED = "does not hold", "cannot be tested"


@dataclass(frozen=True, kw_only=True)
class GroupData:
    """The trials of one group with the noise of their seeds and its resamples.

    Attributes
    ----------
    cells : Cells
        The trials, one cell for each width and learning rate.
    noise : Noise
        Seed noise of the cells.
    seeds : ndarray, shape (R, C)
        Resampled seed noise of the cell means, in nats.
    unit : ndarray, shape (R, C)
        Standard normal draws, which a fit scales by the misfit it finds.
    group : mapping of str to object
        The values that name the group; empty for a table of one group.
    rows : ndarray of int
        The group's rows in its table.
    axis : Axis
        Name of the learning-rate axis.
    window : float
        Points with a mean loss up to this multiple of their width's best count for E.
    seed : int
        Seed of the resamples.
    stream : int
        The group's number in its table: what groups do not share is drawn apart.
    """

    cells: Cells
    noise: Noise
    seeds: Floats
    unit: Floats
    group: Mapping[str, object]
    rows: Ints
    axis: Axis
    window: float
    seed: int
    stream: int


def gather_groups(
    table: LossTable,
    groups: Sequence[Group] | None = None,
    *,
    window: float = DEFAULT_WINDOW,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = DEFAULT_SEED,
) -> list[GroupData]:
    """Gather the trials, noise and resamples of each group of a table.

    Parameters
    ----------
    table : LossTable
        Trials.
    groups : sequence of Group, optional
        Groups of one setting share the noise that their seeds share. By default those
        of all group columns.
    window, num_resamples, seed
        As for `fit_table`.

    Raises
    ------
    FitError
        The table has a token axis, or a width or learning rate is not a positive number.
    """
    groups = split_table(table) if groups is None else groups
    cells = [build_cells(table, group.rows) for group in groups]
    found: dict[int, GroupData] = {}
    for members in list_settings([group.values for group in groups]):
        noises = measure_noise([cells[k] for k in members])
        for k, noise in zip(members, noises, strict=True):
            shape = num_resamples, len(cells[k])
            found[k] = GroupData(
                cells=cells[k],
                noise=noise,
                seeds=draw_noise(cells[k], noise, num_resamples=num_resamples, seed=seed, stream=k),
                unit=np.random.default_rng([seed, 4, k]).standard_normal(shape),
                group=groups[k].values,
                rows=groups[k].rows,
                axis=table.axis,
                window=window,
                seed=seed,
                stream=k,
            )
    return [found[k] for k in range(len(cells))]


@dataclass(frozen=True, kw_only=True)
class GroupFit:
    """A `TransferFit` with the arrays that comparing and recommending need.

    Attributes
    ----------
    data : GroupData
        The group's trials, noise and resamples.
    result : TransferFit
        What the user sees.
    minima : Minima
        Each width's minimum with its best loss free, which all else rests on.
    draws : MinimaDraws or None
        Resamples of them; None where no noise is known.
    laws : Laws or None
        Laws of width, with resamples; None with fewer than three minima.
    missed : float
        Standard deviation of points about the joint model, or about their basins where there is
        none, in nats.
    edge, cliff : float
        Lowest ln(lr) at which any trial diverged, and at which one of several seeds broke down
        above its width's best; inf if none.
    scatter : float or None
        The scatter that was held.
    doubt : str
        What speaks against basins of one shape, in words; "" for nothing.
    """

    data: GroupData
    result: TransferFit
    minima: Minima
    draws: MinimaDraws | None
    laws: Laws | None = None
    missed: float
    edge: float
    cliff: float
    scatter: float | None = None
    doubt: str = ""

    @property
    def usable(self) -> tuple[float, ...]:
        """Widths with a minimum, ascending."""
        return tuple(self.minima.size[self.minima.found].tolist())

    def losses_at(self, width: float) -> tuple[float, Floats | None]:
        """L* at a width with a minimum, in nats, and its resamples (R,)."""
        place = int(np.flatnonzero(self.minima.size == width)[0])
        drawn = None if self.draws is None else self.draws.loss[:, place]
        return float(self.minima.loss[place]), drawn

    @property
    def fast(self) -> FastTransfer:
        """Whether transfer is fast, β > α/2."""
        return judge_fast(self.laws, self.result.group, self.result.exponents["alpha"].reasons)


def fit_groups(
    data: Sequence[GroupData],
    *,
    form: Form = "converging",
    scatter: float | None = None,
) -> tuple[GroupFit, ...]:
    """Fit all groups of a table.

    Parameters
    ----------
    data : sequence of GroupData
        Their trials; groups of one setting may hold the very same ones.
    form : Form
        Form of the optimum.
    scatter : float or None
        Standard deviation of x* from size to size, held; None finds it. With 0 the laws are taken
        to hold exactly, and the basins' shape where the data do not contradict it.
    """
    exact = [find_group_minima(each, EXACT) for each in data]
    found = [find_group_minima(each) for each in data] if scatter != 0.0 else exact.copy()
    doubts = []
    for k, (minima, each) in enumerate(zip(exact, data, strict=True)):
        doubts.append(_doubt_shape(minima, each, _SHAPE_LEVEL, _MISFIT_LEVEL))
        if scatter == 0.0 and _doubt_shape(minima, each, _HELD_LEVEL, _HELD_LEVEL) == _WRONG:
            found[k] = find_group_minima(each)
    draws = [draw_minima(minima, each) for minima, each in zip(found, data, strict=True)]
    for members in list_settings([each.group for each in data]):
        join_equal(members, data, found, draws)
    out = []
    for one, minima, drawn, shape, doubt in zip(data, found, draws, exact, doubts, strict=True):
        # Exponents come from basins of one shape where the data do not contradict that.
        basis = minima, drawn
        if scatter != 0.0 and not doubt and np.array_equal(shape.found, minima.found):
            basis = shape, draw_minima(shape, one)
        out.append(fit_group(one, minima, drawn, basis, doubt, form=form, scatter=scatter))
    return tuple(out)


def fit_group(
    data: GroupData,
    minima: Minima,
    draws: MinimaDraws | None,
    basis: tuple[Minima, MinimaDraws | None],
    doubt: str,
    *,
    form: Form,
    scatter: float | None,
) -> GroupFit:
    """Fit one group.

    Parameters
    ----------
    data : GroupData
        Its trials.
    minima, draws : Minima and MinimaDraws
        Their minima, and resamples of them; None where no noise is known.
    basis : (Minima, MinimaDraws or None)
        Those that the laws of width are fitted to.
    doubt : str
        What speaks against basins of one shape.
    form, scatter
        As for `fit_groups`.
    """
    cells, noise = data.cells, data.noise
    sweeps = [sweep_of(cells, cells.at(w), noise.unsettled) for w in cells.widths.tolist()]
    basins = tuple(_describe_basin(s, minima, k, draws) for k, s in enumerate(sweeps))
    regrets = price_transfer(cells, minima, draws)
    usable = minima.size[minima.found]
    inside = cells.in_window(data.window)
    points = inside & np.isin(cells.width, usable)
    notes = _describe_data(data, basins, usable)
    if doubt and (scatter == 0.0 or len(usable) >= WIDTHS_FOR_JOINT):
        what = "exponents" if scatter != 0.0 else "minima and exponents"
        rest = "rest on it" if minima.cubic else "come from the points near the minima"
        notes.append(f"the basins' shape {doubt} across the learning rates: {what} {rest}")
    missed = float(np.nan_to_num(minima.noise).max(initial=0.0))
    laws: Laws | None = None
    if len(usable) < WIDTHS_FOR_JOINT:
        problem = Reason("few_widths", needed=WIDTHS_FOR_JOINT, found=len(usable))
        names = ("alpha", "b" if form == "power" else "beta", "gamma", "loss_inf")
        exponents = {name: refuse(problem) for name in names}
        metrics = {name: refuse(problem) for name in ("E", "E_out", "kappa")}
        notes.append(str(problem))
    else:
        each = (noise.shared if noise.known else 0.0) * noise.of_means(cells)
        shared = np.array([each[p].mean() if len(p) else 0.0 for p in basis[0].points])
        rng = np.random.default_rng([data.seed, 6, data.stream])
        laws = fit_laws(*basis, form, rng, shared=shared, scatter=scatter)
        metrics, beyond, freedom = measure_errors(
            cells.width[points], cells.x[points], cells.mean[points], minima, form=form
        )
        missed = beyond if freedom > 0 else missed
        if noise.known and freedom > 0 and not is_silent(cells, noise):
            expected = float(np.mean(noise.of_means(cells)[points]))
            if beyond**2 > f_limit(_MISFIT_LEVEL, freedom, noise.dof) * expected:
                notes.append(
                    f"the joint model misses by {np.sqrt(beyond**2 - expected):.2g} nats beyond "
                    "seed noise in the window"
                )
        exponents = estimate_exponents(laws)
        widest, price = float(usable[-1]), None
        if (most := regrets[widest].high) is not None:
            price = Reason("keeping_costs", width=widest, most=most)
        metrics["kappa"] = estimate_kappa(laws, price)
        notes += _describe_laws(laws)
    result = TransferFit(
        group=dict(data.group),
        axis=data.axis,
        form=form,
        basins=basins,
        exponents=exponents,
        metrics=metrics | {"R_inf": refuse(Reason("no_reference"))},
        noise_floor=_noise_floor(data, points if np.any(points) else inside),
        regrets=regrets,
        drift=measure_drift(minima, laws.scatter if laws else scatter or 0.0),
        notes=tuple(notes),
        model=None if laws is None else laws.model(),
    )
    return GroupFit(
        data=data,
        result=result,
        minima=minima,
        draws=draws,
        laws=laws,
        missed=missed,
        edge=float(cells.x[cells.diverged > 0].min(initial=np.inf)),
        cliff=min((sweep.cliff for sweep in sweeps), default=np.inf),
        scatter=scatter,
        doubt=doubt,
    )


def _doubt_shape(exact: Minima, data: GroupData, by_seeds: float, by_points: float) -> str:
    """Say what speaks against basins of one shape, "" for nothing.

    They turn down within their points, or miss them by more than seeds, or near points, do: tests
    at the levels `by_seeds` and `by_points`.
    """
    if exact.skew != 0.0:
        turn = exact.x - 2.0 / exact.skew
        if np.any((turn > exact.ends[:, 0]) & (turn < exact.ends[:, 1])):
            return _WRONG
    square, freedom = _pool_squares(exact)
    if freedom < 1.0:
        return ""
    if not is_silent(data.cells, data.noise):
        ok = exact.found
        variance = data.noise.of_means(data.cells)
        known = np.array([variance[p].mean() if len(p) else 1.0 for p in exact.points])
        ratio = float(np.sum((exact.freedom * exact.squares / known)[ok])) / freedom
        return "" if ratio <= f_limit(by_seeds, freedom, data.noise.dof) else _WRONG
    near, spare = _pool_squares(find_group_minima(data, _NEAR))
    # Squares below this are rounding.
    if square <= 1e-24:
        return ""
    if spare < 1.0:
        return _UNTESTED
    return "" if square <= f_limit(by_points, freedom, spare) * near + 1e-24 else _WRONG


def _pool_squares(minima: Minima) -> tuple[float, float]:
    """Mean square of all points about their basins, in nats², and its degrees of freedom."""
    freedom = float(np.nansum(minima.freedom))
    total = float(np.nansum(minima.freedom * minima.squares))
    return (total / freedom if freedom > 0.0 else 0.0), freedom


def find_group_minima(data: GroupData, trust: Trust = REAL) -> Minima:
    """Find the minima of a group's widths, cells weighed by what their seeds say of them."""
    cells, noise = data.cells, data.noise
    return find_minima(
        cells.width,
        cells.x,
        cells.mean,
        1.0 / cell_variances(cells, noise),
        # What the seeds say of a mean is no less than its noise.
        variance=None if is_silent(cells, noise) else noise.of_means(cells),
        trust=trust,
    )


def draw_minima(minima: Minima, data: GroupData) -> MinimaDraws | None:
    """Resample a group's minima, paired by seed with those of other groups.

    Where seeds measured no noise, the scatter of near points about basins of one shape does.
    """
    rng = np.random.default_rng([data.seed, 5, data.stream])
    if not is_silent(data.cells, data.noise):
        return resample_minima(minima, data.seeds, data.unit, rng)
    square, freedom = _pool_squares(find_group_minima(data, _NEAR))
    least = square * (freedom >= 1.0) / np.maximum(data.cells.count, 1)
    return resample_minima(minima, None, data.unit, rng, least)


def join_equal(
    members: Sequence[int],
    data: Sequence[GroupData],
    found: list[Minima],
    draws: list[MinimaDraws | None],
) -> None:
    """Give groups one minimum at each width where they hold the very same trials.

    At the base width rules resolve to equal numbers; each group's other widths would give its
    basin there a shape of its own. The minimum is the mean of theirs, and moves as the first's.
    """
    same: dict[tuple[float, bytes], list[int]] = {}
    for k in members:
        cells = data[k].cells
        for width in cells.widths.tolist():
            rows = cells.at(width)
            # Columns of seeds that only other widths have hold nothing here.
            losses = np.sort(cells.losses[rows], axis=1)[:, : max(int(cells.count[rows].max()), 1)]
            trials = (cells.x[rows], losses, cells.diverged[rows])
            same.setdefault((width, b"".join(each.tobytes() for each in trials)), []).append(k)
    for (width, _), several in same.items():
        places = {k: int(np.flatnonzero(found[k].size == width)[0]) for k in several}
        known = [k for k in several if found[k].found[places[k]]]
        if len(several) < 2 or not known:
            continue
        told, at = draws[known[0]], places[known[0]]
        for name in ("x", "loss", "curvature"):
            mean = float(np.mean([getattr(found[k], name)[places[k]] for k in known]))
            off = mean - getattr(found[known[0]], name)[at]
            moved = None if told is None else getattr(told, name)[:, at] + off
            for k in several:
                getattr(found[k], name)[places[k]] = mean
                if draws[k] is not None and moved is not None:
                    getattr(draws[k], name)[:, places[k]] = moved
        for name in ("covariance", "loss_covariance"):
            variances = [getattr(found[k], name)[places[k], places[k]] for k in known]
            for k in several:
                _set_variance(getattr(found[k], name), places[k], float(np.mean(variances)))


def _set_variance(covariance: Floats, here: int, variance: float) -> None:
    """Give one minimum a variance, its correlations kept; none where it had none of its own."""
    own = float(covariance[here, here])
    if np.isnan(own):
        others = np.isfinite(np.diag(covariance))
        covariance[here, others] = covariance[others, here] = 0.0
    else:
        scale = np.sqrt(variance / own) if own > 0.0 else 0.0
        covariance[here] *= scale
        covariance[:, here] *= scale
    covariance[here, here] = variance


def _describe_basin(
    sweep: Sweep, minima: Minima, place: int, draws: MinimaDraws | None
) -> BasinFit:
    """Turn a width's minimum and its resamples into a `BasinFit`, with statuses and flags."""
    points, near = minima.points[place], find_neighbourhood(sweep)
    found = bool(minima.found[place])
    x, loss, curvature = (float(a[place]) for a in (minima.x, minima.loss, minima.curvature))
    ends = minima.ends[place] if len(points) else (sweep.x[0], sweep.x[-1])
    flags, problem = list(near.flags), () if found else near.flags
    if found and x in ends:
        flags.append(Reason("minimum_outside"))
        problem = (Reason("minimum_outside_here"),)
    elif not found and near.bracketed and len(points) < 3:
        flags.append(Reason("few_points", num=len(points)))
        problem = (Reason("basin_needs_points", num=len(points)),)
    elif not found and near.bracketed:
        kind = "minimum_outside" if sweep.x[near.best] in ends else "not_convex"
        flags.append(Reason(kind))
        problem = (Reason(f"{kind}_here"),)
    drawn = (None, None, None) if draws is None else tuple(each[:, place] for each in draws[:3])
    why: dict[str, Any] = {"problem": problem, "caution": near.caution}
    estimates = dict.fromkeys(("lr", "loss", "curvature"), refuse(*problem))
    if found:
        estimates = {
            "lr": judge(x, drawn[0], "log_lr", **why).transform(exponentiate),
            "loss": judge(loss, drawn[1], "loss", **why),
            "curvature": judge(curvature, drawn[2], "curvature", scale=curvature, **why),
        }
    elif near.best >= 0:
        lowest = {"lr": np.exp(sweep.x[near.best]), "loss": sweep.mean[near.best]}
        estimates |= {name: refuse(*problem, value=float(e)) for name, e in lowest.items()}
    return BasinFit(
        width=float(minima.size[place]),
        **estimates,
        bracketed=near.bracketed,
        num_points=len(points),
        num_diverged=int(np.sum(sweep.diverged > 0)),
        flags=tuple(flags),
        x_low=float(ends[0]),
        x_high=float(ends[1]),
        coefficients=(x, loss if found else float("nan"), curvature, float(minima.skew)),
        cubic=minima.cubic,
    )


def _noise_floor(data: GroupData, points: Bools) -> float | None:
    """Mean variance of the points' means over seeds, in nats²; None with one seed.

    Unsettled cells are left out: one broken trial would stand for the noise of them all.
    """
    points = points & ~data.noise.unsettled
    if not data.noise.known or not np.any(points):
        return None
    return float(np.mean(data.noise.of_means(data.cells)[points]))


def _describe_data(data: GroupData, basins: tuple[BasinFit, ...], usable: Floats) -> list[str]:
    """Say what the data lack."""
    notes = []
    for basin in basins:
        if basin.width not in usable:
            why = join_reasons(basin.flags or (Reason("no_minimum"),))
            notes.append(f"width {basin.width:g} is left out of the laws: {why}")
    if not data.noise.known:
        notes.append("one seed per point: intervals come from the scatter around the fits")
    elif data.noise.shared > _SHARED_WORTH_SAYING:
        notes.append(
            f"{100 * data.noise.shared:.0f} % of the seed variance moves all learning rates of a "
            "width together"
        )
    return notes


def _describe_laws(laws: Laws) -> list[str]:
    """Say what the laws ran into."""
    notes = []
    names = ("loss_inf", "A", "alpha", *(["beta"] if laws.form == "converging" else []))
    for hit in (reason.numbers for reason in list_bounds(laws, *names)):
        where = f"in {hit['percent']:.0f} % of the resamples" if "percent" in hit else "of the fit"
        notes.append(f"{hit['parameter']} sits at a bound {where}")
    if abs(laws.skew) > _SKEW_WORTH_SAYING:
        notes.append("the basins are lopsided: one skew is shared by all widths")
    if laws.scatter > _SCATTER_WORTH_SAYING:
        notes.append(f"optima scatter by ×{np.exp(laws.scatter):.2f} from width to width")
    return notes


def check_scatter(scatter: float | None) -> None:
    """Raise `FitError` where a scatter is neither None nor a number from 0 up."""
    if scatter is not None and not (_is_number(scatter) and scatter >= 0):
        raise FitError(f"scatter: expected 0 or a positive number, found {show_value(scatter)}")


def check_positive(name: str, value: float | None) -> None:
    """Raise `FitError` where a value is no positive number."""
    if not (_is_number(value) and value > 0):
        raise FitError(f"{name}: expected a positive number, found {show_value(value)}")


def _is_number(value: object) -> TypeGuard[float]:
    is_array = getattr(value, "ndim", None) == 0  # of NumPy or torch, and of one number
    try:
        return (is_array or isinstance(value, Real)) and math.isfinite(cast("float", value))
    except (TypeError, ValueError, OverflowError):
        return False
