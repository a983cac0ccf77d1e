"""Recommendations over size, tokens and batch: what is asked, doubted, and passed through."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from hptransfer.errors import FitError
from hptransfer.stats import LossTable, Recommendation, fit_axes, fit_table
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


def test_tokens_that_grow_with_the_width_lower_the_rate_beside_a_batch_axis() -> None:
    table = make_table()
    rates = []
    for growth in (0.0, 1.0, 2.0):
        # The losses of one budget, told to be of another at each width.
        one = table.tokens == 1e9
        columns = {n: getattr(table, n)[one] for n in ("width", "lr", "loss", "seed", "batch")}
        budget = 1e9 * (columns["width"] / 64) ** growth
        grown = replace(table, **columns, tokens=None, budget=budget)
        [found] = fit_axes(grown).recommend(width=2048, batch=2.0**18)
        assert found.lr.value is not None
        rates.append(found.lr.value)
    assert rates[0] > rates[1] > rates[2]


def test_each_axis_is_asked_for_and_no_other() -> None:
    fits = fit_axes(make_table())
    with pytest.raises(FitError, match="batch: expected the target's"):
        fits.recommend(width=512, tokens=1e10)
    with pytest.raises(FitError, match="tokens: expected a positive number, found -1"):
        fits.recommend(width=512, tokens=-1.0, batch=2.0**20)
    for width in ("a", None):
        with pytest.raises(FitError, match="width: expected a positive number"):
            fits.recommend(width=width, tokens=1e10, batch=2.0**20)
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


def test_an_unusable_answer_says_what_makes_it_so() -> None:
    """A batch asked for in other units is found by its reason, which its price does not tell."""
    [found] = fit_axes(make_table()).recommend(width=512, tokens=1.6e10, batch=2.0**30)
    assert found.verdict == "unusable"
    assert "nats over the best, more than 0.1; the rate is known to a factor" in found.because
    assert "the batch asked for lies" in found.because
    assert "0.02" not in found.because


def ask_narrow(table: LossTable) -> Recommendation:
    """Ask for a rate above the optima of all cells, at the narrowest width."""
    [found] = fit_axes(table).recommend(width=64, tokens=6.4e10, batch=2.0**20)
    return found


def test_a_rate_outside_those_measured_is_said() -> None:
    table = make_table()
    assert "learning rate lies outside" not in ask_narrow(table).because
    low = np.log(table.lr) < -4.1
    assert table.tokens is not None
    assert table.batch is not None
    found = ask_narrow(
        replace(
            table, width=table.width[low], lr=table.lr[low], loss=table.loss[low],
            seed=table.seed[low], tokens=table.tokens[low], batch=table.batch[low],
        )
    )  # fmt: skip
    assert found.verdict == "risky"
    assert "that learning rate lies outside those measured" in found.because


def test_trials_that_diverged_at_the_rate_or_below_it_are_said() -> None:
    table = make_table()
    assert "diverged" not in ask_narrow(table).because
    spoilt = (table.width == 64) & (table.tokens == 1e9) & (np.log(table.lr) > -4.3)
    found = ask_narrow(replace(table, loss=np.where(spoilt, np.nan, table.loss)))
    assert found.verdict == "risky"
    assert "trials diverged at that learning rate, or below it" in found.because


def test_a_measured_cell_is_answered_by_its_own_basin() -> None:
    table = make_table()
    fits = fit_axes(table)
    [found] = fits.recommend(width=128, tokens=4e9, batch=2.0**20)
    [group] = fits.groups
    here = np.log([128.0, 4e9, 2.0**20])
    [place] = np.flatnonzero(np.abs(np.stack(group.places, axis=1) - here).sum(axis=1) < 1e-9)
    assert found.forms == {"measured": 1.0}
    assert found.lr.value == pytest.approx(np.exp(group.minima.x[place]))
    [beside] = fits.recommend(width=128, tokens=4.1e9, batch=2.0**20)
    assert "measured" not in beside.forms


@pytest.mark.parametrize("scatter", [-1.0, np.nan])
def test_a_scatter_that_is_none_is_refused(scatter: float) -> None:
    with pytest.raises(FitError, match="scatter: expected 0 or a positive number"):
        fit_axes(make_table()).recommend(width=512, tokens=1e10, batch=2.0**20, scatter=scatter)


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
