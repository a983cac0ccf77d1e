from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hptransfer.stats import LossTable
from stats.synthetic import fit_basin, make_table

X = np.log(2.0) * np.arange(-9, -2)


def one_width(loss, x=X, seeds=1, width=64.0):
    loss = np.asarray(loss, dtype=float)
    n = len(loss)
    return LossTable(
        width=np.full(n * seeds, width),
        lr=np.tile(np.exp(x[:n]), seeds),
        loss=np.tile(loss, seeds),
        seed=np.repeat(np.arange(seeds), n),
    )


def parabola(x_star=-4.0, best=3.0, c=0.1, skew=0.0):
    u = X - x_star
    return best + 0.5 * c * u**2 + skew * u**3


def test_an_exact_parabola_comes_back():
    basin = fit_basin(one_width(parabola()), width=64)
    assert basin.lr.value == pytest.approx(np.exp(-4.0))
    assert basin.loss.value == pytest.approx(3.0)
    assert basin.curvature.value == pytest.approx(0.1)
    assert basin.bracketed
    assert basin.flags == ()
    np.testing.assert_allclose(basin.curve(X), parabola())


def test_a_lopsided_basin_is_followed():
    """Its minimum lies nearer than that of a parabola through the same points."""
    loss = parabola(skew=0.005)
    basin = fit_basin(one_width(loss), width=64)
    near = np.abs(X + 4.0) <= 1.45
    a, b, _ = np.polyfit(X[near], loss[near], 2)
    assert abs(basin.coefficients[0] + 4.0) < 0.5 * abs(-0.5 * b / a + 4.0)
    assert basin.coefficients[3] > 0.1
    used = (basin.x_low - 1e-9 <= X) & (basin.x_high + 1e-9 >= X)
    np.testing.assert_allclose(basin.curve(X[used]), loss[used], atol=0.005)


@settings(max_examples=15, deadline=None)
@given(
    shift=st.floats(-20, 20),
    scale=st.floats(0.01, 100),
    seed=st.integers(0, 10),
)
def test_basins_are_equivariant(shift, scale, seed):
    table = make_table(seed=seed, noise=0.01, skew=0.1 * (seed % 2))
    moved = LossTable(
        width=table.width,
        lr=table.lr * np.exp(shift),
        loss=table.loss * scale,
        seed=table.seed,
    )
    a, b = (fit_basin(t, width=128, num_resamples=20) for t in (table, moved))
    assert np.log(b.lr.value) == pytest.approx(np.log(a.lr.value) + shift, abs=1e-6)
    assert np.log(b.lr.high) == pytest.approx(np.log(a.lr.high) + shift, abs=1e-6)
    assert b.loss.low == pytest.approx(a.loss.low * scale)
    assert b.curvature.value == pytest.approx(a.curvature.value * scale, rel=1e-6)
    assert (a.flags, a.num_points) == (b.flags, b.num_points)


@pytest.mark.parametrize(("x_star", "side"), [(-9.0, "lowest"), (0.0, "highest")])
def test_a_minimum_at_the_grids_edge_is_no_optimum(x_star, side):
    basin = fit_basin(one_width(parabola(x_star), seeds=2), width=64)
    assert not basin.bracketed
    assert "not bracketed" in map(str, basin.flags)
    assert basin.lr.status == "not identified"
    assert side in basin.lr.reason
    assert basin.lr.low is None
    assert basin.loss.value == pytest.approx(parabola(x_star).min())


def test_divergence_bounds_the_right_and_is_said():
    loss = parabola(-4.0)
    loss[4:] = np.nan
    basin = fit_basin(one_width(loss), width=64)
    assert basin.bracketed
    assert basin.num_diverged == 3
    assert "bounded on the right by divergence only" in map(str, basin.flags)
    # The fitted minimum, -4.0, lies beyond the last finite point, -6 ln 2.
    assert basin.lr.status == "not identified"
    assert "outside the points" in basin.lr.reason


