from dataclasses import asdict

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from hptransfer.errors import ConfigError
from hptransfer.stats.joint_model import Information, expect_errors
from hptransfer.stats.results import TransferModel
from stats.synthetic import WIDTHS

LONG = tuple(2.0**k for k in range(5, 12))
X = -5.0 + np.log(2.0) * (np.arange(7) - 3)


def make_model(base=64.0, *, form="converging", drift=0.5, beta=0.7):
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
    )


NAMES = ("alpha", "beta", "gamma", "kappa", "loss_inf")


def bound_errors(model, *, widths=WIDTHS, x=X, sigma=0.002, target=4096):
    """The bounds by name, for points x at all widths."""
    widths = np.asarray(widths, dtype=float)
    bound = Information(model, width=widths[:, None], x=x, sigma=sigma)
    out = {name: bound.error(name) for name in NAMES}
    return out | {"b": bound.error("b"), "x_star": bound.optimum(target)}


@pytest.mark.parametrize(
    ("widths", "noise", "kappa"), [(WIDTHS, 0.002, 0.14), (LONG, 0.002, 0.054), (WIDTHS, 0.01, 0.7)]
)
def test_the_designs_guide_numbers(widths, noise, kappa):
    errors = bound_errors(make_model(widths[0]), widths=widths, sigma=noise / 3**0.5)
    assert errors["kappa"] == pytest.approx(kappa, rel=0.02)


@pytest.mark.parametrize("form", ["converging", "power"])
def test_bounds_equal_those_of_the_plain_formula(form):
    """Oracle: finite differences of the textbook parameterization."""
    model = make_model(form=form)
    names = ["loss_inf", "A", "alpha", "C0", "gamma", "x_inf", "B"]
    names += ["beta"] * (form == "converging")
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

    bound = Information(model, width=n, x=x, sigma=0.01 / 2**0.5)
    far = np.array([2048.0])
    pairs = {
        "alpha": lambda m: m.alpha,
        "gamma": lambda m: m.gamma,
        "loss_inf": lambda m: m.loss_inf,
    }
    if form == "converging":
        pairs |= {"beta": lambda m: m.beta, "kappa": lambda m: m.alpha - 2 * m.beta + m.gamma}
    else:
        pairs["b"] = lambda m: m.B
        assert bound.error("beta") == bound.error("kappa") == np.inf
    for name, quantity in pairs.items():
        assert bound.error(name) == pytest.approx(error(quantity), rel=1e-3), name
    assert bound.optimum(2048.0) == pytest.approx(error(lambda m: m.optimum(far)[0]), rel=1e-3)


def test_errors_follow_noise_and_points():
    model = make_model()
    one = bound_errors(model)
    assert bound_errors(model, sigma=0.004)["kappa"] == pytest.approx(2 * one["kappa"], rel=1e-6)
    n, x = np.repeat(WIDTHS, len(X)), np.tile(X, len(WIDTHS))
    same = Information(model, width=n, x=x, sigma=np.full(len(x), 0.002))
    assert {name: same.error(name) for name in NAMES} == pytest.approx(
        {name: one[name] for name in NAMES}, rel=1e-9
    )
    less = Information(model, width=n[1:], x=x[1:], sigma=0.002)
    assert all(less.error(name) > one[name] for name in ("alpha", "gamma", "kappa"))


def test_what_the_grid_cannot_tell_is_infinite():
    no_drift = bound_errors(make_model(drift=0.0))
    assert no_drift["beta"] == no_drift["kappa"] == np.inf
    assert np.isfinite(no_drift["alpha"])
    two = Information(make_model(), width=np.array([[64.0], [128.0]]), x=X, sigma=0.002)
    assert two.error("alpha") == two.error("loss_inf") == two.error("kappa") == np.inf
    assert two.optimum(4096) == np.inf
    assert np.isfinite([two.optimum(64), two.error("gamma")]).all()
    assert Information(make_model(), width=64.0, x=X, sigma=1.0).error("gamma") == np.inf
    power = bound_errors(make_model(form="power"), widths=WIDTHS[:2])
    assert np.isfinite([power["b"], power["x_star"]]).all()


@pytest.mark.parametrize("name", ["width", "sigma"])
def test_wrong_points_are_refused(name):
    options = {"width": [64.0, 128.0], "x": 0.0, "sigma": 0.01, name: [1.0, -1.0]}
    with pytest.raises(ConfigError, match=f"{name}: expected positive numbers, found -1"):
        Information(make_model(), **options)


@pytest.mark.parametrize("options", [{"noise": 0.0}, {"num_seeds": 0}])
def test_wrong_grids_are_refused(options):
    options = {"widths": [64.0, 128.0], "x": X, "noise": 0.01, "num_seeds": 1, **options}
    with pytest.raises(ConfigError, match="expected a positive number, found 0"):
        expect_errors(make_model(), **options)
