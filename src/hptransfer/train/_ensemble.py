"""K trials of one shape as one program: weights, per-trial numbers, a step, an evaluation.

Shape letters: K trials, B batch, T time.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from hptransfer.model import GPTShape, ParameterSpec, compute_losses, list_parameters
from hptransfer.scaling import Resolved, RoleNumbers
from hptransfer.train._stacked_updates import STATE_PARTS, StackedParameter, step_adamw


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of an ensemble: its seed and its resolved numbers."""

    seed: int
    resolved: Resolved


def draw_normal(spec: ParameterSpec, seed: int) -> Tensor:
    """Return a run's standard normal draws for one parameter, fp32, on the CPU.

    They depend on the seed, the parameter's name and its shape alone, so that runs of one seed
    are paired across parameterizations, learning rates and groups.
    """
    text = f"{seed}:{spec.name}:{spec.shape}"
    digest = hashlib.sha256(text.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
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

        def per_run(number: Callable[[Run], float]) -> Tensor:
            return torch.tensor([number(run) for run in runs], dtype=dtype, device=self.device)

        self.attention_scale = per_run(lambda run: run.resolved.attention_scale)
        self.parameters: dict[str, StackedParameter] = {}
        for spec in list_parameters(shape):

            def numbers(run: Run, spec: ParameterSpec = spec) -> RoleNumbers:
                found = run.resolved.roles[spec.role]
                # The GPT has no multipliers; every rule that `resolve` knows sets them to 1.
                assert found.multiplier == found.residual_multiplier == 1
                return found

            value = self._draw(
                spec, draw or (_draw_once if self.device.type != "cpu" else draw_normal)
            ).to(dtype=dtype)
            self.parameters[spec.name] = StackedParameter(
                value=value.requires_grad_(),
                lr=per_run(lambda run, n=numbers: n(run).lr),  # type: ignore[misc]
                weight_decay=per_run(lambda run, n=numbers: n(run).weight_decay),  # type: ignore[misc]
                eps=per_run(lambda run, n=numbers: n(run).eps),  # type: ignore[misc]
                mean=torch.zeros_like(value, requires_grad=False),
                square=torch.zeros_like(value, requires_grad=False),
            )

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

    def compute_losses(
        self, tokens_KxBxT1: Tensor, *, values: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return each run's mean loss on its own sequences, shape (K,), in nats.

        `values` are weights to compute them with in place of the runs' own.
        """
        return compute_losses(
            values or {name: p.value for name, p in self.parameters.items()},
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

    @torch.no_grad()
    def evaluate(self, windows_NxT1: Any, *, batch: int) -> Tensor:
        """Return each run's mean loss over the same N sequences, shape (K,), in nats."""
        K, N = len(self.runs), len(windows_NxT1)
        tokens_NxT1 = torch.as_tensor(windows_NxT1, device=self.device)
        total = torch.zeros(K, dtype=torch.float64, device=self.device)
        for start in range(0, N, batch):
            part = tokens_NxT1[start : start + batch]
            losses = self.compute_losses(part.unsqueeze(0).expand(K, -1, -1))
            total += losses.double() * len(part)
        return total / N

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
            kept = {
                field.name: getattr(parameter, field.name).detach()[index]
                for field in fields(parameter)
            }
            self.parameters[name] = StackedParameter(**kept)
            self.parameters[name].value.requires_grad_()

    def view(self, start: int, stop: int) -> "Ensemble":
        """Return runs `start` to `stop` − 1 as an ensemble of its own that shares their memory."""
        part = copy.copy(self)
        part.runs = self.runs[start:stop]
        part.attention_scale = self.attention_scale[start:stop]
        part.parameters = {
            name: StackedParameter(
                **{
                    field.name: getattr(parameter, field.name).detach()[start:stop]
                    for field in fields(parameter)
                }
            )
            for name, parameter in self.parameters.items()
        }
        for parameter in part.parameters.values():
            parameter.value.requires_grad_()
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
