"""SGD, Lion and Muon over stacked tensors, with learning rate and weight decay per trial.

Every update has the arguments of ``adamw.update_stacked``, so that a training step, eager or
compiled, takes any of them; what an optimizer does not use is left as it is.

Shape letters: K trials.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

Tensors = Sequence[Tensor]

#: Of Muon's quintic iteration (Jordan et al. 2024, as in ``torch.optim.Muon``): coefficients,
#: number of steps, and the least norm that is divided by.
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
NUM_NEWTON_SCHULZ_STEPS = 5
MUON_EPS = 1e-7


def update_sgd(
    values: Tensors,
    grads: Tensors,
    means: Tensors,
    squares: Tensors,
    lrs: Tensors,
    weight_decays: Tensors,
    epss: Tensors,
    numbers: Tensor,
    momentum: float,
    beta2: float,
) -> None:
    """Take one step of SGD with momentum in place, as ``torch.optim.SGD`` does.

    The buffer is momentum·buffer + gradient + weight_decay·value, the step lr·buffer.

    Parameters
    ----------
    values, grads, means : sequence of Tensor of shape (K, ...)
        Weights, gradients and momentum buffers.
    lrs, weight_decays : sequence of Tensor of shape (K,)
        Peak learning rates and weight decays.
    numbers : Tensor of shape (3,)
        Those of ``adamw.step_numbers``; the first is the schedule's factor.
    momentum : float
        Decay rate of the buffers.
    squares, epss, beta2
        Not used.
    """
    for value, grad, mean, peak, decay in zip(
        values, grads, means, lrs, weight_decays, strict=True
    ):
        per_trial = (-1,) + (1,) * (value.dim() - 1)
        mean.mul_(momentum).add_(grad).add_(decay.view(per_trial) * value)
        value.sub_((peak * numbers[0]).view(per_trial) * mean)


def update_lion(
    values: Tensors,
    grads: Tensors,
    means: Tensors,
    squares: Tensors,
    lrs: Tensors,
    weight_decays: Tensors,
    epss: Tensors,
    numbers: Tensor,
    beta1: float,
    beta2: float,
) -> None:
    """Take one step of Lion in place (Chen et al. 2302.06675, algorithm 2).

    The step is lr·(sign(β₁·mean + (1 − β₁)·gradient) + weight_decay·value); the mean then decays
    with β₂. Parameters as in ``update_sgd``.
    """
    for value, grad, mean, peak, decay in zip(
        values, grads, means, lrs, weight_decays, strict=True
    ):
        per_trial = (-1,) + (1,) * (value.dim() - 1)
        lr = peak * numbers[0]
        direction = mean.lerp(grad, 1 - beta1).sign_()
        value.mul_((1 - lr * decay).view(per_trial))
        value.sub_(lr.view(per_trial) * direction)
        mean.lerp_(grad, 1 - beta2)


def update_muon(
    values: Tensors,
    grads: Tensors,
    means: Tensors,
    squares: Tensors,
    lrs: Tensors,
    weight_decays: Tensors,
    epss: Tensors,
    numbers: Tensor,
    momentum: float,
    beta2: float,
) -> None:
    """Take one step of Muon with Nesterov momentum in place, as ``torch.optim.Muon`` does.

    Its update is the orthogonalised gradient + momentum·buffer, times √max(1, rows/columns) of
    the matrix as it is stored. Parameters as in ``update_sgd``; each value is a stack of matrices,
    (K, rows, columns).
    """
    for value, grad, mean, peak, decay in zip(
        values, grads, means, lrs, weight_decays, strict=True
    ):
        rows, columns = value.shape[-2:]
        lr = (peak * numbers[0]).view(-1, 1, 1)
        mean.lerp_(grad, 1 - momentum)
        direction = orthogonalize(grad.lerp(mean, momentum))
        value.mul_(1 - lr * decay.view(-1, 1, 1))
        value.sub_(lr * max(1.0, rows / columns) ** 0.5 * direction.to(value.dtype))


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return matrices with the singular vectors of the given ones and singular values near 1.

    Five steps of the quintic Newton–Schulz iteration in bf16, for each matrix of (K, rows,
    columns) by itself.
    """
    a, b, c = NEWTON_SCHULZ
    found = matrices.bfloat16()
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    if is_tall:
        found = found.mT
    found = found / found.norm(dim=(-2, -1), keepdim=True).clamp(min=MUON_EPS)
    for _ in range(NUM_NEWTON_SCHULZ_STEPS):
        gram = found @ found.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        found = torch.baddbmm(found, gram, found, beta=a)
    return found.mT if is_tall else found


UPDATES: Mapping[str, Callable[..., None]] = MappingProxyType(
    {"sgd": update_sgd, "lion": update_lion, "muon": update_muon}
)
"""The updates by optimizer, beside AdamW's own (``adamw.update_stacked``)."""
