"""Train an ensemble from first to last step: batches, schedule, divergence, held-out loss.

Shape letters: K trials, B batch, T time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hptransfer.train.batches import Batches
from hptransfer.train.divergence import DivergenceWatch
from hptransfer.train.ensemble import Ensemble
from hptransfer.train.schedule import schedule_factor


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
class RunResult:
    """How one run of an ensemble ended.

    Attributes
    ----------
    state : str
        ``completed`` or ``diverged``.
    loss : float or None
        Held-out loss after the last step, in nats; None where the run diverged.
    diverged_step : int or None
        0-based step at which it was seen to have diverged.
    curve : ndarray of shape (steps until the end or the divergence,)
        Training loss of each step, before its update, in nats.
    """

    state: Literal["completed", "diverged"]
    loss: float | None
    diverged_step: int | None
    curve: NDArray[np.float32]


#: Called after each step with the 0-based step and the (K,) training losses.
OnStep = Callable[[int, NDArray[np.float64]], None]


def stack_batch(batches: Batches, seeds: Sequence[int], step: int, batch: int) -> torch.Tensor:
    """Return the sequences of one step, (K, B, T + 1); runs of one seed see the same ones."""
    distinct = sorted(set(seeds))
    by_seed = np.stack([batches.batch(seed, step, batch=batch) for seed in distinct])
    return torch.from_numpy(by_seed[[distinct.index(seed) for seed in seeds]])


def train_ensemble(
    ensemble: Ensemble,
    *,
    batches: Batches,
    validation: NDArray[np.int64],
    settings: TrainSettings,
    on_step: OnStep | None = None,
) -> list[RunResult]:
    """Train all runs to the end and return their results in order.

    A run that diverges is retired where it stands: its neighbours go on, bit for bit as if
    nothing had happened.

    Parameters
    ----------
    ensemble : Ensemble
        K fresh runs.
    batches : Batches
        Training sequences as a function of seed and step.
    validation : ndarray of shape (N, T + 1)
        Held-out sequences, the same for every run.
    settings : TrainSettings
        Shared settings.
    on_step : callable, optional
        Progress; must not change the ensemble.
    """
    seeds = [run.seed for run in ensemble.runs]
    watch = DivergenceWatch(len(seeds), steps=settings.steps, warmup=settings.warmup)
    for step in range(settings.steps):
        tokens = stack_batch(batches, seeds, step, settings.batch)
        losses = ensemble.step(
            tokens.to(ensemble.device),
            factor=schedule_factor(
                step, steps=settings.steps, warmup=settings.warmup, decay=settings.decay
            ),
            beta1=settings.beta1,
            beta2=settings.beta2,
        )
        for k in watch.update(step, losses.double().cpu().numpy()):
            ensemble.retire(k)
        if on_step is not None:
            on_step(step, watch.curves[:, step])
        if len(watch.diverged) == len(seeds):
            break
    diverged = dict(watch.diverged)
    held_out = np.full(len(seeds), np.nan)
    if len(diverged) < len(seeds):
        windows = torch.from_numpy(validation).to(ensemble.device)
        held_out = ensemble.evaluate(windows, batch=settings.batch).cpu().numpy()
    results = []
    for k in range(len(seeds)):
        # A loss can also first be non-finite on the held-out text, after the last update.
        if k not in diverged and not np.isfinite(held_out[k]):
            diverged[k] = settings.steps - 1
        stop = diverged.get(k)
        results.append(
            RunResult(
                state="completed" if stop is None else "diverged",
                loss=float(held_out[k]) if stop is None else None,
                diverged_step=stop,
                curve=watch.curves[k, : settings.steps if stop is None else stop + 1].astype(
                    np.float32
                ),
            )
        )
    return results
