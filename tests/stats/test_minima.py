"""Minima with the best loss free: what moves them, what does not, and how well they are known."""

import numpy as np
import pytest

from hptransfer.stats.minima import EXACT, Minima, find_minima, rise

OCTAVE = np.log(2.0)
SIZES = np.array([64.0, 128.0, 256.0, 512.0])


def make_sweep(
    seed: int = 0, noise: float = 0.002, skew: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Size, ln lr and loss of half-octave grids about drifting minima, and those minima."""
    rng = np.random.default_rng(seed)
    minima = np.log(2.0**-7) - 0.4 * np.log(SIZES / SIZES[0])
    grid = OCTAVE * np.arange(-13.0, -2.9, 0.5)
    size, x = (each.reshape(-1) for each in np.meshgrid(SIZES, grid, indexing="ij"))
    z = x - np.repeat(minima, len(grid))
    curvature = 0.2 * (size / 128.0) ** -0.3
    loss = 3.0 + 2.0 * size**-0.3 + curvature * rise(z, 1.0, skew)
    return size, x, loss + noise * rng.standard_normal(len(x)), minima


def find(noise: float = 0.002) -> Minima:
    size, x, loss, _ = make_sweep(noise=noise)
    return find_minima(size, x, loss)


def test_rise_has_its_curvature_at_the_minimum_and_is_convex() -> None:
    z = np.linspace(-5.0, 5.0, 2001)
    for skew in (-1.0, 0.0, 1e-6, 0.7):
        y = rise(z, 0.3, skew)
        second = np.diff(y, 2) / (z[1] - z[0]) ** 2
        assert second.min() > -1e-9
        assert second[999] == pytest.approx(0.3, rel=1e-3)
        assert y.min() == pytest.approx(0.0, abs=1e-12)


def test_minima_of_exact_basins_are_found() -> None:
    size, x, loss, minima = make_sweep(noise=0.0)
    found = find_minima(size, x, loss)
    np.testing.assert_allclose(found.x, minima, atol=5e-3)
    np.testing.assert_allclose(found.loss, 3.0 + 2.0 * SIZES**-0.3, atol=1e-4)
    np.testing.assert_allclose(found.curvature, 0.2 * (SIZES / 128.0) ** -0.3, rtol=0.02)


def test_a_constant_added_to_one_size_moves_nothing_but_its_loss() -> None:
    size, x, loss, _ = make_sweep()
    before = find_minima(size, x, loss)
    for constant in (-2.9, 0.5, 40.0):
        after = find_minima(size, x, loss + constant * (size == 256.0))
        np.testing.assert_allclose(after.x, before.x, atol=1e-7)
        np.testing.assert_allclose(after.variance, before.variance, rtol=1e-5)
        np.testing.assert_allclose(after.loss - before.loss, constant * (SIZES == 256.0), atol=1e-7)


def test_shifts_of_x_and_scalings_of_size_and_loss_pass_through() -> None:
    size, x, loss, _ = make_sweep()
    before = find_minima(size, x, loss)
    after = find_minima(7.0 * size, x + 1.3, 0.1 * loss)
    np.testing.assert_allclose(after.x, before.x + 1.3, atol=1e-6)
    np.testing.assert_allclose(after.variance, before.variance, rtol=1e-4)
    np.testing.assert_allclose(after.curvature, 0.1 * before.curvature, rtol=1e-5)
    np.testing.assert_allclose(after.loss, 0.1 * before.loss, rtol=1e-7)
    np.testing.assert_allclose(after.loss_covariance, 0.01 * before.loss_covariance, rtol=1e-3)


def test_noise_follows_what_seeds_measured_at_each_size() -> None:
    size, x, loss, _ = make_sweep(noise=0.0)
    sigma = np.where(size == SIZES[0], 0.02, 0.001)
    loss = loss + sigma * np.random.default_rng(0).standard_normal(len(loss))
    found = find_minima(size, x, loss, variance=sigma**2)
    # The noisy size does not make the others look noisy.
    assert np.all(found.noise[1:] < 0.003)
    assert found.noise[0] > 0.01


def test_three_points_a_size_do_not_look_sure_of_their_minima() -> None:
    off = []
    for seed in range(200):
        size, x, loss, minima = make_sweep(seed=seed, noise=0.004, skew=0.0)
        truth = minima[np.searchsorted(SIZES, size)]
        near = np.abs(x - truth - 0.2) < 0.76 * OCTAVE
        found = find_minima(size[near], x[near], loss[near])
        off.append(np.abs(found.x - minima) / np.sqrt(found.variance))
    inside = np.array(off)[np.isfinite(off)] < 1.645
    assert np.mean(inside) > 0.85


def test_variances_match_the_spread_over_draws_of_the_noise() -> None:
    errors, stated, levels, level_stated = [], [], [], []
    for seed in range(200):
        size, x, loss, minima = make_sweep(seed=seed, noise=0.004)
        found = find_minima(size, x, loss)
        errors.append(found.x - minima)
        stated.append(found.variance)
        levels.append(found.loss - 3.0 - 2.0 * SIZES**-0.3)
        level_stated.append(np.diag(found.loss_covariance))
    # The allowance for a basin's misfit makes intervals wider than exact basins need.
    for off, said in ((errors, stated), (levels, level_stated)):
        ratio = np.mean(np.square(off)) / np.mean(said)
        assert 0.2 < ratio < 1.2


def test_a_cliff_on_the_right_does_not_move_the_minimum() -> None:
    size, x, loss, minima = make_sweep()
    beyond = x > np.repeat(minima, len(x) // len(SIZES)) + 0.9
    found = find_minima(size, x, np.where(beyond, loss + 4.0, loss))
    np.testing.assert_allclose(found.x, minima, atol=0.25)


def test_a_size_alone_keeps_its_right_side_where_noise_looks_like_a_cliff() -> None:
    x = OCTAVE * np.arange(-8.0, -3.9, 0.25)
    for seed in range(100):
        noise = 0.01 * np.random.default_rng(seed).standard_normal(len(x))
        found = find_minima(np.full(len(x), 64.0), x, 3.0 + 0.05 * (x + 4.1) ** 2 + noise)
        bounded = np.isfinite(found.low) & np.isfinite(found.high)
        assert found.found.tolist() == bounded.tolist()


def test_noise_close_to_the_best_point_is_no_cliff() -> None:
    x = np.tile(OCTAVE * np.arange(-8.0, -3.9, 0.25), 2)
    size = np.repeat([64.0, 128.0], len(x) // 2)
    for seed in range(100):
        noise = 0.004 * np.random.default_rng(seed).standard_normal(len(x))
        found = find_minima(size, x, 3.0 + 0.05 * (x + 4.1) ** 2 + noise)
        assert np.all(found.ends[:, 1] > -4.1 + 0.6)
        assert np.all(found.variance < 0.08**2)


def test_a_one_sided_minimum_is_a_bound() -> None:
    size, x, loss, minima = make_sweep()
    keep = (size != 512.0) | (x <= minima[3] - 0.5)
    found = find_minima(size[keep], x[keep], loss[keep])
    assert np.isnan(found.x[3])
    assert found.low[3] > minima[3] - 1.5
    assert found.high[3] == np.inf
    assert found.found.tolist() == [True, True, True, False]


def test_divergence_bounds_a_minimum_on_the_right() -> None:
    size, x, loss, minima = make_sweep()
    edge = minima[3] + 0.2
    broken = np.where((size == 512.0) & (x > edge), np.nan, loss)
    found = find_minima(size, x, broken)
    assert np.isfinite(found.high[3])
    assert found.x[3] <= found.high[3]


@pytest.mark.parametrize("num", [0, 1, 2])
def test_too_few_points_give_no_minimum(num: int) -> None:
    found = find_minima(np.full(num, 64.0), np.arange(num) * 0.7, np.arange(num) * 0.1 + 3.0)
    assert not found.found.any()


def test_every_trial_diverged_gives_no_minimum() -> None:
    found = find_minima(np.full(5, 64.0), np.arange(5.0), np.full(5, np.nan))
    assert not found.found.any()
    assert found.high[0] == 0.0


def test_noise_that_seeds_measured_is_not_widened_for_few_points() -> None:
    """Four rates and two seeds a width, as a search measures: errors are what they are said."""
    near = EXACT._replace(reach=np.log(4.0), scatter=0.3, tested=0.0, cubic=False)
    size = np.repeat(SIZES, 4)
    x = np.tile(OCTAVE * np.array([-1.5, -0.5, 0.5, 1.5]), len(SIZES))
    rng = np.random.default_rng(0)
    off, said, blind = [], [], []
    for _ in range(150):
        loss = 3.0 + 0.05 * x**2 + 0.003 * rng.standard_normal(len(x))
        found = find_minima(size, x, loss, variance=np.full(len(x), 0.003**2), trust=near)
        off.append(found.x)
        said.append(found.variance)
        blind.append(find_minima(size, x, loss, trust=near).variance)
    ratio = np.sqrt(np.median(said) / np.mean(np.square(off)))
    assert 0.8 < ratio < 1.2
    # Where the four spare points alone tell the noise, Student's t is wider.
    assert np.median(blind) > 1.3 * np.median(said)
