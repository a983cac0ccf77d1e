"""Loss tables made from known parameters, for the tests of `hptransfer.stats`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hptransfer.stats import BasinFit, LossTable, TransferFit, fit_table

WIDTHS = (64.0, 128.0, 256.0, 512.0)


def make_table(
    *,
    widths: Sequence[float] = WIDTHS,
    num_seeds: int = 3,
    noise: float = 0.002,
    fall: float = 0.0,
    broken: float = 0.0,
    shared: float = 0.0,
    loss_inf: float = 2.0,
    alpha: float = 0.5,
    excess: float = 0.7,
    curvature: float = 0.05,
    gamma: float = 0.1,
    x_inf: float = -5.0,
    drift: float = 0.5,
    beta: float = 0.7,
    skew: float = 0.0,
    num_lrs: int = 7,
    step: float = 2.0,
    centre: float | None = None,
    groups: dict[str, object] | None = None,
    seed: int = 0,
) -> LossTable:
    """One group: `excess` is A·n^-alpha, and `drift` B·n^-beta, at the narrowest width.

    The noise's standard deviation falls as n^-fall from `noise` at the narrowest width. Where
    `broken` is given, one seed of each width's highest lr ends that many nats too high.
    """
    rng = np.random.default_rng(seed)
    base = widths[0]
    middle = x_inf + 0.5 * drift if centre is None else centre
    x = middle + np.log(step) * (np.arange(num_lrs) - (num_lrs - 1) / 2)
    rows = []
    for n in widths:
        m = n / base
        u = x - (x_inf + drift * m**-beta)
        c = curvature * m**gamma
        clean = loss_inf + excess * m**-alpha + 0.5 * c * (u**2 + skew * u**3)
        for s in range(num_seeds):
            together = rng.standard_normal()
            own = rng.standard_normal(num_lrs)
            e = noise * m**-fall * (np.sqrt(shared) * together + np.sqrt(1 - shared) * own)
            if s == 0:
                e[-1] += broken
            rows += [(n, np.exp(xi), li, s) for xi, li in zip(x, clean + e, strict=True)]
    width, lr, loss, seeds = (np.array(column) for column in zip(*rows, strict=True))
    return LossTable(
        width=width,
        lr=lr,
        loss=loss,
        seed=seeds.astype(np.int64),
        groups={k: np.array([v] * len(loss), dtype=object) for k, v in (groups or {}).items()},
    )


def join_tables(*tables: LossTable) -> LossTable:
    """Stack tables with the same group columns."""
    return LossTable(
        width=np.concatenate([t.width for t in tables]),
        lr=np.concatenate([t.lr for t in tables]),
        loss=np.concatenate([t.loss for t in tables]),
        seed=np.concatenate([t.seed for t in tables]),
        groups={k: np.concatenate([t.groups[k] for t in tables]) for k in tables[0].groups},
        axis=tables[0].axis,
    )


def recommend(table, *, width, flops=None, **options):
    """Fit a table and recommend at a width."""
    return fit_table(table, **options).recommend(width=width, flops=flops)


def lr_sensitivity(table, *, init_loss=None, **options):
    """Sensitivities of a table, with the loss at init of all trials or of each."""
    if init_loss is not None:
        table = replace(table, init_loss=np.broadcast_to(np.asarray(init_loss, float), len(table)))
    return fit_table(table, **options).sensitivity()


def fit_groups(table, **options):
    """Fit the groups of a table, with their resamples."""
    return list(fit_table(table, **options).groups)


def fit_transfer(table: LossTable, **options) -> TransferFit:
    """Fit a table of one group."""
    (fit,) = fit_table(table, **options)
    return fit


def fit_basin(table: LossTable, *, width: float, **options) -> BasinFit:
    """The basin of one width of a table of one group."""
    basins = fit_transfer(table, **options).basins
    return next(basin for basin in basins if basin.width == width)
