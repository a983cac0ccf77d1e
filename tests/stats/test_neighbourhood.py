import numpy as np
import pytest

from hptransfer.stats import LossTable, Reason, build_cells
from hptransfer.stats.fit_window import find_neighbourhood, sweep_of
from stats.synthetic import fit_basin, fit_transfer

X = np.log(2.0) * np.arange(-7, 0)


def sweep(*cells):
    """One width from one tuple of seeds' losses per learning rate, with its unsettled cells."""
    losses = [seeds for seeds, _ in cells]
    table = LossTable(
        width=np.full(sum(map(len, losses)), 64.0),
        lr=np.concatenate([np.full(len(s), np.exp(x)) for s, x in zip(losses, X, strict=False)]),
        loss=np.concatenate(losses),
        seed=np.concatenate([np.arange(len(s)) for s in losses]),
    )
    found = build_cells(table)
    loose = np.array([bad for _, bad in cells])
    return sweep_of(found, np.arange(len(found)), loose)


def settled(*means):
    return [((m, m), False) for m in means]


def test_a_cliff_bounds_the_minimum():
    near = find_neighbourhood(sweep(*settled(4.70, 4.55, 4.45, 4.43, 5.80, 5.90)))
    assert near.bracketed
    assert near.flags == ()


def test_a_broken_cell_right_of_the_best_bounds_it_weakly():
    cells = [*settled(4.70, 4.55, 4.45, 4.43), ((4.5, 5.8), True)]
    near = find_neighbourhood(sweep(*cells))
    assert near.bracketed
    assert near.caution == (Reason("bounded_by_disagreement"),)
    assert "seeds disagree at lr 0.125: one broke down" in map(str, near.flags)
    assert sweep(*cells).cliff == pytest.approx(X[4])


def test_an_unsettled_cell_is_not_called_the_best():
    cells = [*settled(4.70, 4.55, 4.45), ((4.3, 4.5), True), *settled(4.46, 4.6)]
    near = find_neighbourhood(sweep(*cells))
    assert near.best == 2
    assert near.caution == ()
    assert "seeds disagree at lr 0.0625" in map(str, near.flags)
    assert sweep(*cells).cliff == np.inf


def test_where_every_cell_is_unsettled_all_count():
    near = find_neighbourhood(sweep(*[((m, m + 0.1), True) for m in (4.6, 4.4, 4.5)]))
    assert near.best == 1
    assert near.bracketed


def study(rows):
    """A table from {width: [(first seed, second seed), ...]} at log2_lr −7, −6, ..."""
    columns = [
        (width, np.exp(X[k]), loss, seed)
        for width, cells in rows.items()
        for k, cell in enumerate(cells)
        for seed, loss in enumerate(cell)
    ]
    width, lr, loss, seed = (np.array(c) for c in zip(*columns, strict=True))
    return LossTable(width=width, lr=lr, loss=loss, seed=seed)


# Losses of small language models as measured: two seeds that agree better the wider the model,
# and of which one now and then breaks down at a high learning rate.
MEASURED = {
    16.0: [
        (5.479, 5.581), (5.184, 5.239), (4.951, 5.024), (4.851, 4.970),
        (4.854, 5.750), (5.628, 5.813), (5.977, 6.018),
    ],
    32.0: [
        (5.291, 5.288), (4.923, 4.952), (4.677, 4.710), (4.603, 4.611),
        (4.620, 4.620), (4.690, 4.692), (4.907, 5.829),
    ],
    64.0: [
        (5.062, 5.101), (4.695, 4.723), (4.487, 4.513), (4.417, 4.441),
        (4.434, 4.459), (4.478, 4.520), (5.672, 4.679),
    ],
    128.0: [
        (4.858, 4.829), (4.536, 4.538), (4.377, 4.376), (4.325, 4.321),
        (4.341, 4.343), (4.426, 4.391), (5.470, 4.688),
    ],
}  # fmt: skip


def test_measured_losses_identify_the_wide_basins():
    table = study(MEASURED)
    for width in (32.0, 64.0, 128.0):
        basin = fit_basin(table, width=width)
        assert basin.lr.status == basin.loss.status == basin.curvature.status == "identified"
    assert basin.loss.value == pytest.approx(4.32, abs=0.02)
    assert basin.loss.high - basin.loss.low < 0.05
    assert "seeds disagree at lr 0.125: one broke down" in map(
        str, fit_basin(table, width=16.0).flags
    )
    assert fit_transfer(table).noise_floor < 2e-3
