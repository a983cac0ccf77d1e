"""Build a user's model, name its tensors, and match them with a role table."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from hptransfer.adopt.role_table import ParameterRole, RoleTable
from hptransfer.errors import ConfigError

Factory = Callable[[int], nn.Module]
"""From a width to a model."""

MAX_PARAMETERS = 200_000_000
"""A model up to this size is built on the CPU, to look at its initial values; 4 bytes each."""

WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What ``torch.compile``, FSDP and activation checkpointing put into names."""

# Building the model


class _KeepDataOnCpu(torch.overrides.TorchFunctionMode):
    """Leave small data of a constructor on the CPU, where ``.item()`` can read it."""

    _DATA = (torch.linspace, torch.arange, torch.logspace, torch.tensor, torch.as_tensor)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._DATA and kwargs.get("device") is None:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def build_model(factory: Factory, width: int, *, device: str = "meta") -> nn.Module:
    """Build the user's model at a width, without memory where that can be.

    A constructor that reads numbers out of tensors (``.item()``) cannot run on the meta device:
    its data then stay on the CPU, or the whole model is built there if it is small.

    Parameters
    ----------
    factory : callable
        From a width to the model.
    width : int
        The width.
    device : str
        ``meta`` or ``cpu``.

    Raises
    ------
    ConfigError
        If the factory raises, in one line, or returns no module.
    """
    try:
        try:
            with torch.device(device):
                model: Any = factory(width)
        except (RuntimeError, NotImplementedError):
            if device == "cpu":
                raise
            model = _build_with_data(factory, width)
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"factory: at width {width} it raised {say_error(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"factory: expected a torch.nn.Module at width {width}, found {type(model).__name__}"
        )
    lazy = next((name for name, each in model.named_parameters() if is_lazy(each)), None)
    if lazy is not None:
        raise ConfigError(
            f"factory: {lazy!r} is lazy and has no shape yet; let the factory run the model once "
            "on a small batch before it returns it"
        )
    return unwrap(model)


