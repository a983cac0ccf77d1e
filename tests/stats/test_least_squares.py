import numpy as np
import pytest
from scipy.optimize import least_squares

from hptransfer.stats.joint_model import ALPHA, EXCESS, LIMIT, _Points, predict

TRUTH = np.array([0.2, 0.7, 0.6, -1.0, 0.1, 0.1, 0.3, 0.8, 0.0])
T = np.repeat(np.log([64.0, 128, 256, 512]) - np.log(64 * 8**0.5), 7)
X = np.tile(np.linspace(-2.0, 2.0, 7), 4)


def solve(theta, noise=0.0, zero=-10.0, form="converging"):
    y = predict(theta[None], T, X, form)[0][0]
    y = y + noise * np.random.default_rng(0).standard_normal(len(y))
    points = _Points(np.exp(T), X, y, form)
    # Points as they are, and a loss of 0 where it is asked for.
    points.t, points.x, points.y, points.mean, points.scale = T, X, y, -zero, 1.0
    starts = np.tile([0.0, 1.0, 0.5, -1.0, 0.0, 0.0, 0.5, 0.7, 0.0], (2, 1))
    starts[1, ALPHA] = 1.2
    return points, points.solve(starts, skewed=False)


@pytest.mark.parametrize("zero", [-10.0, 0.3])
def test_a_solution_agrees_with_scipy(zero):
    points, found = solve(TRUTH, noise=0.02, zero=zero)

    def residual(p):
        return predict(np.append(p, 0.0)[None], T, X, "converging")[0][0] - points.y

    lower = [zero, 0.0, 0.01, -30, -3, -9, -9, 0.01]
    upper = [9.0, 9.0, 3.0, 30, 3, 9, 9, 3.0]
    oracle = least_squares(
        residual, np.clip(TRUTH[:8], lower, upper), bounds=(lower, upper), xtol=1e-14, ftol=1e-14
    )
    assert found.cost == pytest.approx(2 * oracle.cost, rel=1e-6)
    np.testing.assert_allclose(found.theta[:8], oracle.x, atol=2e-3)
    # The limit held at its bound is none that the data tell.
    assert found.free[LIMIT] == (zero < 0.0)
    assert points.tangent(found)[1].shape == (len(T), 8 if zero < 0.0 else 7)


def test_exact_data_ends_at_no_cost_and_what_cannot_fall_is_level():
    _, found = solve(TRUTH)
    assert found.cost == pytest.approx(0.0, abs=1e-18)
    rising = TRUTH.copy()
    rising[EXCESS] = -0.3
    _, level = solve(rising)
    assert level.theta[EXCESS] == 0.0
    assert not level.free[EXCESS]
    assert not level.skewed
