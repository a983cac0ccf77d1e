"""Check coordinates: train a few steps at several widths and see what keeps its size.

Shape letters: W widths, S seeds.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hptransfer.adopt._coord_check_result import (
    DEFAULT_TOLERANCE,
    CoordinateCheck,
    Floats,
    ModuleCheck,
    rms,
    same_shapes,
)
from hptransfer.adopt._module_outputs import (
    LOGITS,
    PRODUCT,
    ModuleFilter,
    holds_or_is_leaf,
    named_modules,
    record,
)
from hptransfer.adopt._optimizers import RuleOptimizer
from hptransfer.adopt._parameters import PARAMETRIZATIONS, find_token_table, list_parameters
from hptransfer.adopt._user_model import Factory, build_model, canonical_name, seeded, unwrap
from hptransfer.errors import ConfigError
from hptransfer.scaling._resolve import check_count, check_number
from hptransfer.stats.estimate import MIN_WIDTHS

Loss = Callable[[nn.Module, Any], Tensor]
"""From a model and a batch to the loss that is trained on."""

MakeOptimizer = Callable[[int, nn.Module], Optimizer]
"""From a width and a fresh model to its optimizer; it may also set the initial weights."""


def coordinate_check(
    factory: Factory,
    widths: Sequence[int],
    *,
    optimizer: MakeOptimizer,
    batches: Sequence[Any],
    loss: Loss | None = None,
    steps: int = 4,
    warmup: int = 0,
    seeds: Sequence[int] = (0, 1),
    tolerance: float = DEFAULT_TOLERANCE,
    modules: ModuleFilter = holds_or_is_leaf,
    name: str = "model",
) -> CoordinateCheck:
    """Train a model a few steps at several widths and judge how its activations go with width.

    Where a rule does its work, every module's output changes by an amount that does not depend on
    width (Yang & Hu 2021; Yang et al. 2022, appendix D.1, "coordinate checking"): the slope of
    ln(RMS of the change) against ln(width) is 0 within ``tolerance``. A negative slope is a module
    that stops learning as the model widens, a positive one a module that blows up. A matrix with a
    fixed number of outputs (the readout) is judged by what its own update adds; attention logits
    are looked at too, so that a scale of 1/√H where the rule wants 1/H shows.

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
    warmup : int
        Steps over which the learning rates rise linearly, for a check at the learning rate that is
        meant and not a small one.
    seeds : sequence of int
        Each is set as the seed of torch, NumPy and Python before ``factory`` is called; the
        caller's random state stays.
    tolerance : float
        How far from its expected value a slope may be.
    modules : callable, optional
        From (path, module) to whether it is looked at; by default those without modules in them
        and those with parameters of their own, such as torch's attention and stacks of experts.
    name : str
        What the result is called, such as the parameterization.

    Returns
    -------
    CoordinateCheck
        A verdict for each module; modules without one and parameters that were not looked at are
        listed.

    Raises
    ------
    ConfigError
        If there are too few widths, no seeds or batches, or what a callable returns is not what is
        written here.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from hptransfer.adopt import rule_optimizer
    >>> def make(width):
    ...     return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width),
    ...                          nn.ReLU(), nn.Linear(width, 2))
    >>> data = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    >>> check = coordinate_check(
    ...     make, [32, 64, 128],
    ...     optimizer=rule_optimizer(make, base_width=32, parameterization="mup", lr=2**-8),
    ...     batches=[data], loss=lambda model, batch: (model(batch) - batch[:, :2]).square().mean(),
    ... )
    >>> check.passed
    True
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
    fixed = _find_fixed_outputs(factory, widths[0], widths[-1])
    if modules is holds_or_is_leaf and fixed:  # not what is around the readout, whose output it is

        def modules(name: str, module: nn.Module) -> bool:
            return holds_or_is_leaf(name, module) and not fixed[-1].startswith(f"{name}.")

    trained: list[list[_TrainedModel]] = []
    for width in widths:
        trained.append([])
        for seed in seeds:
            with seeded(seed):
                model = factory(width)
                _check_type("factory", model, nn.Module)
                stepper = optimizer(width, model)
                _check_type("optimizer", stepper, Optimizer)
                look_at_loss = partial(_find_loss, loss or _default_loss, model, batches)
                model = unwrap(model)  # whose names the roles have; the loss runs what is around it
                run = _train(model, stepper, look_at_loss, modules, fixed, steps, warmup)
            trained[-1].append(run)
    known = named_modules(model)
    judged, constant, unjudged = _sort_out(trained, known)
    if not judged:
        raise ConfigError("modules: expected at least one whose output changes, found none")
    expected, logits, tied = {}, None, []
    if isinstance(optimizer, RuleOptimizer):
        expected, logits = optimizer.expect(widths[-1]), optimizer.expect_logits(widths[-1])
        table = optimizer.find_roles(widths[0])
        tied = [(entry.name, *entry.tied) for entry in table if entry.role == "tied"]
    seen = {path: known.get(path) for each in trained for run in each for path in run.values}
    return CoordinateCheck(
        name=name,
        widths=tuple(widths),
        seeds=tuple(seeds),
        tolerance=tolerance,
        modules=tuple(
            ModuleCheck(
                name=path or "(model)",
                kind=(kind := _find_kind(path, known)),
                widths=tuple(widths),
                activation=activation,
                change=change[1:],
                tolerance=tolerance,
                own_change=own[1:] if np.isfinite(own[1:]).all() else None,
                expected=expected.get(path, 0.0),
                expected_init=logits if kind == LOGITS else None,
            )
            for path, (activation, change, own) in judged.items()
        ),
        constant=tuple(constant),
        unjudged=tuple(unjudged),
        unseen=tuple(_find_unseen(model, seen, tied)),
    )