_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DataParallel or DDP, which may be compiled; else the model."""
    inner = _compiled_part(model)
    return unwrap(inner.module) if isinstance(inner, _WRAPPERS) else model


def unwrap_all(model: nn.Module) -> nn.Module:
    """Return the model without DataParallel, DDP and ``torch.compile``, of its parts too."""
    for module in list(model.modules()):
        if isinstance(module, torch.jit.ScriptModule):  # holds scripted parts alone
            continue
        for name, child in module._modules.items():  # a shared child under each name
            bare = child if child is None else _bare(child)
            if bare is not child:
                module._modules[name] = bare
    return _bare(model)


def _bare(module: nn.Module) -> nn.Module:
    bare = _compiled_part(unwrap(module))
    return module if bare is module else _bare(bare)


def _compiled_part(module: nn.Module) -> nn.Module:
    """Return what ``torch.compile`` wraps; the module itself where it is not compiled."""
    parts = module._modules  # its own: other wrappers forward attributes
    # A ScriptModule's parts are no dict and have no `get`.
    return cast(nn.Module, parts["_orig_mod"]) if "_orig_mod" in parts else module


def _build_with_data(factory: Factory, width: int) -> Any:
    try:
        with torch.device("meta"), _KeepDataOnCpu():
            return factory(width)
    except (RuntimeError, NotImplementedError):
        with torch.device("cpu"):
            return factory(width)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, NumPy and Python, and put all three back as they were.

    So too the seed that torch keeps for when CUDA starts; where CUDA starts inside, its generators
    are seeded as the CPU's was before.
    """
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  (a user's own generator)
    # To read a GPU's state would start CUDA where nobody has, in a process that only plans.
    is_started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if is_started else ()
    kept = getattr(torch.cuda, "_lazy_seed_tracker", None)  # private: another build may lack it
    seeds = {} if kept is None else dict(vars(kept))
    try:
        with torch.random.fork_rng([*devices]):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        if not is_started:  # torch keeps a seed for when CUDA starts, and now holds ours
            if kept is None or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.manual_seed_all(torch.initial_seed())
            else:
                vars(kept).update(seeds)


def count_parameters(model: nn.Module) -> int:
    """Count the model's scalars, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def say_error(error: BaseException) -> str:
    """Return an exception on one line, with its whole message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# Names


def canonical_name(name: str) -> str:
    """Return a parameter's name without what ``torch.compile`` and FSDP add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


def name_pattern(name: str) -> str:
    """Return a name with ``*`` in place of each number of a layer: ``layers.*.norm.weight``."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def shorten_names(names: Sequence[str]) -> str:
    """Return names for a message, those that differ by a layer's number as one pattern."""
    counts: dict[str, list[str]] = {}
    for name in names:
        counts.setdefault(name_pattern(name), []).append(name)
    return ", ".join(
        f"{pattern} ({len(known)})" if len(known) > 1 else known[0]
        for pattern, known in counts.items()
    )


def named_tensors(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return each parameter once, in the model's order, with its name free of wrappers."""
    prefixes = _find_prefixes(model)
    return [(_free_name(name, prefixes), each) for name, each in model.named_parameters()]


def _find_prefixes(model: nn.Module) -> list[str]:
    """Return where the names of what DataParallel and DDP wrap begin, inner ones first."""
    return [
        f"{name}.module" if name else "module"
        for name, module in model.named_modules()
        if isinstance(module, _WRAPPERS)
    ][::-1]


def _free_name(name: str, prefixes: Sequence[str]) -> str:
    for prefix in prefixes:
        if name.startswith(f"{prefix}."):
            name = prefix.removesuffix("module") + name.removeprefix(f"{prefix}.")
    return canonical_name(name)


# Buffers and values


def find_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the model's floating-point buffers by name, without what wrappers add to names."""
    prefixes = _find_prefixes(model)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() or buffer.is_complex():
            yield _free_name(name, prefixes), buffer


def real_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's values in float64; a complex one's parts, times √2 for its own std."""
    whole = tensor.detach()
    if whole.is_complex():
        return torch.view_as_real(whole.resolve_conj()).double() * 2**0.5
    return whole.double()


# The model beside the table


def check_table(roles: object) -> RoleTable:
    """Return the role table; ConfigError for anything else."""
    if isinstance(roles, RoleTable):
        return roles
    found = "none" if roles is None else type(roles).__name__
    raise ConfigError(f"roles: expected the table that infer_roles returns, found {found}")


def match_model(
    model: nn.Module, table: RoleTable, *, partial: bool = False, shards: bool = False
) -> dict[str, tuple[str, nn.Parameter]]:
    """Return the model's parameters with their names, by the name of the table's entry.

    Parameters
    ----------
    model : torch.nn.Module
        Bare or wrapped.
    table : RoleTable
        Its roles.
    partial : bool
        Whether entries of the table may be missing in the model.
    shards : bool
        Whether a parameter may be a shard, smaller in one dimension.

    Raises
    ------
    ConfigError
        If one is missing on either side, or a shape differs.
    """
    found = dict(named_tensors(model))
    names = {name: entry.name for entry in table for name in (entry.name, *entry.tied)}
    for name, parameter in found.items():
        if name not in names:
            raise _unknown(name, parameter)
    by_entry = {names[name]: (name, parameter) for name, parameter in found.items()}
    for entry in table:
        if entry.name not in by_entry:
            if partial:
                continue
            raise ConfigError(
                f"role table: {entry.name!r} is in the table and no parameter of the model; "
                "make the table from the same factory, or say partial=True where the model is a "
                "part of it, such as a pipeline stage"
            )
        parameter = by_entry[entry.name][1]
        shape = tuple(parameter.shape)
        is_same = entry.shape in (shape, tuple(getattr(parameter, "ds_shape", shape)))
        if not (is_same or (shards and _is_shard(shape, entry.shape))):
            raise _other_shape(entry, shape, table, is_zero=hasattr(parameter, "ds_id"))
    if len(by_entry) != len(found):
        one = next(name for name in found if by_entry[names[name]][0] != name)
        raise ConfigError(
            f"role table: {one!r} and {by_entry[names[one]][0]!r} are one parameter in the table "
            "and two in the model; tie them as the factory does"
        )
    return {entry.name: by_entry[entry.name] for entry in table if entry.name in by_entry}


def _is_shard(shape: Sequence[int], whole: Sequence[int]) -> bool:
    if len(shape) != len(whole):
        return False
    smaller = [(a, b) for a, b in zip(shape, whole, strict=True) if a != b]
    return len(smaller) == 1 and smaller[0][0] < smaller[0][1]


def _unknown(name: str, parameter: nn.Parameter) -> ConfigError:
    if "_flat_param" in name:
        return ConfigError(
            f"role table: {name!r} is FSDP1's flat parameter, in which many are one; wrap with "
            "FullyShardedDataParallel(…, use_orig_params=True), or use fully_shard (FSDP2)"
        )
    return ConfigError(
        f"role table: {name!r}, shape {tuple(parameter.shape)}, is a parameter of the "
        "model and not in the table; make the table from the same factory"
    )


def _other_shape(
    entry: ParameterRole, shape: tuple[int, ...], table: RoleTable, *, is_zero: bool
) -> ConfigError:
    what = (
        f"role table: {entry.name!r} has shape {entry.shape} in the table (width {table.width}) "
        f"and {shape} in the model"
    )
    if is_zero or shape == (0,):
        return ConfigError(
            f"{what}: DeepSpeed's ZeRO has taken it apart; call init_ and param_groups before "
            "deepspeed.initialize, and guard(engine.optimizer) after"
        )
    if _is_shard(shape, entry.shape):
        return ConfigError(
            f"{what}: a shard as a plain tensor; use DTensors (FSDP2, parallelize_module), or make "
            "groups with partial=True, and initial weights before sharding"
        )
    return ConfigError(what)
