import math

import numpy as np
import pytest
from scipy import stats

from hptransfer.stats.estimate import fit_slope

WIDTHS = (64, 128, 256, 512, 1024)


def make(slope: float, noise: float, seed: int, seeds: int = 3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mean = slope * np.log(WIDTHS)[:, None]
    return np.exp(mean + noise * generator.standard_normal((len(WIDTHS), seeds)))


@pytest.mark.parametrize("slope", [-1.0, 0.0, 0.5])
def test_a_power_law_gives_its_exponent(slope):
    fit = fit_slope(WIDTHS, 3.0 * np.asarray(WIDTHS, dtype=float)[:, None] ** slope)
    assert fit.value == pytest.approx(slope, abs=1e-12)
    assert fit.low == pytest.approx(slope, abs=1e-6)
    assert fit.high == pytest.approx(slope, abs=1e-6)


def test_slope_and_interval_are_scipys_on_the_means_over_seeds():
    values = make(-0.7, 0.2, seed=0)
    line = stats.linregress(np.log(WIDTHS), np.log(values).mean(axis=1))
    reach = stats.t.ppf(0.95, len(WIDTHS) - 2) * line.stderr
    fit = fit_slope(WIDTHS, values)
    assert fit.value == pytest.approx(line.slope)
    assert (fit.low, fit.high) == pytest.approx((line.slope - reach, line.slope + reach))


def test_nine_intervals_in_ten_hold_the_truth():
    fits = [fit_slope(WIDTHS, make(-0.5, 0.3, seed)) for seed in range(1000)]
    held = np.mean([fit.low <= -0.5 <= fit.high for fit in fits])
    # 1000 draws: three standard errors of 0.9 are 0.028.
    assert held == pytest.approx(0.9, abs=0.028)


def test_the_unit_of_width_and_of_the_value_does_not_matter():
    values = make(-0.5, 0.3, seed=0)
    one = fit_slope(WIDTHS, values)
    other = fit_slope([3 * width for width in WIDTHS], 1e-6 * values)
    assert (one.value, one.low) == pytest.approx((other.value, other.low))


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_what_has_no_logarithm_is_not_identified(bad):
    values = make(0.0, 0.1, seed=0)
    values[2, 1] = bad
    fit = fit_slope(WIDTHS, values)
    assert (fit.value, fit.status) == (None, "not identified")
    assert "zero or not finite" in fit.reason
