"""Training a whole ensemble: held-out loss, curves, divergence in company."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hptransfer.model import GPTShape
from hptransfer.scaling import resolve
from hptransfer.train import _trainer
from hptransfer.train._batches import Batches, validation_windows
from hptransfer.train._ensemble import Ensemble, Run, TrainSettings
from hptransfer.train._trainer import CheckpointError, Training
from reference.tokens import noisy_cycle

SHAPE = GPTShape(width=16, num_layers=1, head_size=8, context=8, vocab_size=20)
SETTINGS = TrainSettings(batch=4, steps=40, warmup=0.2, decay=0.2, beta1=0.9, beta2=0.95)


def prepare(lrs, seeds=None, settings=SETTINGS):
    runs = [
        Run(
            seed=seed,
            resolved=resolve("sp", width=16, base_width=16, base_lr=lr, head_size=8, num_layers=1),
        )
        for lr, seed in zip(lrs, seeds or [0] * len(lrs), strict=True)
    ]
    ensemble = Ensemble(SHAPE, runs)
    training = Training(
        ensemble,
        batches=Batches(noisy_cycle(), context=8),
        validation=validation_windows(noisy_cycle()[:900], 8, 800),
        settings=settings,
    )
    return ensemble, training


def train(lrs, on_step=None, seeds=None):
    ensemble, training = prepare(lrs, seeds)
    while not training.done:
        step = training.step
        losses = training.advance()
        if on_step is not None:
            on_step(step, losses)
    return ensemble, training.finish()


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
    # Half of the runs have diverged, which is enough to drop them.
    assert math.isnan(steps[-1][1][1])


def test_few_diverged_runs_stay_stacked_and_more_are_dropped_to_the_same_bits(monkeypatch):
    """Against the same group that drops nobody; runs diverge at several steps."""
    lrs = [2.0**e for e in (-6, 30, -5, 2, 60, 3, -0.5, -4)]
    seen = []
    dropping, results = train(lrs, on_step=lambda step, losses: seen.append(losses))
    monkeypatch.setattr(_trainer, "DROP_SHARE", 2.0)
    frozen, expected = train(lrs)
    assert len(frozen.runs) == len(lrs)
    assert [run.resolved for run in dropping.runs] == [
        frozen.runs[k].resolved for k, result in enumerate(expected) if result.loss is not None
    ]
    num_stacked = [np.isfinite(losses).sum() for losses in seen]
    assert len(set(num_stacked)) > 1  # dropped meanwhile
    assert {result.diverged_step for result in expected} >= {None, 1, 9}
    for one, other in zip(results, expected, strict=True):
        assert (one.state, one.loss, one.diverged_step) == (
            other.state,
            other.loss,
            other.diverged_step,
        )
        np.testing.assert_array_equal(one.curve, other.curve)


def test_one_diverged_run_of_five_is_frozen_where_it_stands():
    """All zeros, it costs nothing that could still overflow."""
    steps = []
    ensemble, _ = train(
        [2.0**-6, 2.0**-5, 2.0**9, 2.0**-7, 2.0**-4], on_step=lambda step, _: steps.append(_)
    )
    assert len(ensemble.runs) == 5
    assert steps[-1][2] == pytest.approx(math.log(20))


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


def test_data_and_draws_depend_on_seed_alone():
    """Two seeds in one group give what each gives alone."""
    _, both = train([2.0**-6, 2.0**-6], seeds=[0, 1])
    _, single = train([2.0**-6], seeds=[1])
    np.testing.assert_allclose(both[1].curve, single[0].curve, rtol=1e-4)
    assert both[0].loss != both[1].loss


@pytest.mark.parametrize("stop", [0, 1, 11, 39, 40])
@pytest.mark.parametrize("lrs", [[2.0**-6, 2.0**9, 2.0**-5], [2.0**9, *[2.0**-6] * 4]])
def test_a_checkpoint_at_any_step_goes_on_with_the_same_bits(lrs, stop, tmp_path):
    """One run diverges early: a third of the runs, which is dropped, or a fifth, which stays."""
    undisturbed, whole = prepare(lrs)
    path = tmp_path / "group.safetensors"
    while not whole.done:
        if whole.step == stop:
            whole.snapshot().write(path)
        whole.advance()
    if stop == SETTINGS.steps:
        whole.snapshot().write(path)
    ensemble, resumed = prepare(lrs)
    resumed.restore(path)
    assert resumed.step == stop
    while not resumed.done:
        resumed.advance()
    for one, other in zip(whole.finish(), resumed.finish(), strict=True):
        assert (one.state, one.loss, one.diverged_step) == (
            other.state,
            other.loss,
            other.diverged_step,
        )
        np.testing.assert_array_equal(one.curve, other.curve)
    for name, parameter in undisturbed.parameters.items():
        for own, others in zip(parameter, ensemble.parameters[name], strict=True):
            assert torch.equal(own, others), name


def test_a_checkpoint_that_holds_the_trials_rates_too_is_read(tmp_path):
    """As files of older versions do; what is not of a trial is refused all the same."""
    lrs, path = [2.0**-6, 2.0**9, *[2.0**-6] * 4], tmp_path / "group.safetensors"
    undisturbed, whole = prepare(lrs)
    while whole.step < 11:
        whole.advance()
    snapshot = whole.snapshot()
    rates = {
        f"{name}.{part}": getattr(parameter, part).clone()
        for name, parameter in undisturbed.parameters.items()
        for part in ("lr", "weight_decay")
    }
    assert rates
    replace(snapshot, tensors=snapshot.tensors | rates).write(path)
    ensemble, resumed = prepare(lrs)
    resumed.restore(path)
    assert resumed.step == 11
    for training in (whole, resumed):
        while not training.done:
            training.advance()
    for name, parameter in undisturbed.parameters.items():
        for own, others in zip(parameter, ensemble.parameters[name], strict=True):
            assert torch.equal(own, others), name
    some = next(iter(snapshot.tensors.values()))
    replace(snapshot, tensors=snapshot.tensors | {"wte.more": some}).write(path)
    with pytest.raises(CheckpointError, match="other tensors"):
        prepare(lrs)[1].restore(path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "other runs", "other steps"])
def test_a_checkpoint_that_cannot_be_used_leaves_the_training_as_it_was(damage, tmp_path):
    path = tmp_path / "group.safetensors"
    other = SETTINGS if damage != "other steps" else replace(SETTINGS, steps=30)
    _, source = prepare([2.0**-6] * (3 if damage == "other runs" else 2), settings=other)
    source.advance()
    source.snapshot().write(path)
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"truncated": content[:-7], "empty": b""}.get(damage, content))
    ensemble, training = prepare([2.0**-6] * 2)
    before = {name: tensor.clone() for name, tensor in ensemble.state().items()}
    with pytest.raises(CheckpointError, match=r"group\.safetensors"):
        training.restore(path)
    assert training.step == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in ensemble.state().items())
