"""Fit the basin of each width of a group: loss against x = ln(lr) around the minimum.

A basin is a parabola through the points near the minimum; lopsided basins get a cubic term, one
coefficient for all widths of the group. The fits share one estimate of noise.

Shape letters: C cells, L learning rates of a width, N points of its fit, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hptransfer.errors import FitError
from hptransfer.stats._joint_model import EXPONENT_BOUNDS, GAMMA
from hptransfer.stats._misfit import Misfit, cell_variances, judge_misfit, rounding_of
from hptransfer.stats.cells import Cells, Floats, build_cells
from hptransfer.stats.fit_window import Neighbourhood, Sweep, find_neighbourhood, sweep_of
from hptransfer.stats.group_data import DEFAULT_RESAMPLES, DEFAULT_SEED, GroupData, gather_groups
from hptransfer.stats.identifiability import f_limit, judge, judge_log, refuse
from hptransfer.stats.loss_table import LossTable
from hptransfer.stats.reasons import Reason, Reasons
from hptransfer.stats.resampling import balance, covariance_of
from hptransfer.stats.results import BasinFit
from hptransfer.stats.seed_noise import Noise

#: Residuals below this share of the losses' spread are rounding, not misfit.
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class LocalFit:
    """A weighted parabola through the points of a basin, less a cubic term given from outside.

    Attributes
    ----------
    width : float
        Model width.
    near : Neighbourhood
        The points.
    x, mean, weights : ndarray, shape (N,)
        ln(lr), mean loss and weight (1/variance of the mean) of the points.
    projection : ndarray, shape (3, N)
        Maps losses to the coefficients of 1, z, z² with z = (x − centre)/span.
    residual_maker : ndarray, shape (N, N)
        Maps losses to the parabola's residuals.
    centre, span : float
        Centre and unit of the polynomial's variable.
    bend : float
        Size of this width's cubic coefficient in units of the shared one.
    """

    width: float
    near: Neighbourhood
    x: Floats
    mean: Floats
    weights: Floats
    projection: Floats
    residual_maker: Floats
    centre: float
    span: float
    bend: float = 1.0

    @property
    def dof(self) -> int:
        """Points less the parabola's coefficients."""
        return len(self.x) - 3

    @property
    def cube(self) -> Floats:
        """bend·(x − centre)³, shape (N,)."""
        return self.bend * (self.x - self.centre) ** 3

    def residuals(self, third: float = 0.0) -> Floats:
        """Losses less the fit with cubic coefficient `third`, shape (N,)."""
        # Losses are taken relative to the best, so that a large offset costs no digits.
        y = self.mean - self.mean.min() - third * self.cube
        return np.asarray(self.residual_maker @ y)

    def squares(self, third: float = 0.0) -> float:
        """Weighted sum of squared residuals."""
        return float(np.sum(self.weights * self.residuals(third) ** 2))

    def minimum(self, losses: Floats, third: Floats | float = 0.0) -> Floats:
        """Find minima.

        Parameters
        ----------
        losses : ndarray, shape (R, N)
            Losses of the points.
        third : float or ndarray, shape (R,)
            Shared cubic coefficient, that of bend·(x − centre)³.

        Returns
        -------
        ndarray, shape (R, 4)
            (x*, L*, C, skew); NaN where there is no minimum.
        """
        third = np.broadcast_to(third, len(losses))
        a0, a1, a2 = ((losses - third[:, None] * self.cube) @ self.projection.T).T
        third = third * self.bend
        a3 = third * self.span**3
        root = a2**2 - 3.0 * a1 * a3
        scale = np.abs(a0) + np.abs(a1) + np.abs(a2) + np.abs(a3)
        ok = root > (ROUNDING * scale) ** 2
        slope = np.sqrt(np.where(ok, root, 1.0))
        ok &= a2 + slope > ROUNDING * scale
        z = -a1 / np.where(ok, a2 + slope, 1.0)
        lowest = a0 + z * (a1 + z * (a2 + z * a3))
        out = np.stack(
            [self.centre + self.span * z, lowest, 2.0 * slope / self.span**2, third],
            axis=1,
        )
        return np.where(ok[:, None], out, np.nan)


