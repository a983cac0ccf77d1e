import numpy as np
import pytest

from hptransfer.stats import build_cells
from hptransfer.stats._misfit import cell_variances, judge_misfit
from hptransfer.stats.seed_noise import Noise, measure_noise
from stats.synthetic import make_table


def noise_of(**options):
    cells = build_cells(make_table(**options))
    return cells, measure_noise([cells])[0]


def test_excess_scatter_comes_back_from_unequal_variances():
    cells, noise = noise_of(noise=0.02, fall=1.0, seed=1)
    variance = cell_variances(cells, noise)
    design = np.stack([np.ones(len(cells)), cells.x - cells.x.mean()], axis=1)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        y = rng.standard_normal(len(cells)) * np.sqrt(variance + 0.03**2)
        misfit = judge_misfit(y, design, variance, len(cells) - 2, noise)
        found.append(misfit.variance)
    assert np.mean(found) == pytest.approx(0.03**2, rel=0.1)


def test_seed_noise_alone_is_no_misfit():
    cells, noise = noise_of(noise=0.02, seed=1)
    variance = cell_variances(cells, noise)
    design = np.ones((len(cells), 1))
    rng = np.random.default_rng(0)
    calls = sum(
        judge_misfit(
            rng.standard_normal(len(cells)) * np.sqrt(variance),
            design,
            variance,
            len(cells) - 1,
            noise,
        ).sigma
        > 0
        for _ in range(100)
    )
    # An F test with ample degrees of freedom, whose variance was measured once for all.
    assert calls <= 20


def test_without_seed_noise_the_scatter_is_the_noise():
    cells, noise = noise_of(num_seeds=1)
    assert cell_variances(cells, noise) == pytest.approx(1.0)
    y = 0.1 * np.random.default_rng(0).standard_normal(len(cells))
    misfit = judge_misfit(y, np.zeros((len(cells), 1)), np.ones(len(cells)), len(cells), noise)
    assert misfit.only_source
    assert misfit.sigma == pytest.approx(np.sqrt(np.mean(y**2)))
    assert misfit.variance == 0.0


def test_the_variance_of_unsettled_cells_is_their_own():
    cells, noise = noise_of(noise=0.005, num_seeds=2, broken=1.0, seed=4)
    variance = cell_variances(cells, noise)
    last = cells.x == cells.x.max()
    np.testing.assert_allclose(variance[last], np.var(cells.losses[last], axis=1, ddof=1) / 2)
    assert variance[~last].max() < 1e-3 * variance[last].min()


def test_noise_that_a_width_shares_is_expected_and_no_misfit():
    widths, num = 6, 7
    owner = np.repeat(np.arange(widths), num)
    x = np.tile(np.linspace(-1.0, 1.0, num), widths)
    # Three parameters for six levels, and one parabola for all: a width's level is not free.
    design = np.stack([np.ones(len(x)), owner, owner**2, x, x**2], axis=1)
    share, size, seeds = 0.5, 0.01, 3
    variance = np.full(len(x), (1.0 - share) * size**2 / seeds)
    shared = share * size**2 / seeds * (owner[:, None] == owner[None, :])
    noise = Noise(
        sigma=np.full(len(x), size),
        dof=400,
        shared=share,
        variance=np.full(len(x), size**2),
        tilt=np.zeros(len(x)),
        unsettled=np.zeros(len(x), dtype=bool),
    )
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        level = rng.standard_normal(widths)[owner] * size * np.sqrt(share / seeds)
        y = level + rng.standard_normal(len(x)) * np.sqrt(variance)
        known = judge_misfit(y, design, variance, len(x) - 5, noise, shared=shared)
        blind = judge_misfit(y, design, variance, len(x) - 5, noise)
        found.append((known.chance, known.sigma > 0.0, blind.sigma > 0.0))
    chance, called, called_blind = np.array(found, dtype=float).T
    # Satterthwaite's moments give nearly uniform chances, and false alarms as rare as stated.
    assert np.quantile(chance, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.08)
    assert called.sum() <= 12
    assert called_blind.mean() > 0.25
