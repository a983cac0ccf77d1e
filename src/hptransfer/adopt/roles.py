"""Finding each parameter's role from a model at two widths, built without memory."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from hptransfer.adopt.heads import find_head_size
from hptransfer.adopt.inspect import Found, list_parameters
from hptransfer.adopt.layout import Layout
from hptransfer.adopt.table import ParameterRole, RoleTable, TableRole
from hptransfer.adopt.told import Told, read_told_roles
from hptransfer.errors import ConfigError
from hptransfer.scaling.checks import check_count


def infer_roles(
    factory: Callable[[int], nn.Module],
    *,
    base_width: int,
    width: int,
    roles: Mapping[str, str] | None = None,
) -> RoleTable:
    """Return the role of every parameter of the model that ``factory(width)`` builds.

    The models are built on the meta device, so they take no memory. Which dimensions grow is seen
    from the two shapes; the rest from the type of the module that holds the parameter.

    Parameters
    ----------
    factory : callable
        ``factory(width)`` returns the model at a width; depth and vocabulary must not depend on it.
    base_width, width : int
        The width at which all rules agree, and the model's. They may be equal: a model at
        2 · base_width then shows what grows.
    roles : mapping of str to str, optional
        Roles that are told, by name or by pattern (``"layers.*.out.weight": "hidden_residual"``).
        ``"hidden:transposed"`` also says that a matrix is stored as (fan_in, fan_out).

    Returns
    -------
    RoleTable
        Plain data, one entry for each parameter in the model's order.

    Raises
    ------
    ConfigError
        If a parameter's role cannot be told (the message says how to say it), the two models do
        not have the same parameters, one shared parameter is given two roles, or ``roles`` names
        no parameter.
    """
    base_width = check_count("base_width", base_width)
    width = check_count("width", width)
    model, base_model = _build(factory, width), _build(factory, base_width)
    found = list_parameters(model)
    base = _matching(found, list_parameters(base_model), widths=(width, base_width))
    grown, wide = found, width
    if width == base_width:
        wide = 2 * base_width
        grown = _matching(base, list_parameters(_build(factory, wide)), widths=(base_width, wide))
    infinite = [_changed(one, other) for one, other in zip(grown, base, strict=True)]
    if not any(infinite):
        raise ConfigError(
            f"factory: expected shapes that change with width, found the same at widths "
            f"{base_width} and {wide}"
        )
    told = read_told_roles([each.names for each in found], roles or {})
    layouts = [
        each.find_layout(base[k].shape, infinite[k], widths=(width, base_width), told=told[k])
        for k, each in enumerate(found)
    ]
    outputs = _output_candidates(found, layouts, infinite)
    entries = []
    for k, each in enumerate(found):
        say = told[k]
        role = say.role if say else _find_role(each, layouts[k], infinite[k], k in outputs)
        if role is None or layouts[k].use == "unknown":
            raise _unclear(each, base[k], wide=(grown[k], wide), base_width=base_width)
        entries.append(_entry(each, base[k], role, layouts[k], infinite[k]))
    return RoleTable(
        width=width,
        base_width=base_width,
        parameters=tuple(entries),
        head_size=find_head_size(model, width),
        base_head_size=find_head_size(base_model, base_width),
    )


def _build(factory: Callable[[int], nn.Module], width: int) -> nn.Module:
    with torch.device("meta"):
        model = factory(width)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"factory: expected a torch.nn.Module from factory({width}), "
            f"found {type(model).__name__}"
        )
    return model


def _changed(one: Found, other: Found) -> tuple[int, ...]:
    """Return the dimensions in which two parameters differ."""
    return tuple(i for i, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if a != b)


def _matching(
    found: Sequence[Found], other: Sequence[Found], *, widths: tuple[int, int]
) -> list[Found]:
    """Return ``other``'s parameters in the order of ``found``; both must have the same ones."""
    by_name = {each.name: each for each in other}
    here = [each.name for each in found]
    only_here = [name for name in here if name not in by_name]
    only_there = [name for name in by_name if name not in here]
    if only_here or only_there:
        names, (width, also) = (only_here, widths) if only_here else (only_there, widths[::-1])
        raise ConfigError(
            f"factory: {names[0]!r} ({len(names)} in all) is a parameter at width {width} and "
            f"not at width {also}; depth must not depend on width"
        )
    for each in found:
        if by_name[each.name].names != each.names or len(by_name[each.name].shape) != len(
            each.shape
        ):
            raise ConfigError(
                f"factory: {each.name!r} has shape {each.shape} at width {widths[0]} and "
                f"{by_name[each.name].shape} at width {widths[1]}, or is shared at one only; "
                "both must be built alike"
            )
    return [by_name[each.name] for each in found]


def _grows(layout: Layout, infinite: Sequence[int]) -> tuple[bool, bool]:
    """Return whether fan-in and fan-out grow."""
    return bool(set(layout.inn) & set(infinite)), bool(set(layout.out) & set(infinite))


def _output_candidates(
    found: Sequence[Found], layouts: Sequence[Layout], infinite: Sequence[tuple[int, ...]]
) -> set[int]:
    """Return which matrices, of those whose fan-in alone grows, are the model's outputs by use.

    They come after the last matrix that is none; or there is one alone, outside any list of layers.
    """
    matrices = [k for k, layout in enumerate(layouts) if layout.use == "matrix"]
    only_in = [k for k in matrices if _grows(layouts[k], infinite[k]) == (True, False)]
    last = max((k for k in matrices if k not in only_in), default=-1)
    tail = {k for k in only_in if k > last}
    if not tail and len(only_in) == 1 and not found[only_in[0]].in_list:
        return set(only_in)
    return tail


def _find_role(
    found: Found, layout: Layout, infinite: Sequence[int], is_output: bool
) -> TableRole | None:
    if layout.use in ("gain", "bias"):
        return "norm" if layout.use == "gain" else "bias"
    if layout.use == "table":
        return "tied" if found.is_tied_table else "embedding"
    fan_in_grows, fan_out_grows = _grows(layout, infinite)
    if not fan_in_grows:
        return "embedding"
    if fan_out_grows:
        return "hidden"
    if is_output:
        return "readout"
    # Keys and values of a fixed number of heads: inside attention, never the model's output.
    return "hidden" if found.in_attention else None


def _entry(
    found: Found, base: Found, role: TableRole, layout: Layout, infinite: tuple[int, ...]
) -> ParameterRole:
    fan_in, fan_out = layout.fans(found.shape)
    base_fan_in, base_fan_out = layout.fans(base.shape)
    return ParameterRole(
        name=found.name,
        role=role,
        shape=found.shape,
        base_shape=base.shape,
        fan_in=fan_in,
        fan_out=fan_out,
        base_fan_in=base_fan_in,
        base_fan_out=base_fan_out,
        infinite=infinite,
        is_table=layout.use == "table",
        transposed=layout.transposed,
        tied=found.names[1:],
    )


def _unclear(found: Found, base: Found, *, wide: tuple[Found, int], base_width: int) -> ConfigError:
    return ConfigError(
        f"roles: cannot tell the role of {found.name!r}, shape {base.shape} at width {base_width} "
        f"and {wide[0].shape} at width {wide[1]}, in a {type(found.owner).__name__}; say it: "
        f'roles={{"{found.name}": "hidden"}} (or {Told.choices()})'
    )
