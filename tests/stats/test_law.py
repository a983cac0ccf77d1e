from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from hptransfer.stats._power_laws import _Problem, _tangent
from stats.synthetic import make_table, recommend

LONG = tuple(2.0**k for k in range(5, 11))


def predict(table, width=4096.0, resamples=100):
    (answer,) = recommend(table, width=width, num_resamples=resamples)
    return answer.loss


def bend(table, by):
    """Add to the loss what no L∞ + A·n^-α has: a term growing with ln(n) squared."""
    t = np.log2(table.width / table.width.min())
    return replace(table, loss=table.loss + by * t**2)


def test_the_interval_holds_a_law_that_holds():
    studies = 12
    found = [predict(make_table(widths=LONG, seed=300 + k), resamples=60) for k in range(studies)]
    truth = 2.0 + 0.7 * (4096 / 32) ** -0.5
    assert sum(e.low <= truth <= e.high for e in found) >= binom.ppf(1e-3, studies, 0.9)


def test_a_law_that_bends_is_seen_and_spanned():
    table = make_table(widths=LONG, noise=0.002)
    straight, bent = predict(table, 2048.0), predict(bend(table, 0.004), 2048.0)
    assert straight.status == "identified"
    # The next width of the bent law itself, which the plain interval would leave far outside.
    m = 2048 / 32
    truth = 2.0 + 0.7 * m**-0.5 + 0.004 * np.log2(m) ** 2
    assert bent.low <= truth <= bent.high
    assert bent.high - bent.low > 2 * (straight.high - straight.low)


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_the_prediction_does_not_depend_on_units(scale):
    table = bend(make_table(widths=LONG, noise=0.002), 0.004)
    one = predict(table, 2048.0)
    moved = replace(table, width=table.width * 3.0, lr=table.lr * 5.0, loss=table.loss * scale)
    other = predict(moved, 3 * 2048.0)
    assert other.value == pytest.approx(scale * one.value, rel=1e-6)
    assert other.low == pytest.approx(scale * one.low, rel=1e-5)
    assert other.high == pytest.approx(scale * one.high, rel=1e-5)


def test_a_loss_that_does_not_fall_is_no_prediction():
    rising = make_table(excess=-0.05, noise=0.002)
    loss = predict(rising, 1024.0)
    assert loss.status == "not identified"
    assert loss.reason.startswith("the best loss does not fall with width")


def test_a_law_held_at_zero_has_a_parameter_less():
    t = np.linspace(-2.0, 2.0, 8)
    y = np.exp(-0.1 * t) - 0.02 * t
    problem = _Problem.of(t, y[None, :], 1e-4 * np.eye(8), falling=True)
    law = problem.fit()
    assert law.floored[0]
    tangent = _tangent(problem, law)
    assert tangent.shape == (8, 2)
    k, rise = float(law.exponent[0]), float(law.drop[0] / law.exponent[0])
    step = 1e-6
    near = [(rise + step) * np.exp(-k * t), rise * np.exp(-(k + step) * t)]
    slopes = np.stack([(each - rise * np.exp(-k * t)) / step for each in near], axis=1)
    # The same directions, whatever their lengths.
    left = slopes - tangent @ np.linalg.lstsq(tangent, slopes, rcond=None)[0]
    np.testing.assert_allclose(left, 0.0, atol=1e-4)
