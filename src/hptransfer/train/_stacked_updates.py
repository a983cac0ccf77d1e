"""Optimizer steps over stacked tensors, with learning rate, weight decay and ε per trial.

AdamW is that of ``torch.optim.AdamW`` (Loshchilov & Hutter 1711.05101, algorithm 2), with the
decoupled shrink lr·wd. SGD, Lion and Muon take what `update_stacked` does, so that a training
step, eager or compiled, takes any of them; what an optimizer does not use is left as it is.

Shape letters: K trials.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

#: Attributes that a step or a retirement changes.
STATE_PARTS = ("value", "mean", "square", "lr", "weight_decay")


@dataclass(frozen=True, kw_only=True)
class StackedParameter:
    """A tensor of K trials with its optimizer numbers and moments.

    Attributes
    ----------
    value : Tensor of shape (K, ...)
        The weights; a leaf that collects gradients.
    lr, weight_decay, eps : Tensor of shape (K,)
        Peak learning rate, weight decay and ε of each trial.
    mean, square : Tensor of shape (K, ...)
        First and second moment.
    """

    value: Tensor
    lr: Tensor
    weight_decay: Tensor
    eps: Tensor
    mean: Tensor
    square: Tensor

    def retire(self, k: int) -> None:
        """Set trial `k` to a point that stays finite and no longer moves."""
        with torch.no_grad():
            for part in STATE_PARTS:
                getattr(self, part)[k] = 0.0


class StackedTensors(NamedTuple):
    """Tensors that one step changes, and what it takes for each; one entry a tensor.

    Attributes
    ----------
    values, grads, means, squares : sequence of Tensor of shape (K, ...)
        Weights, gradients, first and second moments (or momentum buffers).
    lrs, weight_decays, epss : sequence of Tensor of shape (K,)
        Peak learning rate, weight decay and ε of each trial.
    copies, scales : sequence of (Tensor or None)
        Copies of values in lower precision, times a scale, which the gradient is of: AdamW brings
        them up to date in the same pass. Empty for none.
    """

    values: Sequence[Tensor]
    grads: Sequence[Tensor]
    means: Sequence[Tensor]
    squares: Sequence[Tensor]
    lrs: Sequence[Tensor]
    weight_decays: Sequence[Tensor]
    epss: Sequence[Tensor]
    copies: Sequence[Tensor | None] = ()
    scales: Sequence[Tensor | None] = ()

    @classmethod
    def of(
        cls,
        parameters: Sequence[StackedParameter],
        grads: Sequence[Tensor],
        copies: Sequence[Tensor | None] = (),
        scales: Sequence[Tensor | None] = (),
    ) -> "StackedTensors":
        """Return the tensors of parameters, with their gradients."""

        def take(part: str) -> list[Tensor]:
            return [getattr(parameter, part) for parameter in parameters]

        return cls(
            take("value"), list(grads), take("mean"), take("square"), take("lr"),
            take("weight_decay"), take("eps"), copies, scales,
        )  # fmt: skip


@torch.no_grad()
def step_adamw(
    parameters: Sequence[StackedParameter],
    *,
    step: int,
    factor: float,
    beta1: float,
    beta2: float,
) -> None:
    """Take one AdamW step in place and drop the gradients.

    Parameters
    ----------
    parameters : sequence of StackedParameter
        Each with ``value.grad`` set.
    step : int
        0-based; the bias corrections use step + 1.
    factor : float
        The schedule's factor on every learning rate.
    beta1, beta2 : float
        Decay rates of the moments.
    """
    step_kind = _step_fused if parameters[0].value.device.type == "cpu" else _step_stacked
    step_kind(parameters, step=step, factor=factor, beta1=beta1, beta2=beta2)
    for p in parameters:
        p.value.grad = None


def _step_fused(
    parameters: Sequence[StackedParameter], *, step: int, factor: float, beta1: float, beta2: float
) -> None:
    """Take the step with PyTorch's fused kernel, trial by trial: one pass over memory."""
    # The kernel counts from 1 and does not change the count itself.
    count = torch.tensor(float(step + 1))
    numbers = [
        zip(p.lr.tolist(), p.weight_decay.tolist(), p.eps.tolist(), strict=True) for p in parameters
    ]
    for k, of_trial in enumerate(zip(*numbers, strict=True)):
        alike: dict[tuple[float, float, float], list[StackedParameter]] = {}
        for p, key in zip(parameters, of_trial, strict=True):
            alike.setdefault(key, []).append(p)
        for (lr, weight_decay, eps), members in alike.items():
            torch._fused_adamw_(
                [p.value[k] for p in members],
                [_grad(p)[k] for p in members],
                [p.mean[k] for p in members],
                [p.square[k] for p in members],
                [],
                [count] * len(members),
                lr=lr * factor,
                beta1=beta1,
                beta2=beta2,
                weight_decay=weight_decay,
                eps=eps,
                amsgrad=False,
                maximize=False,
            )


