"""What to run next: within its budget, equivariant, and as narrowing as it says."""

from dataclasses import replace

import numpy as np
import pytest

from hptransfer.stats import LossTable, to_document
from hptransfer.stats._advice import BUDGET, list_widths
from stats.synthetic import WIDTHS, join_tables, make_table, recommend

TARGET = 2048.0
NOISE = 0.005


def test_new_widths_lie_between_and_below_the_target():
    assert list_widths(np.array([64.0, 128.0]), 1000.0) == [96.0, 192.0, 256.0, 384.0, 512.0, 768.0]
    assert list_widths(np.array([64.0, 128.0]), 100.0) == [96.0]


def ask(table, width=TARGET):
    (answer,) = recommend(table, width=width, num_resamples=100)
    return answer.next


def test_steps_narrow_within_half_of_the_compute():
    found = ask(make_table(noise=NOISE))
    assert found.steps
    assert sum(step.cost for step in found.steps) <= BUDGET + 1e-9
    halves = [found.half_width, *(step.half_width for step in found.steps)]
    assert np.all(np.diff(halves) < 0)
    for before, step in zip(halves, found.steps, strict=False):
        assert step.gain * step.cost == pytest.approx((before - step.half_width) / halves[0])


def run_steps(steps, seed):
    """The trials of the steps, as `make_table` would have run them."""
    rng = np.random.default_rng(10_000 + seed)
    rows = []
    for step in steps:
        for lr, num in zip(step.lrs, step.trials, strict=True):
            m = step.width / 64.0
            u = np.log(lr) - (-5.0 + 0.5 * m**-0.7)
            loss = 2.0 + 0.7 * m**-0.5 + 0.5 * 0.05 * m**0.1 * u**2
            rows += [(step.width, lr, loss + NOISE * rng.standard_normal(), k) for k in range(num)]
    width, lr, loss, seeds = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    return LossTable(width=width, lr=lr, loss=loss, seed=seeds.astype(np.int64))


def test_the_trials_proposed_narrow_the_answer_about_as_expected():
    ratios, expected = [], []
    for k in range(6):
        table = make_table(noise=NOISE, num_seeds=1, seed=k)
        found = ask(table)
        grown = ask(join_tables(table, run_steps(found.steps, k)))
        ratios.append(grown.half_width / found.half_width)
        expected.append(found.steps[-1].half_width / found.half_width)
    assert np.median(ratios) < 1.0
    assert np.median(ratios) == pytest.approx(np.median(expected), rel=0.2)


@pytest.mark.parametrize(("wider", "shift", "scale"), [(3.0, 1.3, 0.2), (0.5, -2.0, 4.0)])
def test_equivariance(wider, shift, scale):
    table = make_table(noise=NOISE)
    moved = replace(
        table, width=table.width * wider, lr=table.lr * np.exp(shift), loss=table.loss * scale
    )
    one, other = ask(table), ask(moved, TARGET * wider)
    assert other.half_width == pytest.approx(one.half_width, rel=1e-5)
    assert len(other.steps) == len(one.steps)
    for a, b in zip(one.steps, other.steps, strict=True):
        assert b.width == pytest.approx(a.width * wider)
        assert b.lrs == pytest.approx(np.array(a.lrs) * np.exp(shift), rel=1e-6)
        assert b.trials == a.trials
        assert b.cost == pytest.approx(a.cost, rel=1e-6)
        assert b.half_width == pytest.approx(a.half_width, rel=1e-4)


def test_dear_widths_are_avoided():
    table = make_table(noise=NOISE)
    (dear,) = recommend(table, width=TARGET, flops=lambda n: n**6.0, num_resamples=50)
    (cheap,) = recommend(table, width=TARGET, flops=lambda n: n**0.0, num_resamples=50)
    trials = [
        sum(sum(s.trials) for s in answer.next.steps if s.width >= 512) for answer in (dear, cheap)
    ]
    assert trials[0] < trials[1]


def test_without_an_answer_the_missing_points_are_named():
    (missing,) = ask(make_table(widths=(64.0, 128.0))).missing
    assert str(missing) == "one more width above 128"
    table = make_table(widths=WIDTHS[:3], x_inf=-7 * np.log(2.0), drift=0.0)
    gone = (table.width == 256) & (np.log2(table.lr) > -6.5)
    kept = LossTable(
        width=table.width[~gone], lr=table.lr[~gone], loss=table.loss[~gone], seed=table.seed[~gone]
    )
    found = ask(kept)
    assert list(map(str, found.missing)) == ["a point to the right of 2^-7 at width 256"]
    assert str(found) == "needed for an answer: a point to the right of 2^-7 at width 256"
    assert to_document(found)["steps"] == []


def test_the_proposal_in_words():
    found = ask(make_table(noise=0.01))
    first = str(found).splitlines()
    assert first[0].startswith("lr* is open to a factor of 1.")
    assert first[1].startswith("1. width ")
    assert "% of the compute, then to 1." in first[1]
    told = to_document(found)
    assert told["steps"][0]["width"] == found.steps[0].width
    assert told["cost_basis"].startswith("width²")
