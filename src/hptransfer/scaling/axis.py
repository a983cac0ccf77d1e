"""The two learning-rate axes on which ``base_lr`` can be swept.

On ``hidden-aligned`` (the default) ``base_lr`` is η of the rules, so that hidden matrices get
η/m under every rule of the lattice and a rule that transfers has its optimum at one place. On
``global`` SP gives every tensor lr = ``base_lr``, as a plain PyTorch user writes it. Both are one
family: a trial at (``global``, base_lr) *is* the trial at (``hidden-aligned``, η = base_lr·m),
and all its numbers, weight decay in ``constant`` mode included, follow from that η.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, cast

from hptransfer.scaling.checks import check_name

Axis = Literal["hidden-aligned", "global"]

DEFAULT_AXIS: Axis = "hidden-aligned"

AXIS_EXPONENTS: Mapping[Axis, float] = MappingProxyType({"hidden-aligned": 0.0, "global": 1.0})
"""η = base_lr · m^exponent."""

AXES: tuple[Axis, ...] = tuple(AXIS_EXPONENTS)


def parse_axis(name: str) -> Axis:
    """Return the axis of that name, or raise ConfigError with the nearest known one."""
    return cast(Axis, check_name("axis", name, AXES))
