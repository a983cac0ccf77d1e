"""K trials of one shape as one program: weights, per-trial numbers, a step, an evaluation.

AdamW is that of ``torch.optim.AdamW`` (Loshchilov & Hutter 1711.05101, algorithm 2), with the
decoupled shrink lr·wd.

Shape letters: K trials, B batch, T time.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from hptransfer.model import GPTShape, ParameterSpec, compute_losses, list_parameters
from hptransfer.scaling import Resolved
from hptransfer.train._batches import Batches

#: Parts of a parameter that a step changes.
STATE_PARTS = ("value", "mean", "square")


class StackedParameter(NamedTuple):
    """A tensor of K trials with its optimizer numbers and moments.

    Attributes
    ----------
    value : Tensor of shape (K, ...)
        The weights; a leaf that collects gradients.
    lr, weight_decay, eps : Tensor of shape (K,)
        Peak learning rate, weight decay and ε of each trial.
    mean, square : Tensor of shape (K, ...)
        First and second moment; what an optimizer does not use is left as it is.
    """

    value: Tensor
    lr: Tensor
    weight_decay: Tensor
    eps: Tensor
    mean: Tensor
    square: Tensor

    @classmethod
    def of(cls, value: Tensor, numbers: Sequence[Any]) -> "StackedParameter":
        """Return weights that nothing has moved yet, with each trial's numbers for them."""
        lr, weight_decay, eps = (
            torch.tensor(
                [getattr(each, name) for each in numbers], dtype=value.dtype, device=value.device
            )
            for name in ("lr", "weight_decay", "eps")
        )
        mean, square = (torch.zeros_like(value, requires_grad=False) for _ in range(2))
        return cls(value.requires_grad_(), lr, weight_decay, eps, mean, square)

    def take(self, members: slice | Tensor) -> "StackedParameter":
        """Return the part of some trials; of a slice's it shares the memory."""
        value, *others = (each.detach()[members] for each in self)
        return StackedParameter(value.requires_grad_(), *others)

    @torch.no_grad()
    def retire(self, k: int) -> None:
        """Set trial `k` to a point that stays finite and no longer moves."""
        for part in (*STATE_PARTS, "lr", "weight_decay"):
            getattr(self, part)[k] = 0.0


class StepTensors(NamedTuple):
    """What one step takes of one tensor, and changes.

    Attributes
    ----------
    parameter : StackedParameter
    grad : Tensor of shape (K, ...)
        The gradient, of `copy` times `scale` where there is one.
    copy, scale : Tensor or None
        A copy of the value in lower precision, times a scale.
    """

    parameter: StackedParameter
    grad: Tensor
    copy: Tensor | None = None
    scale: Tensor | None = None


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

    PyTorch's fused kernel takes it trial by trial, in one pass over memory.

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
    # The kernel counts from 1 and does not change the count itself.
    count = torch.tensor(float(step + 1), device=parameters[0].value.device)
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
                [cast(Tensor, p.value.grad)[k] for p in members],
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
    for p in parameters:
        p.value.grad = None


def step_numbers(
    step: int, factor: float, beta1: float, beta2: float
) -> tuple[float, float, float]:
    """Return what changes from step to step: factor, √c₂ and √c₂/c₁, the bias corrections."""
    root_correction2 = math.sqrt(1 - beta2 ** (step + 1))
    return factor, root_correction2, root_correction2 / (1 - beta1 ** (step + 1))


def update_adamw(
    tensors: Sequence[StepTensors], numbers: Tensor, beta1: float, beta2: float
) -> None:
    """Take one step of AdamW in place; `numbers` holds those of `step_numbers`.

    A copy in lower precision is brought up to date in the same pass.
    """
    factor, root_correction2, scale = numbers.unbind()
    for p, grad, narrow, own_scale in tensors:
        grad = grad.to(p.value.dtype)
        if own_scale is not None:
            grad = grad * own_scale
        per_trial = (-1,) + (1,) * (p.value.dim() - 1)
        lr = p.lr * factor
        p.mean.lerp_(grad, 1 - beta1)
        p.square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        # (√v/√c₂ + ε) times √c₂, so that one broadcast factor holds every constant.
        denominator = p.square.sqrt() + (p.eps * root_correction2).view(per_trial)
        p.value.mul_((1 - lr * p.weight_decay).view(per_trial))
        p.value.sub_((lr * scale).view(per_trial) * (p.mean / denominator))
        if narrow is not None:
            narrow.copy_(p.value if own_scale is None else p.value * own_scale)


