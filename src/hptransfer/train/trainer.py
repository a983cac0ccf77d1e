"""Train an ensemble from first to last step: batches, schedule, divergence, held-out loss.

Shape letters: K trials, B batch, T time.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from hptransfer.errors import HptransferError
from hptransfer.train.batches import Batches
from hptransfer.train.divergence import DivergenceWatch
from hptransfer.train.ensemble import Ensemble
from hptransfer.train.schedule import schedule_factor

_CURVES = "curves"
#: Share of the stacked runs that must have diverged for them to be dropped from the program: the
#: others then move in memory once.
DROP_SHARE = 0.25
#: Where a run's bits are known not to depend on how many are stacked. On a GPU a library may choose
#: another kernel for another number.
DROP_DEVICES = ("cpu",)


class CheckpointError(HptransferError):
    """A checkpoint cannot be used; its group starts anew."""


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


def stack_batch(batches: Batches, seeds: Sequence[int], step: int, batch: int) -> torch.Tensor:
    """Return the sequences of one step, (K, B, T + 1); runs of one seed see the same ones."""
    distinct = sorted(set(seeds))
    by_seed = np.stack([batches.batch(seed, step, batch=batch) for seed in distinct])
    return torch.from_numpy(by_seed[[distinct.index(seed) for seed in seeds]])


class Training:
    """An ensemble on its way from first to last step.

    A run that diverges is retired where it stands: its neighbours go on, bit for bit as if
    nothing had happened. Once a quarter of the stacked runs have, they are dropped and cost no
    more time.

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

    Attributes
    ----------
    watch : DivergenceWatch
        Training losses so far, and which runs have diverged.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        *,
        batches: Batches,
        validation: NDArray[np.int64],
        settings: TrainSettings,
    ) -> None:
        self._ensemble = ensemble
        self._batches = batches
        self._validation = validation
        self._settings = settings
        self._seeds = [run.seed for run in ensemble.runs]
        self._members = list(range(len(self._seeds)))  # the runs that are still stacked
        self.watch = DivergenceWatch(len(self._seeds), steps=settings.steps, warmup=settings.warmup)

    @property
    def step(self) -> int:
        """Steps taken."""
        return self._ensemble.num_steps

    @property
    def done(self) -> bool:
        """Whether every step is taken, or every run has diverged."""
        return self.step == self._settings.steps or len(self.watch.diverged) == len(self._seeds)

    def advance(self) -> NDArray[np.float64]:
        """Take one step; return the (K,) training losses before it, in nats, NaN if dropped."""
        step, settings = self.step, self._settings
        seeds = [self._seeds[k] for k in self._members]
        tokens = stack_batch(self._batches, seeds, step, settings.batch)
        losses = self._ensemble.step(
            tokens.to(self._ensemble.device),
            factor=schedule_factor(
                step, steps=settings.steps, warmup=settings.warmup, decay=settings.decay
            ),
            beta1=settings.beta1,
            beta2=settings.beta2,
        )
        found = np.full(len(self._seeds), np.nan)
        found[self._members] = losses.double().cpu().numpy()
        for k in self.watch.update(step, found):
            self._ensemble.retire(self._members.index(k))
        self._drop_diverged()
        return found

    def _drop_diverged(self) -> None:
        """Go on without the diverged runs where that saves enough, and some are left."""
        alive = [k for k in self._members if k not in self.watch.diverged]
        num_retired = len(self._members) - len(alive)
        if (
            alive
            and num_retired >= DROP_SHARE * len(self._members)
            and num_retired
            and self._ensemble.device.type in DROP_DEVICES
        ):
            self._keep(alive)

    def _keep(self, members: list[int]) -> None:
        self._ensemble.keep([self._members.index(k) for k in members])
        self._members = members

    def finish(self) -> list[RunResult]:
        """Measure the held-out losses; return the runs' results in order."""
        assert self.done
        steps, diverged = self._settings.steps, dict(self.watch.diverged)
        held_out = np.full(len(self._seeds), np.nan)
        if len(diverged) < len(self._seeds):
            windows = torch.from_numpy(self._validation).to(self._ensemble.device)
            losses = self._ensemble.evaluate(windows, batch=self._settings.batch)
            held_out[self._members] = losses.cpu().numpy()
        results = []
        for k, loss in enumerate(held_out):
            # A loss can also first be non-finite on the held-out text, after the last update.
            if k not in diverged and not np.isfinite(loss):
                diverged[k] = steps - 1
            stop = diverged.get(k)
            curve = self.watch.curves[k, : steps if stop is None else stop + 1]
            results.append(
                RunResult(
                    state="completed" if stop is None else "diverged",
                    loss=float(loss) if stop is None else None,
                    diverged_step=stop,
                    curve=curve.astype(np.float32),
                )
            )
        return results

    def dump(self) -> bytes:
        """Return all that a later process needs to go on with the same bits (safetensors)."""
        diverged = json.dumps(sorted(self.watch.diverged.items()))
        return safetensors.torch.save(
            {**self._ensemble.state(), _CURVES: torch.from_numpy(self.watch.curves)},
            metadata={
                "step": str(self.step),
                "diverged": diverged,
                "members": json.dumps(self._members),
            },
        )

    def restore(self, path: Path) -> None:
        """Go on from a file that holds what `dump` returned for equal runs and settings.

        Raises
        ------
        CheckpointError
            If the file is damaged or of other runs; the training is then as it was.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            step, diverged = int(metadata["step"]), dict(json.loads(metadata["diverged"]))
            members = list(json.loads(metadata["members"]))
            curves = tensors.pop(_CURVES).numpy()
            self._ensemble.check_state(tensors, num_runs=len(members))
            if not set(members) <= set(self._members):
                raise ValueError("it is of other runs")
            if curves.shape != self.watch.curves.shape or not 0 <= step <= self._settings.steps:
                raise ValueError("it is of other settings")
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: {error}") from None
        if members != self._members:
            self._keep(members)
        self._ensemble.load_state(tensors, num_steps=step)
        self.watch.curves[:] = curves
        self.watch.diverged = diverged
