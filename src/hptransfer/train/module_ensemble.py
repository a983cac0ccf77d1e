"""K trials of a user's own module as one ensemble, under AdamW, Lion, SGD or Muon.

Shape letters: K trials, B batch.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hptransfer.adopt import TensorNumbers
from hptransfer.train.adamw import StackedParameter, step_numbers, update_stacked
from hptransfer.train.ensemble import Ensemble
from hptransfer.train.modules import TOKENS, Loss, StackedModule
from hptransfer.train.optimizers import UPDATES

Arrays = NDArray[np.int64] | Mapping[str, NDArray[np.generic]]
"""One step's arrays of a trial: token ids, (B, T + 1), or arrays by name."""


@dataclass(frozen=True, kw_only=True)
class ModuleRun:
    """One training run of an ensemble of modules.

    Attributes
    ----------
    seed : int
        Of the batches and the dropout.
    model : Module
        With its initial weights, on the CPU.
    numbers : mapping of str to TensorNumbers
        By the parameter's name.
    """

    seed: int
    model: nn.Module
    numbers: Mapping[str, TensorNumbers]


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
    compiled : bool
        Whether the losses are compiled.

    Attributes
    ----------
    parameters : dict of str to StackedParameter
        Those that train, by their names in the model.
    num_steps : int
        Steps taken.
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
        compiled: bool = False,
    ) -> None:
        self.device = torch.device(device)
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
            compiled=compiled,
        )
        self.parameters = {}
        for name, value in self._stack.parameters.items():

            def per_run(
                number: Callable[[TensorNumbers], float], name: str = name, value: Tensor = value
            ) -> Tensor:
                found = [number(run.numbers[name]) for run in runs]
                return torch.tensor(found, dtype=value.dtype, device=self.device)

            self.parameters[name] = StackedParameter(
                value=value,
                lr=per_run(lambda each: each.lr),
                weight_decay=per_run(lambda each: each.weight_decay),
                eps=per_run(lambda each: each.eps),
                mean=torch.zeros_like(value, requires_grad=False),
                square=torch.zeros_like(value, requires_grad=False),
            )
        optimizers = {name: runs[0].numbers[name].optimizer for name in self.parameters}
        self._optimizers = {
            kind: tuple(name for name, own in optimizers.items() if own == kind)
            for kind in dict.fromkeys(optimizers.values())
        }

    def step(self, batch: Arrays, *, factor: float, beta1: float, beta2: float) -> Tensor:  # type: ignore[override]
        """Take one step on stacked arrays; return the losses before it, shape (K,), in nats."""
        self._sync()
        if self._stack.has_dropout:
            self._stack.seed_dropout([self._dropout_seed(run.seed) for run in self.runs])
        losses = self._stack.compute_losses(self._to_device(batch))
        grads = torch.autograd.grad(
            losses.sum(), [p.value for p in self.parameters.values()], allow_unused=True
        )
        by_name = dict(zip(self.parameters, grads, strict=True))
        numbers = torch.tensor(
            step_numbers(self.num_steps, factor, beta1, beta2), dtype=torch.float64
        )
        numbers = numbers.to(self.device)
        with torch.no_grad():
            for kind, names in self._optimizers.items():
                self._update(
                    kind,
                    [n for n in names if by_name[n] is not None],
                    by_name,
                    numbers,
                    (beta1, beta2),
                )
        self.num_steps += 1
        return losses.detach()

    def _update(
        self,
        kind: str,
        names: Sequence[str],
        grads: Mapping[str, Tensor],
        numbers: Tensor,
        betas: tuple[float, float],
    ) -> None:
        if not names:
            return
        found = [self.parameters[name] for name in names]
        update = UPDATES.get(kind, update_stacked)
        update(
            [p.value for p in found],
            [grads[name] for name in names],
            [p.mean for p in found],
            [p.square for p in found],
            [p.lr for p in found],
            [p.weight_decay for p in found],
            [p.eps for p in found],
            numbers.to(found[0].value.dtype),
            *betas,
        )

    def _sync(self) -> None:
        """Let the stacked program see the weights, which `keep` and a restore exchange."""
        self._stack.parameters = {name: p.value for name, p in self.parameters.items()}

    def _dropout_seed(self, seed: int) -> int:
        digest = hashlib.sha256(f"{seed}:{self.num_steps}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def _to_device(self, batch: Arrays) -> dict[str, Tensor]:
        named = batch if isinstance(batch, Mapping) else {TOKENS: batch}
        return {name: torch.as_tensor(array).to(self.device) for name, array in named.items()}

    @torch.no_grad()
    def evaluate(self, windows: object, *, batch: int) -> Tensor:
        """Return each run's mean loss on the same held-out arrays, shape (K,), in nats.

        Parameters
        ----------
        windows : ndarray of shape (N, T + 1), or sequence of mapping
            Token ids, which are cut into batches; or batches of arrays, which count equally.
        batch : int
            B, for token ids.
        """
        self._sync()
        if isinstance(windows, np.ndarray):
            parts: list[Arrays] = [
                windows[start : start + batch] for start in range(0, len(windows), batch)
            ]
            weights = [len(part) for part in parts]
        else:
            parts = list(windows)  # type: ignore[call-overload]
            weights = [1] * len(parts)
        K = len(self.runs)
        total = torch.zeros(K, dtype=torch.float64, device=self.device)
        for part, weight in zip(parts, weights, strict=True):
            stacked = {
                name: tensor.unsqueeze(0).expand(K, *tensor.shape)
                for name, tensor in self._to_device(part).items()
            }
            total += self._stack.compute_losses(stacked, training=False).double() * weight
        return total / sum(weights)

    @torch.no_grad()
    def keep(self, members: Sequence[int]) -> None:
        """Go on with the runs at `members` alone, in that order."""
        index = torch.tensor(members, dtype=torch.int64, device=self.device)
        self.attention_scale = torch.zeros(len(self.runs), device=self.device)
        super().keep(members)
        self._stack.constants = {
            name: tensor[index] for name, tensor in self._stack.constants.items()
        }

    def state(self) -> dict[str, Tensor]:
        """Return every tensor that a step changes, by name; they share memory with the runs."""
        constants = {f"{name}.constant": each for name, each in self._stack.constants.items()}
        return super().state() | constants