#: Of Muon's quintic iteration (Jordan et al. 2024, as in ``torch.optim.Muon``): coefficients,
#: number of steps, and the least norm that is divided by.
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
NUM_NEWTON_SCHULZ_STEPS = 5
MUON_EPS = 1e-7


def update_sgd(
    tensors: Sequence[StepTensors], numbers: Tensor, momentum: float, beta2: float
) -> None:
    """Take one step of SGD with momentum in place, as ``torch.optim.SGD`` does.

    The buffer, kept as the mean, is momentum·buffer + gradient + weight_decay·value, the step
    lr·buffer. Of `numbers` the first counts, the schedule's factor; `beta2` is not used.
    """
    for p, grad, *_ in tensors:
        per_trial = (-1,) + (1,) * (p.value.dim() - 1)
        p.mean.mul_(momentum).add_(grad).add_(p.weight_decay.view(per_trial) * p.value)
        p.value.sub_((p.lr * numbers[0]).view(per_trial) * p.mean)


def update_lion(
    tensors: Sequence[StepTensors], numbers: Tensor, beta1: float, beta2: float
) -> None:
    """Take one step of Lion in place (Chen et al. 2302.06675, algorithm 2).

    The step is lr·(sign(β₁·mean + (1 − β₁)·gradient) + weight_decay·value); the mean then decays
    with β₂. Of `numbers` the first counts.
    """
    for p, grad, *_ in tensors:
        per_trial = (-1,) + (1,) * (p.value.dim() - 1)
        lr = p.lr * numbers[0]
        direction = p.mean.lerp(grad, 1 - beta1).sign_()
        p.value.mul_((1 - lr * p.weight_decay).view(per_trial))
        p.value.sub_(lr.view(per_trial) * direction)
        p.mean.lerp_(grad, 1 - beta2)


