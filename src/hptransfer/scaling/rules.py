"""Rules beyond the lattice, as data, and the parser of every rule's name."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from hptransfer.errors import ConfigError
from hptransfer.scaling.checks import nearest_name
from hptransfer.scaling.lattice import LATTICE, parse_parameterization
from hptransfer.scaling.parameterization import ADAM_OPTIMIZERS, Parameterization, RoleExponents
from hptransfer.scaling.roles import Role


def _standard_init(*, embedding: float, hidden: float, readout: float) -> dict[Role, RoleExponents]:
    """Return SP's init with these exponents of the learning rate; gains and biases get η."""
    constant = RoleExponents(init=0.0, lr=0.0)
    return {
        "embedding": RoleExponents(init=0.0, lr=embedding),
        "norm": constant,
        "bias": constant,
        "hidden": RoleExponents(init=-0.5, lr=hidden),
        "hidden_residual": RoleExponents(init=-0.5, lr=hidden, init_depth=-0.5),
        "readout": RoleExponents(init=-0.5, lr=readout),
    }


_COMPLETEP_HIDDEN = RoleExponents(init=-0.5, lr=-1.0, eps=-1.0, eps_depth=-1.0)
_UNIT_HIDDEN = RoleExponents(init=0.0, lr=-0.5, multiplier=-0.5)
_UNIT_CONSTANT = RoleExponents(init=0.0, lr=0.0)

_BEYOND = (
    Parameterization(
        name="everett-full",
        roles=_standard_init(embedding=0.0, hidden=-1.0, readout=-1.0),
        attention=-0.5,
        source="Everett et al. 2407.05872: standard init, full alignment, Adam",
    ),
    Parameterization(
        name="everett-none",
        roles=_standard_init(embedding=0.0, hidden=-0.5, readout=-0.5),
        attention=-0.5,
        source="Everett et al. 2407.05872: standard init, no alignment, Adam",
    ),
    Parameterization(
        name="hayou-liu",
        roles=_standard_init(embedding=-0.5, hidden=-1.0, readout=-1.0),
        attention=-0.5,
        source="Hayou & Liu 2506.15025: the vocabulary is larger than the width, Adam",
    ),
    replace(
        LATTICE["mup"],
        name="completep",
        roles={
            **LATTICE["mup"].roles,
            "hidden": _COMPLETEP_HIDDEN,
            "hidden_residual": _COMPLETEP_HIDDEN,
        },
        residual_depth=-1.0,
        optimizers=ADAM_OPTIMIZERS,
        source="Dey et al. 2505.01618: µP in width, residual branches × 1/m_L in depth",
    ),
    Parameterization(
        name="u-mup",
        roles={
            "embedding": RoleExponents(init=0.0, lr=-0.5),
            "norm": _UNIT_CONSTANT,
            "bias": _UNIT_CONSTANT,
            "hidden": _UNIT_HIDDEN,
            "hidden_residual": _UNIT_HIDDEN,
            "readout": RoleExponents(init=0.0, lr=0.0, multiplier=-1.0),
        },
        attention=-1.0,
        absolute=True,
        source="Blake et al. 2407.17465: unit-scaled µP, in the fans themselves",
    ),
)

BEYOND_LATTICE: Mapping[str, Parameterization] = MappingProxyType(
    {rule.name: rule for rule in _BEYOND}
)
"""Rules that are no point between SP and µP, by name."""

_SPELLINGS: Mapping[str, str] = MappingProxyType(
    {**{name: name for name in BEYOND_LATTICE}, "umup": "u-mup", "complete-p": "completep"}
)


def parse_rule(rule: str | Parameterization) -> Parameterization:
    """Return the rule of that name: one of the lattice, or one beyond it.

    Parameters
    ----------
    rule : str or Parameterization
        A name in any case (``u-µP`` is ``u-mup``), or a rule itself, which is returned.

    Raises
    ------
    ConfigError
        If the name is not known; the nearest known name is given.
    """
    if isinstance(rule, Parameterization):
        return rule
    text = "".join(rule.lower().split()).replace("µ", "mu").replace("μ", "mu")
    if text in _SPELLINGS:
        return BEYOND_LATTICE[_SPELLINGS[text]]
    try:
        return parse_parameterization(rule)
    except ConfigError:
        if nearest_name(text, [*_SPELLINGS, *LATTICE]) in _SPELLINGS:
            near = nearest_name(text, _SPELLINGS)
            raise ConfigError(
                f"parameterization: {rule!r} is not known; did you mean {near!r}? "
                f"(the lattice from sp to mup, {', '.join(BEYOND_LATTICE)})"
            ) from None
        raise
