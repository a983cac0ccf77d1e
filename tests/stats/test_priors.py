"""Priors by kind of sweep: which kind, and as a file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hptransfer.errors import FitError
from hptransfer.stats import LossTable, fit_table
from hptransfer.stats.priors import (
    NO_PRIOR,
    PRIORS,
    classify,
    find_prior,
    read_priors,
    write_priors,
)


@pytest.mark.parametrize(
    ("size", "axis", "name", "kind"),
    [
        ("width", "as given", "SP", "raw"),
        ("width", "global", "sp+embd", "raw"),
        ("width", "hidden-aligned", "sp", "aligned"),
        ("width", "as given", "muP", "aligned"),
        ("width", "as given", "µP-last", "aligned"),
        ("n_layers_depth", "as given", "sp", "aligned"),
        ("params_N", "as given", "sp", "parameters"),
        ("tokens_D", "as given", "mup", "tokens"),
        ("width", "as given", None, "unknown"),
        ("width", "as given", "my rule", "unknown"),
    ],
)
def test_kinds(size: str, axis: str, name: str | None, kind: str) -> None:
    assert classify(size, axis, name) == kind
    assert kind in PRIORS


def sweep(growth: float, slope: float, widths: int = 2) -> LossTable:
    """Make a noiseless sweep at a budget of width^growth tokens, the widest cut off at one rate."""
    n, x = (a.ravel() for a in np.meshgrid(64 * 2.0 ** np.arange(widths), np.arange(-8.0, -1.0)))
    loss = 3 + 4 / n**0.5 + 0.1 * (x + 4.6 - slope * np.log(n / 64)) ** 2
    tokens = 1e6 * (n / 64) ** growth
    loss[-1], tokens[-1] = np.nan, 10.0
    table = LossTable.from_columns(width=n, lr=np.exp(x), loss=loss, axis="hidden-aligned")
    return replace(table, budget=tokens)


def test_a_budget_that_grows_brings_the_prior_of_tokens() -> None:
    rows = np.arange(14)
    assert sweep(1.3, 0.0).budget_growth(rows) == pytest.approx(1.3)
    prior, tokens = PRIORS["aligned"], PRIORS["tokens"]
    both = find_prior(sweep(1.3, 0.0), rows)
    assert both.slope == prior.slope
    assert both.trend == pytest.approx(1.3 * tokens.slope)
    assert both.spread == pytest.approx(np.hypot(prior.spread, 1.3 * tokens.spread))
    assert all(both.errors[form] > prior.errors[form] for form in prior.errors)
    assert find_prior(sweep(0.01, 0.0), rows) == prior
    assert find_prior(replace(sweep(1.3, 0.0), budget=None), rows) == prior
    assert find_prior(replace(sweep(1.3, 0.0), size="params"), rows) == PRIORS["parameters"]
    assert find_prior(sweep(1.3, 0.0), rows, None) == NO_PRIOR
    with pytest.raises(FitError, match="expected a prior of kind aligned, found raw"):
        find_prior(sweep(1.3, 0.0), rows, {"raw": PRIORS["raw"]})


def test_two_widths_whose_tokens_grow_say_less_of_a_third() -> None:
    [kept], [grown] = (fit_table(sweep(growth, -0.4)).recommend(width=512) for growth in (0.0, 1.3))
    for answer in (kept, grown):
        assert answer.lr.value is not None
        assert answer.lr.low is not None
        assert answer.lr.high is not None
    assert grown.lr.value < kept.lr.value
    assert grown.lr.high / grown.lr.low > kept.lr.high / kept.lr.low
    assert grown.prior == "aligned, tokens ~ size^1.3: lr* ~ size^(-0.31 ± 0.36)"


def test_a_file_holds_the_table(tmp_path: Path) -> None:
    path = tmp_path / "priors.json"
    write_priors(PRIORS, path)
    assert read_priors(path) == PRIORS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected an object of priors by kind"),
        ("{", "expected JSON"),
        ('{"raw": {"slope": -0.5}}', "raw.errors.same: expected a positive number, found None"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "priors.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FitError, match=message):
        read_priors(path)
    with pytest.raises(FitError, match="No such file"):
        read_priors(tmp_path / "none.json")
