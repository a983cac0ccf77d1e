"""Recommendations over size, tokens and batch: what is asked, doubted, and passed through."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from hptransfer.errors import FitError
from hptransfer.stats import LossTable, fit_axes, fit_table
from hptransfer.stats.priors import PRIORS, Prior


def make_table(batches: tuple[float, ...] = (2.0**18, 2.0**20)) -> LossTable:
    """Three widths by three budgets by some batches, half-octave rates."""
    rng = np.random.default_rng(0)
    grid = np.log(2.0) * np.arange(-14.0, -3.9, 0.5)
    n, t, b, x = (
        each.ravel() for each in np.meshgrid([64.0, 128, 256], [1e9, 4e9, 1.6e10], batches, grid)
    )
    optimum = -5.0 - 0.5 * np.log(n / 64) + 0.2 * np.log(t / 1e9) + 0.2 * np.log(b / 2**18)
    loss = 3.0 + 2.0 * n**-0.3 + 0.1 * (x - optimum) ** 2 + 0.002 * rng.standard_normal(len(x))
    return LossTable(
        width=n, lr=np.exp(x), loss=loss, seed=np.zeros(len(x), np.int64), tokens=t, batch=b
    )


def test_the_answer_holds_the_truth_and_passes_constants_by() -> None:
    table = make_table()
    [found] = fit_axes(table).recommend(width=512, tokens=3.2e10, batch=2.0**20)
    truth = np.exp(-5.0 - 0.5 * np.log(8) + 0.2 * np.log(32) + 0.2 * np.log(4))
    assert found.lr.low is not None
    assert found.lr.high is not None
    assert found.lr.low < truth < found.lr.high
    assert found.lr.value == pytest.approx(truth, rel=0.3)
    assert sum(found.forms.values()) == pytest.approx(1.0)
    shifted = replace(table, loss=table.loss + 0.7 * (table.tokens == 4e9))
    [after] = fit_axes(shifted).recommend(width=512, tokens=3.2e10, batch=2.0**20)
    assert after.lr.value == pytest.approx(found.lr.value, rel=1e-5)


def test_each_axis_is_asked_for_and_no_other() -> None:
    fits = fit_axes(make_table())
    with pytest.raises(FitError, match="batch: expected the target's"):
        fits.recommend(width=512, tokens=1e10)
    with pytest.raises(FitError, match="tokens: expected a positive number, found -1"):
        fits.recommend(width=512, tokens=-1.0, batch=2.0**20)
    with pytest.raises(FitError, match="batch: expected no target"):
        fit_axes(replace(make_table(), batch=None)).recommend(width=512, tokens=1e10, batch=1.0)
    with pytest.raises(FitError, match="fit_axes"):
        fit_table(make_table())


def test_axes_that_move_together_make_an_answer_risky() -> None:
    table = make_table()
    assert table.tokens is not None
    # Twenty tokens per parameter or so: budget and size rise as one.
    pairs = {64.0: 1e9, 128.0: 4e9, 256.0: 1.6e10}
    rows = np.array([pairs[n] == t for n, t in zip(table.width, table.tokens, strict=True)])
    assert table.batch is not None
    together = replace(
        table, width=table.width[rows], lr=table.lr[rows], loss=table.loss[rows],
        seed=table.seed[rows], tokens=table.tokens[rows], batch=table.batch[rows],
    )  # fmt: skip
    [found] = fit_axes(together).recommend(width=512, tokens=6.4e10, batch=2.0**20)
    assert found.verdict == "risky"
    assert "size and tokens move together (correlation 1.00)" in found.because


def test_no_minimum_is_no_answer() -> None:
    table = make_table()
    low = np.log(table.lr) < -8.0
    assert table.tokens is not None
    assert table.batch is not None
    cut = replace(
        table, width=table.width[low], lr=table.lr[low], loss=table.loss[low],
        seed=table.seed[low], tokens=table.tokens[low], batch=table.batch[low],
    )  # fmt: skip
    [found] = fit_axes(cut).recommend(width=512, tokens=1e10, batch=2.0**18)
    assert found.verdict == "unusable"
    assert found.lr.value is None


def test_reaching_far_along_an_axis_is_said() -> None:
    [found] = fit_axes(make_table()).recommend(width=65536, tokens=1.6e10, batch=2.0**20)
    assert "the size asked for lies 256 times beyond those measured" in found.because


def test_a_rate_known_too_loosely_is_shown_and_called_risky() -> None:
    # So flat that even a wide interval costs little.
    table = make_table()
    flat = replace(table, loss=0.05 * table.loss)
    [found] = fit_axes(flat).recommend(width=512, tokens=3.2e10, batch=2.0**20, scatter=0.6)
    assert found.regret["recommended"].high is not None
    assert found.regret["recommended"].high < 0.02
    assert found.verdict == "risky"
    assert "the rate is known to a factor of" in found.because
    assert found.lr.status == "weakly identified"


def test_a_file_of_priors_is_used_as_it_is() -> None:
    def ask(table: LossTable, priors: Mapping[str, Prior] = PRIORS) -> str:
        fits = fit_axes(table)
        return fits.recommend(width=512, tokens=3.2e10, batch=2.0**20, priors=priors)[0].prior

    table = make_table()
    with pytest.raises(FitError, match="priors: expected a prior of kind unknown, found raw"):
        ask(table, {"raw": PRIORS["raw"]})
    params = replace(table, size="params")
    assert ask(params) == "parameters: lr* ~ size^(-0.50 ± 0.20)"
    theirs = replace(PRIORS["parameters"], slope=-0.2, spread=0.1)
    found = ask(params, {"parameters": theirs})
    assert found == "parameters: lr* ~ size^(-0.20 ± 0.10)"
