"""The operators of a compiled step on a GPU, against PyTorch's own functions.

On a CPU they are written out; where there is a GPU its kernels are held to the same. Without one,
`TRITON_INTERPRET=1 pytest tests/model/test_kernels.py` runs the kernels' sources, given Triton.
"""

import os

import pytest
import torch
import torch.nn.functional as F

from hptransfer.model import _kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EXACT = [("cpu", torch.float64, 1e-14)]
if INTERPRETED:  # which has no products in bf16
    EXACT = [("cpu", torch.float32, 1e-6)]
CASES = EXACT + ([("cuda", torch.bfloat16, 1e-2)] if torch.cuda.is_available() else [])
IDS = [f"{device}-{str(dtype).removeprefix('torch.')}" for device, dtype, _ in CASES]
cases = pytest.mark.parametrize(("device", "dtype", "tolerance"), CASES, ids=IDS)


@pytest.fixture(autouse=True)
def _sources(monkeypatch):
    torch.manual_seed(0)
    if INTERPRETED:
        monkeypatch.setattr(_kernels, "WRITTEN_OUT", ())


def distance(found, expected):
    found, expected = found.detach(), expected.detach()
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def differentiate(outputs, by_outputs, inputs):
    return torch.autograd.grad(outputs, inputs, by_outputs)


@cases
@pytest.mark.parametrize(
    ("time", "heads", "size"), [(16, 1, 16), (24, 3, 32), (64, 1, 128), (128, 2, 64)]
)
def test_attention_is_causal_attention(device, dtype, tolerance, time, heads, size):
    width = heads * size
    qkv = torch.randn(3, time, 3 * width, device=device).to(dtype).requires_grad_()
    by_out = torch.randn(3, time, width, device=device).to(dtype)
    wide = qkv.detach().double().requires_grad_()
    q, k, v = wide.view(3, time, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    expected = expected.transpose(1, 2).reshape(3, time, width)
    found = _kernels.attend(qkv, heads)
    assert distance(found, expected) < tolerance
    (grad,) = differentiate(found, by_out, qkv)
    (expected_grad,) = differentiate(expected, by_out.double(), wide)
    assert distance(grad, expected_grad) < 3 * tolerance


@cases
@pytest.mark.parametrize("size", [20, 1000, _kernels.MAX_VOCAB])
def test_a_readout_is_the_mean_cross_entropy_and_its_gradients(device, dtype, tolerance, size):
    hidden, weight = (
        (scale * torch.randn(shape, device=device)).to(dtype).requires_grad_()
        for scale, shape in ((1.0, (2, 37, 16)), (0.25, (2, 16, size)))
    )
    targets = torch.randint(size, (2, 37), device=device)
    by_loss = torch.tensor([1.0, -2.5], device=device)
    wide = [each.detach().double().requires_grad_() for each in (hidden, weight)]
    logits = torch.bmm(*wide)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    expected = expected.view(2, 37).mean(dim=1)
    found = _kernels.read_out(hidden, weight, targets)
    assert distance(found, expected) < tolerance
    grads = differentiate(found, by_loss.to(found.dtype), (hidden, weight))
    expected_grads = differentiate(expected, by_loss.double(), wide)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert distance(grad, expected_grad) < 2 * tolerance


@cases
@pytest.mark.parametrize(("rows", "width"), [(5, 24), (150, 64), (3, _kernels.MAX_WIDTH)])
def test_a_branch_is_added_and_the_sum_normalised(device, dtype, tolerance, rows, width):
    wide_dtype = torch.promote_types(dtype, torch.float32)
    x, by_total = (torch.randn(2, rows, width, device=device, dtype=wide_dtype) for _ in range(2))
    branch, by_out = (torch.randn(2, rows, width, device=device).to(dtype) for _ in range(2))
    gain = torch.randn(2, width, device=device, dtype=wide_dtype)
    leaves = [each.requires_grad_() for each in (x, branch, gain)]
    wide = [each.detach().double().requires_grad_() for each in leaves]
    total = wide[0] + wide[1]
    expected = (total, F.layer_norm(total, (width,), eps=1e-5) * wide[2].unsqueeze(1))
    found = _kernels.add_norm(*leaves, 1e-5)
    for one, other in zip(found, expected, strict=True):
        assert distance(one, other) < tolerance
    grads = differentiate(found, (by_total, by_out), leaves)
    expected_grads = differentiate(expected, (by_total.double(), by_out.double()), wide)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert distance(grad, expected_grad) < 2 * tolerance


@cases
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, which interprets
def test_a_trial_that_is_not_a_number_stays_alone(device, dtype, tolerance):
    x = torch.randn(2, 40, 16, device=device, dtype=torch.promote_types(dtype, torch.float32))
    x[1, 3, 2] = float("nan")
    branch, gain = torch.zeros_like(x, dtype=dtype), torch.ones_like(x[:, 0])
    hidden = _kernels.add_norm(x, branch, gain, 1e-5)[1].requires_grad_()
    weight = torch.randn(2, 16, 30, device=device).to(dtype).requires_grad_()
    targets = torch.zeros(2, 40, dtype=torch.int64, device=device)
    losses = _kernels.read_out(hidden, weight, targets)
    assert losses.isfinite().tolist() == [True, False]
    grads = differentiate(losses.sum(), None, (hidden, weight))
    assert all(grad[0].isfinite().all() for grad in grads)
    qkv = torch.randn(2, 16, 48, device=device).to(dtype)
    qkv[1, 0, 40] = float("nan")
    assert _kernels.attend(qkv, 1).isfinite().flatten(1).all(1).tolist() == [True, False]


@cases
def test_a_sum_that_nothing_else_takes_has_the_norm_s_gradient(device, dtype, tolerance):
    x = torch.randn(2, 7, 16, device=device, dtype=torch.promote_types(dtype, torch.float32))
    x.requires_grad_()
    branch, gain = torch.zeros_like(x, dtype=dtype), torch.ones_like(x[:, 0])
    by_out = torch.randn(2, 7, 16, device=device).to(dtype)
    (grad,) = differentiate(_kernels.add_norm(x, branch, gain, 1e-5)[1], by_out, x)
    wide = x.detach().double().requires_grad_()
    (expected,) = differentiate(F.layer_norm(wide, (16,), eps=1e-5), by_out.double(), wide)
    assert distance(grad, expected) < 2 * tolerance
