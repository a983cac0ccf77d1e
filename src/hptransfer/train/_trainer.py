"""Train an ensemble from first to last step: schedule, divergence, batches, held-out loss.

The schedule is warmup, stable, decay, a factor on every learning rate; docs/design.md has the
criterion by which a run has diverged.

Shape letters: K trials, B batch, T time.
"""

import json
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from torch import Tensor

from hptransfer._trial_state import TrialState
from hptransfer.errors import HptransferError
from hptransfer.train._batches import Batches
from hptransfer.train._device import find_memory
from hptransfer.train._ensemble import Ensemble, TrainSettings
from hptransfer.train._program import MAX_BLOCK, Mode, Program, is_compiled

if TYPE_CHECKING:
    from hptransfer.train._probes import Probes


def schedule_factor(step: int, *, steps: int, warmup: float, decay: float) -> float:
    """Return the factor on the learning rate at `step` (0-based).

    Linear warmup over the first ``warmup`` of the steps, reaching 1 at its last step; constant;
    linear decay over the last ``decay`` of the steps, which would reach 0 one step after the
    last (so that every step trains).

    Parameters
    ----------
    step : int
        From 0 to steps − 1.
    steps : int
        Length of the run.
    warmup, decay : float
        Fractions of the steps.
    """
    num_warmup, num_decay = count_warmup_steps(steps, warmup), round(decay * steps)
    factor = 1.0
    if step < num_warmup:
        factor = (step + 1) / num_warmup
    if step >= steps - num_decay:
        factor = min(factor, (steps - step) / num_decay)
    return factor


def count_warmup_steps(steps: int, warmup: float) -> int:
    """Return the number of steps that the warmup takes."""
    return round(warmup * steps)


#: Length of the windows whose mean loss is judged, as a fraction of the steps.
WINDOW_FRACTION = 0.05
#: How far above the first loss a window's mean may lie after the warmup, in nats.
TOLERANCE = 0.5


class DivergenceWatch:
    """Watches the training losses of K runs, step by step.

    A run has diverged when a loss is non-finite; or when the mean over any 5 % of the steps, all
    of them after the warmup, exceeds the first step's loss by 0.5 nats; or when the mean over
    the last 5 % exceeds it at all.

    Parameters
    ----------
    num_runs : int
        K.
    steps : int
        Length of a whole run.
    warmup : float
        Fraction of the steps that the warmup takes.

    Attributes
    ----------
    curves : ndarray of shape (K, steps)
        Training losses so far, in nats; NaN for steps to come.
    diverged : dict of int to int
        Run to the 0-based step at which it had diverged, the last of the window.
    """

    def __init__(self, num_runs: int, *, steps: int, warmup: float) -> None:
        self.curves: NDArray[np.float64] = np.full((num_runs, steps), np.nan)
        self.diverged: dict[int, int] = {}
        self._steps = steps
        self._window = max(1, math.ceil(WINDOW_FRACTION * steps))
        self._first_window_end = count_warmup_steps(steps, warmup) + self._window

    def update(self, step: int, losses: NDArray[np.float64]) -> list[int]:
        """Record the (K,) losses of a step; return the runs that have now diverged."""
        self.curves[:, step] = losses
        bad = ~np.isfinite(losses)
        done = step + 1
        if done >= self._first_window_end or done == self._steps:
            mean = self.curves[:, max(0, done - self._window) : done].mean(axis=1)
            tolerance = 0.0 if done == self._steps else TOLERANCE
            bad |= mean > self.curves[:, 0] + tolerance
        found = [int(k) for k in np.flatnonzero(bad) if int(k) not in self.diverged]
        self.diverged.update(dict.fromkeys(found, step))
        return found


