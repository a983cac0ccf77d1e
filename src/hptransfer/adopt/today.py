"""What a user's model and optimizer do today: each tensor's learning rate, decay and init."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hptransfer.adopt._parameters import named_tensors
from hptransfer.errors import ConfigError

Factory = Callable[[int], nn.Module]

MakeToday = Callable[..., Any]
"""From a model, or from (width, model), to an optimizer, several, or param groups."""

#: A model up to this size is built for its initial weights; fp32 takes 4 bytes each.
MAX_PARAMETERS = 200_000_000


@dataclass(frozen=True, kw_only=True)
class Today:
    """One width.

    Attributes
    ----------
    width : int
        The factory's argument.
    settings : mapping of str to (lr, weight_decay)
        By parameter.
    optimizer : str
        Class of the optimizer that takes the first group.
    frozen : tuple of str
        Parameters that are not trained.
    num_parameters : int
        Scalars of the model.
    """

    width: int
    settings: Mapping[str, tuple[float, float]]
    optimizer: str
    frozen: tuple[str, ...]
    num_parameters: int


def read_today(factory: Factory, width: int, optimizer: MakeToday | None) -> Today:
    """Return what the optimizer does to each parameter of the model at a width.

    The model is built on the meta device; on the CPU if the optimizer cannot be made there.

    Raises
    ------
    ConfigError
        If the user's functions raise or return something else, or a trained parameter is in no
        group or in two.
    """
    model = build(factory, width, meta=True)
    try:
        groups, name = _make_groups(optimizer, width, model)
    except ConfigError:
        if count(model) > MAX_PARAMETERS:
            raise
        model = build(factory, width, meta=False)
        groups, name = _make_groups(optimizer, width, model)
    names = {id(parameter): path for path, parameter in named_tensors(model)}
    settings: dict[str, tuple[float, float]] = {}
    for index, group in enumerate(groups):
        for parameter in group["params"]:
            path = names.get(id(parameter))
            if path is None:
                raise ConfigError(
                    f"optimizer: group {index} holds a tensor of shape {tuple(parameter.shape)} "
                    "that is no parameter of the model"
                )
            if path in settings:
                raise ConfigError(f"optimizer: {path!r} is in two groups")
            # A scheduler's warmup has set lr to its first value already, and kept the peak here.
            lr = float(group.get("initial_lr", group["lr"]))
            if not lr > 0:
                raise ConfigError(f"optimizer: expected lr above 0, found {lr:g} in group {index}")
            settings[path] = lr, float(group.get("weight_decay", 0.0))
    frozen = [path for path, p in named_tensors(model) if not p.requires_grad]
    missing = [path for path in names.values() if path not in settings and path not in frozen]
    if missing:
        raise ConfigError(
            f"optimizer: {missing[0]!r} ({len(missing)} in all) is in none of its groups at width "
            f"{width}; freeze it or give it to the optimizer"
        )
    return Today(
        width=width,
        settings=settings,
        optimizer=name,
        frozen=tuple(frozen),
        num_parameters=count(model),
    )


def measure_init(factory: Factory, width: int) -> dict[str, float]:
    """Return the standard deviation of each parameter's initial values, under torch's seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(factory, width, meta=False)
    return {
        path: float(parameter.detach().double().std(correction=0))
        for path, parameter in named_tensors(model)
    }


def find_init_width(factory: Factory, base_width: int, width: int) -> int:
    """Return the width at which initial weights are looked at: the widest that is not too big.

    It is the target's, or else the widest of base_width · 2^k below it.
    """
    if count(build(factory, width, meta=True)) <= MAX_PARAMETERS:
        return width
    chosen = base_width
    while 2 * chosen < width:
        if count(build(factory, 2 * chosen, meta=True)) > MAX_PARAMETERS:
            break
        chosen *= 2
    return chosen


def build(factory: Factory, width: int, *, meta: bool) -> nn.Module:
    """Return the user's model, or raise ConfigError with what went wrong in one line."""
    try:
        with torch.device("meta" if meta else "cpu"):
            model = factory(width)
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"factory: at width {width} it raised {say_error(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"factory: expected a torch.nn.Module at width {width}, found {type(model).__name__}"
        )
    return model


def count(model: nn.Module) -> int:
    """Return the model's number of scalars, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def say_error(error: BaseException) -> str:
    """Return an exception on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def find_tables(model: nn.Module) -> list[tuple[str, int]]:
    """Return the look-up tables by path, and how many rows each has."""
    return [
        (path, module.num_embeddings)
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    ]


def is_tied(model: nn.Module) -> bool:
    """Tell whether some look-up table is also another module's weight."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return any(
        id(getattr(module, "weight", None)) in tables and not isinstance(module, nn.Embedding)
        for module in model.modules()
    )


def _make_groups(
    optimizer: MakeToday | None, width: int, model: nn.Module
) -> tuple[list[dict[str, Any]], str]:
    if optimizer is None:
        made: Any = torch.optim.AdamW(model.parameters())
    else:
        arguments = (width, model) if _takes_width(optimizer) else (model,)
        try:
            made = optimizer(*arguments)
        except Exception as error:  # whatever the user's code raises
            raise ConfigError(
                f"optimizer: at width {width} it raised {say_error(error)}"
            ) from error
    return _read_groups(made)


def _read_groups(made: Any) -> tuple[list[dict[str, Any]], str]:
    several: Sequence[Any] = [made] if not isinstance(made, list | tuple) else made
    if several and all(isinstance(each, torch.optim.Optimizer) for each in several):
        groups = [group for each in several for group in each.param_groups]
        return groups, type(several[0]).__name__
    if several and all(isinstance(each, Mapping) and "params" in each for each in several):
        short = [k for k, each in enumerate(several) if "lr" not in each]
        if short:
            raise ConfigError(f"optimizer: group {short[0]} has no lr")
        return [{**each, "params": _as_list(each["params"])} for each in several], "AdamW"
    raise ConfigError(
        "optimizer: expected a torch.optim.Optimizer, several, or param groups, found "
        f"{type(made).__name__}"
    )


def _as_list(params: Any) -> list[Any]:
    return [params] if isinstance(params, torch.Tensor) else list(params)


def _takes_width(function: MakeToday) -> bool:
    """Whether the function needs two arguments, as a coordinate check's does."""
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    return len(needed) == 2
