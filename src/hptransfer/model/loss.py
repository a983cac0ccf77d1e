"""Readout and cross-entropy in one pass that never holds all logits.

Shape letters: K trials, R rows (batch x time), D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

#: Logits held at once, in elements; 2^19 in fp32 is 2 MiB, about one core's L2 cache.
CHUNK_ELEMENTS_CPU = 2**19
CHUNK_ELEMENTS_GPU = 2**28


def _chunks(hidden: Tensor, vocab_size: int) -> list[tuple[slice, slice]]:
    """Split (K, R) into blocks of whole trials, or of rows of one trial, that fit the budget."""
    K, R, _ = hidden.shape
    budget = CHUNK_ELEMENTS_CPU if hidden.device.type == "cpu" else CHUNK_ELEMENTS_GPU
    if R * vocab_size > budget:
        rows = max(1, budget // vocab_size)
        return [
            (slice(k, k + 1), slice(r, min(r + rows, R)))
            for k in range(K)
            for r in range(0, R, rows)
        ]
    trials = max(1, budget // (R * vocab_size))
    return [(slice(k, min(k + trials, K)), slice(0, R)) for k in range(0, K, trials)]


class _ReadoutCrossEntropy(torch.autograd.Function):
    """The gradient is computed in the forward pass, chunk by chunk, while the logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        K, R, _ = hidden.shape
        V = weight.shape[-1]
        # With `weight` in low precision the sums over rows still build up in fp32 or better.
        wide = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.zeros(K, dtype=wide, device=hidden.device)
        need_grad = any(ctx.needs_input_grad)
        if need_grad:
            hidden_grad = torch.empty_like(hidden)
            weight_grad = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        for k, r in _chunks(hidden, V):
            x, w, y = hidden[k, r], weight[k], targets[k, r].unsqueeze(-1)
            logits = torch.bmm(x, w).to(wide)
            # Subtracting the maximum first keeps exp finite at any logit scale.
            logits -= logits.amax(dim=-1, keepdim=True)
            picked = logits.gather(-1, y)
            exp = logits.exp_()
            total = exp.sum(dim=-1, keepdim=True)
            losses[k] += (total.log() - picked).sum(dim=(1, 2)) / R
            if need_grad:
                grad = exp.div_(total * R)
                grad.scatter_add_(-1, y, torch.full_like(picked, -1.0 / R))
                grad = grad.to(weight.dtype)
                hidden_grad[k, r] = torch.bmm(grad, w.transpose(1, 2))
                if weight.dtype == wide:
                    weight_grad[k].baddbmm_(x.transpose(1, 2), grad)
                else:
                    weight_grad[k] += torch.bmm(x.transpose(1, 2), grad)
        if need_grad:
            ctx.save_for_backward(hidden_grad, weight_grad)
            ctx.weight_dtype = weight.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = grads[0].view(-1, 1, 1)
        return (
            hidden_grad * scale.to(hidden_grad.dtype),
            (weight_grad * scale).to(ctx.weight_dtype),
            None,
        )


def readout_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return each trial's mean cross-entropy of next tokens, in nats.

    Parameters
    ----------
    hidden : Tensor of shape (K, R, D)
        Final hidden states, in the precision of the products.
    weight : Tensor of shape (K, D, V)
        Readout weights, same precision.
    targets : Tensor of int64 of shape (K, R)
        Next tokens.

    Returns
    -------
    Tensor of shape (K,)
        In fp32, or fp64 where the input is. A trial's value depends on that trial alone.
    """
    if not torch.is_grad_enabled():
        # A Function sees its inputs' flags, not the mode: without this, evaluation would pay
        # for gradients that nobody takes.
        hidden, weight = hidden.detach(), weight.detach()
    result: Tensor = _ReadoutCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return result