#: Share of the stacked runs that must have diverged for them to be dropped from the program: the
#: others then move in memory once.
DROP_SHARE = 0.25
#: Share of the host's memory that a copy of the runs' state may take.
HOST_SHARE = 0.25
#: Seconds that a block of steps should last: what is seen late (a divergence, a signal) is seen
#: this much later.
BLOCK_SECONDS = 0.3
#: safetensors' names of the types that a checkpoint holds.
_SAFE_TYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class CheckpointError(HptransferError):
    """A checkpoint cannot be used; its group starts anew."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How one run of an ensemble ended.

    Attributes
    ----------
    state : TrialState
        ``completed`` or ``diverged``.
    loss : float or None
        Held-out loss after the last step, in nats; None where the run diverged.
    diverged_step : int or None
        0-based step at which it was seen to have diverged.
    curve : ndarray of shape (steps until the end or the divergence,)
        Training loss of each step, before its update, in nats.
    """

    state: TrialState
    loss: float | None
    diverged_step: int | None
    curve: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that a later process needs to go on with the same bits, as it was at one step."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    def write(self, path: Path) -> None:
        """Write the snapshot as safetensors, tensor by tensor, with no copy of the whole."""
        header: dict[str, object] = {"__metadata__": dict(self.metadata)}
        offset = 0
        for name, tensor in self.tensors.items():
            size = tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": _SAFE_TYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in self.tensors.values():
                # As bytes: NumPy has no bfloat16.
                content = tensor.cpu().contiguous().flatten().view(torch.uint8)
                file.write(content.numpy().data)


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
    validation : ndarray of shape (N, T + 1), or sequence of mapping
        Held-out sequences, or batches of arrays, the same for every run.
    settings : TrainSettings
        Shared settings.
    mode : str
        How a step is taken (`hptransfer.train._program`).
    block : int, optional
        Steps of a block; by default one on a CPU, and as many as last 0.3 s on a device. Changes
        no number.
    num_padding : int
        Runs at the end of the ensemble that nobody asked for: they make its K one that is
        compiled already. They have no result, and never change how many are stacked.
    probes : Probes, optional
        Called with the step and the ensemble before every step that its `every` divides. A snapshot
        holds its `values`, and `restore` fills them in place.

    Attributes
    ----------
    watch : DivergenceWatch
        Training losses that have come back so far, and which runs have diverged.
    losses : ndarray of shape (K,)
        Those that came back last, in nats.
    probes : Probes or None
    """

    def __init__(
        self,
        ensemble: Ensemble,
        *,
        batches: Batches,
        validation: NDArray[np.int64] | Sequence[Mapping[str, Any]],
        settings: TrainSettings,
        mode: Mode = "eager",
        block: int | None = None,
        num_padding: int = 0,
        probes: "Probes | None" = None,
    ) -> None:
        self._ensemble = ensemble
        self._batches = batches
        self._validation = validation
        self._settings = settings
        self._mode: Mode = mode
        self.probes = probes
        self._num_padding = num_padding
        self._num_runs = len(ensemble.runs) - num_padding
        self._members = list(range(self._num_runs))  # the runs that are still stacked
        on_device = ensemble.device.type != "cpu"
        # A block of steps at a time on a device, which goes on while the host looks at the last.
        self._block = block or (None if on_device else 1)
        self._lag = 1 if on_device else 0
        self._size, self._started = 1, time.perf_counter()
        self._pending: deque[_Block] = deque()
        self._program = self._make_program()
        self.losses: NDArray[np.float64] = np.full(self._num_runs, np.nan)
        self.watch = DivergenceWatch(self._num_runs, steps=settings.steps, warmup=settings.warmup)
        # What a snapshot holds beside the runs' state, under the names that files have.
        self._on_host = {"curves": torch.from_numpy(self.watch.curves)}
        if probes is not None:
            self._on_host["hook_state"] = probes.values

    def _make_program(self) -> Program | None:
        """Return what takes steps on the device; None where the ensemble itself takes them."""
        ensemble = self._ensemble
        # The fused kernel of eager steps on a CPU takes numbers, not tensors.
        eager_here = ensemble.device.type == "cpu" and not is_compiled(self._mode)
        if ensemble.takes_arrays or eager_here:
            return None
        return Program(ensemble, self._batches, self._settings, mode=self._mode)

    @property
    def problem(self) -> str:
        """Why steps are not compiled or captured as they were to be; empty where they are."""
        return (self._program or self._ensemble).problem

    @property
    def state_bytes(self) -> int:
        """Bytes of a snapshot."""
        return sum(each.numel() * each.element_size() for each in self._ensemble.state().values())

    @property
    def copies_state(self) -> bool:
        """Whether a device's state is copied to the host, which has room for several copies."""
        on_device = self._ensemble.device.type != "cpu"
        return on_device and self.state_bytes < HOST_SHARE * find_memory("cpu")

    @property
    def step(self) -> int:
        """Steps taken."""
        return self._ensemble.num_steps

    @property
    def done(self) -> bool:
        """Whether every step is taken, or every run has diverged."""
        return self.step == self._settings.steps or len(self.watch.diverged) == self._num_runs

    def advance(self) -> NDArray[np.float64]:
        """Take a block of steps; return the losses that came back last, (K,), NaN if dropped.

        On a CPU a block is one step. On a device the losses of a block come back while the next
        one is under way; `flush` waits for them.
        """
        if self.probes is not None and self.step % self.probes.every == 0:
            self.probes(self.step, self._ensemble)
        step, count = self.step, self._choose_block()
        settings = self._settings
        factors = [
            schedule_factor(s, steps=settings.steps, warmup=settings.warmup, decay=settings.decay)
            for s in range(step, step + count)
        ]
        if self._program is not None:
            losses = self._program.run(step, factors)
        else:
            losses = self._ensemble.take_steps(self._batches, settings, step, factors)
        self._pending.append(_Block.of(step, losses))
        self._receive(keep=self._lag)
        return self.losses

    def _choose_block(self) -> int:
        """Return the number of steps to take, by how long the last block took."""
        if self._block is None:
            now = time.perf_counter()
            seconds, self._started = (now - self._started) / self._size, now
            # Doubling, since the first blocks hold what is done once: compiling, capturing.
            fitting = int(BLOCK_SECONDS / seconds)
            self._size = max(1, min(fitting, 2 * self._size, MAX_BLOCK))
        else:
            self._size = self._block
        left = self._settings.steps - self.step
        if self.probes is not None:
            left = min(left, self.probes.every - self.step % self.probes.every)
        return min(self._size, left)

    def flush(self) -> None:
        """Wait for the losses of every step taken."""
        self._receive(keep=0)

    def _receive(self, *, keep: int) -> None:
        """Take in the losses of all but the last `keep` blocks; retire what has diverged."""
        while len(self._pending) > keep:
            block = self._pending.popleft()
            found = np.full((len(block.losses), self._num_runs), np.nan)
            found[:, self._members] = block.wait()[:, : len(self._members)]
            for i, losses in enumerate(found):
                for k in self.watch.update(block.step + i, losses):
                    self._ensemble.retire(self._members.index(k))
            self.losses = found[-1]
            self._drop_diverged()

    def _drop_diverged(self) -> None:
        """Go on without the diverged runs where that saves enough, and some are left."""
        alive = [k for k in self._members if k not in self.watch.diverged]
        num_retired = len(self._members) - len(alive)
        if (
            alive
            and num_retired >= DROP_SHARE * len(self._members)
            and num_retired
            # Elsewhere, and in a user's modules, another K may get another kernel, and other bits.
            and self._program is None
            and not self._ensemble.takes_arrays
        ):
            self._keep(alive)

    def _keep(self, members: list[int]) -> None:
        self._ensemble.keep([self._members.index(k) for k in members])
        self._members = members
        self._program = self._make_program()

    def finish(self) -> list[RunResult]:
        """Measure the held-out losses; return the runs' results in order."""
        assert self.done
        self.flush()
        if self._program is not None:
            self._program.close()
        steps, diverged = self._settings.steps, dict(self.watch.diverged)
        losses = np.full(self._num_runs, np.nan)
        if len(diverged) < self._num_runs:
            found = self._ensemble.evaluate(self._validation, batch=self._settings.batch)
            losses[self._members] = found.cpu().numpy()[: len(self._members)]
        results = []
        for k, loss in enumerate(losses):
            # A loss can also first be non-finite on the held-out text, after the last update.
            if k not in diverged and not np.isfinite(loss):
                diverged[k] = steps - 1
            stop = diverged.get(k)
            curve = self.watch.curves[k, : steps if stop is None else stop + 1]
            results.append(
                RunResult(
                    state=TrialState.COMPLETED if stop is None else TrialState.DIVERGED,
                    loss=float(loss) if stop is None else None,
                    diverged_step=stop,
                    curve=curve.astype(np.float32),
                )
            )
        return results

    def snapshot(self, *, copy: bool = True) -> Snapshot:
        """Return the state after the last step taken; without `copy` it changes with the next."""
        self.flush()
        state = self._ensemble.state() | self._on_host
        return Snapshot(
            tensors=_copy_to_host(state) if copy else state,
            metadata={
                "step": str(self.step),
                "diverged": json.dumps(sorted(self.watch.diverged.items())),
                "members": json.dumps(self._members),
            },
        )

    def restore(self, path: Path) -> Mapping[str, str]:
        """Go on from a file that holds a `snapshot` of equal runs and settings.

        Returns
        -------
        mapping of str to str
            The file's metadata.

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
            on_host = {name: tensors.pop(name) for name in self._on_host}
            for name in tensors.keys() - self._ensemble.state().keys():
                if name.endswith((".lr", ".weight_decay")):  # older files hold the trials' numbers
                    del tensors[name]
            self._ensemble.check_state(tensors, num_runs=len(members) + self._num_padding)
            if not set(members) <= set(self._members):
                raise ValueError("it is of other runs")
            shapes = [[each.shape for each in of.values()] for of in (on_host, self._on_host)]
            if shapes[0] != shapes[1] or not 0 <= step <= self._settings.steps:
                raise ValueError("it is of other settings")
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: {error}") from None
        if members != self._members:
            self._keep(members)
        self._ensemble.load_state(tensors, num_steps=step)
        for k in members:
            if k in diverged:  # its rate is no part of the state
                self._ensemble.retire(members.index(k))
        for name, tensor in self._on_host.items():
            tensor.copy_(on_host[name])
        self.watch.diverged = diverged
        return dict(metadata)


class _Block(NamedTuple):
    """Losses of a block of steps, on the host once the event is there."""

    step: int
    losses: Tensor
    event: "torch.cuda.Event | None"

    @classmethod
    def of(cls, step: int, losses: Tensor) -> "_Block":
        event = None
        host = _start_copy(losses)
        if losses.device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        return cls(step, host, event)

    def wait(self) -> NDArray[np.float64]:
        if self.event is not None:
            self.event.synchronize()
        found: NDArray[np.float64] = self.losses.double().numpy()
        return found


def _start_copy(tensor: Tensor) -> Tensor:
    """Return a copy on the host, which is there once a device has come so far."""
    on_gpu = tensor.device.type == "cuda"
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
    return host.copy_(tensor, non_blocking=True)


def _copy_to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the host; those of a device go through pinned memory, and all at once."""
    copies = {name: _start_copy(tensor) for name, tensor in tensors.items()}
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    return copies
