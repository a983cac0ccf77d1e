"""Parameter names without the prefixes that wrappers add, so that one table serves them all."""

from torch import nn

from hptransfer.adopt.table import RoleTable
from hptransfer.errors import ConfigError

_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What ``torch.compile``, FSDP and activation checkpointing put into names."""


def _data_parallel_prefixes(model: nn.Module) -> list[str]:
    """Return names of the modules that DataParallel and DistributedDataParallel wrap."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return [
        f"{name}.module" if name else "module"
        for name, module in model.named_modules()
        if isinstance(module, wrappers)
    ]


def canonical_name(name: str) -> str:
    """Return a parameter's name without what ``torch.compile`` and FSDP add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def named_tensors(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return each parameter once, in the model's order, with its name free of wrappers."""
    prefixes = _data_parallel_prefixes(model)
    found = []
    for name, parameter in model.named_parameters():
        for prefix in reversed(prefixes):
            if name.startswith(f"{prefix}."):
                name = prefix.removesuffix("module") + name.removeprefix(f"{prefix}.")
        found.append((canonical_name(name), parameter))
    return found


def match_model(model: nn.Module, table: RoleTable) -> list[tuple[str, nn.Parameter]]:
    """Return the model's parameters in the table's order, with their names.

    Raises
    ------
    ConfigError
        If one is missing on either side, or a shape differs.
    """
    found = dict(named_tensors(model))
    names = {name: entry.name for entry in table for name in (entry.name, *entry.tied)}
    for name, parameter in found.items():
        if name not in names:
            raise ConfigError(
                f"role table: {name!r}, shape {tuple(parameter.shape)}, is a parameter of the "
                "model and not in the table; make the table from the same factory"
            )
    by_entry = {names[name]: (name, parameter) for name, parameter in found.items()}
    for entry in table:
        if entry.name not in by_entry:
            raise ConfigError(
                f"role table: {entry.name!r} is in the table and no parameter of the model; "
                "make the table from the same factory"
            )
        shape = tuple(by_entry[entry.name][1].shape)
        if shape != entry.shape:
            raise ConfigError(
                f"role table: {entry.name!r} has shape {entry.shape} in the table (width "
                f"{table.width}) and {shape} in the model"
            )
    if len(by_entry) != len(found):
        one = next(name for name in found if by_entry[names[name]][0] != name)
        raise ConfigError(
            f"role table: {one!r} and {by_entry[names[one]][0]!r} are one parameter in the table "
            "and two in the model; tie them as the factory does"
        )
    return [by_entry[entry.name] for entry in table]
