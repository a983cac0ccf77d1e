"""Readout and cross-entropy in one pass that never holds all logits.

Shape letters: K trials, R rows (batch x time), D width, V vocabulary; in lower case a part of it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hptransfer.model import _kernels

#: Logits held at once, in elements; 2^20 in fp32 is 4 MiB: enough rows for fast products, few
#: enough that a pass finds in the cache what the one before it left.
CHUNK_ELEMENTS_CPU = 2**20
CHUNK_ELEMENTS_GPU = 2**28
#: Below it a probability's own digits are lost.
SMALLEST_PROBABILITY = 1e-30
#: Gradients of logits held at once on a CPU, in elements, for one product into the weights.
GRAD_ELEMENTS_CPU = 2**22


def _split(num_trials: int, rows: int, row_elements: int, budget: int) -> list[tuple[slice, slice]]:
    """Split (K, R) into blocks of whole trials, or of rows of one trial, that fit the budget."""
    if rows * row_elements > budget:
        size = max(1, budget // row_elements)
        return [
            (slice(k, k + 1), slice(r, min(r + size, rows)))
            for k in range(num_trials)
            for r in range(0, rows, size)
        ]
    size = max(1, budget // (rows * row_elements))
    starts = range(0, num_trials, size)
    return [(slice(k, min(k + size, num_trials)), slice(0, rows)) for k in starts]


def _budgets(device: torch.device) -> tuple[int, int]:
    """Return how many logits, and how many gradients of logits, are held at once."""
    if device.type != "cpu":
        return CHUNK_ELEMENTS_GPU, CHUNK_ELEMENTS_GPU
    return CHUNK_ELEMENTS_CPU, GRAD_ELEMENTS_CPU


def _take_softmax(
    logits: Tensor, targets: Tensor, hidden: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn logits into probabilities where they are; return the targets' log-probabilities too.

    Parameters
    ----------
    logits : Tensor of shape (k, r, V)
        hidden @ weight; overwritten.
    targets : Tensor of int64 of shape (k, r, 1)
    hidden, weight : Tensor of shape (k, r, D) and (k, D, V)
        What the logits came from.

    Returns
    -------
    tuple of Tensor
        Log-probabilities of shape (k, r), and probabilities in the place of the logits.
    """
    if logits.device.type != "cpu":
        log_probs = logits.log_softmax(dim=-1)
        return log_probs.gather(-1, targets).squeeze(-1), log_probs.exp_()
    probs = torch.softmax(logits, dim=-1, out=logits)
    picked = probs.gather(-1, targets).squeeze(-1)
    log_picked = picked.log()
    # A logarithm loses nothing until the probability itself does: those few are taken anew, each
    # trial's by themselves.
    for k in (~(picked >= SMALLEST_PROBABILITY)).any(dim=1).nonzero().flatten().tolist():
        rows = (~(picked[k] >= SMALLEST_PROBABILITY)).nonzero().flatten()
        anew = torch.mm(hidden[k, rows], weight[k]).to(logits.dtype).log_softmax(dim=-1)
        log_picked[k, rows] = anew.gather(-1, targets[k, rows]).squeeze(-1)
    return log_picked, probs


class _ReadoutCrossEntropy(torch.autograd.Function):
    """The gradient is computed in the forward pass, block by block, while the logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        K, R, _ = hidden.shape
        V = weight.shape[-1]
        # With `weight` in low precision the sums over rows still build up in fp32 or better.
        wide = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.zeros(K, dtype=wide, device=hidden.device)
        need_grad = any(ctx.needs_input_grad)
        logit_budget, grad_budget = _budgets(hidden.device)
        if need_grad:
            hidden_grad = torch.empty_like(hidden)
            weight_grad = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        for k, rows in _split(K, R, V, grad_budget if need_grad else logit_budget):
            x_kxrxD, w_kxDxV, y_kxrx1 = hidden[k, rows], weight[k], targets[k, rows].unsqueeze(-1)
            num_trials, num_rows, _ = x_kxrxD.shape
            if need_grad:
                grad_kxrxV = x_kxrxD.new_empty(num_trials, num_rows, V)
            for j, r in _split(num_trials, num_rows, V, logit_budget):
                w, y = w_kxDxV[j], y_kxrx1[j, r]
                # In fp32 logits, probabilities and gradients take each other's place.
                place = grad_kxrxV[j, r] if need_grad and x_kxrxD.dtype == wide else None
                logits = torch.bmm(x_kxrxD[j, r], w, out=place).to(wide)
                log_picked, probs = _take_softmax(logits, y, x_kxrxD[j, r], w)
                losses[k][j] -= log_picked.sum(dim=1) / R
                if need_grad:
                    # Times 1/R, and times the loss's own gradient, in the backward pass.
                    probs.scatter_(-1, y, probs.gather(-1, y) - 1.0)
                    grad = probs if place is not None else grad_kxrxV[j, r].copy_(probs)
                    hidden_grad[k, rows][j, r] = torch.bmm(grad, w.transpose(1, 2))
            if need_grad:
                x_kxDxr = x_kxrxD.transpose(1, 2)
                if weight.dtype == wide:
                    weight_grad[k].baddbmm_(x_kxDxr, grad_kxrxV)
                else:
                    weight_grad[k] += torch.bmm(x_kxDxr, grad_kxrxV)
        if need_grad:
            ctx.save_for_backward(hidden_grad, weight_grad)
            ctx.weight_dtype, ctx.num_rows = weight.dtype, R
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = (grads[0] / ctx.num_rows).view(-1, 1, 1)
        return (
            (hidden_grad * scale).to(hidden_grad.dtype),
            (weight_grad * scale).to(ctx.weight_dtype),
            None,
        )


def _fusible_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Hold all logits in the products' precision; a compiler fuses every pass over them."""
    K, R, _ = hidden.shape
    if _kernels.serves_loss(hidden, vocab_size=weight.shape[-1]):
        return _kernels.read_out(hidden, weight, targets)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = torch.bmm(hidden, weight).view(K * R, -1).to(wide)
    return F.cross_entropy(logits, targets.reshape(-1), reduction="none").view(K, R).mean(dim=1)


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

    Examples
    --------
    >>> hidden, weight = torch.zeros(1, 6, 16), torch.zeros(1, 16, 10)
    >>> loss = readout_cross_entropy(hidden, weight, torch.zeros(1, 6, dtype=torch.int64))
    >>> round(loss.item(), 4)  # ln V for equal logits
    2.3026
    """
    if torch.compiler.is_compiling():
        return _fusible_cross_entropy(hidden, weight, targets)
    if not torch.is_grad_enabled():
        # A Function sees its inputs' flags, not the mode: without this, evaluation would pay
        # for gradients that nobody takes.
        hidden, weight = hidden.detach(), weight.detach()
    result: Tensor = _ReadoutCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return result
