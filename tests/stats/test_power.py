"""Power before spending: the guide's bounds, and what more data must do."""

import numpy as np
import pytest

from hptransfer.stats.joint_model import STATED, expect_errors, state_model

OCTAVES = np.log(2.0) * np.arange(-10.0, -3.0)


def errors(widths, noise, num_seeds=3, x=OCTAVES):
    found = expect_errors(
        state_model(widths, x), widths=widths, x=x, noise=noise, num_seeds=num_seeds
    )
    return {each.name: each for each in found}


@pytest.mark.parametrize(
    ("widths", "noise", "kappa", "status"),
    [
        ([64, 128, 256, 512], 0.002, 0.14, "identified"),
        ([32, 64, 128, 256, 512, 1024, 2048], 0.002, 0.054, "identified"),
        ([64, 128, 256, 512], 0.01, 0.70, "not identified"),
    ],
)
def test_the_designs_guide(widths, noise, kappa, status):
    found = errors(widths, noise)["kappa"]
    assert found.standard_error == pytest.approx(kappa, rel=0.08)
    assert found.status == status


def test_more_seeds_less_noise_and_more_widths_help_as_they_must():
    base = errors([64, 128, 256, 512], 0.01)
    seeds = errors([64, 128, 256, 512], 0.01, num_seeds=12)
    quiet = errors([64, 128, 256, 512], 0.005)
    wider = errors([64, 128, 256, 512, 1024], 0.01)
    for name, each in base.items():
        assert seeds[name].standard_error == pytest.approx(each.standard_error / 2)
        assert quiet[name].standard_error == pytest.approx(each.standard_error / 2)
        # x* is asked for at four times the widest, which has moved.
        assert name == "x_star" or wider[name].standard_error < each.standard_error
    assert base["R_inf"].standard_error == pytest.approx(2**0.5 * base["loss_inf"].standard_error)


def test_two_widths_cannot_tell_three_parameters():
    found = errors([64, 128], 0.002)
    assert np.isinf(found["alpha"].standard_error)
    assert found["kappa"].status == "not identified"
    assert np.isinf(found["kappa"].standard_error)


def test_points_far_outside_the_window_tell_nothing():
    widths = [64, 128, 256, 512]
    model = state_model(widths, OCTAVES)
    far = np.concatenate([OCTAVES, [40.0, 60.0]])
    options = {"widths": widths, "noise": 0.01, "num_seeds": 2}
    assert expect_errors(model, x=far, **options) == expect_errors(model, x=OCTAVES, **options)


def test_the_stated_model_is_what_it_says():
    model = state_model([64, 512], OCTAVES)
    narrow = np.array([64.0])
    assert model.best_loss(narrow)[0] - model.loss_inf == pytest.approx(STATED["excess"])
    assert model.curvature(narrow)[0] == pytest.approx(STATED["curvature"])
    assert model.optimum(narrow)[0] - model.x_inf == pytest.approx(STATED["drift"])
