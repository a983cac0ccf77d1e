"""Probes of training: how stable it is, measured every so many steps beside the training.

A probe reads weights and moments and writes none; it draws no random number. Training with and
without probes gives the same bits.

Shape letters: K trials, B batch, T time, D width, N heads, H head size, V vocabulary; P probe
steps, Q quantities.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hptransfer.model import GPTShape, compute_hidden, list_parameters
from hptransfer.scaling import Role
from hptransfer.train._batches import Batches
from hptransfer.train._ensemble import Ensemble, TrainSettings
from hptransfer.train._trainer import schedule_factor

#: Forward passes that the search for a critical learning rate takes at most.
MAX_FORWARDS = 10
#: Octaves between two learning rates while the critical one is not yet bracketed, and those that
#: its bracket may be wide at the end.
BRACKET_OCTAVES, FINAL_OCTAVES = 2.0, 1 / 16
#: Parts that the runs are measured in, on a CPU and on a device, whose memory the training fills.
NUM_PARTS = (1, 4)
#: Sequences that activations and attention are looked at on.
NUM_LOOKED_AT = 4
#: Steps before it that a loss is held against, and how many there must be at least.
SPIKE_WINDOW, MIN_SPIKE_WINDOW = 100, 20
#: A spike stands out by this many nats, and by this many standard deviations.
SPIKE_NATS, SPIKE_DEVIATIONS = 0.1, 6.0
#: Standard deviations in a median absolute deviation of normal draws.
MAD_SCALE = 1.48


@dataclass(frozen=True, kw_only=True)
class Spikes:
    """Loss spikes of one run.

    Attributes
    ----------
    count : int
        Spikes; steps in a row that stand out are one.
    size : float
        Height of the highest above its median, in nats; 0 where there is none.
    """

    count: int
    size: float


def find_spikes(curve: NDArray[np.floating]) -> Spikes:
    """Count the loss spikes of a run: L_t − median > max(0.1 nats, 6 · 1.48 · MAD).

    Median and median absolute deviation are those of the 100 losses before step t; of as many as
    there are, while they are fewer, but of 20 at least.

    Parameters
    ----------
    curve : ndarray of shape (steps,)
        Training loss of each step, in nats; a loss that is no number does not count as a spike.

    Returns
    -------
    Spikes
        None are found in a run of 20 steps or fewer.

    Examples
    --------
    >>> curve = np.full(200, 3.0)
    >>> curve[[120, 121, 150]] = 3.5, 3.4, 4.0
    >>> find_spikes(curve)
    Spikes(count=2, size=1.0)
    """
    losses = np.asarray(curve, dtype=np.float64)
    heights = np.zeros(len(losses))
    if len(losses) > MIN_SPIKE_WINDOW:
        # All at once: one by one, the short windows took most of the time of storing a trial.
        padded = np.concatenate([np.full(SPIKE_WINDOW - MIN_SPIKE_WINDOW, np.inf), losses[:-1]])
        windows = np.lib.stride_tricks.sliding_window_view(padded, SPIKE_WINDOW)
        heights[MIN_SPIKE_WINDOW:] = _measure_heights(windows, losses[MIN_SPIKE_WINDOW:])
    high = heights > 0
    starts = np.count_nonzero(high[1:] & ~high[:-1])  # the first step is never high
    return Spikes(count=int(starts), size=float(heights.max(initial=0.0)))


def _measure_heights(
    windows: NDArray[np.float64], losses: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how far each loss stands out above those before it; 0 where it does not.

    The first windows are filled up with infinities, each with one less than the one before.
    """
    sizes = np.minimum(MIN_SPIKE_WINDOW + np.arange(len(losses)), SPIKE_WINDOW)
    median = _find_median(windows, sizes)
    deviation = MAD_SCALE * _find_median(np.abs(windows - median[:, None]), sizes)
    heights = losses - median
    stands_out = heights > np.maximum(SPIKE_NATS, SPIKE_DEVIATIONS * deviation)
    return np.where(stands_out, heights, 0.0)


