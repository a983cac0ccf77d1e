"""K trials of a user's own module as one ensemble, under AdamW, Lion, SGD or Muon.

Shape letters: K trials, B batch.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hptransfer.adopt import TensorNumbers
from hptransfer.train._device import free_memory, is_out_of_memory
from hptransfer.train._ensemble import (
    UPDATES,
    Ensemble,
    StackedParameter,
    StepTensors,
    step_numbers,
)
from hptransfer.train._modules import TOKENS, Loss, StackedModule
from hptransfer.train._program import (
    NUM_WARM_STEPS,
    Mode,
    capture,
    describe_problem,
    is_captured,
    is_compiled,
    prepare_compiler,
    take_aside,
    without,
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


@dataclass(frozen=True)
class _Capture:
    """A captured step: what it reads, which each replay fills, and the losses that it writes."""

    graph: "torch.cuda.CUDAGraph"
    inputs: Mapping[str, Tensor]
    numbers: Tensor
    losses: Tensor

    def replay(self, arrays: Mapping[str, Tensor], numbers: Tensor) -> Tensor:
        for name, mine in self.inputs.items():
            mine.copy_(arrays[name])
        self.numbers.copy_(numbers)
        self.graph.replay()
        return self.losses.clone()


class ModuleEnsemble(Ensemble):
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
        How a step of stacked trials is taken (`hptransfer.train._program`). On a CPU nothing is
        captured.

    Attributes
    ----------
    parameters : dict of str to StackedParameter
        Those that train, by their names in the model.
    num_steps : int
        Steps taken.
    mode : str
        How a step is taken in fact.
    problem : str
        Why that is less than was asked for, in one line; empty where it is not.
    """

    takes_arrays = True

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
        self.mode: Mode = "eager" if one_by_one else mode
        if self.device.type != "cuda" and is_captured(self.mode):
            self.mode = without("captured", self.mode)
        self._captures: dict[object, _Capture] = {}
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
        )
        self._compile_or_not()
        self.parameters = {
            name: StackedParameter.of(value, [run.numbers[name] for run in runs])
            for name, value in self._stack.parameters.items()
        }
        optimizers = {name: runs[0].numbers[name].optimizer for name in self.parameters}
        self._optimizers = {
            kind: tuple(name for name, own in optimizers.items() if own == kind)
            for kind in dict.fromkeys(optimizers.values())
        }

    def step(self, batch: Arrays, *, factor: float, beta1: float, beta2: float) -> Tensor:  # type: ignore[override]
        """Take one step on stacked arrays; return the losses before it, shape (K,), in nats."""
        self._sync()
        arrays, betas = self._to_device(batch), (beta1, beta2)
        numbers = torch.tensor(
            step_numbers(self.num_steps, factor, beta1, beta2), dtype=torch.float64
        ).to(self.device)
        capture = None
        if is_captured(self.mode):
            key = tuple(sorted((name, each.shape, each.dtype) for name, each in arrays.items()))
            if key not in self._captures and (made := self._capture(arrays, numbers, betas)):
                self._captures[key] = made
            capture = self._captures.get(key)
        self._seed_draws()  # after the steps before a capture, which draw too
        if capture is None:
            losses = self._take(arrays, numbers, betas)
        else:
            losses = capture.replay(arrays, numbers)
        self.num_steps += 1
        return losses

    def _take(
        self, arrays: Mapping[str, Tensor], numbers: Tensor, betas: tuple[float, float]
    ) -> Tensor:
        """Take the step; return the losses before it."""
        try:
            losses, grads = self._differentiate(arrays)
        except Exception as error:
            if not is_compiled(self.mode) or is_out_of_memory(error):
                raise
            self.problem = f"the step cannot be compiled ({describe_problem(error)})"
            self.mode = without("compiled", self.mode)
            self._compile_or_not()
            self._seed_draws()
            losses, grads = self._differentiate(arrays)
        with torch.no_grad():
            for kind, names in self._optimizers.items():
                found = [
                    StepTensors(self.parameters[name], grads[name])
                    for name in names
                    if grads[name] is not None
                ]
                if found:
                    own = numbers.to(found[0].parameter.value.dtype)
                    self._updates.get(kind, self._updates["adamw"])(found, own, *betas)
        return losses.detach()

    def _differentiate(self, arrays: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses and the gradients by name, None where a weight has no part in them."""
        losses = self._stack.compute_losses(arrays)
        values = [p.value for p in self.parameters.values()]
        # Each trial's loss touches its own weights alone: the sum's gradient is each one's.
        grads = torch.autograd.grad(losses.sum(), values, allow_unused=True)
        return losses, dict(zip(self.parameters, grads, strict=True))

    def _compile_or_not(self) -> None:
        """Take the losses and the optimizers' steps compiled, or as they are, by the mode."""
        compiled = is_compiled(self.mode)
        self._stack.compile(compiled)
        self._updates = {
            kind: torch.compile(update, dynamic=False) if compiled else update
            for kind, update in UPDATES.items()
        }
        if compiled:
            prepare_compiler()

    def _capture(
        self, arrays: Mapping[str, Tensor], numbers: Tensor, betas: tuple[float, float]
    ) -> _Capture | None:
        """Return the step captured as a CUDA graph; None where that cannot be.

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
            self.mode = without("captured", self.mode)
            self.problem = "the step cannot be captured: it draws from NumPy's or Python's random"
            return None
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        found = capture(lambda: self._take(inputs, own, betas), pool=self._pool)
        if isinstance(found, str):
            self.mode, self.problem = without("captured", self.mode), found
            return None
        graph, losses = found
        return _Capture(graph, inputs, own, losses)

    def _sync(self) -> None:
        """Let the stacked program see the weights, which `keep` and a restore exchange."""
        self._stack.parameters = {name: p.value for name, p in self.parameters.items()}

    def _seed_draws(self) -> None:
        """Fix what the step draws, in dropout or anywhere else, by each seed and the step."""
        self._stack.seed_draws([_draw_seed(run.seed, self.num_steps) for run in self.runs])

    def _to_device(self, batch: Arrays) -> dict[str, Tensor]:
        named = batch if isinstance(batch, Mapping) else {TOKENS: batch}
        return {name: torch.as_tensor(array).to(self.device) for name, array in named.items()}

    def evaluate(self, windows: Any, *, batch: int) -> Tensor:
        """Return each run's mean loss on the same held-out arrays, shape (K,), in nats."""
        self._sync()
        self._release()
        return super().evaluate(windows, batch=batch)

    def _evaluate_part(self, place: int, part: Arrays) -> Tensor:
        K = len(self.runs)
        self._stack.seed_draws([_draw_seed("held-out", place)] * K)
        stacked = {
            name: tensor.unsqueeze(0).expand(K, *tensor.shape)
            for name, tensor in self._to_device(part).items()
        }
        return self._stack.compute_losses(stacked, training=False)

    @torch.no_grad()
    def keep(self, members: Sequence[int]) -> None:
        """Go on with the runs at `members` alone, in that order."""
        self._release()
        index = torch.tensor(members, dtype=torch.int64, device=self.device)
        self.attention_scale = torch.zeros(len(self.runs), device=self.device)
        super().keep(members)
        self._stack.constants = {
            name: tensor[index] for name, tensor in self._stack.constants.items()
        }

    def _release(self) -> None:
        """Give back what captured steps hold, which lies in a pool of their own."""
        if self._captures:
            self._captures.clear()
            self._pool = None
            free_memory()

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


def _draw_seed(*about: object) -> int:
    """Return the seed of what is drawn in one pass."""
    digest = hashlib.sha256(":".join(map(str, about)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
