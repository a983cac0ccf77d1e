"""The law over size, tokens and batch: against dense algebra, and on surfaces of its own."""

import numpy as np
import pytest

from hptransfer.stats._axes_fit import (
    BATCH_0,
    PARAMETERS_SLOPE,
    TOKENS_0,
    AxesLaw,
    Places,
    _Scatter,
    correlate_axes,
    fit_axes_law,
)


def make_places(seed: int = 0) -> Places:
    """Three sizes at three budgets and three batches each."""
    size, tokens, batch = np.meshgrid(
        np.log([1e8, 2e8, 4e8]), np.log([4e9, 1e10, 2e10]), np.log([2.0**18, 2.0**19, 2.0**20])
    )
    return Places(size=size.reshape(-1), tokens=tokens.reshape(-1), batch=batch.reshape(-1))


def surface(places: Places) -> np.ndarray:
    """Form S with p = 0.9, k = 0.5, b = 0.6, c = 0.25."""
    assert places.tokens is not None
    assert places.batch is not None
    n = places.size - np.log(4e8)
    t = places.tokens - np.log(TOKENS_0)
    v = places.batch - np.log(BATCH_0) + 0.5 - 0.5 * t
    return np.asarray(-6.5 - 0.6 * n + 0.25 * t - 0.9 * np.log1p(np.exp(-v)))


def size_slope(law: AxesLaw) -> tuple[float, float]:
    """Mean and standard deviation of d ln lr*/d ln n over the forms."""
    places = [(fit, fit.model.names.index("b")) for fit in law.fits.values()]
    found = np.array([-fit.theta[k] for fit, k in places])
    variance = np.mean([fit.covariance[k, k] for fit, k in places])
    return float(found.mean()), float(np.sqrt(variance + found.var()))


def test_scatter_shared_by_a_size_and_budget_matches_dense_algebra() -> None:
    rng = np.random.default_rng(0)
    cell = np.array([0, 0, 1, 1, 1, 2])
    weights = _Scatter(rng.uniform(1.0, 9.0, 6), 0.3, cell)
    dense = np.diag(1.0 / weights.precision) + 0.3 * (cell[:, None] == cell[None, :])
    y = rng.standard_normal((6, 2))
    np.testing.assert_allclose(weights.solve(y), np.linalg.solve(dense, y))
    np.testing.assert_allclose(weights.solve(y[:, 0]), np.linalg.solve(dense, y[:, 0]))
    assert weights.log_determinant() == pytest.approx(np.linalg.slogdet(dense)[1])


def test_a_surface_is_found_and_continued() -> None:
    rng = np.random.default_rng(1)
    places = make_places()
    x = surface(places) + 0.03 * rng.standard_normal(27)
    law = fit_axes_law(places, x, np.full(27, 1e-3), slope=PARAMETERS_SLOPE)
    target = Places(
        size=np.log(np.array([8e8, 1.6e9])),
        tokens=np.log(np.array([4e10, 8e10])),
        batch=np.log(np.array([2.0**20, 2.0**20])),
    )
    for where, truth in zip(law.forecast(target), surface(target), strict=True):
        assert where.mean == pytest.approx(truth, abs=0.25)
        assert where.quantile(0.05) < truth < where.quantile(0.95)
    size, error = size_slope(law)
    assert size == pytest.approx(-0.6, abs=2.0 * error)
    assert not law.correlations


def test_a_measured_cell_is_forecast_near_its_own_minimum() -> None:
    places = make_places()
    shift = np.where(places.cells() == 4, 0.6, 0.0)
    rng = np.random.default_rng(2)
    x = surface(places) + shift + 0.05 * rng.standard_normal(27)
    law = fit_axes_law(places, x, np.full(27, 1e-3), slope=PARAMETERS_SLOPE)
    here = places.cells() == 4
    off = np.array([where.mean for where in law.forecast(places)]) - surface(places)
    assert off[here].mean() > off[~here].mean() + 0.2


def test_axes_that_move_together_are_named_and_left_to_the_prior() -> None:
    size = np.log(np.array([1e8, 2e8, 4e8, 8e8]))
    places = Places(size=size, tokens=size + np.log(20.0), batch=np.full(4, np.log(2.0**19)))
    assert correlate_axes(places) == pytest.approx({"size, tokens": 1.0})
    law = fit_axes_law(places, surface(places), np.full(4, 1e-3), slope=PARAMETERS_SLOPE)
    assert law.correlations
    # The prior of each exponent keeps them apart, no further than it says.
    assert size_slope(law)[1] > 0.08


def test_axes_that_are_absent_are_left_out() -> None:
    size = np.log(np.array([1e8, 2e8, 4e8]))
    tokens = np.log(np.array([4e9, 8e9, 1.2e10]))
    x = -6.0 - 0.5 * (size - size[0])
    only = fit_axes_law(Places(size=size), x, np.full(3, 1e-3), slope=(-0.5, 0.2))
    [where] = only.forecast(Places(size=np.log(np.array([1.6e9]))))
    assert where.mean == pytest.approx(-6.0 - 0.5 * np.log(16.0), abs=0.1)
    both = fit_axes_law(Places(size=size, tokens=tokens), x, np.full(3, 1e-3), slope=(-0.5, 0.2))
    [fit] = both.fits.values()
    assert fit.model.names == ("a", "b", "c")


def test_shifts_of_x_and_a_held_scatter_pass_through() -> None:
    places = make_places()
    x = surface(places)
    first = fit_axes_law(places, x, np.full(27, 1e-3), slope=PARAMETERS_SLOPE, scatter=0.1)
    second = fit_axes_law(places, x + 3.0, np.full(27, 1e-3), slope=PARAMETERS_SLOPE, scatter=0.1)
    for one, two in zip(first.forecast(places), second.forecast(places), strict=True):
        assert two.mean == pytest.approx(one.mean + 3.0, abs=1e-6)
    assert first.scatter == pytest.approx(0.1)