def update_muon(
    tensors: Sequence[StepTensors], numbers: Tensor, momentum: float, beta2: float
) -> None:
    """Take one step of Muon with Nesterov momentum in place, as ``torch.optim.Muon`` does.

    Its update is the orthogonalised gradient + momentum·buffer, times √max(1, rows/columns) of
    the matrix as it is stored; each value is a stack of matrices, (K, rows, columns). Of `numbers`
    the first counts; `beta2` is not used.
    """
    for p, grad, *_ in tensors:
        rows, columns = p.value.shape[-2:]
        lr = (p.lr * numbers[0]).view(-1, 1, 1)
        p.mean.lerp_(grad, 1 - momentum)
        direction = orthogonalize(grad.lerp(p.mean, momentum))
        p.value.mul_(1 - lr * p.weight_decay.view(-1, 1, 1))
        p.value.sub_(lr * max(1.0, rows / columns) ** 0.5 * direction.to(p.value.dtype))


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
    {"adamw": update_adamw, "sgd": update_sgd, "lion": update_lion, "muon": update_muon}
)
"""What takes a step of tensors in place, by optimizer: eager or compiled."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What all trials of a group share, besides their shape.

    Attributes
    ----------
    batch : int
        Sequences per step.
    steps : int
        Number of steps.
    warmup, decay : float
        Fractions of the steps.
    beta1, beta2 : float
        AdamW's.
    """

    batch: int
    steps: int
    warmup: float
    decay: float
    beta1: float
    beta2: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of an ensemble: its seed and its resolved numbers."""

    seed: int
    resolved: Resolved


def draw_seed(*about: object) -> int:
    """Return the seed of what is drawn once, from what the draw depends on."""
    digest = hashlib.sha256(":".join(map(str, about)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_normal(spec: ParameterSpec, seed: int) -> Tensor:
    """Return a run's standard normal draws for one parameter, fp32, on the CPU.

    They depend on the seed, the parameter's name and its shape alone, so that runs of one seed
    are paired across parameterizations, learning rates and groups.
    """
    generator = torch.Generator().manual_seed(draw_seed(seed, spec.name, spec.shape))
    return torch.randn(spec.shape, generator=generator)


#: Draws kept for the next group of a shape, and their bytes at most.
_DRAWN: dict[tuple[str, tuple[int, ...], int], Tensor] = {}
MAX_DRAWN_BYTES = 2**30


def _draw_once(spec: ParameterSpec, seed: int) -> Tensor:
    """Return `draw_normal`, kept for groups to come: on one core large ones take a while."""
    key = (spec.name, spec.shape, seed)
    if key not in _DRAWN:
        found = draw_normal(spec, seed)
        while _DRAWN and sum(4 * each.numel() for each in (*_DRAWN.values(), found)) > (
            MAX_DRAWN_BYTES
        ):
            del _DRAWN[next(iter(_DRAWN))]  # the oldest: of another shape, most likely
        _DRAWN[key] = found
    return _DRAWN[key]


class Ensemble:
    """K stacked runs of one shape.

    Parameters
    ----------
    shape : GPTShape
        The shape that all runs share.
    runs : sequence of Run
        Length K.
    device : torch.device or str
        Where the weights live.
    dtype : torch.dtype
        Precision of the weights, moments and residual stream; fp32, or fp64 for checks.
    compute_dtype : torch.dtype, optional
        Precision of the matrix products; `dtype` if not given.
    draw : callable, optional
        Returns a parameter's standard normal draws for a seed; `draw_normal` if not given.

    Attributes
    ----------
    parameters : dict of str to StackedParameter
        By the names of `list_parameters`.
    attention_scale : Tensor of shape (K,)
    num_steps : int
        Steps taken.
    """

    takes_arrays = False
    """Whether a step takes any arrays from the host, by name or not, and not token ids alone."""
    problem = ""
    """Why its steps are taken in another way than was asked for, in one line."""

    def __init__(
        self,
        shape: GPTShape,
        runs: Sequence[Run],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        compute_dtype: torch.dtype | None = None,
        draw: Callable[[ParameterSpec, int], Tensor] | None = None,
    ) -> None:
        self.shape = shape
        self.runs = tuple(runs)
        self.device = torch.device(device)
        self.compute_dtype = compute_dtype or dtype
        self.num_steps = 0

        self.attention_scale = torch.tensor(
            [run.resolved.attention_scale for run in runs], dtype=dtype, device=self.device
        )
        draw = draw or (draw_normal if self.device.type == "cpu" else _draw_once)
        self.parameters: dict[str, StackedParameter] = {}
        for spec in list_parameters(shape):
            numbers = [run.resolved.roles[spec.role] for run in runs]
            # The GPT has no multipliers; the rules that a study takes set them to 1.
            assert all(each.multiplier == each.residual_multiplier == 1 for each in numbers)
            value = self._draw(spec, draw).to(dtype=dtype)
            self.parameters[spec.name] = StackedParameter.of(value, numbers)

    def _draw(self, spec: ParameterSpec, draw: Callable[[ParameterSpec, int], Tensor]) -> Tensor:
        """Return initial weights of shape (K, ...): paired draws times each run's own std."""
        K = len(self.runs)
        if spec.role == "norm":
            return torch.ones(K, *spec.shape, device=self.device)
        stds = [run.resolved.init_std(spec.role, spec.fan_in) for run in self.runs]
        values = torch.empty(K, *spec.shape, device=self.device)
        for seed in {run.seed for run in self.runs}:  # one seed's draws at a time
            draws = draw(spec, seed).to(self.device)
            for k, (run, std) in enumerate(zip(self.runs, stds, strict=True)):
                if run.seed == seed:
                    torch.mul(draws, std, out=values[k])
        return values

    @property
    def values(self) -> dict[str, Tensor]:
        """The weights by name."""
        return {name: parameter.value for name, parameter in self.parameters.items()}

    def compute_losses(
        self, tokens_KxBxT1: Tensor, *, values: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return each run's mean loss on its own sequences, shape (K,), in nats.

        `values` are weights to compute them with in place of the runs' own.
        """
        return compute_losses(
            values or self.values,
            tokens_KxBxT1,
            attention_scale=self.attention_scale,
            shape=self.shape,
            dtype=self.compute_dtype,
        )

    def step(self, tokens_KxBxT1: Tensor, *, factor: float, beta1: float, beta2: float) -> Tensor:
        """Take one AdamW step; return the losses before it, shape (K,), in nats."""
        losses = self.compute_losses(tokens_KxBxT1)
        # Each run's loss touches that run's weights alone, so the sum's gradient is each one's.
        losses.sum().backward()  # type: ignore[no-untyped-call]
        step_adamw(
            list(self.parameters.values()),
            step=self.num_steps,
            factor=factor,
            beta1=beta1,
            beta2=beta2,
        )
        self.num_steps += 1
        return losses.detach()

    def take_steps(
        self, batches: Batches, settings: TrainSettings, step: int, factors: Sequence[float]
    ) -> Tensor:
        """Take steps `step`, `step` + 1, …, one for each schedule factor, on batches of the host.

        Returns
        -------
        Tensor of shape (M, K)
            Losses before each step, in nats.
        """
        seeds = sorted({run.seed for run in self.runs})
        places = [seeds.index(run.seed) for run in self.runs]
        betas, losses = {"beta1": settings.beta1, "beta2": settings.beta2}, []
        for number, factor in enumerate(factors, step):
            by_seed = [batches.batch(seed, number, batch=settings.batch) for seed in seeds]
            losses.append(self.step(_stack(by_seed, places), factor=factor, **betas))
        return torch.stack(losses)

    @torch.no_grad()
    def evaluate(self, windows: Any, *, batch: int) -> Tensor:
        """Return each run's mean loss on the same held-out data, shape (K,), in nats.

        Parameters
        ----------
        windows : ndarray of shape (N, T + 1), or sequence of mapping
            Token ids, which are cut into batches; or batches of arrays, which count equally.
        batch : int
            B, for token ids.
        """
        parts, weights = list(windows), [1] * len(windows)
        if isinstance(windows, np.ndarray):
            parts = [windows[start : start + batch] for start in range(0, len(windows), batch)]
            weights = [len(part) for part in parts]
        total = torch.zeros(len(self.runs), dtype=torch.float64, device=self.device)
        for place, (part, weight) in enumerate(zip(parts, weights, strict=True)):
            total += self._evaluate_part(place, part).double() * weight
        return total / sum(weights)

    def _evaluate_part(self, place: int, part: Any) -> Tensor:
        tokens_BxT1 = torch.as_tensor(part, device=self.device)
        return self.compute_losses(tokens_BxT1.unsqueeze(0).expand(len(self.runs), -1, -1))

    def retire(self, k: int) -> None:
        """Stop run `k` without touching its neighbours."""
        for parameter in self.parameters.values():
            parameter.retire(k)

    @torch.no_grad()
    def keep(self, members: Sequence[int]) -> None:
        """Go on with the runs at `members` alone, in that order; each as if nothing had happened.

        Parameters are exchanged one by one, so that memory never holds two ensembles.
        """
        index = torch.tensor(members, dtype=torch.int64, device=self.device)
        self.runs = tuple(self.runs[k] for k in members)
        self.attention_scale = self.attention_scale[index]
        for name, parameter in self.parameters.items():
            self.parameters[name] = parameter.take(index)

    def view(self, start: int, stop: int) -> "Ensemble":
        """Return runs `start` to `stop` − 1 as an ensemble of its own that shares their memory."""
        part = copy.copy(self)
        part.runs = self.runs[start:stop]
        part.attention_scale = self.attention_scale[start:stop]
        part.parameters = {
            name: parameter.take(slice(start, stop)) for name, parameter in self.parameters.items()
        }
        return part

    def state(self) -> dict[str, Tensor]:
        """Return every tensor that a step changes, by name; they share memory with the runs."""
        return {
            f"{name}.{part}": getattr(parameter, part).detach()
            for name, parameter in self.parameters.items()
            for part in STATE_PARTS
        }

    def check_state(self, tensors: Mapping[str, Tensor], *, num_runs: int) -> None:
        """Raise ValueError where `tensors` are no state of `num_runs` runs like these."""
        own = self.state()
        if own.keys() != tensors.keys():
            raise ValueError("it holds other tensors")
        for name, tensor in own.items():
            found, shape = tensors[name], (num_runs, *tensor.shape[1:])
            if found.shape != shape or found.dtype != tensor.dtype:
                raise ValueError(f"tensor {name} has another shape or type")

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], *, num_steps: int) -> None:
        """Take over a state that `check_state` has passed."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])
        self.num_steps = num_steps


def _stack(by_seed: Sequence[Any], places: Sequence[int]) -> Any:
    """Return each run's arrays of a step, stacked: a tensor of ids, or tensors by name."""
    if isinstance(by_seed[0], Mapping):
        return {name: _stack([each[name] for each in by_seed], places) for name in by_seed[0]}
    return torch.from_numpy(np.stack(by_seed)[places])