def fit_local(width: float, sweep: Sweep, variance: Floats) -> LocalFit | None:
    """Fit the parabola near the minimum; None with fewer than three points.

    Parameters
    ----------
    sweep : Sweep
        Cells of the width.
    variance : ndarray, shape (L,)
        Variances of the cell means, or anything proportional to them.
    """
    near = find_neighbourhood(sweep)
    fit = _fit_points(width, sweep, near, variance)
    full = find_neighbourhood(sweep, cliffs=True)
    if fit is None or len(full.points) == len(near.points) or _minimum_inside(fit):
        return fit
    # The points short of the cliff do not hold the minimum; the cliff then has a say.
    return _fit_points(width, sweep, full, variance)


def _minimum_inside(fit: LocalFit) -> bool:
    x = fit.minimum(fit.mean[None, :])[0, 0]
    return bool(np.isfinite(x) and fit.x[0] <= x <= fit.x[-1])


def _fit_points(
    width: float, sweep: Sweep, near: Neighbourhood, variance: Floats
) -> LocalFit | None:
    x, rows = sweep.x, near.points
    if len(rows) < 3:
        return None
    weights = 1.0 / variance[rows]
    centre = float(x[near.best])
    span = float(np.abs(x[rows] - centre).max())
    design = np.vander((x[rows] - centre) / span, 3, increasing=True)
    # Only the weights' ratios matter here; the largest is made 1 to keep digits.
    root = np.sqrt(weights / weights.max())[:, None]
    projection = np.asarray(np.linalg.pinv(design * root) * root.T, dtype=np.float64)
    return LocalFit(
        width=width,
        near=near,
        x=x[rows],
        mean=sweep.mean[rows],
        weights=weights,
        projection=projection,
        residual_maker=np.eye(len(rows)) - design @ projection,
        centre=centre,
        span=span,
    )


def scale_bends(fits: Sequence[LocalFit]) -> list[LocalFit]:
    """Scale each width's cubic by its curvature: what widths share is the shape of the basin.

    The curvature is taken from a power law in width, fitted first to the parabolas' and then to
    those of the cubics that it gives; where some width has none, the bends stay as they are.
    """
    found = _follow_curvature(list(fits), 0.0)
    parts = share_cubic(found)
    third = sum(float(p @ (f.mean - f.mean.min())) for p, f in zip(parts, found, strict=True))
    return _follow_curvature(found, third)


def _follow_curvature(fits: list[LocalFit], third: float) -> list[LocalFit]:
    curved = np.array([fit.minimum(fit.mean[None, :], third)[0, 2] for fit in fits])
    if len(fits) < 2 or not np.all(curved > 0.0):
        return fits
    t = np.log([fit.width for fit in fits])
    # The error of ln C is that of the parabola's height at the edge of the points, over it.
    each = [(c * f.span**2) ** 2 * f.weights.sum() for c, f in zip(curved, fits, strict=True)]
    weights = np.array(each) / max(each)
    t = t - np.average(t, weights=weights)
    # No width alone decides: where one outweighs all others, there is no slope to speak of.
    gamma = float(np.sum(weights * t * np.log(curved))) / max(float(np.sum(weights * t**2)), 1e-6)
    gamma = float(np.clip(gamma, *EXPONENT_BOUNDS[GAMMA]))
    bends = np.exp(gamma * t)
    return [replace(fit, bend=float(bend)) for fit, bend in zip(fits, bends, strict=True)]


