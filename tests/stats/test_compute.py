"""Tests of `hptransfer.stats._metrics` on slopes and parameters that are known."""

from dataclasses import replace

import numpy as np
import pytest

from hptransfer.errors import FitError
from hptransfer.stats import LossTable, fit_table
from hptransfer.stats._metrics import (
    flops_of,
    local_slope,
    price_compute,
    price_loss,
)
from hptransfer.stats.estimate import Estimate
from stats.synthetic import fit_groups, join_tables, make_table

WIDE = (32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


def fit_of(table, **options):
    (fit,) = fit_groups(table, **options)
    return fit


def test_the_local_slope_of_a_straight_line_is_its_slope():
    minima = fit_of(make_table(num_seeds=2, noise=0.001)).minima
    straight = replace(minima, loss=5.0 - 0.2 * np.log(minima.size))
    slope, error = local_slope(straight)
    assert slope == pytest.approx(0.2)
    assert error > 0.0
    # Where the slope changes beyond noise, the two widest widths speak.
    bent = replace(minima, loss=5.0 + 3.0 * minima.size**-0.5)
    n = minima.size[-2:]
    assert local_slope(bent)[0] == pytest.approx(-3.0 * np.diff(n**-0.5)[0] / np.log(2.0))
    assert local_slope(replace(minima, x=np.where(minima.size == 64, minima.x, np.nan))) is None


def test_compute_is_that_of_the_equivalent_width():
    minima = fit_of(make_table(num_seeds=2, noise=0.001)).minima
    minima = replace(minima, loss=5.0 - 0.2 * np.log(minima.size))
    extra, equal = price_loss(minima, 512.0, Estimate(value=0.02, low=0.0, high=0.05))
    assert equal == pytest.approx(512.0 * np.exp(-0.1))
    assert extra.value == pytest.approx(1.0 - np.exp(-0.2))
    assert extra.low == 0.0
    assert extra.high >= 1.0 - np.exp(-0.5)
    rising = replace(minima, loss=5.0 + 0.2 * np.log(minima.size))
    refused, equal = price_loss(rising, 512.0, Estimate(value=0.02, low=0.0, high=0.05))
    assert (refused.value, equal) == (None, None)
    assert "does not fall with width" in refused.reason


def test_known_parameters_are_found():
    # A·n^-alpha = 0.7·m^-0.5, C = 0.05·m^0.1: at m = 16 and off by ln 2 the truth is this.
    slope = 0.7 * (8**-0.5 - 16**-0.5) / np.log(2.0)
    truth = 1.0 - np.exp(-2.0 * 0.5 * 0.05 * 16**0.1 * np.log(2.0) ** 2 / slope)
    for k in range(20):
        fit = fit_of(make_table(widths=WIDE[:5], num_seeds=3, seed=k), num_resamples=10)
        optimum = -5.0 + 0.5 * 16**-0.7
        price = float(fit.minima.rise(4, optimum - np.log(2.0)))
        regret = Estimate(value=price, low=price, high=price)
        found = price_compute(fit.minima, 512.0, {"half": regret}, {})
        e = found.extra["half"]
        assert e.value == pytest.approx(truth, rel=0.4)
        assert e.low < e.value < e.high
        assert found.equivalent_width["half"] < 512.0


def test_more_tokens_waste_more():
    table = make_table(widths=WIDE, num_seeds=2, groups={"parameterization": "sp"})
    (square,) = fit_table(table).regret(width=2048)
    grown = flops_of(WIDE, np.square(WIDE), np.square(WIDE))
    (fourth,) = fit_table(table).regret(width=2048, flops=grown)
    assert list(square.extra) == ["recommended", "same_lr", "inverse_width"]
    for choice, e in square.extra.items():
        assert 0.0 <= e.low <= e.value <= e.high < fourth.extra[choice].high < 1.0
    assert square.extra["inverse_width"].value > square.extra["recommended"].value
    assert square.extra["inverse_width"].high <= 1.0 - (1.0 - fourth.extra["inverse_width"].high)
    assert str(square).startswith("sp:\n  extra_compute.recommended at width 2048: 0.0")
    told = square.to_dict()
    assert told["extra_compute"]["same_lr"] == square.extra["same_lr"].to_dict()
    assert told["equivalent_width"]["same_lr"] < 2048


def test_one_width_has_no_slope():
    table = make_table(widths=(64.0, 128.0))
    lone = LossTable(
        width=np.full(len(table) // 2, 64.0),
        lr=table.lr[table.width == 64.0],
        loss=table.loss[table.width == 64.0],
        seed=table.seed[table.width == 64.0],
    )
    (found,) = fit_table(lone).regret(width=128)
    for choice, e in found.extra.items():
        assert e.value is None
        assert e.reason == "compute needs two widths with a minimum"
        assert found.equivalent_width[choice] is None


def test_widths_below_the_narrowest_are_said():
    minima = fit_of(make_table()).minima
    e, _ = price_loss(minima, 64.0, Estimate(value=0.3, low=0.2, high=0.4))
    assert e.status != "identified"
    assert "below 64, the narrowest measured" in e.reason


def test_flops_of():
    flops = flops_of([64, 256, 128], [1e5, 1.6e6, 4e5])
    n = np.array([32.0, 64.0, 100.0, 256.0, 1000.0])
    assert flops(n) == pytest.approx(6e5 * (n / 64.0) ** 2)
    bent = flops_of([64, 128, 256], [1e5, 3e5, 1.2e6], 2.0)
    assert bent(np.array([64.0, 128.0, 512.0])) == pytest.approx([1.2e6, 3.6e6, 5.76e7])
    for widths, params, message in (
        ([64], [1e5], "two widths"),
        ([64, 128], [1e5, -1.0], "positive"),
        ([64, 128], [1e5], "shapes"),
        ([64, 64], [1e5, 2e5], "distinct"),
        ([64, 128], [2e5, 1e5], "grow"),
    ):
        with pytest.raises(FitError, match=message):
            flops_of(widths, params)
    with pytest.raises(FitError, match="positive number"):
        fit_table(make_table()).regret(width=-1.0)


def test_fast_and_slow_are_told_apart():
    fast = make_table(widths=WIDE, noise=0.0005, groups={"parameterization": "mup"})
    slow = make_table(
        widths=WIDE,
        noise=0.0005,
        alpha=0.9,
        beta=0.1,
        drift=2.0,
        x_inf=-6.0,
        groups={"parameterization": "sp"},
    )
    first, second = fit_table(join_tables(fast, slow)).fast_transfer()
    assert (first.verdict, second.verdict) == ("fast", "not fast")
    assert first.margin.low <= 0.7 - 0.25 <= first.margin.high
    assert second.margin.low <= 0.1 - 0.45 <= second.margin.high
    assert str(first).startswith("mup:\n  transfer is fast: beta − alpha/2 is 0.4")
    assert first.to_dict()["verdict"] == "fast"


def test_the_verdict_is_seldom_wrong():
    wrong = decided = 0
    for k in range(30):
        beta = (0.45, 0.05)[k % 2]
        table = make_table(widths=WIDE, noise=0.001, beta=beta, drift=1.5, seed=k)
        (found,) = fit_table(table, num_resamples=100).fast_transfer()
        decided += found.verdict != "undecided"
        wrong += found.verdict == ("not fast" if beta > 0.25 else "fast")
    assert wrong <= 2
    assert decided >= 20


def test_undecided_says_why():
    (still,) = fit_table(make_table(drift=0.0)).fast_transfer()
    assert still.verdict == "undecided"
    assert still.because.startswith("no drift seen")
    assert still.margin.value is None
    (few,) = fit_table(make_table(widths=(64.0, 128.0))).fast_transfer()
    assert "3 widths" in few.because
    (power,) = fit_table(make_table(), form="power").fast_transfer()
    assert power.because == "beta exists only in the converging form"
    (even,) = fit_table(make_table(alpha=1.0, beta=0.5, noise=0.001, widths=WIDE)).fast_transfer()
    assert even.verdict == "undecided"
    assert even.margin.low <= 0.0 <= even.margin.high
    (floored,) = fit_table(
        make_table(loss_inf=0.0, excess=3.0, alpha=0.2, noise=0.01)
    ).fast_transfer()
    assert floored.verdict == "undecided"
    assert "L∞ hit its bound" in floored.because
