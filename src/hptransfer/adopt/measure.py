"""The coordinate check: train a few steps at several widths and see what keeps its size.

Shape letters: W widths, S seeds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hptransfer.adopt.activations import ModuleFilter, is_leaf, record, rms
from hptransfer.adopt.coordinates import DEFAULT_TOLERANCE, CoordinateCheck, ModuleCheck
from hptransfer.errors import ConfigError
from hptransfer.scaling.checks import check_count, check_number
from hptransfer.stats.slope import MIN_WIDTHS

Loss = Callable[[nn.Module, Any], Tensor]
"""From a model and a batch to the loss that is trained on."""

MakeOptimizer = Callable[[int, nn.Module], Optimizer]
"""From a width and a fresh model to its optimizer; it may also set the initial weights."""

DEFAULT_STEPS = 4
DEFAULT_SEEDS = (0, 1)


def coordinate_check(
    factory: Callable[[int], nn.Module],
    widths: Sequence[int],
    *,
    optimizer: MakeOptimizer,
    batches: Sequence[Any],
    loss: Loss | None = None,
    steps: int = DEFAULT_STEPS,
    seeds: Sequence[int] = DEFAULT_SEEDS,
    tolerance: float = DEFAULT_TOLERANCE,
    modules: ModuleFilter = is_leaf,
    name: str = "model",
) -> CoordinateCheck:
    """Train a model a few steps at several widths and judge how its activations go with width.

    Where a rule does its work, every module's output changes by an amount that does not depend on
    width (Yang & Hu 2021; Yang et al. 2022, appendix D.1, "coordinate checking"): the slope of
    ln(RMS of the change) against ln(width) is 0 within ``tolerance``. A negative slope is a module
    that stops learning as the model widens, a positive one a module that blows up.

    Parameters
    ----------
    factory : callable
        From a width to a model.
    widths : sequence of int
        At least three different ones; a factor of 8 or more between the ends tells most.
    optimizer : callable
        From (width, model) to the optimizer, and the place to set the initial weights too if the
        factory does not; ``rule_optimizer`` makes one from a parameterization.
    batches : sequence
        What ``loss`` takes; the outputs are compared on the first, the steps go through all, again
        and again.
    loss : callable, optional
        From (model, batch) to the training loss. By default a batch is a mapping of keywords and
        the model's output has a ``loss``, as in Hugging Face's models.
    steps : int
        Optimizer steps.
    seeds : sequence of int
        Each is set as torch's seed before ``factory`` is called; the caller's random state stays.
    tolerance : float
        How far from 0 a slope may be.
    modules : callable, optional
        From (path, module) to whether it is looked at; by default those without modules in them.
    name : str
        What the result is called, such as the parameterization.

    Raises
    ------
    ConfigError
        If there are too few widths, no seeds or batches, or what a callable returns is not what is
        written here.
    """
    if len(set(widths)) < MIN_WIDTHS:
        raise ConfigError(
            f"widths: expected at least {MIN_WIDTHS} different ones, found {list(widths)}"
        )
    for key, given in (("seeds", seeds), ("batches", batches)):
        if not len(given):
            raise ConfigError(f"{key}: expected at least one, found none")
    steps = check_count("steps", steps)
    tolerance = check_number("tolerance", tolerance, zero=False)
    widths = sorted({check_count("width", width) for width in widths})
    seen: dict[str, _Seen] = {}
    with torch.random.fork_rng():
        for w, width in enumerate(widths):
            for s, seed in enumerate(seeds):
                torch.manual_seed(seed)
                model = factory(width)
                _check_type("factory", model, nn.Module)
                stepper = optimizer(width, model)
                _check_type("optimizer", stepper, Optimizer)
                trial = _train(model, stepper, batches, loss or _default_loss, steps, modules)
                if w == s == 0:
                    shape = (1 + steps, len(widths), len(seeds))
                    seen = {path: _Seen(model.get_submodule(path), shape) for path in trial}
                for path in seen.keys() ^ trial.keys():
                    raise ConfigError(
                        f"factory: {path!r} ran at one of widths {widths[0]} and {width} only; "
                        "what a model does must not depend on width"
                    )
                for path, values in trial.items():
                    seen[path].put(w, s, values)
    results = {
        path: ModuleCheck(
            name=path or "(model)",
            kind=each.kind,
            widths=tuple(widths),
            activation=each.activation,
            change=each.change[1:],
            tolerance=tolerance,
        )
        for path, each in seen.items()
    }
    constant = [p for p, m in results.items() if not (seen[p].learns or np.any(m.change != 0.0))]
    judged = tuple(module for path, module in results.items() if path not in constant)
    if not judged:
        raise ConfigError("modules: expected at least one whose output changes, found none")
    return CoordinateCheck(
        name=name,
        widths=tuple(widths),
        seeds=tuple(seeds),
        tolerance=tolerance,
        modules=judged,
        constant=tuple(constant),
    )


class _Seen:
    """A module's RMS values over steps, widths and seeds; NaN where it did not run."""

    def __init__(self, module: nn.Module, shape: tuple[int, int, int]) -> None:
        self.kind = type(module).__name__
        self.learns = any(parameter.requires_grad for parameter in module.parameters())
        self.activation = np.full(shape, math.nan)
        self.change = np.full(shape, math.nan)

    def put(self, w: int, s: int, values: Sequence[tuple[float, float]]) -> None:
        self.activation[:, w, s], self.change[:, w, s] = zip(*values, strict=True)


def _train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[Any],
    loss: Loss,
    steps: int,
    modules: ModuleFilter,
) -> dict[str, list[tuple[float, float]]]:
    """Return, by module, the RMS of its output and of its change, before and after each step."""

    def look() -> None:
        _check_loss(loss(model, batches[0]))

    first = record(model, look, modules)
    values = {path: [(rms(tensors), 0.0)] for path, tensors in first.items()}
    for step in range(steps):
        optimizer.zero_grad()
        value = _check_loss(loss(model, batches[step % len(batches)]))
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        now = record(model, look, modules)
        for path, before in first.items():
            after = now.get(path, [])
            values[path].append((rms(after), rms(after, before)))
    return values


def _default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the ``loss`` of the output of a model that is called with the batch's keywords."""
    if not isinstance(batch, Mapping):
        raise ConfigError(
            f"loss: expected a function of (model, batch), or batches that are mappings of the "
            f"model's keywords, found none and a batch of type {type(batch).__name__}"
        )
    output = model(**batch)
    if not hasattr(output, "loss"):
        raise ConfigError(
            f"loss: expected a function of (model, batch), or a model whose output has a loss, "
            f"found none and an output of type {type(output).__name__}"
        )
    value: Tensor = output.loss
    return value


def _check_loss(value: object) -> Tensor:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value
    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ConfigError(f"loss: expected a tensor of one element, found {found}")


def _check_type(key: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise ConfigError(
            f"{key}: expected it to return a {kind.__module__}.{kind.__qualname__}, "
            f"found {type(value).__name__}"
        )
