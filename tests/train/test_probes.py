"""Probes against plain modules and torch.optim.AdamW, one run at a time, and as bystanders."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hptransfer.model import GPTShape, list_parameters
from hptransfer.scaling import resolve
from hptransfer.train._batches import Batches, validation_windows
from hptransfer.train._ensemble import Ensemble, Run, TrainSettings
from hptransfer.train._probes import Probes, find_spikes, measure_entropy
from hptransfer.train._trainer import CheckpointError, Training, schedule_factor
from reference.gpt import ReferenceGPT
from reference.tokens import noisy_cycle

SHAPE = GPTShape(width=16, num_layers=2, head_size=8, context=8, vocab_size=20)
SETTINGS = TrainSettings(batch=6, steps=24, warmup=0.25, decay=0.25, beta1=0.9, beta2=0.95)
EVERY = 6


TOKENS = noisy_cycle()


def make_runs(lrs, names=("sp+embd", "mup")):
    return [
        Run(
            seed=k % 2,
            resolved=resolve(
                names[k % len(names)],
                width=16,
                base_width=8,
                base_lr=lr,
                weight_decay=0.1,
                head_size=8,
                base_head_size=1,
                num_layers=2,
            ),
        )
        for k, lr in enumerate(lrs)
    ]


def train(lrs, *, every=None, dtype=torch.float32, until=None, start=None, mode="eager"):
    """Train runs stacked, probed or not; return the training and its probes."""
    ensemble = Ensemble(SHAPE, make_runs(lrs), dtype=dtype)
    batches = Batches(TOKENS, context=8)
    probes = Probes(ensemble, batches=batches, settings=SETTINGS, every=every) if every else None
    training = Training(
        ensemble,
        batches=batches,
        validation=validation_windows(TOKENS[:900], 8, 800),
        settings=SETTINGS,
        mode=mode,
        probes=probes,
    )
    if start is not None:
        training.restore(start)
    while not training.done and training.step != until:
        training.advance()
    return training, ensemble, probes


class Alone:
    """One run at one step: the same numbers from torch.nn modules and torch.optim.AdamW."""

    def __init__(self, ensemble, k):
        numbers = ensemble.runs[k].resolved
        self.model = ReferenceGPT(
            width=16,
            num_layers=2,
            head_size=8,
            context=8,
            vocab_size=20,
            attention_scale=numbers.attention_scale,
        ).double()
        self.names = self.model.names()
        self.specs = {spec.name: spec for spec in list_parameters(SHAPE)}
        step = ensemble.num_steps
        tokens = Batches(TOKENS, context=8).batch(ensemble.runs[k].seed, step, batch=6)
        self.tokens = torch.from_numpy(tokens)
        groups = []
        for name, (parameter, transposed) in self.names.items():
            ours = ensemble.parameters[name]

            def turn(tensor, transposed=transposed):
                return tensor[k].detach().T if transposed else tensor[k].detach()

            parameter.data.copy_(turn(ours.value))
            role = numbers.roles[self.specs[name].role]
            groups.append({"params": [parameter], "lr": role.lr, "weight_decay": role.weight_decay})
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
        for name, (parameter, transposed) in self.names.items():
            ours = ensemble.parameters[name]
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": (ours.mean[k].T if transposed else ours.mean[k]).clone().contiguous(),
                "exp_avg_sq": (ours.square[k].T if transposed else ours.square[k])
                .clone()
                .contiguous(),
            }
        self.factor = schedule_factor(step, steps=24, warmup=0.25, decay=0.25)
        self.base_lr = numbers.base_lr
        self.loss = self.model.loss(self.tokens)
        self.loss.backward()
        before = {n: p.detach().clone() for n, (p, _) in self.names.items()}
        self.optimizer.step()
        self.update = {n: before[n] - p.detach() for n, (p, _) in self.names.items()}
        self.before = before

    def loss_at(self, scale):
        """Return the loss at the weights less `scale` times the step at factor 1."""
        with torch.no_grad():
            for name, (parameter, _) in self.names.items():
                parameter.copy_(self.before[name] - scale * self.update[name])
            return float(self.model.loss(self.tokens))

    def outputs(self, scale):
        """Return outputs of modules on four sequences at those weights, and the logits."""
        self.loss_at(scale)
        seen = {}
        hooks = [
            module.register_forward_hook(lambda m, i, o, name=name: seen.update({name: o.detach()}))
            for i, block in enumerate(self.model.blocks)
            for name, module in (
                (f"layers.{i}.attention.out", block.proj),
                (f"layers.{i}.feed_forward.up", block.up),
                (f"layers.{i}.feed_forward.down", block.down),
            )
        ]
        hooks.append(
            self.model.norm.register_forward_hook(
                lambda m, i, o: seen.update({"final_norm": o.detach()})
            )
        )
        with torch.no_grad():
            seen["readout"] = self.model(self.tokens[:4, :-1])
        for hook in hooks:
            hook.remove()
        return seen


@pytest.fixture(scope="module")
def probed():
    """Two runs in fp64 at step 12, just probed."""
    _, ensemble, probes = train([2.0**-5, 2.0**-4], every=EVERY, dtype=torch.float64, until=12)
    probes(12, ensemble)
    return ensemble, probes


def value(probes, k, name):
    return float(probes.values[k, probes.steps.index(12), probes.names.index(name)])


def rms(tensor):
    return float(tensor.square().mean().sqrt())


@pytest.mark.parametrize("k", [0, 1])
def test_quantities_against_one_run_alone(probed, k):
    ensemble, probes = probed
    alone = Alone(ensemble, k)
    close = {"rel": 1e-5}
    assert value(probes, k, "loss") == pytest.approx(alone.loss.item(), **close)
    assert value(probes, k, "lr") == pytest.approx(alone.base_lr * alone.factor, **close)
    grads = {name: parameter.grad for name, (parameter, _) in alone.names.items()}
    for role, of_role in {
        "embedding": ("embedding",),
        "norm": ("norm",),
        "hidden": ("hidden", "hidden_residual"),
        "readout": ("readout",),
    }.items():
        own = [grads[n].flatten() for n in grads if alone.specs[n].role in of_role]
        norm = float(torch.cat(own).norm())
        assert value(probes, k, f"grad_norm/{role}") == pytest.approx(norm, **close)
    for name in alone.names:
        assert value(probes, k, f"weight_rms/{name}") == pytest.approx(
            rms(alone.before[name]), **close
        )
        assert value(probes, k, f"update_rms/{name}") == pytest.approx(
            rms(alone.update[name]) * alone.factor, **close
        )
    before, after = alone.outputs(0.0), alone.outputs(alone.factor)
    for module in before:
        change = value(probes, k, f"activation_change/{module}")
        assert change == pytest.approx(rms(after[module] - before[module]), **close)
    logits = before["readout"]
    centred = logits - logits.mean(-1, keepdim=True)
    assert value(probes, k, "logit_scale") == pytest.approx(rms(centred), **close)


@pytest.mark.parametrize("k", [0, 1])
def test_the_critical_rate_is_where_the_loss_first_rises(probed, k):
    ensemble, probes = probed
    alone = Alone(ensemble, k)
    scale = value(probes, k, "critical_lr") / alone.base_lr
    assert math.isfinite(scale)
    start = alone.loss_at(0.0)
    # The bracket is a sixteenth of an octave wide, and the estimate its middle.
    assert alone.loss_at(scale * 2 ** (1 / 32)) > start >= alone.loss_at(scale / 2 ** (1 / 32))
    below = np.geomspace(scale / 1000, scale / 1.03, 60)
    assert all(alone.loss_at(each) <= start for each in below)


@pytest.mark.parametrize("mode", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_training_has_the_same_bits_with_probes_and_without(mode):
    lrs = [2.0**-6, 2.0**-4, 2.0**9, 2.0**-5]  # one diverges
    plain, ensemble, _ = train(lrs, mode=mode)
    probed, beside, probes = train(lrs, every=5, mode=mode)
    for a, b in zip(plain.finish(), probed.finish(), strict=True):
        assert (a.state, a.loss, a.diverged_step) == (b.state, b.loss, b.diverged_step)
        np.testing.assert_array_equal(a.curve, b.curve)
    for name, tensor in ensemble.state().items():
        assert torch.equal(tensor, beside.state()[name]), name
    assert all(p.value.grad is None for p in beside.parameters.values())
    assert probes.steps == (0, 5, 10, 15, 20)


def test_a_run_is_probed_as_if_it_were_alone():
    """Also once a diverged neighbour is dropped from the program."""
    _, _, together = train([2.0**-5, 2.0**12, 2.0**-4], every=4)
    _, _, first = train([2.0**-5], every=4)
    assert torch.isfinite(together.values[0, :, together.names.index("loss")]).all()
    torch.testing.assert_close(
        together.values[0], first.values[0], rtol=2e-4, atol=1e-6, equal_nan=True
    )
    assert torch.isnan(together.values[1, -1]).all()  # dropped by then
    assert torch.isfinite(together.values[2, :, together.names.index("loss")]).all()


@pytest.mark.parametrize("until", [9, 10])  # between two probes, and right before one
def test_a_resumed_training_has_been_probed_as_an_undisturbed_one(tmp_path, until):
    lrs = [2.0**-5, 2.0**12, 2.0**-4]  # one is dropped on the way
    training, _, _ = train(lrs, every=5, until=until)
    training.snapshot().write(tmp_path / "checkpoint")
    _, _, resumed = train(lrs, every=5, start=tmp_path / "checkpoint")
    _, _, whole = train(lrs, every=5)
    np.testing.assert_array_equal(resumed.values, whole.values)
    with pytest.raises(CheckpointError):
        train(lrs, every=4, start=tmp_path / "checkpoint")
    with pytest.raises(CheckpointError):
        train(lrs, start=tmp_path / "checkpoint")


def test_parts_of_an_ensemble_are_probed_as_the_whole(monkeypatch):
    _, _, whole = train([2.0**-5, 2.0**-4, 2.0**-6], every=8)
    monkeypatch.setattr("hptransfer.train._probes.NUM_PARTS", (2, 2))
    _, _, parts = train([2.0**-5, 2.0**-4, 2.0**-6], every=8)
    assert torch.isfinite(parts.values).all()
    torch.testing.assert_close(parts.values, whole.values, rtol=2e-4, atol=1e-6)


def test_even_attention_has_entropy_one_and_a_sharp_one_zero():
    qkv = torch.zeros(2, 3 * 5, 3 * 16)
    qkv[1, :, :16] = 100.0  # queries of the second run: all alike, as keys are not
    position = torch.arange(15).remainder(5).float()
    qkv[1, :, 16:32] = position[:, None]
    shape = replace(SHAPE, context=5)
    even, sharp = measure_entropy(qkv, shape, num_sequences=3).tolist()
    assert even == pytest.approx(1.0, abs=1e-6)
    assert sharp == pytest.approx(0.0, abs=1e-6)


def spikes_by_the_definition(curve):
    """Count and size, step by step, from the words of the definition."""
    high = []
    for step, loss in enumerate(curve):
        before = np.sort(curve[max(0, step - 100) : step])
        if len(before) < 20:
            high.append(0.0)
            continue
        median = np.median(before)
        mad = np.median(np.abs(before - median))
        threshold = max(0.1, 6 * 1.48 * mad)
        high.append(loss - median if loss - median > threshold else 0.0)
    count = sum(now > 0 and not before > 0 for before, now in zip([0.0, *high], high, strict=False))
    return count, max(high, default=0.0)


@given(st.integers(0, 2**32 - 1), st.integers(0, 260), st.floats(0, 0.3))
@settings(deadline=None, max_examples=40)
def test_spikes_by_the_definition(seed, steps, noise):
    generator = np.random.default_rng(seed)
    curve = 3 + 2 * np.exp(-np.arange(steps) / 50) + noise * generator.standard_normal(steps)
    at = generator.integers(0, max(steps, 1), 3)
    curve[at[at < steps]] += generator.exponential(1.0)
    count, size = spikes_by_the_definition(curve)
    found = find_spikes(curve)
    assert (found.count, found.size) == (count, pytest.approx(size))


def test_noise_alone_is_no_spike_and_nan_is_none():
    generator = np.random.default_rng(1)
    assert find_spikes(3 + 0.01 * generator.standard_normal(1000)).count == 0
    curve = np.full(60, 3.0)
    curve[50:] = np.nan
    assert find_spikes(curve).count == 0
    curve[:] = 3.0
    curve[[10, 40]] = np.nan, 4.0  # no median of 40 losses of which one is no number
    assert find_spikes(curve).count == 0
    curve[10] = 3.0
    assert find_spikes(curve).count == 1