def share_cubic(fits: Sequence[LocalFit]) -> tuple[Floats, ...]:
    """Weights of each basin's losses in the least-squares cubic coefficient shared by all.

    Returns one array (N,) per fit; the coefficient is the sum of their products with the
    losses. They are all zero where no basin has more than three points.
    """
    bends = [fit.residual_maker @ fit.cube for fit in fits]
    bends = [np.where(fit.dof > 0, bend, 0.0) for fit, bend in zip(fits, bends, strict=True)]
    total = sum(float(np.sum(f.weights * b**2)) for f, b in zip(fits, bends, strict=True))
    if total <= 0.0:
        return tuple(np.zeros(len(fit.x)) for fit in fits)
    return tuple(f.weights * b / total for f, b in zip(fits, bends, strict=True))


def describe_basin(
    width: float,
    sweep: Sweep,
    fit: LocalFit | None,
    third: float,
    samples: Floats | None,
) -> BasinFit:
    """Turn a local fit and its resamples (R, 4) into a `BasinFit` with statuses and flags.

    `sweep` holds the cells of the width, `third` is the cubic coefficient.
    """
    x, mean = sweep.x, sweep.mean
    near = find_neighbourhood(sweep) if fit is None else fit.near
    flags = list(near.flags)
    rows = near.points
    ends = (x[rows[0]], x[rows[-1]]) if len(rows) else (x[0], x[-1])
    nan = float("nan")
    point = np.full(4, nan)
    problem: Reasons = ()
    caution: Reasons = ()
    if not near.bracketed:
        problem = tuple(flags)
    elif fit is None:
        flags.append(Reason("few_points", num=len(rows)))
        problem = (Reason("basin_needs_points", num=len(rows)),)
    if fit is not None:
        point = fit.minimum(fit.mean[None, :], third)[0]
        if not np.isfinite(point[0]):
            flags.append(Reason("not_convex"))
            problem = problem or (Reason("not_convex_here"),)
        elif near.bracketed:
            if not fit.x[0] <= point[0] <= min(fit.x[-1], near.right_edge):
                flags.append(Reason("minimum_outside"))
                problem = (Reason("minimum_outside_here"),)
            else:
                caution = near.caution
    if near.best < 0:
        lr = loss = curvature = refuse(*problem)
    elif not np.isfinite(point[0]) or not near.bracketed:
        lr = refuse(*problem, value=float(np.exp(x[near.best])))
        loss = refuse(*problem, value=float(mean[near.best]))
        curvature = refuse(*problem)
    else:
        columns = [None] * 4 if samples is None else list(samples.T)
        lr = judge_log(point[0], columns[0], problem=problem, caution=caution)
        loss = judge(float(point[1]), columns[1], "loss", problem=problem, caution=caution)
        curvature = judge(
            float(point[2]),
            columns[2],
            "curvature",
            problem=problem,
            caution=caution,
            scale=float(point[2]),
        )
    return BasinFit(
        width=float(width),
        lr=lr,
        loss=loss,
        curvature=curvature,
        bracketed=near.bracketed,
        num_points=len(rows),
        num_diverged=int(np.sum(sweep.diverged > 0)),
        flags=tuple(flags),
        x_low=float(ends[0]),
        x_high=float(ends[1]),
        coefficients=(float(point[0]), float(point[1]), float(point[2]), float(point[3])),
    )


#: Level of the test that keeps the shared cubic term. Lenient: a lopsided basin taken for a
#: parabola moves its minimum by more than an interval knows, and a cubic shared by all widths
#: costs little but precision of the minima themselves.
CUBIC_LEVEL = 0.9


