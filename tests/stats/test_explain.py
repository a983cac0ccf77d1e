"""Reasons end with data that would help; that data really helps."""

import numpy as np
import pytest

from hptransfer.stats import LossTable
from hptransfer.stats._advice import repeat_trials
from hptransfer.stats.reasons import HELP, say_lr
from stats.synthetic import fit_transfer, make_table, recommend


def parts(estimate):
    assert HELP in estimate.reason, estimate
    return estimate.reason.split(HELP)[1]


def cut(table, keep):
    return LossTable(
        width=table.width[keep], lr=table.lr[keep], loss=table.loss[keep], seed=table.seed[keep]
    )


def test_learning_rates_are_said_as_sweeps_say_them():
    assert say_lr(np.log(2.0**-7)) == "2^-7"
    assert say_lr(np.log(2.0**-7.5)) == "2^-7.5"
    assert say_lr(np.log(0.003)) == "0.003"


def test_trials_follow_the_square_of_the_interval():
    assert str(repeat_trials(0.4, 0.2)) == "about 4 times the trials"
    assert str(repeat_trials(0.41, 0.2, 64)) == "about 5 times the trials at width 64"
    assert str(repeat_trials(np.inf, 0.2)) == "more than 30 times the trials"


@pytest.mark.parametrize(
    ("side", "words"),
    [("right", "a point to the right of 2^-7 at width 256"),
     ("left", "a point to the left of 2^-7 at width 256")],
)  # fmt: skip
def test_an_open_side_is_named(side, words):
    table = make_table(widths=(64.0, 128.0, 256.0), x_inf=-7 * np.log(2.0), drift=0.0, noise=0.001)
    x = np.log2(table.lr)
    gone = (table.width == 256) & ((x > -6.5) if side == "right" else (x < -7.5))
    fit = fit_transfer(cut(table, ~gone))
    assert parts(fit.basins[2].lr) == words
    assert parts(fit.exponents["alpha"]) == words
    (answer,) = recommend(cut(table, ~gone), width=1024)
    assert words in [str(reason) for reason in answer.next.missing]


def test_lacking_widths_are_counted():
    assert parts(fit_transfer(make_table(widths=(64.0, 128.0))).exponents["gamma"]) == (
        "one more width above 128"
    )
    one = fit_transfer(make_table(widths=(64.0,))).exponents["gamma"]
    assert parts(one) == "two more widths above 64"
    three = fit_transfer(make_table(widths=(64.0, 128.0, 256.0))).metrics["E_out"]
    assert parts(three) == "one more width above 256"


def test_lone_seeds_without_spare_points_want_another():
    fit = fit_transfer(make_table(widths=(64.0, 128.0, 256.0), num_lrs=3, num_seeds=1))
    assert parts(fit.basins[0].lr).startswith("a second seed")


def test_good_news_wants_nothing():
    kappa = fit_transfer(make_table(drift=0.0)).metrics["kappa"]
    assert "good news" in kappa.reason
    assert HELP not in kappa.reason


def test_what_is_named_identifies_kappa():
    options = {"noise": 0.01, "seed": 0}
    kappa = fit_transfer(make_table(**options)).metrics["kappa"]
    assert parts(kappa) == "two more widths above 512, or about 5 times the trials"
    halves = {}
    for name, more in (
        ("now", {}),
        ("wider", {"widths": (64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)}),
        ("more", {"num_seeds": 15}),
    ):
        # Medians over studies, since one study's interval is itself a draw.
        tables = [make_table(**{**options, **more, "seed": k}) for k in range(8)]
        fits = [fit_transfer(table, num_resamples=60).metrics["kappa"] for table in tables]
        halves[name] = np.median([0.5 * (e.high - e.low) for e in fits if e.high is not None])
    # The threshold is 0.5; each way reaches it, about, from far above.
    assert halves["now"] > 0.8
    assert halves["wider"] < 0.6
    assert halves["more"] < 0.6
