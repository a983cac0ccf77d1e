import numpy as np
import pytest

from hptransfer.stats import build_cells
from hptransfer.stats._group_data import draw
from hptransfer.stats.seed_noise import measure_noise
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
    draws = draw(cells, noise, num_resamples=4000, seed=1).seeds
    # A Student's variance is nu/(nu − 2) times its scale's.
    assert np.median(np.abs(draws)) == pytest.approx(0.6745 * noise.sigma[0] / 2, rel=0.1)
    together = np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]
    other_width = np.corrcoef(draws[:, 0], draws[:, -1])[0, 1]
    assert together == pytest.approx(noise.shared, abs=0.15)
    assert abs(other_width) < 0.1


def test_one_seed_knows_no_noise():
    cells, noise = measure(num_seeds=1)
    assert not noise.known
    assert not draw(cells, noise, num_resamples=5, seed=0).seeds.any()


def test_paired_groups_share_noise():
    first = build_cells(make_table(noise=0.01, shared=0.9, num_seeds=3, seed=4))
    # The same seeds, hence the same draws, in a group that lies 0.1 nats higher.
    second = build_cells(make_table(noise=0.01, shared=0.9, num_seeds=3, seed=4, loss_inf=2.1))
    noises = measure_noise([first, second])
    assert noises[0].common > 0.6
    a, b = (
        draw(c, n, num_resamples=2000, seed=0, stream=k).seeds[:, 3]
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
    assert np.isfinite(draw(cells, noise, num_resamples=10, seed=0).seeds).all()