@dataclass(frozen=True, kw_only=True)
class BasinSet:
    """Basins of one group with what later steps need of them.

    Attributes
    ----------
    basins : tuple of BasinFit
        One per width, ascending.
    fits : mapping of float to LocalFit
        Widths with three points or more.
    samples : mapping of float to ndarray, shape (R, 4)
        Resampled (x*, L*, C, skew); empty where no noise is known.
    misfit : Misfit
        Scatter of the local fits beyond seed noise.
    edge : float
        Lowest x = ln(lr) at which any trial diverged; inf where none did.
    cliff : float
        Lowest x above its width's best at which one of several seeds broke down; inf if none.
    """

    basins: tuple[BasinFit, ...]
    fits: dict[float, LocalFit]
    samples: dict[float, Floats]
    misfit: Misfit
    edge: float = np.inf
    cliff: float = np.inf

    def at(self, width: float) -> BasinFit:
        """Return the basin of a width that the group has."""
        return next(basin for basin in self.basins if basin.width == width)

    @property
    def usable(self) -> tuple[float, ...]:
        """Widths whose minimum is bracketed and inside a convex fit."""
        return tuple(
            b.width
            for b in self.basins
            if b.bracketed and b.width in self.fits and _has_minimum(b, self.fits[b.width])
        )


def _has_minimum(basin: BasinFit, fit: LocalFit) -> bool:
    x = basin.coefficients[0]
    return bool(np.isfinite(x) and fit.x[0] <= x <= min(fit.x[-1], fit.near.right_edge))


def _fit_widths(
    cells: Cells, sweeps: Mapping[float, Sweep], variance: Floats
) -> dict[float, LocalFit]:
    """Fit each width that has points enough, with cell means of `variance` (C,)."""
    fits = {}
    for width, sweep in sweeps.items():
        fit = fit_local(width, sweep, variance[cells.at(width)])
        if fit is not None:
            fits[width] = fit
    chosen = _bracketed(fits)
    return fits | dict(zip(chosen, scale_bends(list(chosen.values())), strict=True))


def _bracketed(fits: Mapping[float, LocalFit]) -> dict[float, LocalFit]:
    return {width: fit for width, fit in fits.items() if fit.near.bracketed}


def _share(fits: Mapping[float, LocalFit]) -> tuple[float, dict[float, Floats]]:
    """Return the cubic coefficient shared by bracketed widths, and its weights by width."""
    chosen = _bracketed(fits)
    parts = dict(zip(chosen, share_cubic(list(chosen.values())), strict=True))
    third = sum(float(part @ (fits[w].mean - fits[w].mean.min())) for w, part in parts.items())
    return third, parts


def _bend(
    fits: Mapping[float, LocalFit], noise: Noise, rounding: float
) -> tuple[float, dict[float, Floats]]:
    """Like `_share`; 0 and nothing where the data ask for no cubic term."""
    chosen = list(_bracketed(fits).values())
    third, parts = _share(fits)
    dof = sum(fit.dof for fit in chosen)
    loudest = max((float(np.abs(fit.residuals()).max()) for fit in chosen), default=0.0)
    if dof <= 1 or loudest <= rounding:
        return 0.0, {}
    squares, bent = (sum(fit.squares(c) for fit in chosen) for c in (0.0, third))
    pooled_dof = dof - 1 + noise.dof
    # Squares are in units of the seed variance, which noise.dof degrees of freedom measured.
    error = (bent + noise.dof) / pooled_dof
    return (
        (third, parts)
        if squares - bent > f_limit(CUBIC_LEVEL, 1, pooled_dof) * error
        else (0.0, {})
    )


def _design(fits: Sequence[LocalFit], bent: bool) -> Floats:
    """What parabolas, and a cubic term they share if `bent`, can move along; (N, 3W or 3W + 1)."""
    sizes = [len(fit.x) for fit in fits]
    design = np.zeros((sum(sizes), 3 * len(fits) + bent))
    ends = np.cumsum([0, *sizes])
    for k, fit in enumerate(fits):
        rows = slice(int(ends[k]), int(ends[k + 1]))
        z = (fit.x - fit.centre) / fit.span
        design[rows, 3 * k : 3 * k + 3] = np.vander(z, 3, increasing=True)
        if bent:
            design[rows, -1] = fit.cube
    return design


