"""The roles a tensor can have, and what every rule of the lattice shares about each."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

Role = Literal["embedding", "norm", "bias", "hidden", "hidden_residual", "readout"]
"""``embedding``: token and position tables; ``norm``: gains; ``hidden``: matrices whose two
dimensions both grow with width; ``hidden_residual``: those of them that write to the residual
stream (two per block); ``readout``: the matrix from the last width to the vocabulary."""

ROLES: tuple[Role, ...] = get_args(Role)

TensorRole = Role | Literal["other"]
"""A role of the rules, or ``other``: a parameter that no rule speaks of (state-space decays, layer
scales, temperatures). It learns at η, is not decayed, and keeps the model's own initial values."""

MATRIX_ROLES: frozenset[TensorRole] = frozenset({"hidden", "hidden_residual", "readout"})
"""Roles whose fan-in grows with width."""

DECAYED_ROLES: frozenset[TensorRole] = frozenset(
    {"embedding", "hidden", "hidden_residual", "readout"}
)
"""Roles that weight decay shrinks; gains and biases never are."""


@dataclass(frozen=True, kw_only=True)
class BaseInit:
    """A role's init std at the base width: scale · fan_in^fan_in · (2·num_layers)^depth.

    Attributes
    ----------
    scale : float
        1, or 0 for what starts at a constant (gains at 1, biases at 0).
    fan_in : float
        Exponent of the tensor's fan-in at the base width.
    depth : float
        Exponent of the number of projections onto the residual stream, 2·num_layers.
    """

    scale: float
    fan_in: float = 0.0
    depth: float = 0.0


BASE_INIT: Mapping[TensorRole, BaseInit] = MappingProxyType(
    {
        "embedding": BaseInit(scale=1.0),
        "norm": BaseInit(scale=0.0),
        "bias": BaseInit(scale=0.0),
        "hidden": BaseInit(scale=1.0, fan_in=-0.5),
        "hidden_residual": BaseInit(scale=1.0, fan_in=-0.5, depth=-0.5),
        "readout": BaseInit(scale=1.0, fan_in=-0.5),
        "other": BaseInit(scale=0.0),
    }
)
