import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime

from hptransfer.errors import FitError
from hptransfer.stats import LossTable, fit_table
from hptransfer.stats.joint_model import predict
from stats.synthetic import fit_transfer, make_table

TRUTH = {"alpha": 0.5, "beta": 0.7, "gamma": 0.1, "loss_inf": 2.0}


@pytest.mark.parametrize("form", ["converging", "power"])
def test_the_jacobian_is_the_derivative(form):
    rng = np.random.default_rng(0)
    t, x = rng.uniform(-1, 1, 6), rng.uniform(-2, 2, 6)
    theta = np.array([0.1, 0.5, 0.6, -1.0, 0.2, 0.3, 0.4, 0.8, 0.1])
    found = predict(theta[None], t, x, form)[1][0]
    for k in range(6):
        slope = approx_fprime(theta, lambda p, k=k: predict(p[None], t, x, form)[0][0, k], 1e-7)
        np.testing.assert_allclose(found[k], slope, atol=1e-5)


def test_exact_tables_give_exact_parameters():
    fit = fit_transfer(make_table(noise=0.0))
    for name, value in TRUTH.items():
        assert fit.exponents[name].value == pytest.approx(value, rel=1e-5)
    assert fit.metrics["kappa"].value == pytest.approx(-0.8, rel=1e-5)
    assert fit.metrics["E"].value == pytest.approx(0.0, abs=1e-18)
    assert fit.metrics["E_out"].value == pytest.approx(0.0, abs=1e-12)
    assert fit.model is not None
    assert fit.model.x_inf == pytest.approx(-5.0)
    np.testing.assert_allclose(fit.model.B * 64**-0.7, 0.5, rtol=1e-4)
    np.testing.assert_allclose(fit.model.A * 64**-0.5, 0.7, rtol=1e-4)
    assert fit.model.curvature(np.array([64.0])) == pytest.approx(0.05)
    assert fit.model.best_loss(np.array([64.0])) == pytest.approx(2.7)
    assert fit.model.optimum(np.array([64.0])) == pytest.approx(-4.5)


def test_the_shared_skew_is_kept_when_the_data_ask_for_it():
    fit = fit_transfer(make_table(noise=0.0, skew=0.1), scatter=0.0)
    assert fit.model is not None
    # The basin is a cubic, and fitted by a curve that stays convex.
    assert fit.model.skew == pytest.approx(0.1, rel=0.01)
    assert any("lopsided" in note for note in fit.notes)
    plain = fit_transfer(make_table(noise=0.002))
    assert plain.model is not None
    assert plain.model.skew == pytest.approx(0.0, abs=1e-6)


def test_the_power_form_reports_b_and_no_kappa():
    table = make_table(drift=0.0, noise=0.0)
    lr = table.lr * (table.width / 64) ** -0.5
    moved = LossTable(width=table.width, lr=lr, loss=table.loss, seed=table.seed)
    fit = fit_transfer(moved, form="power")
    assert fit.exponents["b"].value == pytest.approx(0.5)
    assert "beta" not in fit.exponents
    assert fit.metrics["kappa"].value is None
    assert "converging" in fit.metrics["kappa"].reason
    assert fit.model is not None
    widths = np.array([64.0, 512.0])
    drop = fit.model.optimum(widths)
    assert drop[1] - drop[0] == pytest.approx(-0.5 * np.log(8))


@settings(max_examples=12, deadline=None)
@given(
    shift=st.floats(-10, 10),
    widen=st.floats(0.1, 50),
    scale=st.floats(0.05, 20),
    seed=st.integers(0, 3),
)
def test_the_point_fit_is_equivariant(shift, widen, scale, seed):
    table = make_table(seed=seed, skew=0.1 * (seed % 2))
    moved = LossTable(
        width=table.width * widen,
        lr=table.lr * np.exp(shift),
        loss=table.loss * scale,
        seed=table.seed,
    )
    a, b = (fit_transfer(t, num_resamples=2) for t in (table, moved))
    for name in ("alpha", "beta", "gamma"):
        assert b.exponents[name].value == pytest.approx(a.exponents[name].value, abs=1e-4)
    loss_inf = a.exponents["loss_inf"].value * scale
    assert b.exponents["loss_inf"].value == pytest.approx(loss_inf, rel=1e-5)
    assert b.metrics["E"].value == pytest.approx(a.metrics["E"].value * scale**2, rel=1e-5)
    assert a.model is not None
    assert b.model is not None
    assert b.model.x_inf == pytest.approx(a.model.x_inf + shift, abs=1e-4)
    widths = np.array([100.0])
    np.testing.assert_allclose(
        b.model.curvature(widths * widen), a.model.curvature(widths) * scale, rtol=1e-4
    )


def test_a_floor_of_zero_is_a_bound_and_said():
    # Losses fall as a pure power of a negative offset: L∞ would be −0.5.
    fit = fit_transfer(make_table(loss_inf=-0.5, excess=3.0, noise=0.001))
    assert fit.exponents["loss_inf"].value == pytest.approx(0.0, abs=1e-9)
    for name in ("loss_inf", "alpha"):
        assert fit.exponents[name].status == "not identified"
        assert "hit its bound of 0" in fit.exponents[name].reason
    assert fit.metrics["kappa"].status == "not identified"
    assert any("loss_inf sits at a bound" in note for note in fit.notes)


def test_losses_that_grow_with_width_identify_no_alpha():
    fit = fit_transfer(make_table(excess=-0.3, noise=0.001))
    assert fit.exponents["alpha"].status == "not identified"
    assert "does not fall with width" in fit.exponents["alpha"].reason


def test_an_empty_table_is_refused():
    nothing = np.zeros(0)
    with pytest.raises(FitError, match="at least one trial"):
        fit_transfer(
            LossTable(width=nothing, lr=nothing, loss=nothing, seed=nothing.astype(np.int64))
        )


def test_a_scatter_held_widens_what_rests_on_the_law_and_no_negative_one_is_taken():
    found, held = (fit_table(make_table(), scatter=s, num_resamples=100) for s in (None, 0.2))
    assert held.groups[0].laws.scatter == pytest.approx(0.2)
    assert held[0].drift.high - held[0].drift.low > np.sqrt(2.0) * 0.2 * 3.2
    assert held[0].exponents["alpha"] == found[0].exponents["alpha"]
    with pytest.raises(FitError, match=r"scatter: expected 0 or a positive number, found -0\.1"):
        fit_table(make_table(), scatter=-0.1)
