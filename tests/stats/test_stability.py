"""How stable training was: medians at the swept rate nearest each optimum, by hand."""

import math

import pytest

from hptransfer.stats import LossTable, fit_table
from hptransfer.stats._stability import ProbedTrial, summarise_stability


def make_trial(width, log2_lr, seed, edge, **changes):
    return ProbedTrial(
        **{
            "group": {"parameterization": "sp", "weight_decay": 0.0},
            "width": width,
            "lr": 2.0**log2_lr,
            "seed": seed,
            "diverged": False,
            "spikes": seed,
            "spike_size": 0.25 * seed,
            "medians": {
                "lr": edge,
                "critical_lr": 2.0,
                "grad_norm/embedding": 1.0 + seed,
                "logit_scale": math.nan,
                "attention_entropy/layers.0": 0.5,
                "attention_entropy/layers.1": 0.75,
            },
            **changes,
        }
    )


@pytest.fixture
def fits():
    """SP with its optimum at 2^-5.2 at both widths."""
    columns = {"width": [], "lr": [], "loss": [], "parameterization": []}
    for width in (64, 128):
        for log2_lr in (-8, -7, -6, -5, -4, -3):
            columns["width"].append(width)
            columns["lr"].append(2.0**log2_lr)
            columns["loss"].append(4 + 10 / width + 0.05 * (log2_lr + 5.2) ** 2)
            columns["parameterization"].append("sp")
    return fit_table(LossTable.from_columns(**columns))


def test_medians_over_seeds_at_the_nearest_rate(fits):
    trials = [make_trial(64, -5, seed, edge=1.0 + seed) for seed in (0, 1, 2)]
    trials += [make_trial(64, -6, 0, edge=9.0)]  # further off
    trials += [make_trial(64, -5, 0, edge=9.0, group={"parameterization": "mup"})]  # another's
    [found] = summarise_stability(trials, fits)
    assert (found.width, found.lr, found.num_trials) == (64, 2.0**-5, 3)
    assert found.edge == 1.0  # the median of 1/2, 2/2, 3/2
    assert found.spikes == 1.0
    assert found.spike_size == 0.5
    assert found.grad_norm == {"embedding": 2.0}
    assert found.logit_scale is None  # never measured
    assert found.attention_entropy == 0.625
    assert found.group["parameterization"] == "sp"


def test_nothing_without_probes_or_without_a_width(fits):
    assert summarise_stability([], fits) == ()
    assert summarise_stability([make_trial(256, -5, 0, edge=1.0)], fits) == ()
