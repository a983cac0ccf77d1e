"""Parameterizations as data: the roles a tensor can have, and a table of exponents for each.

Legend: m = width / base_width, m_L = num_layers / base_num_layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
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


ADAM_OPTIMIZERS = frozenset({"adam", "adamw"})


@dataclass(frozen=True, kw_only=True)
class RoleExponents:
    """How one role's numbers go with m = width / base_width.

    For one tensor of a model, m is the ratio of its own fan-in (``hidden``, ``readout``) or of the
    model's width (the other roles).

    Attributes
    ----------
    init : float
        The init std is its value at the base width times m^init.
    lr : float
        The learning rate is η·m^lr, with η the ``base_lr`` of the hidden-aligned axis.
    multiplier : float
        The forward multiplier is m^multiplier.
    eps : float
        Adam's ε is its value at the base width times m^eps.
    eps_depth, init_depth : float
        ε and init std also go with these powers of m_L = num_layers / base_num_layers.
    lr_fan_out : float
        The learning rate also goes with this power of the tensor's own fan-out ratio; 0 for
        Adam-type updates, 1 for SGD's.
    lr_factor : float
        A constant on the learning rate, the one number here that is not an exponent; with any but
        1 a rule gives other numbers at m = 1 than the lattice.
    shifted : bool
        Whether the global axis shifts the learning rate; not for Muon's, which has no width in it.

    Examples
    --------
    >>> embedding = RoleExponents(init=0.0, lr=-1.0)  # SP's: η/m
    >>> 2**-7 * 4**embedding.lr  # at m = 4
    0.001953125
    """

    init: float
    lr: float
    multiplier: float = 0.0
    eps: float = 0.0
    eps_depth: float = 0.0
    init_depth: float = 0.0
    lr_fan_out: float = 0.0
    lr_factor: float = 1.0
    shifted: bool = True


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
    residual_depth : float
        Residual branches are multiplied by m_L^residual_depth.
    tied_readout : float or None
        One table that is both embedding and readout has the embedding's numbers, and its logits
        are multiplied by m^tied_readout; None where the rule says nothing for tied tables.
    absolute : bool
        Exponents are of the fans themselves, not of their ratios to a base width (u-µP); such a
        rule has no base at which it agrees with the others.
    optimizers : frozenset of str
        The optimizers that the rule speaks for; see ``OPTIMIZERS``. A set or list is taken too.
    axis_exponent : float
        η of the hidden-aligned axis is ``base_lr``·m^axis_exponent on the global one, so that SP
        gives every tensor ``base_lr``: 1 for Adam-type updates, whose hidden lr is η/m.
    source : str
        Where the rule comes from.

    Examples
    --------
    >>> from hptransfer.scaling import LATTICE
    >>> mup = LATTICE["mup"]
    >>> mup.roles["readout"].init, mup.attention, sorted(mup.optimizers)[:3]
    (-1.0, -1.0, ['adafactor', 'adam', 'adamw'])

    A rule of one's own takes another's table and changes a row:

    >>> from dataclasses import replace
    >>> slower = replace(mup.roles["embedding"], lr=-0.5)
    >>> ours = replace(mup, name="ours", roles={**mup.roles, "embedding": slower})
    >>> ours.roles["embedding"].lr
    -0.5
    """

    name: str
    roles: Mapping[Role, RoleExponents] = field(hash=False)
    attention: float
    residual_depth: float = 0.0
    tied_readout: float | None = None
    absolute: bool = False
    optimizers: frozenset[str] = ADAM_OPTIMIZERS
    axis_exponent: float = 1.0
    source: str = ""

    def __post_init__(self) -> None:
        assert set(self.roles) == set(ROLES), f"{self.name}: a rule names every role once"
        object.__setattr__(self, "roles", MappingProxyType(dict(self.roles)))
        object.__setattr__(self, "optimizers", frozenset(self.optimizers))  # what is cached by

    @cached_property
    def is_uniform(self) -> bool:
        """Whether every tensor has one learning rate, as under SP."""
        rates = {(each.lr, each.lr_fan_out, each.lr_factor) for each in self.roles.values()}
        return len(rates) == 1

    def get_exponents(self, role: TensorRole) -> RoleExponents:
        """Return the exponents of a role, or of ``other``: η, whatever the width.

        Under a rule with one learning rate for every tensor, such as SP, ``other`` has that one.
        """
        if role != "other":
            return self.roles[role]
        norm = self.roles["norm"]
        if self.is_uniform:
            return replace(norm, multiplier=0.0)
        return replace(norm, init=0.0, lr=0.0, multiplier=0.0, eps=0.0, eps_depth=0.0)
