import numpy as np
import pytest
from scipy import stats

from hptransfer.stats import build_cells, seed_noise
from hptransfer.stats.seed_noise import draw_noise, measure_noise
from stats.synthetic import make_table


def measure(**kwargs):
    cells = build_cells(make_table(**kwargs))
    return cells, measure_noise([cells])[0]


@pytest.mark.parametrize("num_seeds", [2, 4, 8])
def test_sigma_and_shared_fraction_come_back(num_seeds):
    found = [measure(noise=0.01, shared=0.5, num_seeds=num_seeds, seed=s)[1] for s in range(30)]
    variance = np.mean([np.mean(n.sigma**2) for n in found])
    assert variance == pytest.approx(1e-4, rel=0.15)
    assert np.mean([n.shared for n in found]) == pytest.approx(0.5, abs=0.12)


def test_draws_have_the_variance_of_a_mean_over_seeds():
    cells, noise = measure(noise=0.01, shared=0.5, num_seeds=4, seed=3)
    draws = draw_noise(cells, noise, num_resamples=4000, seed=1, stream=0)
    # A Student's variance is nu/(nu − 2) times its scale's.
    assert np.median(np.abs(draws)) == pytest.approx(0.6745 * noise.sigma[0] / 2, rel=0.1)
    together = np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]
    other_width = np.corrcoef(draws[:, 0], draws[:, -1])[0, 1]
    assert together == pytest.approx(noise.shared, abs=0.15)
    assert abs(other_width) < 0.1


def test_one_seed_knows_no_noise():
    cells, noise = measure(num_seeds=1)
    assert not noise.known
    assert not draw_noise(cells, noise, num_resamples=5, seed=0, stream=0).any()


def test_paired_groups_share_noise():
    first = build_cells(make_table(noise=0.01, shared=0.9, num_seeds=3, seed=4))
    # The same seeds, hence the same draws, in a group that lies 0.1 nats higher.
    second = build_cells(make_table(noise=0.01, shared=0.9, num_seeds=3, seed=4, loss_inf=2.1))
    noises = measure_noise([first, second])
    assert noises[0].common > 0.6
    a, b = (
        draw_noise(c, n, num_resamples=2000, seed=0, stream=k)[:, 3]
        for k, (c, n) in enumerate(zip((first, second), noises, strict=True))
    )
    assert np.corrcoef(a, b)[0, 1] > 0.5


def test_seeds_in_part_of_the_cells_are_no_obstacle():
    table = make_table(num_seeds=3)
    keep = ~((table.width == 64) & (table.seed == 2))
    cells = build_cells(
        type(table)(
            width=table.width[keep], lr=table.lr[keep], loss=table.loss[keep], seed=table.seed[keep]
        )
    )
    (noise,) = measure_noise([cells])
    assert noise.dof > 0
    assert np.isfinite(draw_noise(cells, noise, num_resamples=10, seed=0, stream=0)).all()


def test_many_seeds_are_drawn_by_the_law_of_few(monkeypatch):
    # Seeds 0 to 19 in one group and 8 to 19 in the next, some of their cells with fewer seeds.
    tables = [make_table(noise=0.01, shared=0.6, num_seeds=20, seed=5, loss_inf=v) for v in (2, 3)]
    keep = [
        (tables[0].seed < 12) | (tables[0].lr > np.median(tables[0].lr)),
        tables[1].seed >= 8,
    ]
    groups = [
        build_cells(table, np.flatnonzero(rows)) for table, rows in zip(tables, keep, strict=True)
    ]
    noises = measure_noise(groups)
    assert all(0.2 < noise.common < noise.shared < 1.0 for noise in noises)
    drawn = []
    for most in (seed_noise._SEEDS_DRAWN, 99):
        monkeypatch.setattr(seed_noise, "_SEEDS_DRAWN", most)
        pairs = zip(groups, noises, strict=True)
        each = [draw_noise(c, n, num_resamples=6000, seed=2, stream=k) for k, (c, n) in
                enumerate(pairs)]  # fmt: skip
        drawn.append(np.hstack(each))
    few, many = drawn
    assert not np.array_equal(few, many)
    scale = np.sqrt(np.diag(np.cov(many.T)))
    assert np.cov((few / scale).T) == pytest.approx(np.cov((many / scale).T), abs=0.09)
    chances = [stats.ks_2samp(a, b).pvalue for a, b in zip(few.T, many.T, strict=True)]
    assert min(chances) > 0.01 / len(chances)
    # What pairs the groups by seed, and what pairs a width's learning rates, is in differences.
    gaps = [each[:, 0] - each[:, len(groups[0])] for each in drawn]
    assert stats.ks_2samp(*gaps).pvalue > 0.01
