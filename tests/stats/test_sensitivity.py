"""Tests of `hptransfer.stats._stability` against sums done by hand and known parameters."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hptransfer.stats import Reason
from hptransfer.stats._stability import share_range
from hptransfer.stats.loss_table import LossTable
from stats.synthetic import lr_sensitivity, make_table

INIT = 6.0


def one_width(losses, *, step=2.0, seeds=1):
    num = len(losses)
    return LossTable(
        width=np.full(num * seeds, 64.0),
        lr=np.tile(0.01 * step ** np.arange(num), seeds),
        loss=np.tile(np.array(losses, dtype=float), seeds),
        seed=np.repeat(np.arange(seeds), num),
    )


def test_by_hand():
    # The parabola 3 + (k - 2)²/4 in steps of the grid, then a loss above init, then a divergence.
    losses = [4.0, 3.25, 3.0, 3.25, 4.0, 9.0, np.nan]
    (found,) = lr_sensitivity(one_width(losses, seeds=2), init_loss=INIT)
    expected = np.mean([4.0, 3.25, 3.0, 3.25, 4.0, INIT, INIT]) - 3.0
    assert found.sensitivity.value == pytest.approx(expected, abs=1e-12)
    assert found.sensitivity.status == "identified"
    assert (found.num_lrs, found.num_diverged) == (7, 1)
    assert (found.lr_low, found.lr_high) == pytest.approx((0.01, 0.64))
    assert str(found).endswith("\n  over lr 0.01 to 0.64")


def test_uneven_grid_counts_by_share_of_the_range():
    table = one_width([4.0, 3.25, 3.0, 3.25, 4.0])
    table = replace(table, lr=np.exp(np.array([0.0, 1.0, 2.0, 3.0, 5.0])))
    assert share_range(np.log(table.lr)) == pytest.approx(np.array([2, 2, 2, 3, 4]) / 13)
    (found,) = lr_sensitivity(table, init_loss=INIT)
    best = found.sensitivity.value
    mean = np.dot([2, 2, 2, 3, 4], [4.0, 3.25, 3.0, 3.25, 4.0]) / 13
    # The best loss is the basin's, at most the lowest measured.
    assert mean - 3.0 <= best <= mean - 2.9


@given(st.lists(st.floats(0.05, 3.0), min_size=1, max_size=8))
def test_shares_are_a_mean(gaps):
    weights = share_range(np.concatenate([[0.0], np.cumsum(gaps)]))
    assert np.all(weights > 0)
    assert np.sum(weights) == pytest.approx(1.0)


@settings(max_examples=15, deadline=None)
@given(st.floats(-3, 3), st.floats(0.25, 4), st.floats(-1, 1), st.floats(0.2, 5))
def test_equivariance(shift, wider, lift, scale):
    table = make_table(num_seeds=2, seed=1)
    first = lr_sensitivity(table, init_loss=4.0, num_resamples=40)
    moved = replace(
        table,
        width=table.width * wider,
        lr=table.lr * np.exp(shift),
        loss=scale * (table.loss + lift),
    )
    second = lr_sensitivity(moved, init_loss=scale * (4.0 + lift), num_resamples=40)
    for a, b in zip(first, second, strict=True):
        assert b.width == pytest.approx(a.width * wider)
        assert b.sensitivity.value == pytest.approx(scale * a.sensitivity.value, rel=1e-6)
        assert b.sensitivity.low == pytest.approx(scale * a.sensitivity.low, rel=1e-5)


def true_sensitivity(width, *, drift=0.5, curvature=0.05):
    """The value that `make_table`'s defaults imply."""
    m = width / 64.0
    x = 0.5 * drift + np.log(2.0) * (np.arange(7) - 3.0)
    return np.mean(0.5 * curvature * m**0.1 * (x - drift * m**-0.7) ** 2)


@pytest.mark.parametrize(("seeds", "noise"), [(3, 0.005), (1, 0.002)])
def test_coverage(seeds, noise):
    inside = total = 0
    for k in range(30):
        table = make_table(num_seeds=seeds, noise=noise, seed=k)
        for found in lr_sensitivity(table, init_loss=9.0, num_resamples=100):
            truth = true_sensitivity(found.width)
            e = found.sensitivity
            assert e.value == pytest.approx(truth, abs=0.03)
            inside += e.low <= truth <= e.high
            total += 1
    assert 0.82 <= inside / total <= 0.97