def test_a_minimum_inside_the_points_left_of_divergence_is_weakly_identified():
    x_star = float(X[4]) - 0.2
    loss = parabola(x_star)
    loss[5:] = np.nan
    basin = fit_basin(one_width(loss, seeds=2), width=64)
    # Alone it has no minimum inside its points; with the curvature of other widths it has.
    assert "outside the points" in basin.lr.reason
    whole = make_table(num_lrs=9)
    widest = whole.width == 512.0
    gone = widest & (whole.lr > np.exp(-4.5))
    table = replace(whole, loss=np.where(gone, np.nan, whole.loss))
    basin = fit_basin(table, width=512)
    assert basin.lr.status == "weakly identified"
    assert basin.lr.low <= np.exp(-5.0 + 0.5 * 8**-0.7) <= basin.lr.high


def test_a_cell_with_one_diverged_seed_has_no_point():
    table = one_width(parabola(-4.0), seeds=2)
    loss = table.loss.copy()
    loss[4] = np.nan  # the second-best learning rate, first seed
    basin = fit_basin(
        LossTable(width=table.width, lr=table.lr, loss=loss, seed=table.seed), width=64
    )
    assert basin.num_diverged == 1
    assert float(X[4]) not in basin.coefficients
    assert basin.bracketed


def test_divergence_below_the_best_is_said():
    loss = parabola(-4.0)
    loss[1] = np.nan
    assert "a trial diverged below the best learning rate" in map(
        str, fit_basin(one_width(loss), width=64).flags
    )


@pytest.mark.parametrize(
    ("loss", "flag"),
    [
        ([np.nan] * 7, "every learning rate diverged"),
        ([2.0], "not bracketed"),
        ([2.0, 1.9], "not bracketed"),
        ([2.0] * 7, "not bracketed"),
        ([2.0, 1.9, 1.9, 2.0], None),
        ([2.0, 1.9, 2.0], None),
    ],
)
def test_poor_widths_are_described_not_raised(loss, flag):
    basin = fit_basin(one_width(loss), width=64)
    if flag:
        assert flag in map(str, basin.flags)
        assert basin.lr.status == "not identified"
    assert basin.lr.status == "not identified" or basin.has_curve


def test_losses_without_a_valley_are_not_convex():
    # Lowest in the middle, but falling away on both sides beyond its neighbours.
    loss = [3.0, 3.0, 3.4, 2.99, 3.4, 3.0, 3.0]
    basin = fit_basin(one_width(loss), width=64)
    assert basin.lr.status == "not identified"


def test_three_points_and_one_seed_give_a_value_but_no_interval():
    basin = fit_basin(one_width([2.0, 1.9, 2.0]), width=64)
    assert basin.lr.value is not None
    assert basin.lr.low is None
    assert "one seed" in basin.lr.reason


def test_noise_pools_over_widths():
    table = make_table(num_seeds=1, noise=0.003)
    assert fit_basin(table, width=64).lr.status == "identified"


def test_a_basin_prints_itself_under_no_groups_name():
    basin = fit_basin(one_width(parabola()), width=64)
    assert str(basin).startswith("lr at width 64: ")
    assert "all trials" not in str(basin)


def test_to_dict_has_the_documented_keys():
    keys = set(fit_basin(make_table(), width=64).to_dict())
    assert {"width", "lr", "loss", "curvature", "bracketed", "num_points"} <= keys


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_lopsided_basins_share_their_shape_whatever_their_curvature(gamma):
    widths = tuple(2.0**k for k in range(5, 12))
    table = make_table(skew=0.1, gamma=gamma, noise=1e-5, widths=widths)
    for width in widths:
        optimum, _, curvature, third = fit_basin(table, width=width).coefficients
        # The basin is a cubic, and its minimum that of a curve that stays convex.
        assert optimum == pytest.approx(-5.0 + 0.5 * (width / 32.0) ** -0.7, abs=5e-3)
        assert curvature == pytest.approx(0.05 * (width / 32.0) ** gamma, rel=0.02)
        assert third == pytest.approx(0.3, rel=0.15)