def _find_median(windows: NDArray[np.float64], sizes: NDArray[np.int_]) -> NDArray[np.float64]:
    """Return the median of each row's lowest `sizes` values; NaN where it holds a NaN."""
    rows, ordered = np.arange(len(sizes)), np.sort(windows, axis=1)
    median = (ordered[rows, (sizes - 1) // 2] + ordered[rows, sizes // 2]) / 2
    return np.where(np.isnan(ordered[:, -1]), np.nan, median)


def name_quantities(shape: GPTShape) -> tuple[str, ...]:
    """Return the names of what a probe measures, ``QUANTITY`` or ``QUANTITY/WHERE``, in order.

    ``lr``: η times the schedule's factor. ``loss``: of the batch about to be trained on.
    ``critical_lr``: η_c (`Probes`). ``grad_norm/ROLE``: norm of the gradient of all tensors of a
    role. ``weight_rms/TENSOR``, ``update_rms/TENSOR``: root mean square of its elements, and of
    those of the step about to be taken. ``activation_change/MODULE``: root mean square of what
    that step changes of the module's output on a few sequences of the batch; ``readout`` is the
    logits. ``logit_scale``: root mean square of the logits less their mean over the vocabulary.
    ``attention_entropy/LAYER``: mean entropy of attention over the ln of the number of positions
    that can be attended to, 1 where attention is even.
    """
    specs = list_parameters(shape)
    roles = dict.fromkeys(_gather(spec.role) for spec in specs)
    layers = [f"layers.{layer}" for layer in range(shape.num_layers)]
    modules = [
        "embedding",
        *(spec.name for spec in specs if spec.role in ("hidden", "hidden_residual")),
        "final_norm",
        "readout",
    ]
    return (
        "lr",
        "loss",
        "critical_lr",
        "logit_scale",
        *(f"grad_norm/{role}" for role in roles),
        *(f"weight_rms/{spec.name}" for spec in specs),
        *(f"update_rms/{spec.name}" for spec in specs),
        *(f"activation_change/{module}" for module in modules),
        *(f"attention_entropy/{layer}" for layer in layers),
    )


def _gather(role: Role) -> Role:
    """Return the role that a gradient norm is told for."""
    return "hidden" if role == "hidden_residual" else role


class Probes:
    """Measures an ensemble in training; called with the step and the ensemble before a step.

    The critical learning rate is η_c = the smallest η > 0 with L(θ − η·u) > L(θ) on the batch of
    the step, where u is the optimizer's step, with its momentum and decay, divided by its learning
    rate: all roles' rates are scaled together, and η_c is on the axis of the study's rates. It is
    found by bracketing, a factor of 4 at a time, and bisection to 1/16 octave, in at most 10
    forward passes; NaN where those do not bracket it. The critical sharpness is 2/η_c (Kalra et
    al. 2601.16979).

    Parameters
    ----------
    ensemble : Ensemble
        K fresh runs.
    batches : Batches
        What they train on.
    settings : TrainSettings
        How they are trained.
    every : int
        Steps between two probes; the first is before the first step.

    Attributes
    ----------
    every : int
    steps : tuple of int
        The P steps that are probed.
    names : tuple of str
        The Q quantities (`name_quantities`).
    values : Tensor of shape (K, P, Q)
        What was measured, on the host; NaN where nothing was. What a run gives after it has
        diverged means nothing.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        *,
        batches: Batches,
        settings: TrainSettings,
        every: int,
    ) -> None:
        self.every = every
        self.steps = tuple(range(0, settings.steps, every))
        self.names = name_quantities(ensemble.shape)
        self.values = torch.full(
            (len(ensemble.runs), len(self.steps), len(self.names)), math.nan, dtype=torch.float32
        )
        # Runs that are dropped leave the others' places as they were.
        self._places = {id(run): k for k, run in enumerate(ensemble.runs)}
        self._runs = ensemble.runs  # which keeps the ids
        self._batches, self._settings = batches, settings

    def describe(self, k: int, diverged_step: int | None) -> dict[str, list[Any]]:
        """Return what was measured of run `k`, up to its divergence, as a results row holds it."""
        steps = [step for step in self.steps if diverged_step is None or step <= diverged_step]
        return {
            "probe_steps": steps,
            "probe_names": list(self.names),
            "probe_values": self.values[k, : len(steps)].flatten().tolist(),
        }

    def __call__(self, step: int, ensemble: Ensemble) -> None:
        """Measure all runs before a step that `every` divides."""
        size = max(1, math.ceil(len(ensemble.runs) / NUM_PARTS[ensemble.device.type != "cpu"]))
        for start in range(0, len(ensemble.runs), size):
            self._measure(step, ensemble.view(start, start + size))

    def _measure(self, step: int, ensemble: Ensemble) -> None:
        settings = self._settings
        windows = [
            self._batches.batch(run.seed, step, batch=settings.batch) for run in ensemble.runs
        ]
        tokens = torch.from_numpy(np.stack(windows)).to(ensemble.device)
        factor = schedule_factor(
            step, steps=settings.steps, warmup=settings.warmup, decay=settings.decay
        )
        places = [self._places[id(run)] for run in ensemble.runs]
        number = step // self.every
        losses, grads = _differentiate(ensemble, tokens)
        found = {"loss": losses}
        found |= _measure_gradients(ensemble, grads)
        with torch.no_grad():
            updates = self._turn_into_updates(ensemble, grads)
            for name, parameter in ensemble.parameters.items():
                found[f"weight_rms/{name}"] = _rms(parameter.value)
                found[f"update_rms/{name}"] = _rms(updates[name]) * factor
            found |= _look_at_activations(ensemble, tokens[:, :NUM_LOOKED_AT], updates, factor)
            base_lr = ensemble.attention_scale.new_tensor(
                [run.resolved.base_lr for run in ensemble.runs]
            )
            found["lr"] = base_lr * factor
            # Where the last probe found it, and else at twice the rate that is about to be used.
            last = self.values[places, max(0, number - 1), self.names.index("critical_lr")]
            start = last.to(base_lr) / base_lr
            start = torch.where(torch.isfinite(start), start, 2 * factor)
            moving = found["update_rms/readout"] > 0  # a retired run does not
            found["critical_lr"] = base_lr * _find_critical(
                ensemble, tokens, losses, updates, start, moving
            )
        measured = torch.stack([found[name].float() for name in self.names], dim=1)
        self.values[places, number] = measured.cpu()

    def _turn_into_updates(
        self, ensemble: Ensemble, grads: dict[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Return what AdamW would subtract at factor 1, in the gradients' memory."""
        count = ensemble.num_steps + 1
        beta1, beta2 = self._settings.beta1, self._settings.beta2
        correction1, correction2 = 1 - beta1**count, 1 - beta2**count
        for name, parameter in ensemble.parameters.items():
            grad = grads[name]
            per_run = (-1,) + (1,) * (grad.dim() - 1)
            square = (parameter.square * beta2).addcmul_(grad, grad, value=1 - beta2)
            square.div_(correction2).sqrt_().add_(parameter.eps.view(per_run))
            grad.mul_(1 - beta1).add_(parameter.mean, alpha=beta1).div_(correction1)
            grad.div_(square).addcmul_(parameter.value, parameter.weight_decay.view(per_run))
            grad.mul_(parameter.lr.view(per_run))
        return grads


def _differentiate(ensemble: Ensemble, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the losses (K,) and the gradients, which no training step sees."""
    values = ensemble.values
    with torch.enable_grad():
        losses = ensemble.compute_losses(tokens)
        grads = torch.autograd.grad(losses.sum(), list(values.values()))
    return losses.detach(), dict(zip(values, grads, strict=True))


def _measure_gradients(ensemble: Ensemble, grads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    squares: dict[str, Tensor] = {}
    for spec in list_parameters(ensemble.shape):
        key = f"grad_norm/{_gather(spec.role)}"
        squares[key] = squares.get(key, 0) + grads[spec.name].flatten(1).square().sum(1)
    return {key: total.sqrt() for key, total in squares.items()}


def _look_at_activations(
    ensemble: Ensemble, tokens: Tensor, updates: Mapping[str, Tensor], factor: float
) -> dict[str, Tensor]:
    """Return what the step changes of each module's output, the logits' scale, the entropies."""
    before = _collect_outputs(ensemble, tokens, ensemble.values)
    scale = torch.full_like(ensemble.attention_scale, factor)
    after = _collect_outputs(ensemble, tokens, _point(ensemble, updates, scale))
    found = {
        f"activation_change/{module}": _rms(after.pop(module).sub_(output))
        for module, output in before.items()
    }
    logits = before["readout"]
    found["logit_scale"] = _rms(logits - logits.mean(dim=-1, keepdim=True))
    for layer in range(ensemble.shape.num_layers):
        name = f"layers.{layer}"
        found[f"attention_entropy/{name}"] = measure_entropy(
            before[f"{name}.attention.qkv"], ensemble.shape, num_sequences=tokens.shape[1]
        )
    return found


def _collect_outputs(
    ensemble: Ensemble, tokens: Tensor, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}

    def collect(module: str, output: Tensor) -> None:
        outputs[module] = output.to(values["readout"].dtype)

    hidden = compute_hidden(
        values,
        tokens[..., :-1],
        attention_scale=ensemble.attention_scale,
        shape=ensemble.shape,
        dtype=ensemble.compute_dtype,
        tap=collect,
    )
    collect("readout", torch.bmm(hidden, values["readout"].to(hidden.dtype)))
    return outputs


def measure_entropy(qkv_KxRx3D: Tensor, shape: GPTShape, *, num_sequences: int) -> Tensor:
    """Return the mean entropy of causal attention over its largest, (K,), from scaled queries.

    The first position, which can attend to itself alone, does not count.

    Parameters
    ----------
    qkv_KxRx3D : Tensor of shape (K, B·T, 3·D)
        Queries, keys and values.
    shape : GPTShape
        Sizes.
    num_sequences : int
        B.

    Returns
    -------
    Tensor of shape (K,)
        From 0 (one position takes all) to 1 (all take the same); NaN where T is 1.
    """
    K, R, _ = qkv_KxRx3D.shape
    B, T, N, H = num_sequences, R // num_sequences, shape.num_heads, shape.head_size
    q, k, _ = qkv_KxRx3D.view(K, B, T, 3, N, H).permute(3, 0, 1, 4, 2, 5).unbind(0)
    mask = torch.full((T, T), -math.inf, dtype=q.dtype, device=q.device).triu_(1)
    log_weights = (q @ k.transpose(-1, -2) + mask).log_softmax(dim=-1)
    entropy_KxBxNxT = torch.special.entr(log_weights.exp()).sum(dim=-1)
    largest = torch.arange(1, T + 1, device=q.device, dtype=q.dtype).log()
    shares: Tensor = entropy_KxBxNxT[..., 1:] / largest[1:]
    return shares.flatten(1).mean(dim=1)


def _find_critical(
    ensemble: Ensemble,
    tokens: Tensor,
    losses: Tensor,
    updates: Mapping[str, Tensor],
    start: Tensor,
    moving: Tensor,
) -> Tensor:
    """Return the smallest multiple of the updates that raises each loss, (K,); NaN if not found.

    The search ends when it is done for every run that is `moving`.
    """
    log2 = start.log2()
    low, high = torch.full_like(log2, -math.inf), torch.full_like(log2, math.inf)
    unsettled = moving
    for _ in range(MAX_FORWARDS):
        values = _point(ensemble, updates, log2.exp2())
        raised = ~(ensemble.compute_losses(tokens, values=values) <= losses)  # NaN is raised too
        # A bracket that is narrow enough stays, so that a run's does not depend on its neighbours.
        high = torch.where(unsettled & raised, torch.minimum(high, log2), high)
        low = torch.where(unsettled & ~raised, torch.maximum(low, log2), low)
        unsettled = moving & ~(high - low <= FINAL_OCTAVES)
        if not bool(unsettled.any()):
            break
        log2 = torch.where(
            torch.isinf(high),
            low + BRACKET_OCTAVES,
            torch.where(torch.isinf(low), high - BRACKET_OCTAVES, (low + high) / 2),
        )
    found = ((low + high) / 2).exp2()
    return torch.where(torch.isfinite(low + high), found, math.nan)


def _point(ensemble: Ensemble, updates: Mapping[str, Tensor], scale: Tensor) -> dict[str, Tensor]:
    """Return the weights less `scale` (K,) times the updates."""
    return {
        name: torch.addcmul(
            value, updates[name], scale.view((-1,) + (1,) * (value.dim() - 1)), value=-1
        )
        for name, value in ensemble.values.items()
    }


def _rms(tensor: Tensor) -> Tensor:
    """Return the root mean square over all but the leading dimension, (K,)."""
    return tensor.flatten(1).square().mean(dim=1).sqrt()
