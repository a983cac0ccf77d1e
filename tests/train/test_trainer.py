"""Training a whole ensemble: held-out loss, curves, divergence in company."""

import math

import numpy as np
import pytest
import torch

from hptransfer.model import GPTShape
from hptransfer.scaling import resolve
from hptransfer.train.batches import Batches, validation_windows
from hptransfer.train.ensemble import Ensemble, Run
from hptransfer.train.trainer import TrainSettings, stack_batch, train_ensemble

SHAPE = GPTShape(width=16, num_layers=1, head_size=8, context=8, vocab_size=20)
SETTINGS = TrainSettings(batch=4, steps=40, warmup=0.2, decay=0.2, beta1=0.9, beta2=0.95)


def make_tokens():
    """A cycle with noise: there is something to learn."""
    generator = np.random.default_rng(0)
    tokens = np.arange(4000) % 20
    noisy = generator.random(4000) < 0.1
    tokens[noisy] = generator.integers(0, 20, noisy.sum())
    return tokens.astype(np.uint16)


def train(lrs, on_step=None, seeds=None):
    runs = [
        Run(
            seed=seed,
            resolved=resolve("sp", width=16, base_width=16, base_lr=lr, head_size=8, num_layers=1),
        )
        for lr, seed in zip(lrs, seeds or [0] * len(lrs), strict=True)
    ]
    ensemble = Ensemble(SHAPE, runs)
    results = train_ensemble(
        ensemble,
        batches=Batches(make_tokens(), context=8),
        validation=validation_windows(make_tokens()[:900], 8, 800),
        settings=SETTINGS,
        on_step=on_step,
    )
    return ensemble, results


def test_losses_fall_and_diverged_trials_leave_neighbours_alone():
    steps = []
    _, calm = train([2.0**-6, 2.0**-5])
    _, mixed = train([2.0**-6, 2.0**9], on_step=lambda step, losses: steps.append((step, losses)))
    assert calm[0].state == "completed"
    assert calm[0].loss < calm[0].curve[0] - 0.5
    assert mixed[1].state == "diverged"
    assert mixed[1].loss is None
    assert mixed[1].diverged_step < 39
    assert len(mixed[1].curve) == mixed[1].diverged_step + 1
    assert mixed[0].loss == calm[0].loss
    np.testing.assert_array_equal(mixed[0].curve, calm[0].curve)
    assert [step for step, _ in steps] == list(range(40))
    # A retired trial is all zeros: it costs nothing that could still overflow.
    assert steps[-1][1][1] == pytest.approx(math.log(20))


def test_training_stops_when_all_have_diverged():
    seen = []
    ensemble, results = train([2.0**9, 2.0**10], on_step=lambda step, _: seen.append(step))
    assert [result.state for result in results] == ["diverged", "diverged"]
    assert len(seen) < SETTINGS.steps
    assert all((p.value == 0).all() for p in ensemble.parameters.values())


def test_a_loss_that_breaks_only_on_held_out_text_is_a_divergence(monkeypatch):
    monkeypatch.setattr(
        Ensemble, "evaluate", lambda self, tokens, *, batch: torch.tensor([math.nan, 3.0])
    )
    _, results = train([2.0**-6, 2.0**-5])
    assert results[0].state == "diverged"
    assert results[0].diverged_step == 39
    assert results[1].loss == 3.0


def test_runs_of_one_seed_see_the_same_sequences():
    batches = Batches(make_tokens(), context=8)
    stacked = stack_batch(batches, [5, 3, 5], 2, 4)
    assert stacked.shape == (3, 4, 9)
    assert torch.equal(stacked[0], stacked[2])
    assert not torch.equal(stacked[0], stacked[1])
    np.testing.assert_array_equal(stacked[1], batches.batch(3, 2, batch=4))


def test_data_and_draws_depend_on_seed_alone():
    """Two seeds in one group give what each gives alone."""
    _, both = train([2.0**-6, 2.0**-6], seeds=[0, 1])
    _, single = train([2.0**-6], seeds=[1])
    np.testing.assert_allclose(both[1].curve, single[0].curve, rtol=1e-4)
    assert both[0].loss != both[1].loss