def test_unknown_init_is_never_replaced():
    table = make_table(noise=0.002)
    for found in lr_sensitivity(table):
        assert found.sensitivity.status == "weakly identified"
        assert Reason("unclipped") in found.sensitivity.reasons
    loss = table.loss.copy()
    top = (table.width == 128) & (table.lr == table.lr.max())
    loss[top] = np.nan
    by_width = {f.width: f for f in lr_sensitivity(replace(table, loss=loss))}
    refused = by_width[128.0].sensitivity
    assert refused.value is None
    assert refused.reason == "3 diverged trials cannot be counted without the loss at init"
    assert "not identified: 3 diverged trials" in str(by_width[128.0])
    assert by_width[64.0].sensitivity.value is not None


def test_init_of_each_trial():
    table = make_table(noise=0.0, num_seeds=2)
    loss = table.loss.copy()
    top = table.lr == table.lr.max()
    loss[top & (table.seed == 0)] = np.nan
    init = np.where(table.seed == 0, 4.0, 5.0)
    table = replace(table, loss=loss)
    found = lr_sensitivity(table, init_loss=init)[0]
    same = lr_sensitivity(table, init_loss=4.0)[0]
    assert found.sensitivity.value == pytest.approx(same.sensitivity.value)
    # The cell holds one trial at init and one at its loss; their disagreement is its error.
    own = loss[top & (table.seed == 1) & (table.width == 64)][0]
    clean = make_table(noise=0.0, num_seeds=2).loss[top & (table.width == 64)].mean()
    whole = lr_sensitivity(make_table(noise=0.0, num_seeds=2), init_loss=9.0)[0]
    rise = (0.5 * (4.0 + own) - clean) / 7
    assert found.sensitivity.value - whole.sensitivity.value == pytest.approx(rise)
    assert found.sensitivity.high - found.sensitivity.low > 0.1
    init[top & (table.seed == 1)] = np.nan
    again = lr_sensitivity(table, init_loss=init)[0]
    assert again.sensitivity.value == pytest.approx(found.sensitivity.value)
    assert Reason("unclipped") in again.sensitivity.reasons
    init[top] = np.nan
    assert "1 diverged trial cannot" in lr_sensitivity(table, init_loss=init)[0].sensitivity.reason


def test_lowest_mean_stands_in_where_the_minimum_is_not_bracketed():
    table = one_width([5.0, 4.5, 4.1, 3.8, 3.6], seeds=2)
    noisy = replace(table, loss=table.loss + 0.001 * np.tile([1, -1, 1, -1, 1], 2) * table.seed)
    (found,) = lr_sensitivity(noisy, init_loss=INIT)
    lowest = 3.6 + 0.0005
    assert found.sensitivity.value == pytest.approx(4.2 + 0.0001 - lowest)
    assert found.sensitivity.status == "weakly identified"
    assert "not bracketed" in found.sensitivity.reason


def test_one_learning_rate_is_no_range():
    table = make_table(noise=0.002)
    single = table.lr == table.lr.min()
    table = LossTable.from_columns(
        width=table.width[single], lr=table.lr[single], loss=table.loss[single],
        seed=table.seed[single],
    )  # fmt: skip
    found = lr_sensitivity(table, init_loss=9.0)
    assert all(f.sensitivity.reason == "one learning rate is no range" for f in found)


def test_every_trial_diverged():
    (found,) = lr_sensitivity(one_width([np.nan] * 4), init_loss=INIT)
    assert found.sensitivity.reason == "every trial of this width diverged"


def test_no_noise_to_judge_by():
    (found,) = lr_sensitivity(one_width([3.2, 3.0, 3.3]), init_loss=INIT)
    assert found.sensitivity.value is not None
    assert found.sensitivity.low is None


def test_groups_and_shapes():
    table = make_table(groups={"parameterization": "mup"}, num_seeds=2)
    found = lr_sensitivity(table, init_loss=9.0)
    assert [f.width for f in found] == [64.0, 128.0, 256.0, 512.0]
    assert all(f.group == {"parameterization": "mup"} for f in found)
    assert str(found[0]).startswith("mup:\n  lr_sensitivity at width 64: 0.0")
    assert found[0].to_dict()["lr_sensitivity"] == found[0].sensitivity.to_dict()
