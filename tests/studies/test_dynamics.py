"""Claim C2: pairs of trials at equal distances from their own optima, and the verdict."""

import math
from pathlib import Path

import dynamics
import pytest
from measured import Fit

from hptransfer.stats._stability import ProbedTrial


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [
        ([1, 1, 1, 0], "holds"),
        ([1, 1, 0, 0], "undecided"),
        ([1, 1, 1, -1], "undecided"),
        ([1, -1, -1, 0], "fails"),
        ([0, 0, 0, 0], "undecided"),
    ],
)
def test_c2_is_judged_by_what_can_be_told_apart(votes, verdict):
    assert dynamics.judge_votes(votes) == verdict


def make_fit(log2_lr):
    def estimate(value):
        return {"value": value, "low": value / 1.05, "high": value * 1.05}

    basins = [
        {"width": width, "bracketed": True, "lr": estimate(2.0**log2_lr),
         "loss": estimate(4.0), "curvature": estimate(0.2)}
        for width in (64, 128, 256)
    ]  # fmt: skip
    return Fit({"basins": basins})


class FakeTable:
    """SP has its optimum at 2^-5, SP+Embd at 2^-4."""

    name, path = "fake", Path("fake.parquet")

    def fits(self):
        return {("sp", 0.0): make_fit(-5.0), ("sp+embd", 0.0): make_fit(-4.0)}

    def setting(self, name):
        return {"base_width": 64}[name]

    def column(self, name):
        """Losses that rise by 0.1 nats an octave from SP's best rate, and 0.2 from SP+Embd's."""
        rows = [
            {"parameterization": rule, "width": width, "weight_decay": 0.0, "seed": seed,
             "base_lr": 2.0**log2_lr, "loss": 4.0 + slope * abs(log2_lr - best)}
            for rule, best, slope in (("sp", -5, 0.1), ("sp+embd", -4, 0.2))
            for width in (64, 128, 256)
            for log2_lr in (-6, -5, -4, -3)
            for seed in (0, 1)
        ]  # fmt: skip
        return [row[name] for row in rows]


def make_trial(rule, width, log2_lr, seed):
    """With `embd` a run is half as near the edge, and all gradients are half as large."""
    share = 0.5 if rule == "sp+embd" else 1.0
    noise = 1 + 0.01 * seed + 0.001 * math.log2(width)
    return ProbedTrial(
        group={"parameterization": rule, "weight_decay": 0.0},
        width=width,
        lr=2.0**log2_lr,
        seed=seed,
        diverged=False,
        spikes=0 if rule == "sp+embd" else 3 + seed,
        spike_size=0.5,
        medians={
            "lr": 2.0**log2_lr,
            "critical_lr": 2.0**log2_lr / (share * noise) * 3,
            "grad_norm/embedding": share * noise,
            "grad_norm/hidden": share * noise,
        },
    )


def test_rules_are_held_against_each_other_at_their_own_optima(monkeypatch):
    trials = [
        make_trial(rule, width, log2_lr, seed)
        for rule in ("sp", "sp+embd")
        for width in (64, 128, 256)
        for log2_lr in (-6, -5, -4, -3)
        for seed in (0, 1)
    ]
    monkeypatch.setattr(dynamics, "read_probes", lambda path: tuple(trials))
    lines = list(dynamics.describe_dynamics({"fake": FakeTable()}))
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    edge = rows["η/η_c, how near the critical rate"]
    # Both rules have a rate at each distance; at the base width they are one, and left out.
    assert edge.count("× 0.50 [0.50, 0.50]") == 3
    assert "× 0.50" in rows["gradient norm, hidden"]
    assert rows["scale of the logits"].count("–") == 3  # never measured
    assert "-3.50 [" in rows["loss spikes a trial, difference"]
    above = rows["loss above the seed's best rate, nats, difference"]
    assert above.count("+0.100 [+0.100, +0.100]") == 2
    text = "\n".join(lines)
    assert "12 pairs of trials" in text  # two widths, two seeds, three distances
    assert "C2 here: **holds**" in text


def test_no_probes_is_said():
    [line, _] = dynamics.describe_dynamics({})
    assert "undecided" in line
