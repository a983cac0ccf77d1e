"""AdamW over stacked tensors, with learning rate, weight decay and ε per trial.

The update is that of ``torch.optim.AdamW`` (Loshchilov & Hutter 1711.05101, algorithm 2),
with the decoupled shrink lr·wd.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    update_stacked(
        [p.value for p in parameters],
        [_grad(p) for p in parameters],
        [p.mean for p in parameters],
        [p.square for p in parameters],
        [p.lr for p in parameters],
        [p.weight_decay for p in parameters],
        [p.eps for p in parameters],
        numbers,
        beta1,
        beta2,
    )


def step_numbers(
    step: int, factor: float, beta1: float, beta2: float
) -> tuple[float, float, float]:
    """Return what changes from step to step: factor, √c₂ and √c₂/c₁, the bias corrections."""
    root_correction2 = math.sqrt(1 - beta2 ** (step + 1))
    return factor, root_correction2, root_correction2 / (1 - beta1 ** (step + 1))


def update_stacked(
    values: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    lrs: Sequence[Tensor],
    weight_decays: Sequence[Tensor],
    epss: Sequence[Tensor],
    numbers: Tensor,
    beta1: float,
    beta2: float,
    copies: Sequence[Tensor | None] = (),
    scales: Sequence[Tensor | None] = (),
) -> None:
    """Take one AdamW step in place on (K, ...) tensors; `numbers` holds those of `step_numbers`.

    A value may have a copy in lower precision, times a scale, which the gradient is of: the step
    then brings the copy up to date in the same pass.
    """
    factor, root_correction2, scale = numbers.unbind()
    nothing = (None,) * len(values)
    for value, grad, mean, square, peak, weight_decay, eps, copy, own_scale in zip(
        values, grads, means, squares, lrs, weight_decays, epss,
        copies or nothing, scales or nothing, strict=True,
    ):  # fmt: skip
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
