"""K trials of a user's own module as one ensemble, under AdamW, Lion, SGD or Muon.

Shape letters: K trials, B batch.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hptransfer.adopt import TensorNumbers
from hptransfer.train._device import free_memory
from hptransfer.train._ensemble import (
    UPDATES,
    Ensemble,
    StackedParameter,
    StepTensors,
    draw_seed,
    step_numbers,
)
from hptransfer.train._modules import TOKENS, Loss, ModuleError, StackedModule
from hptransfer.train._program import (
    NUM_WARM_STEPS,
    Accelerated,
    Mode,
    is_captured,
    take_aside,
)

Arrays = NDArray[np.int64] | Mapping[str, NDArray[np.generic]] | Mapping[str, Tensor]
"""One step's arrays of a trial: token ids, (B, T + 1), or arrays by name."""


@dataclass(frozen=True, kw_only=True)
class ModuleRun:
    """One training run of an ensemble of modules.

    Attributes
    ----------
    seed : int
        Of the batches and what the model and the loss draw.
    model : Module
        With its initial weights, on the CPU.
    numbers : mapping of str to TensorNumbers
        By the parameter's name.
    """

    seed: int
    model: nn.Module
    numbers: Mapping[str, TensorNumbers]


class ModuleEnsemble(Accelerated, Ensemble):
    """K stacked runs of one module's architecture.

    Parameters
    ----------
    runs : sequence of ModuleRun
        Length K.
    loss : callable
        The mean loss of a model on a batch.
    device : torch.device or str
        Where the weights live.
    compute_dtype : torch.dtype
        Precision of the matrix products.
    one_by_one : bool
        Whether each trial is computed by itself; else all at once through ``vmap``.
    mode : str
        How a step of stacked trials is taken (`hptransfer.train._program`).

    Attributes
    ----------
    parameters : dict of str to StackedParameter
        Those that train, by their names in the model.
    num_steps : int
        Steps taken.
    """

    takes_arrays = True
    fullgraph = False

    def __init__(
        self,
        runs: Sequence[ModuleRun],
        loss: Loss,
        *,
        device: torch.device | str = "cpu",
        compute_dtype: torch.dtype = torch.float32,
        one_by_one: bool = False,
        mode: Mode = "eager",
    ) -> None:
        self.device = torch.device(device)
        super().__init__("eager" if one_by_one else mode, self.device)
        self._captures: dict[object, Callable[..., Tensor]] = {}
        self._pool: Any = None  # memory of all captures: one replays at a time
        self.compute_dtype = compute_dtype
        self.num_steps = 0
        # A model is needed until its weights are stacked, and not kept beside them.
        self.runs = tuple(replace(run, model=runs[0].model) for run in runs)  # type: ignore[misc]
        self._stack = StackedModule(
            [run.model for run in runs],
            loss,
            device=device,
            compute_dtype=compute_dtype,
            one_by_one=one_by_one,
            prepare=self._compiled,
        )
        self.parameters = {
            name: StackedParameter.of(value, [run.numbers[name] for run in runs])
            for name, value in self._stack.parameters.items()
        }
        self._optimizers = {name: runs[0].numbers[name].optimizer for name in self.parameters}
        for name in self._stack.complex_names:
            if self._optimizers[name] == "muon":
                raise ModuleError(
                    f"parameter {name!r} is complex, which Muon does not take; train it with adamw"
                )

    def step(self, batch: Arrays, *, factor: float, beta1: float, beta2: float) -> Tensor:  # type: ignore[override]
        """Take one step on stacked arrays; return the losses before it, shape (K,), in nats."""
        arrays, betas = self._to_device(batch), (beta1, beta2)
        numbers = torch.tensor(
            step_numbers(self.num_steps, factor, beta1, beta2), dtype=torch.float64
        ).to(self.device)
        key = tuple(sorted((name, each.shape, each.dtype) for name, each in arrays.items()))
        if is_captured(self.mode) and key not in self._captures:
            self._capture(key, arrays, numbers, betas)
        take = self._captures.get(key, self._take) if is_captured(self.mode) else self._take
        self._seed_draws()  # after the steps before a capture, which draw too
        losses = take(arrays, numbers, betas)
        self.num_steps += 1
        return losses

    def _take(
        self, arrays: Mapping[str, Tensor], numbers: Tensor, betas: tuple[float, float]
    ) -> Tensor:
        """Take the step; return the losses before it."""
        losses, grads = self._attempt(lambda: self._differentiate(arrays))
        tensors: dict[str, list[StepTensors]] = {}
        for name, grad in grads.items():
            if grad is not None:
                found = tensors.setdefault(self._optimizers[name], [])
                found.append(StepTensors(self.parameters[name], grad))
        with torch.no_grad():
            for kind, found in tensors.items():
                own = numbers.to(found[0].parameter.value.dtype)
                self._compiled(UPDATES[kind])(found, own, *betas)
        return losses.detach()

    def _differentiate(self, arrays: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses and the gradients by name, None where a weight has no part in them."""
        losses = self._stack.compute_losses(arrays)
        # Each trial's loss touches its own weights alone: the sum's gradient is each one's.
        grads = torch.autograd.grad(losses.sum(), list(self.values.values()), allow_unused=True)
        if all(each is None for each in grads):
            raise ModuleError("the loss does not depend on the model's weights")
        return losses, dict(zip(self.parameters, grads, strict=True))

    def _capture(
        self,
        key: object,
        arrays: Mapping[str, Tensor],
        numbers: Tensor,
        betas: tuple[float, float],
    ) -> None:
        """Capture the step as a CUDA graph for arrays like these; not where that cannot be.

        Libraries choose kernels and take workspaces at their first calls, so that some steps are
        taken before; the state is then put back, and every step that counts is a replay, in a
        training that goes on from a checkpoint too. What a step draws on the host a graph would
        repeat for ever: such a step is not captured.
        """
        inputs = {name: each.clone() for name, each in arrays.items()}
        own = numbers.clone()
        before = {name: each.clone() for name, each in self.state().items()}
        drawn: object = None
        for step in range(NUM_WARM_STEPS):
            take_aside(lambda: self._take(inputs, own, betas), self.device)
            if step == 0:  # which compiles, and may draw for that
                drawn = _read_host_draws()
        for name, tensor in self.state().items():
            tensor.copy_(before[name])
        del before
        if _read_host_draws() != drawn:
            self._go_without("captured", "it draws from NumPy's or Python's random")
            return
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        found = self._capture_once(lambda: self._take(inputs, own, betas), pool=self._pool)
        if found is None:
            return
        graph, losses = found

        def replay(arrays: Mapping[str, Tensor], numbers: Tensor, betas: object) -> Tensor:
            for name, mine in inputs.items():
                mine.copy_(arrays[name])
            own.copy_(numbers)
            graph.replay()
            return losses.clone()

        self._captures[key] = replay

    def _seed_draws(self) -> None:
        """Fix what the step draws, in dropout or anywhere else, by each seed and the step."""
        self._stack.seed_draws([draw_seed(run.seed, self.num_steps) for run in self.runs])

    def _to_device(self, batch: Arrays) -> dict[str, Tensor]:
        named = batch if isinstance(batch, Mapping) else {TOKENS: batch}
        return {name: torch.as_tensor(array).to(self.device) for name, array in named.items()}

    def evaluate(self, windows: Any, *, batch: int) -> Tensor:
        """Return each run's mean loss on the same held-out arrays, shape (K,), in nats."""
        if self._captures:  # they lie in a pool of their own
            self._captures.clear()
            self._pool = None
            free_memory()
        return super().evaluate(windows, batch=batch)

    def _evaluate_part(self, place: int, part: Arrays) -> Tensor:
        K = len(self.runs)
        self._stack.seed_draws([draw_seed("held-out", place)] * K)
        stacked = {
            name: tensor.unsqueeze(0).expand(K, *tensor.shape)
            for name, tensor in self._to_device(part).items()
        }
        return self._stack.compute_losses(stacked, training=False)

    def state(self) -> dict[str, Tensor]:
        """Return every tensor that a step changes, by name; they share memory with the runs."""
        constants = {
            f"{name}.constant": torch.view_as_real(each) if each.is_complex() else each
            for name, each in self._stack.constants.items()
        }
        return super().state() | constants


def _read_host_draws() -> object:
    """Return where Python's and NumPy's global generators stand."""
    about, keys, *rest = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002
    return random.getstate(), about, keys.tobytes(), rest
