"""All basins of a group: local fits that share one estimate of noise, and their resamples.

Shape letters: C cells, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hptransfer.errors import FitError
from hptransfer.stats.balance import balance, covariance_of
from hptransfer.stats.basin import (
    LocalFit,
    describe_basin,
    fit_local,
    scale_bends,
    share_cubic,
)
from hptransfer.stats.cells import Cells, Floats, build_cells
from hptransfer.stats.judge import f_limit
from hptransfer.stats.measure import measure_noise
from hptransfer.stats.misfit import Misfit, cell_variances, judge_misfit, rounding_of
from hptransfer.stats.neighbourhood import Sweep, sweep_of
from hptransfer.stats.noise import Noise, draw_noise
from hptransfer.stats.results import BasinFit
from hptransfer.stats.table import LossTable

#: The ends of an interval from 500 draws lie within 4 % of where more would put them.
DEFAULT_RESAMPLES = 500
DEFAULT_SEED = 0
#: Level of the test that keeps the shared cubic term. Lenient: a lopsided basin taken for a
#: parabola moves its minimum by more than an interval knows, and a cubic shared by all widths
#: costs little but precision of the minima themselves.
CUBIC_LEVEL = 0.9


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Resampled noise of one group.

    Attributes
    ----------
    seeds : ndarray, shape (R, C)
        Seed noise of the cell means, in nats.
    unit : ndarray, shape (R, C)
        Standard normal draws, which a fit scales by the misfit it finds.
    """

    seeds: Floats
    unit: Floats


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


def draw(cells: Cells, noise: Noise, *, num_resamples: int, seed: int, stream: int = 0) -> Draws:
    """Draw seed noise and unit noise for one group, shapes (R, C)."""
    rng = np.random.default_rng([seed, 4, stream])
    return Draws(
        seeds=draw_noise(cells, noise, num_resamples=num_resamples, seed=seed, stream=stream),
        unit=rng.standard_normal((num_resamples, len(cells))),
    )


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


def fit_basins(cells: Cells, noise: Noise, draws: Draws, *, seed: int = DEFAULT_SEED) -> BasinSet:
    """Fit every width's basin, with intervals from seed noise and misfit pooled over widths.

    A cubic coefficient shared by the bracketed widths is kept where an F test at `CUBIC_LEVEL`
    asks for it.
    """
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
    cells = build_cells(table)
    if width not in cells.widths:
        known = ", ".join(f"{w:g}" for w in cells.widths)
        raise FitError(f"{table.source}: column width: expected one of {known}, found {width:g}")
    (noise,) = measure_noise([cells])
    draws = draw(cells, noise, num_resamples=num_resamples, seed=seed)
    found = fit_basins(cells, noise, draws, seed=seed).basins
    return next(basin for basin in found if basin.width == width)