def _step_stacked(
    parameters: Sequence[StackedParameter], *, step: int, factor: float, beta1: float, beta2: float
) -> None:
    """Take the step on stacked tensors with numbers per trial: few kernels, no wait for them."""
    value = parameters[0].value
    numbers = torch.tensor(
        step_numbers(step, factor, beta1, beta2), dtype=value.dtype, device=value.device
    )
    tensors = StackedTensors.of(parameters, [_grad(p) for p in parameters])
    update_stacked(tensors, numbers, beta1, beta2)


def step_numbers(
    step: int, factor: float, beta1: float, beta2: float
) -> tuple[float, float, float]:
    """Return what changes from step to step: factor, √c₂ and √c₂/c₁, the bias corrections."""
    root_correction2 = math.sqrt(1 - beta2 ** (step + 1))
    return factor, root_correction2, root_correction2 / (1 - beta1 ** (step + 1))


def update_stacked(tensors: StackedTensors, numbers: Tensor, beta1: float, beta2: float) -> None:
    """Take one AdamW step in place on (K, ...) tensors; `numbers` holds those of `step_numbers`."""
    factor, root_correction2, scale = numbers.unbind()
    *always, copies, scales = tensors
    nothing = (None,) * len(tensors.values)
    for value, grad, mean, square, peak, weight_decay, eps, copy, own_scale in zip(
        *always, copies or nothing, scales or nothing, strict=True
    ):
        grad = grad.to(value.dtype)
        if own_scale is not None:
            grad = grad * own_scale
        per_trial = (-1,) + (1,) * (value.dim() - 1)
        lr = peak * factor
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        # (√v/√c₂ + ε) times √c₂, so that one broadcast factor holds every constant.
        denominator = square.sqrt() + (eps * root_correction2).view(per_trial)
        value.mul_((1 - lr * weight_decay).view(per_trial))
        value.sub_((lr * scale).view(per_trial) * (mean / denominator))
        if copy is not None:
            copy.copy_(value if own_scale is None else value * own_scale)


def _grad(parameter: StackedParameter) -> Tensor:
    grad = parameter.value.grad
    assert grad is not None
    return grad


#: Of Muon's quintic iteration (Jordan et al. 2024, as in ``torch.optim.Muon``): coefficients,
#: number of steps, and the least norm that is divided by.
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
NUM_NEWTON_SCHULZ_STEPS = 5
MUON_EPS = 1e-7


def update_sgd(tensors: StackedTensors, numbers: Tensor, momentum: float, beta2: float) -> None:
    """Take one step of SGD with momentum in place, as ``torch.optim.SGD`` does.

    The buffer is momentum·buffer + gradient + weight_decay·value, the step lr·buffer.

    Parameters
    ----------
    tensors : StackedTensors
        Of which ``squares`` and ``epss`` are not used; ``means`` are the momentum buffers.
    numbers : Tensor of shape (3,)
        Those of `step_numbers`; the first is the schedule's factor.
    momentum : float
        Decay rate of the buffers.
    beta2 : float
        Not used.
    """
    for value, grad, mean, _, peak, decay, _ in zip(*tensors[:7], strict=True):
        per_trial = (-1,) + (1,) * (value.dim() - 1)
        mean.mul_(momentum).add_(grad).add_(decay.view(per_trial) * value)
        value.sub_((peak * numbers[0]).view(per_trial) * mean)


def update_lion(tensors: StackedTensors, numbers: Tensor, beta1: float, beta2: float) -> None:
    """Take one step of Lion in place (Chen et al. 2302.06675, algorithm 2).

    The step is lr·(sign(β₁·mean + (1 − β₁)·gradient) + weight_decay·value); the mean then decays
    with β₂. Parameters as in ``update_sgd``.
    """
    for value, grad, mean, _, peak, decay, _ in zip(*tensors[:7], strict=True):
        per_trial = (-1,) + (1,) * (value.dim() - 1)
        lr = peak * numbers[0]
        direction = mean.lerp(grad, 1 - beta1).sign_()
        value.mul_((1 - lr * decay).view(per_trial))
        value.sub_(lr.view(per_trial) * direction)
        mean.lerp_(grad, 1 - beta2)


def update_muon(tensors: StackedTensors, numbers: Tensor, momentum: float, beta2: float) -> None:
    """Take one step of Muon with Nesterov momentum in place, as ``torch.optim.Muon`` does.

    Its update is the orthogonalised gradient + momentum·buffer, times √max(1, rows/columns) of
    the matrix as it is stored. Parameters as in ``update_sgd``; each value is a stack of matrices,
    (K, rows, columns).
    """
    for value, grad, mean, _, peak, decay, _ in zip(*tensors[:7], strict=True):
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
"""The updates by optimizer, beside AdamW's own (`update_stacked`)."""
