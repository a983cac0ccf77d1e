import numpy as np
import pytest

from hptransfer.stats._misfit import Misfit
from hptransfer.stats.cells import build_cells
from hptransfer.stats.group_data import draw
from hptransfer.stats.resampling import balance, covariance_of
from hptransfer.stats.seed_noise import measure_noise
from stats.synthetic import make_table

NONE = Misfit(sigma=0.0, dof=20, only_source=False)


def make_noise(**options):
    cells = build_cells(make_table(**options))
    (noise,) = measure_noise([cells])
    return cells, noise


def test_balanced_draws_have_their_own_moments_along_the_tangent():
    rng = np.random.default_rng(0)
    design = rng.standard_normal((30, 5))
    weights = rng.uniform(0.5, 2.0, 30)
    covariance = np.diag(1.0 / weights)
    raw = rng.standard_normal((200, 30)) / np.sqrt(weights)
    out = balance(raw, design, weights, covariance)
    fit = np.linalg.pinv(design * np.sqrt(weights)[:, None]) * np.sqrt(weights)
    found = out @ fit.T
    assert np.allclose(found.mean(axis=0), 0.0, atol=1e-12)
    assert np.allclose(found.T @ found / 200, fit @ covariance @ fit.T)
    # Beyond the tangent nothing changes.
    rest = np.eye(30) - design @ fit
    assert np.allclose(out @ rest.T, raw @ rest.T)
    # A column twice, or one of zeros, adds no direction.
    more = np.column_stack([design, design[:, 0], np.zeros(30)])
    assert np.allclose(balance(raw, more, weights, covariance), out)


def test_draws_are_left_alone_where_moments_cannot_be_matched():
    rng = np.random.default_rng(0)
    raw, design, ones = rng.standard_normal((10, 8)), rng.standard_normal((8, 4)), np.ones(8)
    assert balance(raw, design, ones, None) is raw
    assert balance(raw, design, ones, np.eye(8)) is raw
    many = rng.standard_normal((100, 8))
    assert balance(many, design, ones, np.zeros((8, 8))) is many
    flat = np.zeros((100, 8))
    assert balance(flat, design, ones, np.eye(8)) is flat


@pytest.mark.parametrize("options", [{}, {"shared": 0.15}, {"fall": 1.0}])
def test_the_covariance_is_that_of_many_draws(options):
    cells, noise = make_noise(num_seeds=4, noise=0.01, **options)
    misfit = Misfit(sigma=0.003, dof=15, only_source=False)
    covariance = covariance_of(cells, noise, misfit)
    assert covariance is not None
    draws = draw(cells, noise, num_resamples=8000, seed=1)
    shaken = draws.seeds + misfit.draw(draws.unit, cells.count, 1)
    found = shaken.T @ shaken / len(shaken)
    size = np.sqrt(np.diag(covariance))
    assert np.abs(found - covariance).max() < 0.12 * float((size**2).max())
    assert np.diag(found) == pytest.approx(np.diag(covariance), rel=0.15)


def test_one_seed_draws_use_the_scatter_and_few_freedoms_have_no_covariance():
    cells, noise = make_noise(num_seeds=1)
    scatter = Misfit(sigma=0.01, dof=12, only_source=True)
    covariance = covariance_of(cells, noise, scatter)
    assert np.allclose(covariance, np.eye(len(cells)) * 0.01**2 * 12 / 10)
    assert covariance_of(cells, noise, Misfit(sigma=0.01, dof=3, only_source=True)) is None
    cells, noise = make_noise(widths=(64.0,), num_seeds=2)
    assert covariance_of(cells, noise, NONE) is None
