"""The basin at one width: a local fit of loss against x = ln(lr) around the minimum.

A parabola through the points near the minimum; lopsided basins get a cubic term, one
coefficient for all widths of a group, which `basins` finds.

Shape letters: L learning rates of the width, N points of the local fit, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hptransfer.stats.cells import Floats
from hptransfer.stats.joint_model import EXPONENT_BOUNDS, GAMMA
from hptransfer.stats.judge import judge, judge_log, refuse
from hptransfer.stats.neighbourhood import Neighbourhood, Sweep, find_neighbourhood
from hptransfer.stats.results import BasinFit

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
    problem = caution = ""
    if not near.bracketed:
        problem = "; ".join(flags)
    elif fit is None:
        flags.append(f"only {len(rows)} points")
        problem = f"a basin needs 3 points, found {len(rows)}"
    if fit is not None:
        point = fit.minimum(fit.mean[None, :], third)[0]
        if not np.isfinite(point[0]):
            flags.append("not convex")
            problem = problem or "the loss near its lowest point is not convex"
        elif near.bracketed:
            if not fit.x[0] <= point[0] <= min(fit.x[-1], near.right_edge):
                flags.append("minimum outside the points fitted")
                problem = "the fitted minimum lies outside the points fitted"
            else:
                caution = near.caution
    if near.best < 0:
        lr = loss = curvature = refuse(problem)
    elif not np.isfinite(point[0]) or not near.bracketed:
        lr = refuse(problem, float(np.exp(x[near.best])))
        loss = refuse(problem, float(mean[near.best]))
        curvature = refuse(problem)
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
