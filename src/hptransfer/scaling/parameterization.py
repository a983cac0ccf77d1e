"""A parameterization: a name and a frozen table of exponents in the width ratio m."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from hptransfer.scaling.roles import ROLES, Role


@dataclass(frozen=True, kw_only=True)
class RoleExponents:
    """How one role's numbers go with m = width / base_width.

    Attributes
    ----------
    init : float
        The init std is its value at the base width times m^init.
    lr : float
        The learning rate is η·m^lr, with η the ``base_lr`` of the hidden-aligned axis.
    multiplier : float
        The forward multiplier is m^multiplier.
    """

    init: float
    lr: float
    multiplier: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Parameterization:
    """Rules from width to numbers, as data.

    Attributes
    ----------
    name : str
        Canonical name, such as ``sp+embd``.
    roles : mapping of Role to RoleExponents
        One entry for each role; read-only.
    attention : float
        The attention logit scale is H_base^-1/2 · (H/H_base)^attention, H the head size:
        -1/2 gives 1/√H, and -1 gives √H_base/H.
    """

    name: str
    roles: Mapping[Role, RoleExponents] = field(hash=False)
    attention: float

    def __post_init__(self) -> None:
        assert set(self.roles) == set(ROLES), f"{self.name}: a rule names every role once"
        object.__setattr__(self, "roles", MappingProxyType(dict(self.roles)))
