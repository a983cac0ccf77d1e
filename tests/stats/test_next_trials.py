"""What to run next, against sums by hand, the information of a grid, and refits."""

from dataclasses import replace

import numpy as np
import pytest

from hptransfer.stats import LossTable, to_document
from hptransfer.stats._fisher import information
from hptransfer.stats._next_trials import BUDGET, Candidates, list_widths, pick_greedily
from hptransfer.stats.results import TransferModel
from stats.synthetic import WIDTHS, fit_groups, join_tables, make_table, recommend

TARGET = 2048.0
NOISE = 0.005


def line(costs, budget, most=9):
    """A line through t = -1, 0, 1 with unit noise, asked for at t = 2."""
    t = np.array([-1.0, 0.0, 1.0])
    jacobian = np.stack([np.ones(3), t], axis=1)
    found = Candidates(
        width=np.ones(3),
        x=t,
        count=np.ones(3),
        variance=np.ones(3),
        cost=np.array(costs, dtype=float),
        open=np.ones(3, dtype=bool),
        row=np.full(3, -1),
    )
    gradient = np.array([1.0, 2.0])
    return pick_greedily(
        jacobian.T @ jacobian, gradient, jacobian, found, 0.0, budget=budget, most=most
    )


def test_by_hand():
    # Covariance diag(1/3, 1/2), so that y(2) has variance 7/3. One more trial at t saves
    # (1/3 + t)²/(4/3 + t²/2): 32/33 at 1, 8/33 at -1, 1/12 at 0.
    assert line([1, 1, 1], 1.0).tolist() == [0, 0, 1]
    # At 5 times the cost the trial at 1 gives 0.194 for its money, that at -1 gives 0.242.
    assert line([1, 1, 5], 1.0).tolist() == [1, 0, 0]
    assert line([1, 1, 5], 0.5).tolist() == [0, 0, 0]
    assert line([1, 1, 1], 3.0, most=1).tolist() == [1, 1, 1]


def test_new_widths_lie_between_and_below_the_target():
    assert list_widths(np.array([64.0, 128.0]), 1000.0) == [96.0, 192.0, 256.0, 384.0, 512.0, 768.0]
    assert list_widths(np.array([64.0, 128.0]), 100.0) == [96.0]


def ask(table, width=TARGET):
    (answer,) = recommend(table, width=width, num_resamples=100)
    return answer.next


def grid_of(table, steps=()):
    """Trials by width and x of a table and of steps run beside it, shape (W, L)."""
    count = {}
    for n, lr in zip(table.width, table.lr, strict=True):
        count[n, round(np.log(lr), 6)] = count.get((n, round(np.log(lr), 6)), 0) + 1
    for step in steps:
        for lr, num in zip(step.lrs, step.trials, strict=True):
            key = step.width, round(np.log(lr), 6)
            count[key] = count.get(key, 0) + num
    widths, x = (np.unique([key[k] for key in count]) for k in (0, 1))
    trials = np.array([[count.get((n, p), 0) for p in x] for n in widths])
    return widths, np.where(trials > 0, x, np.nan), np.maximum(trials, 1)


MODEL = TransferModel(
    form="converging", loss_inf=2.0, A=0.7 * 8.0, alpha=0.5, C0=0.05 * 64**-0.1, gamma=0.1,
    x_inf=-5.0, B=0.5 * 64**0.7, beta=0.7,
)  # fmt: skip


def bound(grid):
    widths, x, trials = grid
    known = information(MODEL, widths=widths, x=x, noise=NOISE, num_seeds=trials)
    return known.optimum(TARGET)


def test_what_is_expected_agrees_with_the_information_of_the_grown_grid():
    table = make_table(noise=NOISE)
    found = ask(table)
    assert found.steps
    assert sum(step.cost for step in found.steps) <= BUDGET + 1e-9
    expected = found.steps[-1].half_width / found.half_width
    # The oracle knows the true parameters, the proposal the fitted ones.
    assert bound(grid_of(table, found.steps)) / bound(grid_of(table)) == pytest.approx(
        expected, rel=0.05
    )
    halves = [found.half_width, *(step.half_width for step in found.steps)]
    assert np.all(np.diff(halves) < 0)


def test_greedy_beats_spending_evenly():
    table = make_table(noise=NOISE)
    found = ask(table)
    spent = sum(step.cost for step in found.steps)
    widths, x, trials = grid_of(table)
    even = bound((widths, x, trials * (1.0 + spent)))
    chosen = bound(grid_of(table, found.steps))
    assert chosen < even
    # The bound falls as the root of the trials; all of it lies in what is chosen.
    assert even / bound(grid_of(table)) == pytest.approx((1.0 + spent) ** -0.5, rel=1e-6)
    assert 1.0 - chosen / bound(grid_of(table)) > 1.3 * (1.0 - (1.0 + spent) ** -0.5)


def run_steps(steps, seed):
    """The trials of the steps, as `make_table` would have run them."""
    rng = np.random.default_rng(10_000 + seed)
    rows = []
    for step in steps:
        for lr, num in zip(step.lrs, step.trials, strict=True):
            u = np.log(lr) - MODEL.optimum(np.array(step.width))
            n = np.array(step.width)
            loss = MODEL.best_loss(n) + 0.5 * MODEL.curvature(n) * u**2
            rows += [
                (step.width, lr, loss + NOISE * rng.standard_normal(), 100 + k) for k in range(num)
            ]
    width, lr, loss, seeds = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    return LossTable(width=width, lr=lr, loss=loss, seed=seeds.astype(np.int64))


def test_refits_with_the_trials_narrow_as_expected():
    found = ask(make_table(noise=NOISE))
    optima = {"now": [], "then": []}
    for k in range(40):
        now = make_table(noise=NOISE, seed=k)
        for name, table in (("now", now), ("then", join_tables(now, run_steps(found.steps, k)))):
            (fit,) = fit_groups(table, num_resamples=4)
            optima[name].append(float(fit.joint.optimum(TARGET)[0]))
    truth = float(MODEL.optimum(np.array(TARGET)))
    error = {k: np.sqrt(np.mean((np.array(v) - truth) ** 2)) for k, v in optima.items()}
    # The ratio of two errors from 40 studies each is known to about a sixth.
    expected = found.steps[-1].half_width / found.half_width
    assert error["then"] / error["now"] == pytest.approx(expected, rel=0.3)
    assert error["then"] < error["now"]


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
    lone = ask(make_table(widths=WIDTHS[:3], num_lrs=3, num_seeds=1))
    assert lone.missing or lone.half_width is not None
    exact = ask(make_table(noise=0.0))
    assert exact.steps == ()
    assert str(exact) == "no trials would tell more"


def test_the_proposal_in_words():
    found = ask(make_table(noise=0.01))
    first = str(found).splitlines()
    assert first[0].startswith("noise leaves lr* open to a factor of 1.")
    assert first[1].startswith("1. width ")
    assert "% of the compute, then to 1." in first[1]
    told = to_document(found)
    assert told["steps"][0]["width"] == found.steps[0].width
    assert told["cost_basis"].startswith("width²")