def _find_fixed_outputs(factory: Factory, narrow: int, wide: int) -> list[str]:
    """Return the modules whose weight's inputs grow with width and whose outputs do not."""
    sides: list[dict[str, tuple[int, int]]] = []
    for width in (narrow, wide):
        fans = {}
        model = build_model(factory, width)
        once = named_modules(model)
        for each in list_parameters(model):
            for holder in each.holders:
                if holder.path not in once or holder.leaf != "weight":
                    continue  # a module that stands twice is known by one name
                if holder.layout.use == "matrix":
                    fans[holder.path] = holder.layout.fans(each.shape)
                elif holder.layout.use == "unknown" and len(each.shape) == 2:
                    fans[holder.path] = each.shape[1], each.shape[0]  # as a router's own class has
        sides.append(fans)
    return [
        path
        for path, (fan_in, fan_out) in sides[0].items()
        if path in sides[1] and sides[1][path][0] > fan_in and sides[1][path][1] == fan_out
    ]


def make_token_batches(
    factory: Factory, width: int, *, count: int = 4, size: int = 4, length: int = 16
) -> tuple[list[Any], Loss | None]:
    """Make batches of token sequences that can be learned, and the loss that goes with them.

    In a sequence each token is the last one plus a step of 1 to 3, modulo the vocabulary.

    Parameters
    ----------
    factory : callable
        From a width to a model with a look-up table for its tokens.
    width : int
        A width that it takes.
    count, size, length : int
        Batches, sequences in each, and tokens in each sequence.

    Returns
    -------
    batches : list
        Mappings of ``input_ids`` and ``labels`` where the model takes those, else token tensors of
        shape (size, length + 1).
    loss : callable or None
        None where the model's output has a ``loss``; else the mean next-token loss of its logits,
        or what it returns where that is a single number.

    Raises
    ------
    ConfigError
        If the model has no look-up table.

    Examples
    --------
    >>> from torch import nn
    >>> def make(width):
    ...     return nn.Sequential(nn.Embedding(10, width), nn.Linear(width, 10))
    >>> batches, loss = make_token_batches(make, 32)
    >>> len(batches), tuple(batches[0].shape)
    (4, (4, 17))
    """
    model = build_model(factory, width)
    table = find_token_table(model)
    if table is None:
        raise ConfigError(
            "batches: the model has no look-up table for tokens; give batches, and a loss "
            "(--batches MODULE:FUNCTION --loss MODULE:FUNCTION)"
        )
    generator = torch.Generator().manual_seed(0)
    vocabulary = table.num_embeddings
    start = torch.randint(vocabulary, (count, size, 1), generator=generator)
    step = torch.randint(1, 4, (count, size, 1), generator=generator)
    tokens = (start + step * torch.arange(length + 1)) % vocabulary
    if {"input_ids", "labels"} <= set(inspect.signature(model.forward).parameters):
        inputs = [each[:, :-1].contiguous() for each in tokens]  # some views take no other labels
        return [{"input_ids": each, "labels": each} for each in inputs], None
    return list(tokens), _next_token_loss


