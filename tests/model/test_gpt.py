"""The stacked GPT's properties: causality, independence of trials, the chunked loss."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hptransfer.model import (
    GPTShape,
    compute_hidden,
    count_parameters,
    gpt,
    list_parameters,
    readout_cross_entropy,
)

SHAPE = GPTShape(width=16, num_layers=2, head_size=8, context=10, vocab_size=30)


def draw_parameters(K, shape=SHAPE):
    generator = torch.Generator().manual_seed(0)
    return {
        spec.name: torch.randn(K, *spec.shape, generator=generator, dtype=torch.float64)
        / math.sqrt(spec.fan_in)
        for spec in list_parameters(shape)
    }


@settings(max_examples=25, deadline=None)
@given(position=st.integers(0, 9), seed=st.integers(0, 1000))
def test_causality(position, seed):
    """Hidden states before a changed token keep every bit; those from it on change."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 30, (2, 3, 10), generator=generator)
    changed = tokens.clone()
    changed[..., position:] = (changed[..., position:] + 1) % 30
    parameters, scale = draw_parameters(2), torch.tensor([0.3, 1.0], dtype=torch.float64)
    first, second = (
        compute_hidden(parameters, x, attention_scale=scale, shape=SHAPE).view(2, 3, 10, 16)
        for x in (tokens, changed)
    )
    assert torch.equal(first[:, :, :position], second[:, :, :position])
    assert (first[:, :, position:] != second[:, :, position:]).any(dim=-1).all()


def test_position_and_attention_scale_matter():
    parameters = draw_parameters(1)
    tokens = torch.full((1, 1, 10), 3)

    def hidden(scale):
        factor = torch.tensor([scale], dtype=torch.float64)
        return compute_hidden(parameters, tokens, attention_scale=factor, shape=SHAPE)[0]

    assert not torch.allclose(hidden(1.0)[0], hidden(1.0)[1])
    assert not torch.allclose(hidden(1.0)[-1], hidden(0.1)[-1])
    torch.testing.assert_close(hidden(1.0)[0], hidden(0.1)[0])  # the first sees only itself


@pytest.mark.parametrize("budget", [30, 100, 30 * 7, 30 * 7 * 2, 2**19])
def test_chunked_loss_and_gradients_equal_full_logits(budget, monkeypatch):
    """Whatever the chunks: trials together, rows of one trial, a single row."""
    monkeypatch.setattr(gpt, "_CHUNK_ELEMENTS_CPU", budget)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 7, 16, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(3, 16, 30, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(0, 30, (3, 7), generator=generator)
    factors = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)

    logits = hidden @ weight
    expected = torch.stack([F.cross_entropy(logits[k], targets[k]) for k in range(3)])
    expected_grads = torch.autograd.grad((expected * factors).sum(), (hidden, weight))
    found = readout_cross_entropy(hidden, weight, targets)
    found_grads = torch.autograd.grad((found * factors).sum(), (hidden, weight))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_grads, expected_grads)


def test_loss_stays_finite_at_large_logits_and_in_bf16():
    hidden = torch.full((1, 2, 4), 200.0, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.eye(4, dtype=torch.bfloat16)[None].requires_grad_()
    with torch.no_grad():
        weight[0, :, 0] = 100.0
    losses = readout_cross_entropy(hidden, weight, torch.tensor([[0, 1]]))
    assert losses.dtype == torch.float32
    losses.sum().backward()
    assert losses.isfinite().all()
    assert hidden.grad.isfinite().all()
    assert weight.grad.dtype == torch.bfloat16


def test_parameter_count_by_hand():
    D, V, T, layers = 16, 30, 10, 2
    assert count_parameters(SHAPE) == (V + T) * D + layers * (12 * D * D + 2 * D) + D + D * V


def test_evaluation_takes_no_gradients(monkeypatch):
    weight = torch.randn(1, 4, 6, requires_grad=True)
    hidden = torch.randn(1, 3, 4)
    targets = torch.tensor([[0, 1, 2]])
    expected = readout_cross_entropy(hidden, weight, targets).detach()

    def refuse(*args, **options):
        raise AssertionError("a gradient buffer was made")

    monkeypatch.setattr(gpt.torch, "empty_like", refuse)
    with torch.no_grad():
        assert torch.equal(readout_cross_entropy(hidden, weight, targets), expected)
    with pytest.raises(AssertionError, match="buffer"):
        readout_cross_entropy(hidden, weight, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_target_of_no_probability_has_its_exact_loss_and_no_effect_on_other_trials(dtype):
    """Beyond e^-88 a probability is 0 in fp32; its logarithm is not."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 40, 8, generator=generator).to(dtype)
    weight = torch.randn(3, 8, 30, generator=generator).to(dtype)
    targets = torch.randint(0, 30, (3, 40), generator=generator)
    calm = readout_cross_entropy(hidden, weight, targets)
    weight[1] *= 64
    logits = torch.bmm(hidden, weight).double()
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    ).view(3, 40)
    assert expected[1].max() > 200
    found = readout_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(found.double(), expected.mean(dim=1), rtol=1e-5, atol=0)
    assert torch.equal(found[[0, 2]], calm[[0, 2]])
