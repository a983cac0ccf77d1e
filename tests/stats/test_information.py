from dataclasses import asdict

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from hptransfer.errors import ConfigError
from hptransfer.stats.power_analysis import expected_errors, information
from hptransfer.stats.results import TransferModel
from stats.synthetic import WIDTHS

LONG = tuple(2.0**k for k in range(5, 12))
X = -5.0 + np.log(2.0) * (np.arange(7) - 3)


def make_model(base=64.0, *, form="converging", drift=0.5, beta=0.7, skew=0.0):
    """0.7 nats, curvature 0.05 and `drift` at the narrowest width."""
    return TransferModel(
        form=form,
        loss_inf=2.0,
        A=0.7 * base**0.5,
        alpha=0.5,
        C0=0.05 * base**-0.1,
        gamma=0.1,
        x_inf=-5.0,
        B=0.3 if form == "power" else drift * base**beta,
        beta=beta,
        skew=skew,
    )


@pytest.mark.parametrize(
    ("widths", "noise", "kappa"), [(WIDTHS, 0.002, 0.14), (LONG, 0.002, 0.054), (WIDTHS, 0.01, 0.7)]
)
def test_the_designs_guide_numbers(widths, noise, kappa):
    errors = expected_errors(make_model(widths[0]), widths=widths, x=X, noise=noise, num_seeds=3)
    assert errors["kappa"] == pytest.approx(kappa, rel=0.02)
    assert set(errors) == {
        *("alpha", "beta", "gamma", "kappa", "loss_inf", "x_star", "loss"),
        *(f"x_star@{n:g}" for n in widths),
    }


@pytest.mark.parametrize("form", ["converging", "power"])
@pytest.mark.parametrize("skew", [False, True])
def test_bounds_equal_those_of_the_plain_formula(form, skew):
    """Oracle: finite differences of the textbook parameterization."""
    model = make_model(form=form, skew=0.1 if skew else 0.0)
    names = ["loss_inf", "A", "alpha", "C0", "gamma", "x_inf", "B"]
    names += ["beta"] * (form == "converging") + ["skew"] * skew
    point = np.array([getattr(model, name) for name in names])
    scale = np.abs(point)
    n, x = np.repeat(WIDTHS, len(X)), np.tile(X, len(WIDTHS))

    def build(unit):
        values = {**asdict(model), **dict(zip(names, unit * scale, strict=True))}
        return TransferModel(**values)

    def losses(unit):
        m = build(unit)
        u = x - m.optimum(n)
        return m.best_loss(n) + 0.5 * m.curvature(n) * u**2 * (1 + m.skew * u)

    unit = point / scale
    jacobian = approx_fprime(unit, losses, 1e-7)
    covariance = np.linalg.inv(jacobian.T @ jacobian / (0.01**2 / 2))

    def error(quantity):
        gradient = approx_fprime(unit, lambda p: quantity(build(p)), 1e-7)
        return np.sqrt(gradient @ covariance @ gradient)

    bound = information(model, widths=WIDTHS, x=X, noise=0.01, num_seeds=2, skew=skew)
    far = np.array([2048.0])
    pairs = {
        "alpha": lambda m: m.alpha,
        "gamma": lambda m: m.gamma,
        "loss_inf": lambda m: m.loss_inf,
    }
    if form == "converging":
        pairs |= {"beta": lambda m: m.beta, "kappa": lambda m: m.alpha - 2 * m.beta + m.gamma}
    else:
        pairs["slope"] = lambda m: m.B
        assert bound.beta == bound.kappa == np.inf
    for name, quantity in pairs.items():
        assert getattr(bound, name) == pytest.approx(error(quantity), rel=1e-3), name
    for name, quantity in {
        "optimum": lambda m: m.optimum(far)[0],
        "best_loss": lambda m: m.best_loss(far)[0],
    }.items():
        assert getattr(bound, name)(2048.0) == pytest.approx(error(quantity), rel=1e-3), name


def test_errors_follow_noise_seeds_and_units():
    model = make_model()
    one = expected_errors(model, widths=WIDTHS, x=X, noise=0.002, target=4096)
    four = expected_errors(model, widths=WIDTHS, x=X, noise=0.004, num_seeds=4, target=4096)
    assert four == pytest.approx(one, rel=1e-6)
    grid = np.tile(X, (4, 1))
    same = expected_errors(
        model, widths=WIDTHS, x=grid, noise=np.full((4, 7), 0.002), num_seeds=[1] * 4, target=4096
    )
    assert same == pytest.approx(one, rel=1e-9)
    # A width without points and a cell less cost precision.
    grid[0, 0] = np.nan
    less = expected_errors(model, widths=WIDTHS, x=grid, noise=0.002, target=4096)
    assert all(less[name] > one[name] for name in ("alpha", "gamma", "kappa"))
    # A skew that is fitted costs precision too; noise shared along a width moves losses only.
    bent = expected_errors(model, widths=WIDTHS, x=X, noise=0.002, skew=True, target=4096)
    assert bent["kappa"] > one["kappa"]
    shared = expected_errors(model, widths=WIDTHS, x=X, noise=0.002, shared=0.8, target=4096)
    assert shared["alpha"] > one["alpha"]
    assert shared["x_star"] < one["x_star"]


def test_what_the_grid_cannot_tell_is_infinite():
    no_drift = expected_errors(make_model(drift=0.0), widths=WIDTHS, x=X, noise=0.002)
    assert no_drift["beta"] == no_drift["kappa"] == np.inf
    assert np.isfinite(no_drift["alpha"])
    two = expected_errors(make_model(), widths=WIDTHS[:2], x=X, noise=0.002)
    assert two["alpha"] == two["loss_inf"] == two["kappa"] == two["x_star"] == np.inf
    assert np.isfinite(two["x_star@64"])
    assert np.isfinite(two["gamma"])
    grid = np.tile(X, (4, 1))
    grid[1:] = np.nan
    assert expected_errors(make_model(), widths=WIDTHS, x=grid, noise=1.0)["gamma"] == np.inf
    power = expected_errors(make_model(form="power"), widths=WIDTHS[:2], x=X, noise=0.002)
    assert np.isfinite(power["b"])
    assert np.isfinite(power["x_star"])
    assert "kappa" not in power


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [64, -1]}, "widths: expected positive"),
        ({"noise": 0.0}, "noise: expected positive numbers, found 0"),
        ({"noise": [1.0, 2.0, 3.0]}, "noise: expected one value, one per width"),
        ({"num_seeds": 0}, "num_seeds: expected positive"),
        ({"x": np.zeros((3, 7))}, "x: expected one row or 2"),
        ({"target": -4.0}, "target: expected a positive width, found -4"),
        ({"shared": 1.0}, "shared: expected at least 0 and below 1"),
    ],
)
def test_wrong_grids_are_refused(options, message):
    options = {"widths": [64.0, 128.0], "x": X, "noise": 0.01, **options}
    with pytest.raises(ConfigError, match=message):
        expected_errors(make_model(), **options)