def _next_token_loss(model: nn.Module, batch: Tensor) -> Tensor:
    output = model(batch[:, :-1])
    logits = getattr(output, "logits", output)
    if isinstance(logits, Tensor) and logits.dim() != 3:
        logits = model(batch)
    if isinstance(logits, Tensor) and logits.numel() == 1:
        return logits
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        raise ConfigError(
            "loss: expected logits of (sequences, tokens, vocabulary) from the model, or give a "
            f"loss; found {type(logits).__name__}"
        )
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@dataclass(frozen=True, kw_only=True)
class _TrainedModel:
    """What one training run gave.

    Attributes
    ----------
    values : mapping of str to list of (float, float, float)
        By module, before the first step and after each: RMS of the output, of its change, and of
        what the module's own update adds.
    reshaped : set of str
        Modules whose outputs changed their shape.
    left : sequence of str
        Modules that put out more than one tensor, of which the first alone is judged.
    """

    values: Mapping[str, list[tuple[float, float, float]]]
    reshaped: set[str]
    left: Sequence[str]


def _train(
    model: nn.Module,
    optimizer: Optimizer,
    find_loss: Callable[[int], Tensor],
    modules: ModuleFilter,
    fixed: Sequence[str],
    steps: int,
    warmup: int,
) -> _TrainedModel:
    """Train a model, and return what its modules put out on the first batch.

    Of the modules ``fixed`` and of look-up tables the own update is looked at too.
    """
    known = named_modules(model)
    tables = [path for path, module in known.items() if isinstance(module, nn.Embedding)]
    before = {
        path: {name: p.detach().clone() for name, p in known[path].named_parameters()}
        for path in (*fixed, *tables)
        if any(p.requires_grad for p in known[path].parameters())
    }
    look = partial(record, model, lambda: find_loss(0), modules, before)
    first = look()
    values = {path: [(rms(tensors), 0.0, math.nan)] for path, tensors in first.tensors.items()}
    reshaped: set[str] = set()
    units = dict(first.units)
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            if warmup:
                group["lr"] = peak * min(1.0, (step + 1) / warmup)
        optimizer.zero_grad()
        find_loss(step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        now = look(first.factors)
        units = {path: units[path] for path in units.keys() & now.units.keys()}
        for path, earlier in first.tensors.items():
            after = now.tensors.get(path, [])
            if not same_shapes(after, earlier):
                reshaped.add(path)
            own = rms(now.own[path]) if path in now.own else math.nan
            values[path].append((rms(after), rms(after, earlier), own))
    # Entries of what is kept at length 1 fall as width^−1/2 by themselves, which is no fault.
    for path, root in units.items():
        values[path] = [
            (root * size, root * change, root * own) for size, change, own in values[path]
        ]
    return _TrainedModel(values=values, reshaped=reshaped, left=tuple(first.left))


def _sort_out(
    trained: Sequence[Sequence[_TrainedModel]], known: Mapping[str, nn.Module]
) -> tuple[dict[str, Floats], list[str], list[tuple[str, str]]]:
    """Return what is to be judged, what never changes, and what has no verdict, and why.

    The first are arrays of shape (3, 1 + steps, W, S) by path, of the numbers of `_TrainedModel`.
    """
    judged: dict[str, Floats] = {}
    constant: list[str] = []
    unjudged: list[tuple[str, str]] = []
    runs = [run for each in trained for run in each]
    for path in dict.fromkeys(path for run in runs for path in run.values):
        if not all(path in run.values for run in runs):
            unjudged.append((path, "it did not run at every width"))
        elif any(path in run.reshaped for run in runs):
            unjudged.append((path, "its output changed its shape"))
        else:
            values = np.array([[run.values[path] for run in each] for each in trained])
            values = np.moveaxis(values, (3, 2), (0, 1))
            learns = path in known and any(p.requires_grad for p in known[path].parameters())
            if learns or np.any(values[1, 1:] != 0.0):
                judged[path] = values
            else:
                constant.append(path)
    left = dict.fromkeys(path for run in runs for path in run.left)
    unjudged += [(f"{path} [further outputs]", "its first output alone is judged") for path in left]
    return judged, constant, unjudged


def _find_kind(path: str, known: Mapping[str, nn.Module]) -> str:
    """Return a module's class; what is no module is a product, or attention logits."""
    if path in known:
        return type(known[path]).__name__
    return PRODUCT if path.endswith(f"[{PRODUCT}]") else LOGITS


def _find_unseen(
    model: nn.Module, seen: Mapping[str, nn.Module | None], tied: Sequence[Sequence[str]]
) -> list[str]:
    """Return the trained parameters of no module that was looked at, and tied ones' products.

    A tied table whose logits were made in a way that is not followed is named as its product.
    """
    attention = [f"{path}." for path, m in seen.items() if isinstance(m, nn.MultiheadAttention)]

    def find_path(name: str) -> str:
        return name.rpartition(".")[0].partition(f".{PARAMETRIZATIONS}.")[0]

    def is_seen(name: str, *, multiplied: bool = False) -> bool:
        path = find_path(name)
        is_table = multiplied and isinstance(seen.get(path), nn.Embedding)
        inside = path in seen or path.startswith(tuple(attention))
        return f"{path} [{PRODUCT}]" in seen or (inside and not is_table)

    names: dict[nn.Parameter, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if p.requires_grad:
            names.setdefault(p, []).append(canonical_name(name))
    return [each[0] for each in names.values() if not any(map(is_seen, each))] + [
        f"{find_path(names[0])} [{PRODUCT}]"
        for names in tied
        if not any(is_seen(name, multiplied=True) for name in names)
    ]


def _find_loss(loss: Loss, model: nn.Module, batches: Sequence[Any], step: int) -> Tensor:
    """Return the loss of a step's batch, or raise ConfigError where it is no single number."""
    value: object = loss(model, batches[step % len(batches)])
    if isinstance(value, Tensor) and value.numel() == 1:
        return value
    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ConfigError(f"loss: expected a tensor of one element, found {found}")


def _default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the ``loss`` of the output of a model that is called with the batch's keywords."""
    expected = "loss: expected a function of (model, batch), or"
    if not isinstance(batch, Mapping):
        raise ConfigError(
            f"{expected} batches that are mappings of the model's keywords, found none and a batch "
            f"of type {type(batch).__name__}"
        )
    output = model(**batch)
    if not isinstance(value := getattr(output, "loss", None), Tensor):
        raise ConfigError(
            f"{expected} a model whose output has a loss, found none and an output of type "
            f"{type(output).__name__}"
        )
    return value


def _check_type(key: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise ConfigError(
            f"{key}: expected it to return a {kind.__module__}.{kind.__qualname__}, "
            f"found {type(value).__name__}"
        )
