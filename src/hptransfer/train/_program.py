"""A training step as a program: launched, compiled, captured as a CUDA graph, or both.

A program takes blocks of steps. What a step needs that differs from the last one (where its
windows of tokens start, the schedule's factor, the bias corrections) is put on the device once a
block, and its losses stay there until the block is over, so that the host never waits in between.
Eager steps on a CPU, and those of a user's modules, are the ensemble's own.

Shape letters: K trials, B batch, T time, S distinct seeds, M steps of a block.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
import torch
from torch import Tensor

from hptransfer.model.gpt import compute_losses, scale_products
from hptransfer.train._batches import Batches
from hptransfer.train._device import free_memory, is_out_of_memory
from hptransfer.train._ensemble import (
    Ensemble,
    StepTensors,
    TrainSettings,
    step_numbers,
    update_adamw,
)

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

Mode = Literal["eager", "captured", "compiled", "compiled+captured"]
MODES: tuple[Mode, ...] = get_args(Mode)

#: Steps in a block at most.
MAX_BLOCK = 64
#: Steps taken before a capture: libraries choose kernels and take workspaces at their first call.
NUM_WARM_STEPS = 3
#: Share of the device's free memory that the token array may take; a larger one stays on the host.
TOKEN_SHARE = 0.25
#: Whether a step leaves the weights of its products in their precision beside the values.
KEEP_COPIES = True
#: Shapes that one process may compile; PyTorch's own limit of 8 is for functions that recompile
#: by mistake.
COMPILE_LIMIT = 256


def is_compiled(mode: Mode) -> bool:
    """Return whether a mode compiles its program."""
    return mode.startswith("compiled")


def is_captured(mode: Mode) -> bool:
    """Return whether a mode captures its step as a CUDA graph."""
    return mode.endswith("captured")


def without(part: str, mode: Mode) -> Mode:
    """Return a mode less one of its parts."""
    left = [each for each in mode.split("+") if each != part]
    return cast(Mode, "+".join(left) or "eager")


class Accelerated:
    """What takes steps that may be compiled or captured, and goes on without where that cannot be.

    Attributes
    ----------
    mode : str
        How a step is taken in fact. On a CPU nothing is captured.
    problem : str
        Why that is less than was asked for, in one line; empty where it is not.
    """

    fullgraph = True
    """Whether a function is compiled as a whole or not at all."""

    def __init__(self, mode: Mode, device: torch.device) -> None:
        self.mode: Mode = mode if device.type == "cuda" else without("captured", mode)
        self.problem = ""
        self._compiled_functions: dict[object, Any] = {}

    def _attempt(self, call: Callable[[], T]) -> T:
        """Return what a call of compiled functions gives; go on eagerly where that cannot be."""
        try:
            return call()
        except Exception as error:
            if is_out_of_memory(error) or not is_compiled(self.mode):
                raise
            self._go_without("compiled", describe_problem(error))
        self._seed_draws()
        return call()

    def _compiled(self, function: F) -> F:
        """Return a function, compiled where the mode says so."""
        if not is_compiled(self.mode):
            return function
        if function not in self._compiled_functions:
            prepare_compiler()
            self._compiled_functions[function] = torch.compile(
                function, dynamic=False, fullgraph=self.fullgraph
            )
        return cast(F, self._compiled_functions[function])

    def _capture_once(
        self, take: Callable[[], T], *, pool: Any = None
    ) -> "tuple[torch.cuda.CUDAGraph, T] | None":
        """Return a step captured as a CUDA graph, and what it gives; None where that cannot be."""
        mode, graph = self.mode, torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # what the steps before held, the graph holds anew
        try:
            with torch.cuda.graph(graph, pool=pool):
                return graph, take()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.mode = mode  # in between it looked like a program that cannot be compiled
            self._go_without("captured", describe_problem(error))
        return None

    def _go_without(self, part: str, why: str) -> None:
        self.mode, self.problem = without(part, self.mode), f"the step cannot be {part} ({why})"

    def _seed_draws(self) -> None:
        """Fix again what the step draws, which a failed compilation may have changed."""


class Program(Accelerated):
    """Training steps of an ensemble on sequences cut from a token array.

    Parameters
    ----------
    ensemble : Ensemble
        K runs; their tensors are changed in place.
    batches : Batches
        Which windows of the tokens a seed sees at a step.
    settings : TrainSettings
        B, and AdamW's decay rates.
    mode : str
        How a step is taken.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        batches: Batches,
        settings: TrainSettings,
        *,
        mode: Mode = "eager",
    ) -> None:
        super().__init__(mode, ensemble.device)
        self._ensemble = ensemble
        self._batches = batches
        self._batch = settings.batch
        self._betas = (settings.beta1, settings.beta2)
        self._seeds = sorted({run.seed for run in ensemble.runs})
        self._device = ensemble.device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._num_warm = 0
        self._make_buffers()

    def _make_buffers(self) -> None:
        device, batch, size = self._device, self._batch, self._batches.context + 1
        K, S, M = len(self._ensemble.runs), len(self._seeds), MAX_BLOCK
        dtype = next(iter(self._ensemble.parameters.values())).value.dtype
        self._tokens = _upload_tokens(self._batches, device)
        self._offsets = torch.arange(size, device=device)
        places = [self._seeds.index(run.seed) for run in self._ensemble.runs]
        self._index_of_seed = torch.tensor(places, device=device)
        if self._tokens is None:
            self._windows = torch.zeros(M, S, batch, size, dtype=torch.int32, device=device)
        else:
            self._starts = torch.zeros(M, S, batch, dtype=torch.int64, device=device)
        self._numbers = torch.zeros(M, 3, dtype=dtype, device=device)
        self._losses = torch.zeros(M, K, dtype=dtype, device=device)
        self._rows = torch.arange(M, device=device).view(M, 1)
        self._index = torch.zeros(1, dtype=torch.int64, device=device)
        self._make_copies()

    def _make_copies(self) -> None:
        """Make room for the weights of products in their precision: a step leaves them there."""
        ensemble = self._ensemble
        self._copies: dict[str, tuple[Tensor, Tensor | None]] = {}
        scales = scale_products(
            ensemble.parameters, attention_scale=ensemble.attention_scale, shape=ensemble.shape
        )
        for name, scale in scales.items() if KEEP_COPIES else ():
            value, dtype = ensemble.parameters[name].value, ensemble.compute_dtype
            if value.dtype != dtype:
                copy = torch.empty_like(value, dtype=dtype).requires_grad_()
                self._copies[name] = copy, scale

    @torch.no_grad()
    def _fill_copies(self) -> None:
        """Bring the copies up to date: between blocks anyone may change a run."""
        for name, (copy, scale) in self._copies.items():
            value = self._ensemble.parameters[name].value
            copy.copy_(value if scale is None else value * scale)

    def run(self, step: int, factors: Sequence[float]) -> Tensor:
        """Take steps `step`, `step` + 1, …, one for each schedule factor, without waiting for them.

        Returns
        -------
        Tensor of shape (M, K)
            Losses before each step, on the device; the next block overwrites them.
        """
        count = len(factors)
        assert 1 <= count <= MAX_BLOCK
        self._fill(step, factors)
        self._fill_copies()
        for _ in range(count):
            self._take_next()
        self._ensemble.num_steps += count
        return self._losses[:count]

    def _fill(self, step: int, factors: Sequence[float]) -> None:
        """Put on the device what the steps of a block need."""
        count = len(factors)
        numbers = [step_numbers(step + i, f, *self._betas) for i, f in enumerate(factors)]
        self._put(self._numbers, np.array(numbers))
        steps = range(step, step + count)
        if self._tokens is None:
            cut, into = self._batches.batch, self._windows
        else:
            cut, into = self._batches.starts, self._starts
        places = [[cut(seed, s, batch=self._batch) for seed in self._seeds] for s in steps]
        self._put(into, np.array(places))
        self._index.zero_()

    def _put(self, buffer: Tensor, values: np.ndarray) -> None:
        host = torch.from_numpy(values).to(buffer.dtype)
        if self._device.type == "cuda":
            host = host.pin_memory()
        buffer[: len(host)].copy_(host, non_blocking=True)

    def _take_next(self) -> None:
        if self._graph is None and is_captured(self.mode):
            if self._num_warm < NUM_WARM_STEPS:
                self._num_warm += 1
                take_aside(self._take, self._device)
                return
            if (found := self._capture_once(self._take)) is not None:
                self._graph = found[0]
        if self._graph is None:
            self._take()
        else:
            self._graph.replay()

    def _take(self) -> None:
        """Take the step that the device's own counter is at."""
        ensemble, copies = self._ensemble, self._copies
        values = {
            name: copies[name][0] if name in copies else parameter.value
            for name, parameter in ensemble.parameters.items()
        }
        tokens = self._gather()

        def differentiate() -> tuple[Tensor, tuple[Tensor, ...]]:
            losses = self._compiled(compute_losses)(
                values,
                tokens,
                attention_scale=None if copies else ensemble.attention_scale,
                shape=ensemble.shape,
                dtype=ensemble.compute_dtype,
            )
            # Each run's loss touches that run's weights alone: the sum's gradient is each one's.
            return losses, torch.autograd.grad(losses.sum(), list(values.values()))

        with torch.enable_grad():
            losses, grads = self._attempt(differentiate)
        with torch.no_grad():
            numbers = self._numbers.index_select(0, self._index)[0]
            tensors = [
                StepTensors(p, grad, *copies.get(name, ()))
                for (name, p), grad in zip(ensemble.parameters.items(), grads, strict=True)
            ]
            self._attempt(lambda: self._compiled(update_adamw)(tensors, numbers, *self._betas))
            kept = torch.where(self._rows == self._index, losses.detach(), self._losses)
            self._losses.copy_(kept)
            self._index.add_(1)

    def _gather(self) -> Tensor:
        """Return the sequences of the step at hand, (K, B, T + 1)."""
        if self._tokens is None:
            by_seed = self._windows.index_select(0, self._index)[0].long()
        else:
            starts = self._starts.index_select(0, self._index)[0]
            by_seed = self._tokens[starts.unsqueeze(-1) + self._offsets].long()
            if self._tokens.dtype == torch.int16:
                by_seed = by_seed & 0xFFFF  # unsigned, which torch's own 16 bits are not
        return by_seed.index_select(0, self._index_of_seed)

    def close(self) -> None:
        """Give back what a captured step holds; the program can still take steps, and recapture."""
        if self._graph is not None:
            self._graph = None
            free_memory()  # which lies in a pool of the graph's own


def take_aside(take: Callable[[], object], device: torch.device) -> None:
    """Take a step on a stream of its own, as those before a capture are."""
    side = _side_stream(device)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        take()
    torch.cuda.current_stream().wait_stream(side)


@functools.cache
def _side_stream(device: torch.device) -> "torch.cuda.Stream":
    """Return the stream for steps before a capture: one, as libraries keep a workspace for each."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _upload_tokens(batches: Batches, device: torch.device) -> Tensor | None:
    """Return the token array on the device, or None where it would take too much room there."""
    tokens = np.asarray(batches.tokens)
    narrow = tokens.dtype == np.uint16
    size = tokens.size * (2 if narrow else 4)
    if device.type == "cuda" and size > TOKEN_SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    signed = tokens.view(np.int16) if narrow else tokens.astype(np.int32)
    with warnings.catch_warnings():  # of a memory-mapped array's being read-only: nobody writes
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(signed).to(device)


def prepare_compiler() -> None:
    """Let one process hold many compiled programs; where they are kept, `set_determinism` says."""
    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, name, max(getattr(config, name), COMPILE_LIMIT))  # the second before 2.7


def describe_problem(error: BaseException) -> str:
    """Return why a program cannot be compiled or captured, in one line of at most 200 letters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
