from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from hptransfer.stats import build_cells
from hptransfer.stats.seed_noise import draw_noise, fit_trend, measure_noise
from stats.synthetic import make_table


def trend_of(**options):
    cells = build_cells(make_table(**options))
    everywhere = np.ones(len(cells), dtype=bool)
    return cells, fit_trend(cells, everywhere)


def noise_of(cells):
    (noise,) = measure_noise([cells])
    return noise


def test_a_fall_with_width_comes_back():
    slopes = []
    for seed in range(20):
        cells, trend = trend_of(noise=0.02, fall=1.0, seed=seed)
        fall = np.log(trend.variance[0] / trend.variance[-1])
        slopes.append(fall / np.log(cells.width[-1] / cells.width[0]))
    assert np.mean(slopes) == pytest.approx(2.0, abs=0.15)


def test_equal_noise_is_pooled():
    found = [trend_of(noise=0.01, seed=s)[1] for s in range(100)]
    sloped = sum(trend.tilt.any() for trend in found)
    assert sloped <= binom.ppf(0.999, 100, 0.05)
    assert np.mean([np.mean(t.variance) for t in found]) == pytest.approx(1e-4, rel=0.1)


def test_noise_that_a_width_shares_is_no_trend():
    found = [trend_of(noise=0.01, shared=0.9, num_seeds=2, seed=s)[1] for s in range(60)]
    # With two seeds such a width has hardly more than one degree of freedom.
    assert sum(trend.tilt.any() for trend in found) <= 12
    assert sum(int(trend.unsettled.sum()) for trend in found) <= 3


@pytest.mark.parametrize("fall", [0.0, 1.2])
@pytest.mark.parametrize("num_seeds", [2, 6])
def test_a_broken_cell_stands_for_itself(fall, num_seeds):
    options = {"noise": 0.01, "fall": fall, "num_seeds": num_seeds, "seed": 5}
    cells, clean = trend_of(**options)
    broken, trend = trend_of(broken=1.0, **options)
    last = cells.x == cells.x.max()
    np.testing.assert_array_equal(trend.unsettled, last)
    own = np.var(broken.losses[last], axis=1, ddof=1)
    np.testing.assert_allclose(trend.variance[last], own)
    ratio = trend.variance[~last] / clean.variance[~last]
    assert np.all((ratio > 0.4) & (ratio < 2.5))
    assert not clean.unsettled.any()


def test_few_settled_tables_call_a_cell_unsettled():
    found = [trend_of(noise=0.01, num_seeds=2, seed=s)[1] for s in range(200)]
    assert sum(bool(t.unsettled.any()) for t in found) <= binom.ppf(0.999, 200, 0.02)


def test_the_trend_does_not_depend_on_the_units_of_width_and_loss():
    table = make_table(noise=0.02, fall=1.0, broken=0.5, seed=2)
    moved = type(table)(
        width=table.width * 7.0, lr=table.lr, loss=table.loss * 3.0, seed=table.seed
    )
    a, b = (noise_of(build_cells(t)) for t in (table, moved))
    np.testing.assert_allclose(b.sigma, 3.0 * a.sigma, rtol=1e-6)
    np.testing.assert_allclose(b.tilt, a.tilt, atol=1e-6)
    np.testing.assert_array_equal(a.unsettled, b.unsettled)


def test_noise_towards_divergence_has_a_level_of_its_own():
    table = make_table(noise=0.002, num_lrs=9, seed=1)
    rng = np.random.default_rng(0)
    outer = np.abs(np.log(table.lr) - np.log(table.lr).mean()) > 2.5
    loss = table.loss + np.where(outer, 0.01 * rng.standard_normal(len(table)), 0.0)
    noise = noise_of(
        build_cells(type(table)(width=table.width, lr=table.lr, loss=loss, seed=table.seed))
    )
    assert noise.sigma.max() > 3 * noise.sigma.min()
    assert noise.sigma.min() == pytest.approx(0.002, rel=0.35)


def test_where_most_cells_disagree_there_is_no_trend_to_judge_by():
    table = make_table(num_seeds=2, noise=1e-6, seed=1)
    rng = np.random.default_rng(1)
    size = 10.0 ** rng.uniform(-6, 1, size=len(table))
    loss = table.loss + np.where(table.seed == 0, size, 0.0)
    cells = build_cells(type(table)(width=table.width, lr=table.lr, loss=loss, seed=table.seed))
    everywhere = np.ones(len(cells), dtype=bool)
    assert np.isfinite(fit_trend(cells, everywhere).sigma).all()


@pytest.mark.parametrize("seeds", [1, 2])
def test_no_repeats_or_no_noise_know_no_variance(seeds):
    cells, trend = trend_of(noise=0.0, num_seeds=seeds)
    assert not trend.sigma.any()
    assert trend.dof == (0 if seeds == 1 else len(cells))


def test_draws_carry_the_doubt_about_the_slope():
    cells = build_cells(make_table(noise=0.02, fall=1.2, num_seeds=2, seed=3))
    noise = noise_of(cells)
    assert noise.tilt[0] * noise.tilt[-1] < 0
    seeds = draw_noise(cells, noise, num_resamples=4000, seed=0, stream=0)
    typical = np.median(np.abs(seeds), axis=0)
    np.testing.assert_allclose(typical, 0.6745 * noise.sigma / np.sqrt(2), rtol=0.12)


def test_a_steep_coarse_grid_measures_noise_at_the_neighbours_too():
    table = make_table(num_seeds=2, noise=0.01, curvature=1.0, step=4.0, num_lrs=5)
    cells = build_cells(table)
    best = np.array([cells.mean[cells.at(width)].min() for width in cells.widths])
    rise = cells.mean / best[np.searchsorted(cells.widths, cells.width)]
    assert np.sum(rise <= 1.35) < 2 * len(best)
    noise = noise_of(cells)
    # Three cells of two seeds a width, less a slope where one was found.
    assert noise.dof == 3 * len(best) - bool(noise.tilt.any())


def test_noise_is_measured_about_the_lowest_settled_cell():
    table = make_table(num_seeds=3, noise=0.003, num_lrs=9, curvature=0.02, seed=4)
    lr = np.unique(table.lr)
    far = (table.lr == lr[-1]) & (table.width == table.width.max())
    loss = table.loss - np.where(far & (table.seed == 0), 3.0, 0.0)
    spoilt = build_cells(replace(table, loss=loss))
    without = build_cells(replace(table, loss=np.where(far, np.nan, table.loss)))
    a, b = noise_of(spoilt), noise_of(without)
    assert np.flatnonzero(a.unsettled).tolist() == [len(spoilt) - 1]
    assert (a.dof, a.sigma.min()) == (b.dof, pytest.approx(b.sigma.min()))
