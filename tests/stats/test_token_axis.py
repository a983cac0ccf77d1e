from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from hptransfer.errors import FitError
from hptransfer.stats import LossTable, fit_table, fit_tokens

WIDTHS, BUDGETS = 64.0 * 2.0 ** np.arange(4), 1e8 * 4.0 ** np.arange(4)
TRUTH = {"alpha": 0.5, "delta": 0.4, "b": 0.6, "c": 0.2, "gamma": 0.1, "loss_inf": 2.0}


def loss_at(n, tokens, x):
    m, d = n / 64.0, tokens / 1e8
    u = x - (-5.0 - 0.6 * np.log(m) + 0.2 * np.log(d))
    return 2.0 + 0.7 * m**-0.5 + 0.5 * d**-0.4 + 0.025 * m**0.1 * u**2


def make(seed=0, noise=0.003, num_seeds=2, pairs=None):
    rng = np.random.default_rng(seed)
    pairs = [(n, t) for n in WIDTHS for t in BUDGETS] if pairs is None else pairs
    x = -5.0 + np.log(2.0) * np.arange(-5, 6)
    rows = [(n, t, xi, s) for n, t in pairs for xi in x for s in range(num_seeds)]
    n, t, xi, s = np.array(rows).T
    loss = loss_at(n, t, xi) + noise * rng.standard_normal(len(n))
    return LossTable(width=n, lr=np.exp(xi), loss=loss, seed=s.astype(np.int64), tokens=t)


def test_a_table_without_noise_gives_the_truth():
    fit = fit_tokens(make(noise=0.0), num_resamples=20)
    for name, value in TRUTH.items():
        assert fit.exponents[name].value == pytest.approx(value, abs=1e-5), name
    answer = fit.recommend(width=1024.0, tokens=1e11)
    assert np.log(answer.lr.value) == pytest.approx(
        -5.0 - 0.6 * np.log(16.0) + 0.2 * np.log(1e3), abs=1e-5
    )
    assert answer.loss.value == pytest.approx(2.0 + 0.7 / 4.0 + 0.5 * 1e3**-0.4, abs=1e-5)


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_intervals_cover_the_truth(num_seeds):
    studies, hits = 12, dict.fromkeys([*TRUTH, "lr", "loss"], 0)
    width, tokens = 1024.0, 4e10
    truth = {
        **TRUTH,
        "lr": np.exp(-5.0 - 0.6 * np.log(16.0) + 0.2 * np.log(400.0)),
        "loss": 2.0 + 0.7 / 4.0 + 0.5 * 400.0**-0.4,
    }
    for study in range(studies):
        fit = fit_tokens(make(study, num_seeds=num_seeds), num_resamples=60)
        answer = fit.recommend(width=width, tokens=tokens)
        for name, e in {**fit.exponents, "lr": answer.lr, "loss": answer.loss}.items():
            assert e.status == "identified", (name, e)
            hits[name] += e.low <= truth[name] <= e.high
        assert answer.verdict == "usable"
    assert all(h >= binom.ppf(5e-4, studies, 0.9) for h in hits.values()), hits


def test_units_scale_through():
    table = make(3)
    moved = replace(
        table, width=8.0 * table.width, tokens=100.0 * table.tokens, lr=3.0 * table.lr,
        loss=5.0 * table.loss,
    )  # fmt: skip
    one, other = (fit_tokens(t, num_resamples=40) for t in (table, moved))
    for name, e in one.exponents.items():
        factor = 5.0 if name == "loss_inf" else 1.0
        assert other.exponents[name].value == pytest.approx(factor * e.value, rel=1e-4), name
    a = one.recommend(width=1000.0, tokens=1e11)
    b = other.recommend(width=8000.0, tokens=1e13)
    assert b.lr.value == pytest.approx(3.0 * a.lr.value, rel=1e-4)
    assert b.loss.value == pytest.approx(5.0 * a.loss.value, rel=1e-4)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(n, 20 * n**2) for n in WIDTHS], "width and tokens move together .tokens as width.2"),
        ([(n, t) for n in WIDTHS for t in BUDGETS[:2]], "needs 3 token budgets, found 2"),
        ([(n, t) for n in WIDTHS[:2] for t in BUDGETS], "needs 3 widths, found 2"),
        (
            [(64.0, 1e8), (128.0, 4e8), (256.0, 1.6e9), (64.0, 1.6e9)],
            "needs 6 widths by budgets, found 4",
        ),
    ],
)
def test_an_axis_that_is_not_spanned_is_refused_in_words(pairs, message):
    # A grid around each pair's own optimum, so that every minimum is bracketed.
    fit = fit_tokens(make(pairs=pairs), num_resamples=20)
    for e in (*fit.exponents.values(), fit.error):
        assert e.status == "not identified"
    answer = fit.recommend(width=1024.0, tokens=1e10)
    assert answer.verdict == "unusable"
    assert answer.lr.value is None
    import re

    assert re.search(message, answer.because), answer.because
    assert fit.basins[0].basin.lr.status == "identified"


def test_a_floor_below_zero_is_held_and_said():
    table = make(1)
    fit = fit_tokens(replace(table, loss=table.loss - 2.6), num_resamples=20)
    assert fit.exponents["loss_inf"].value == 0.0
    assert "L∞ hit its bound of 0" in fit.exponents["loss_inf"].reason


def test_reaching_too_far_is_risky():
    fit = fit_tokens(make(2, noise=0.0005), num_resamples=40)
    answer = fit.recommend(width=512.0 * 20, tokens=1e9)
    assert answer.verdict == "risky"
    assert "20 times beyond the largest width" in answer.because
    assert set(answer.to_dict()["regret"]) == {"recommended", "same_lr", "inverse_width"}
    assert fit.to_dict()["basins"][0]["tokens"] == 1e8


def test_wrong_input_is_named():
    table = make()
    with pytest.raises(FitError, match="found a token axis"):
        fit_table(table)
    with pytest.raises(FitError, match="no column tokens"):
        fit_tokens(replace(table, tokens=None))
    with pytest.raises(FitError, match="column tokens, row 1: expected a positive number"):
        fit_tokens(replace(table, tokens=0.0 * table.tokens))
    with pytest.raises(FitError, match="tokens: expected a positive number, found -1"):
        fit_tokens(table, num_resamples=10).recommend(width=64.0, tokens=-1)
    names = np.array(["a", "b"] * (len(table) // 2), dtype=object)
    with pytest.raises(FitError, match="column kind: expected one value"):
        fit_tokens(replace(table, groups={"kind": names}))