def _balance(
    shaken: Floats,
    cells: Cells,
    fits: Mapping[float, LocalFit],
    bent: bool,
    covariance: Floats | None,
) -> Floats:
    """Balance draws (R, C) along what the fits are free to move along."""
    if covariance is None or not fits:
        return shaken
    rows = np.concatenate([cells.at(w)[fit.near.points] for w, fit in fits.items()])
    out = shaken.copy()
    out[:, rows] = balance(
        shaken[:, rows],
        _design(list(fits.values()), bent),
        np.concatenate([fit.weights for fit in fits.values()]),
        covariance[np.ix_(rows, rows)],
    )
    return out


def _misfit_of(
    fits: Mapping[float, LocalFit], third: float, bent: bool, noise: Noise, rounding: float
) -> Misfit:
    """Judge the scatter around the bracketed basins; they share `third` if `bent`."""
    chosen = list(_bracketed(fits).values())
    design = _design(chosen, bent)
    return judge_misfit(
        np.concatenate([fit.residuals(third) for fit in chosen] or [np.zeros(0)]),
        design,
        np.concatenate([1.0 / fit.weights for fit in chosen] or [np.zeros(0)]),
        len(design) - design.shape[1],
        noise,
        rounding=rounding,
    )


def fit_basins(data: GroupData) -> BasinSet:
    """Fit every width's basin, with intervals from seed noise and misfit pooled over widths.

    A cubic coefficient shared by the bracketed widths is kept where an F test at `CUBIC_LEVEL`
    asks for it.
    """
    cells, noise, draws, seed = data.cells, data.noise, data.draws, data.seed
    sweeps = {w: sweep_of(cells, cells.at(w), noise.unsettled) for w in cells.widths.tolist()}
    variance = cell_variances(cells, noise)
    rounding = rounding_of(cells)
    fits = _fit_widths(cells, sweeps, variance)
    third, parts = _bend(fits, noise, rounding)
    misfit = _misfit_of(fits, third, bool(parts), noise, rounding)
    if misfit.variance > 0.0:
        fits = _fit_widths(cells, sweeps, variance + misfit.variance)
        if parts:
            third, parts = _share(fits)
    samples: dict[float, Floats] = {}
    if misfit.known:
        shaken = draws.seeds + misfit.draw(draws.unit, cells.count, seed)
        shaken = _balance(shaken, cells, fits, bool(parts), covariance_of(cells, noise, misfit))
        columns = {w: cells.at(w)[fit.near.points] for w, fit in fits.items()}
        bends = third + sum(
            (shaken[:, columns[w]] @ part for w, part in parts.items()),
            start=np.zeros(len(shaken)),
        )
        for width, fit in fits.items():
            bend = bends if width in parts else 0.0
            samples[width] = fit.minimum(fit.mean + shaken[:, columns[width]], bend)
    basins = [
        describe_basin(w, sweep, fits.get(w), third if w in parts else 0.0, samples.get(w))
        for w, sweep in sweeps.items()
    ]
    bad = cells.x[cells.diverged > 0]
    return BasinSet(
        basins=tuple(basins),
        fits=fits,
        samples=samples,
        misfit=misfit,
        edge=float(bad.min()) if len(bad) else np.inf,
        cliff=min((sweep.cliff for sweep in sweeps.values()), default=np.inf),
    )


def fit_basin(
    table: LossTable,
    *,
    width: float,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = DEFAULT_SEED,
) -> BasinFit:
    """Fit the basin of one width of a table that holds one group.

    Parameters
    ----------
    table : LossTable
        Trials; other widths serve to judge the noise.
    width : float
        The width to describe.
    num_resamples, seed : int
        Number and seed of the resamples behind the 90 % intervals.

    Raises
    ------
    FitError
        The table is empty or does not hold `width`.
    """
    widths = build_cells(table).widths
    if width not in widths:
        known = ", ".join(f"{w:g}" for w in widths)
        raise FitError(f"{table.source}: column width: expected one of {known}, found {width:g}")
    (data,) = gather_groups(table, num_resamples=num_resamples, seed=seed)
    return fit_basins(data).at(width)
