"""Forecasts of the optimum against brute force, and what passes through them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from hptransfer.errors import FitError
from hptransfer.stats._power_laws import extrapolate_law
from hptransfer.stats.optimum_law import (
    BENDS,
    DOUBTS,
    SCATTER_SPREAD,
    SCATTERS,
    Forecast,
    Known,
    Mixture,
    add_bounds,
    forecast_drift,
    forecast_forms,
)
from hptransfer.stats.optimum_law import forecast as forecast_known
from hptransfer.stats.priors import NO_PRIOR, PRIORS

T = np.log([64.0, 128.0, 256.0, 512.0])
X = np.array([-4.9, -5.1, -5.6, -5.7])
V = np.array([0.002, 0.004, 0.003, 0.001])
PRIOR = PRIORS["raw"]


def forecast(size, x, variance, target, *, low=None, high=None, **options) -> Forecast:  # type: ignore[no-untyped-def]
    """Forecast from minima of which, by default, nothing bounds those that are missing."""
    low = np.full(len(size), -np.inf) if low is None else low
    high = np.full(len(size), np.inf) if high is None else high
    return forecast_known(Known(size, x, variance, low, high), target, **options)


def ask(target: float = 2048.0, **options: object) -> Forecast:
    arguments: dict[str, object] = {"prior": PRIOR} | options
    return forecast(np.exp(T), X, V, target, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [None, "drift"])
@pytest.mark.parametrize("missing", [False, True])
def test_forms_forecast_what_a_trend_leaves(form: str | None, missing: bool) -> None:
    trend, target = -0.4, 2048.0
    line = trend * (T - np.log(target))
    ends = np.where(T[-1] == T, -6.0, -np.inf) if missing else np.full(4, -np.inf)
    x = np.where(missing & (T[-1] == T), np.nan, X)
    plain = forecast(np.exp(T), x, V, target, low=ends, prior=PRIOR, form=form)
    moved = forecast(
        np.exp(T),
        x + line,
        V,
        target,
        low=ends + line,
        prior=replace(PRIOR, trend=trend),
        form=form,
    )
    np.testing.assert_allclose(moved.where.means, plain.where.means)
    np.testing.assert_allclose(moved.where.variances, plain.where.variances)
    assert moved.forms == pytest.approx(plain.forms)


@pytest.mark.parametrize("form", ["same", "constant", "power", "converging"])
def test_a_form_that_answers_alone_knows_no_trend(form: str) -> None:
    trend = ask(form=form, scatter=0.0, prior=replace(PRIOR, trend=-0.4))
    assert trend == ask(form=form, scatter=0.0)


def brute_force_drift(
    target: float, doubt: float, bend: float, sigma: float
) -> tuple[float, float, float]:
    """Mean and variance at the target of a Gaussian process, and the log evidence."""
    z = np.append(T, target) - T[-1]
    flat = 1e6
    cov = np.full((5, 5), flat) + (doubt * PRIOR.spread) ** 2 * np.outer(z, z)
    for i in range(5):
        for j in range(5):
            if z[i] * z[j] > 0:
                low, high = sorted((abs(z[i]), abs(z[j])))
                product = np.polynomial.Polynomial([high, -1.0]) * [low, -1.0]
                cov[i, j] += bend * product.integ()(low)
    noise = np.diag(np.append(V + sigma**2, sigma**2))
    cov = cov + noise
    y = X - PRIOR.slope * z[:4]
    gain = np.linalg.solve(cov[:4, :4], cov[:4, 4])
    mean = PRIOR.slope * z[4] + gain @ y
    evidence = stats.multivariate_normal.logpdf(y - y.mean(), np.zeros(4), cov[:4, :4])
    return float(mean), float(cov[4, 4] - gain @ cov[:4, 4]), float(evidence)


@pytest.mark.parametrize("scatter", [None, 0.02, 0.3])
@pytest.mark.parametrize("target", [np.log(4096.0), np.log(300.0), np.log(20.0)])
def test_drift_averages_the_gaussian_processes_that_it_says(
    scatter: float | None, target: float
) -> None:
    sigmas = SCATTERS.tolist() if scatter is None else [scatter]
    members = list(itertools.product(DOUBTS.items(), BENDS, sigmas))
    each = np.array([brute_force_drift(target, d, bend, s) for (d, _), bend, s in members])
    share, sigma = np.array([p for (_, p), _, _ in members]), np.array([s for *_, s in members])
    logs = each[:, 2] + np.log(share)
    if scatter is None:
        logs -= 0.5 * (np.log(sigma / PRIOR.scatter) / SCATTER_SPREAD) ** 2
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    mean = float(weights @ each[:, 0])
    [seen], [wide], own = forecast_drift(T, X, V, np.array([target]), PRIOR, scatter)
    assert seen == pytest.approx(mean, abs=1e-3)
    variance = float(weights @ (each[:, 1] + (each[:, 0] - mean) ** 2))
    assert wide == pytest.approx(variance, rel=3e-3)
    assert own == pytest.approx(float(weights @ sigma), rel=1e-2)


def test_several_targets_are_forecast_as_each_alone() -> None:
    targets = np.log([20.0, 300.0, 4096.0])
    means, variances, scatter = forecast_drift(T, X, V, targets, PRIOR, None)
    for k in range(3):
        [mean], [variance], own = forecast_drift(T, X, V, targets[[k]], PRIOR, None)
        assert mean == pytest.approx(means[k], rel=1e-12)
        assert variance == pytest.approx(variances[k], rel=1e-12)
        assert own == scatter


def test_what_turns_is_seen_to_turn_and_its_end_is_held() -> None:
    t = np.log(2.0) * np.arange(8)
    x = 0.4 * np.sin(np.pi * t / t[-1])
    found = forecast(np.exp(t[:6]), x[:6], np.full(6, 1e-3), float(np.exp(t[7])), prior=NO_PRIOR)
    assert found.where.quantile(0.05) < x[7] < found.where.quantile(0.95)


def test_far_answers_are_wider_by_more_than_a_random_walk() -> None:
    def half(target: float) -> float:
        where = ask(target).where
        return 0.5 * (where.quantile(0.95) - where.quantile(0.05))

    assert half(4096.0) > 2.5 * half(1024.0)


def test_a_form_gains_nothing_by_what_it_could_not_be_tried_on() -> None:
    t = np.log(2.0 ** np.arange(3.0))
    flat = forecast(np.exp(t), np.zeros(3), np.full(3, 1e-3), 32.0, prior=NO_PRIOR).forms
    jump = forecast(np.exp(t), np.array([0.0, 1.0, 1.0]), np.full(3, 1e-3), 32.0, prior=NO_PRIOR)
    # `power` forecasts none of three sizes: errors of the others are no reason to believe it.
    assert jump.forms["power"] <= min(jump.forms.values()) + 1e-9
    assert flat["power"] <= min(flat.values()) + 1e-9


def test_quantiles_and_regret_of_a_mixture_match_sampling() -> None:
    mixture = Mixture(
        weights=np.array([0.5, 0.3, 0.2]),
        means=np.array([-5.0, -4.2, -6.5]),
        variances=np.array([0.04, 0.2, 0.01]),
    )
    rng = np.random.default_rng(0)
    which = rng.choice(3, size=400_000, p=mixture.weights)
    drawn = mixture.means[which] + np.sqrt(mixture.variances[which]) * rng.standard_normal(400_000)
    for share in (0.05, 0.5, 0.95):
        assert mixture.quantile(share) == pytest.approx(np.quantile(drawn, share), abs=0.02)
    assert mixture.mean == pytest.approx(drawn.mean(), abs=0.01)
    regret = 0.5 * 0.3 * (drawn + 5.1) ** 2
    assert mixture.regret(-5.1, 0.3) == pytest.approx(regret.mean(), rel=0.01)
    assert np.mean(regret <= mixture.bound(-5.1, 0.3)) >= 0.9


def test_shifts_of_x_and_scalings_of_size_pass_through() -> None:
    before = ask()
    moved = forecast(5.0 * np.exp(T), X + 2.0, V, 5.0 * 2048.0, prior=PRIOR)
    np.testing.assert_allclose(moved.where.means, before.where.means + 2.0, atol=1e-9)
    np.testing.assert_allclose(moved.where.variances, before.where.variances, rtol=1e-9)
    assert moved.forms == pytest.approx(before.forms)


def test_a_cut_normal_matches_scipy() -> None:
    from hptransfer.stats.optimum_law import _cut

    for mean, variance, low, high in (
        (0.0, 1.0, 0.5, np.inf),
        (0.0, 1.0, -np.inf, -1.5),
        (2.0, 0.25, 1.0, 2.2),
        (0.0, 1.0, 4.0, np.inf),
        (0.0, 1.0, -np.inf, -5.0),
    ):
        sd = np.sqrt(variance)
        truth = stats.truncnorm((low - mean) / sd, (high - mean) / sd, loc=mean, scale=sd)
        found = _cut(mean, variance, low, high)
        assert found[0] == pytest.approx(truth.mean(), abs=1e-6)
        assert found[1] == pytest.approx(truth.var(), rel=1e-5, abs=1e-6)
    hard = _cut(0.0, 1.0, 60.0, np.inf)
    assert hard[0] == pytest.approx(60.0, abs=0.05)


def test_a_bound_that_contradicts_the_others_moves_the_forecast_towards_it() -> None:
    size = np.exp(T)
    x = np.where(np.arange(4) == 3, np.nan, X)
    nothing = forecast(size, x, V, 2048.0, prior=PRIOR)
    low = np.array([-np.inf, -np.inf, -np.inf, -4.5])
    high = np.full(4, np.inf)
    higher = forecast(size, x, V, 2048.0, prior=PRIOR, low=low, high=high)
    assert higher.where.mean > nothing.where.mean + 0.05
    alone = forecast(size, x, V, 2048.0, prior=PRIOR, low=low, high=high, form="drift")
    unheard = forecast(size, x, V, 2048.0, prior=PRIOR, form="drift")
    assert alone.where.mean > unheard.where.mean + 0.05
    # A bound far from where the minimum is expected says nothing.
    known = Known(size, x, V, np.full(4, -30.0), high)
    filled, doubt = add_bounds(known, PRIOR, None)
    assert np.isnan(filled[3])
    assert np.isnan(doubt[3])
    loose = forecast(size, x, V, 2048.0, prior=PRIOR, low=np.full(4, -30.0), high=high)
    assert loose.where.mean == pytest.approx(nothing.where.mean)


def test_one_and_two_sizes_answer() -> None:
    for num in (1, 2):
        found = forecast(np.exp(T[:num]), X[:num], V[:num], 512.0, prior=PRIOR)
        assert np.isfinite(found.where.mean)
        assert "power" not in found.forms
        assert sum(found.forms.values()) == pytest.approx(1.0)
    narrow = forecast(np.exp(T[:1]), X[:1], V[:1], 128.0, prior=PRIOR).where
    wide = forecast(np.exp(T[:1]), X[:1], V[:1], 4096.0, prior=PRIOR).where
    assert wide.quantile(0.95) - wide.quantile(0.05) > narrow.quantile(0.95) - narrow.quantile(0.05)


def test_a_straight_line_gives_its_weight_to_power_and_drift() -> None:
    t = np.log(2.0 ** np.arange(5, 12))
    found = forecast(np.exp(t), -0.6 * t, np.full(7, 1e-4), 2.0**14, prior=NO_PRIOR)
    assert found.where.mean == pytest.approx(-0.6 * np.log(2.0**14), abs=0.2)
    assert found.forms["power"] > found.forms["same"] > found.forms["constant"]


def test_a_form_asked_for_answers_alone() -> None:
    line = ask(form="power", scatter=0.05)
    weights = 1.0 / (V + 0.05**2)
    slope, level = np.polyfit(T, X, 1, w=np.sqrt(weights))
    assert line.where.mean == pytest.approx(level + slope * np.log(2048.0))
    assert line.forms == {"power": 1.0}
    assert ask(form="same").where.mean == X[-1]
    with pytest.raises(FitError, match="form: expected one of same, constant, power"):
        ask(form="cubic")
    with pytest.raises(FitError, match="form converging: expected 3 sizes"):
        forecast(np.exp(T[:2]), X[:2], V[:2], 512.0, prior=PRIOR, form="converging")


def test_converging_finds_its_own_exponent() -> None:
    z = np.log(2.0 ** np.arange(7.0)) - 3.0
    x = -4.0 + 0.8 * np.exp(-0.7 * z)
    value, variance = extrapolate_law(z, x, np.full(7, 1e-6), 6.0)
    assert value == pytest.approx(-4.0 + 0.8 * np.exp(-4.2), abs=0.01)
    assert variance > 0.0
    # A line is the limit of a slow decay, whose exponent sits at its bound.
    value, _ = extrapolate_law(z, -0.5 * z, np.full(7, 1e-4), 6.0)
    assert value == pytest.approx(-3.0, abs=0.15)


def test_forms_need_sizes() -> None:
    at = np.array([9.0])
    assert set(forecast_forms(T[:2], X[:2], V[:2], at)) == {"same", "constant"}
    assert set(forecast_forms(T, X, V, at)) == {"same", "constant", "power", "converging"}
