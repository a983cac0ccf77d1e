import numpy as np
from scipy.optimize import least_squares

from hptransfer.stats._source_error import _solve_batch as solve_batch


def decay(theta):
    t = np.linspace(0.0, 3.0, 12)
    a, k, c = (theta[:, i : i + 1] for i in range(3))
    e = np.exp(-k * t)
    return a * e + c, np.stack([e, -a * t * e, np.ones_like(e)], axis=2)


LOWER, UPPER = np.array([0.0, 0.01, -10.0]), np.array([10.0, 5.0, 10.0])


def solve(data, frozen=(False, False, False), upper=UPPER):
    start = np.tile([1.0, 1.0, 0.0], (len(data), 1))
    return solve_batch(decay, start, data, lower=LOWER, upper=upper, frozen=np.array(frozen))


def test_a_batch_agrees_with_scipy():
    rng = np.random.default_rng(0)
    truth = np.array([[2.0, 0.7, 1.0], [1.0, 2.0, -1.0], [4.0, 0.3, 0.0]])
    data = decay(truth)[0] + 0.05 * rng.standard_normal((3, 12))
    theta, cost = solve(data)
    for row, y, found in zip(theta, data, cost, strict=True):
        oracle = least_squares(
            lambda p, y=y: decay(p[None])[0][0] - y,
            [1.0, 1.0, 0.0],
            bounds=(LOWER, UPPER),
            xtol=1e-14,
        )
        np.testing.assert_allclose(found, 2 * oracle.cost, rtol=1e-8)
        np.testing.assert_allclose(row, oracle.x, rtol=1e-4, atol=1e-4)


def test_bounds_hold_and_frozen_parameters_stay():
    data = decay(np.array([[2.0, 2.0, 1.0]]))[0]
    theta, _ = solve(data, upper=np.array([10.0, 1.5, 10.0]))
    assert theta[0, 1] == 1.5
    theta, _ = solve(data, frozen=(False, False, True))
    assert theta[0, 2] == 0.0


def test_exact_data_ends_at_zero_cost():
    theta, cost = solve(decay(np.array([[1.0, 1.0, 0.0]]))[0])
    assert cost[0] == 0.0
    np.testing.assert_array_equal(theta[0], [1.0, 1.0, 0.0])
