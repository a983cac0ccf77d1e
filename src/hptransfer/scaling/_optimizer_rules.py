"""What an optimizer's update does to a rule's exponents, as data.

A rule's own exponents are for updates of Adam's type, which have the same size whatever the
gradient's. µP for others, as effective learning rates of embedding = norm | hidden | readout at
ratios m: SGD ηm | η | η/m; Lion as Adam, η | η/m | η/m; Adafactor with parameter scaling Adam's
over the tensor's init RMS (normalised at m = 1), η | η/√m | η; Muon on hidden matrices η, or η/√m
with the update's RMS matched to Adam's, with AdamW on the rest.

A tensor W that stands in a model behind a multiplier s, with lr c, is the tensor V = sW without
the multiplier and lr c·s^p (abc-equivalence): p is 1 where the update's size does not depend on
the gradient's, 2 for SGD, 0 where the update is relative to the tensor. ε of Adam goes as 1/s, as
the gradient does, and weight decay as s^-p, so that the shrink per step stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from hptransfer._messages import check_name
from hptransfer.errors import ConfigError
from hptransfer.scaling._parameterization import ROLES, Parameterization, Role

DEFAULT_OPTIMIZER = "adamw"


@dataclass(frozen=True, kw_only=True)
class Exponents:
    """Exponents of the learning rate: ``lr``, ``lr_fan_out``, ``shifted`` of RoleExponents."""

    lr: float
    fan_out: float = 0.0
    shifted: bool = True


@dataclass(frozen=True, kw_only=True)
class OptimizerRule:
    """One optimizer.

    Attributes
    ----------
    name : str
        As in ``optimizer="sgd"``.
    tables : mapping of str to mapping of Role to Exponents
        By rule, the exponents that replace the rule's own.
    overrides : mapping of Role to Exponents
        Exponents that replace those of every rule.
    equivalence : float
        p of the module's text.
    has_eps : bool
        Whether groups carry Adam's ``eps``.
    decays : bool
        Whether its ``weight_decay`` shrinks a tensor by lr · weight_decay.
    axis_exponent : float
        Minus the exponent of SP's learning rate.
    refusal : str
        Why rules that are not of ``tables`` say nothing.

    Examples
    --------
    >>> sgd = OPTIMIZERS["sgd"]
    >>> sgd.tables["mup"]["hidden"].lr, sgd.has_eps
    (-1.0, False)
    """

    name: str
    tables: Mapping[str, Mapping[Role, Exponents]] = field(default_factory=dict)
    overrides: Mapping[Role, Exponents] = field(default_factory=dict)
    equivalence: float = 1.0
    has_eps: bool = False
    decays: bool = True
    axis_exponent: float = 1.0
    refusal: str = ""


def _everywhere(exponents: Exponents) -> dict[Role, Exponents]:
    return dict.fromkeys(ROLES, exponents)


_SGD_MUP: dict[Role, Exponents] = {
    "embedding": Exponents(lr=0.0, fan_out=1.0),
    "norm": Exponents(lr=0.0, fan_out=1.0),
    "bias": Exponents(lr=0.0, fan_out=1.0),
    "hidden": Exponents(lr=-1.0, fan_out=1.0),
    "hidden_residual": Exponents(lr=-1.0, fan_out=1.0),
    "readout": Exponents(lr=-1.0),
}
_ADAFACTOR_MUP = _everywhere(Exponents(lr=0.0)) | {
    "hidden": Exponents(lr=-0.5),
    "hidden_residual": Exponents(lr=-0.5),
}

_RULES = (
    OptimizerRule(name="adamw", has_eps=True),
    OptimizerRule(name="adam", has_eps=True, decays=False),
    OptimizerRule(name="lion", refusal="its exponents are for Adam's update and its ε"),
    OptimizerRule(
        name="sgd",
        tables={"sp": _everywhere(Exponents(lr=0.0)), "mup": _SGD_MUP},
        equivalence=2.0,
        axis_exponent=0.0,
        refusal="its exponents are for updates whose size does not depend on the gradient's",
    ),
    OptimizerRule(
        name="adafactor",
        tables={"sp": _everywhere(Exponents(lr=-0.5)), "mup": _ADAFACTOR_MUP},
        equivalence=0.0,
        axis_exponent=0.5,
        refusal="its exponents are for updates that are not relative to the tensor's size",
    ),
    OptimizerRule(
        name="muon",
        overrides=dict.fromkeys(("hidden", "hidden_residual"), Exponents(lr=0.0, shifted=False)),
        has_eps=True,
        refusal="its hidden exponent is for Adam's update, not for an orthogonalised one",
    ),
    OptimizerRule(
        name="muon-matched",
        overrides=dict.fromkeys(("hidden", "hidden_residual"), Exponents(lr=-0.5, shifted=False)),
        has_eps=True,
        refusal="its hidden exponent is for Adam's update, not for an orthogonalised one",
    ),
)

OPTIMIZERS: Mapping[str, OptimizerRule] = MappingProxyType({rule.name: rule for rule in _RULES})
"""The optimizers by name. ``muon`` and ``muon-matched`` are Muon on hidden matrices (with the two
ways to scale its update, torch's ``original`` and ``match_rms_adamw``) and AdamW on the rest."""


def parse_optimizer(name: str) -> OptimizerRule:
    """Return the optimizer of that name, or raise ConfigError with the nearest known one.

    Examples
    --------
    >>> parse_optimizer("muon").has_eps
    True
    >>> parse_optimizer("adamv")
    Traceback (most recent call last):
        ...
    hptransfer.errors.ConfigError: optimizer: expected one of adamw, adam, ...
    """
    return OPTIMIZERS[check_name("optimizer", name, OPTIMIZERS)]


def for_optimizer(rule: Parameterization, optimizer: str) -> Parameterization:
    """Return the rule with the exponents that hold under an optimizer.

    Raises
    ------
    ConfigError
        If the rule says nothing for that optimizer; the message says why.

    Examples
    --------
    >>> from hptransfer.scaling import LATTICE
    >>> mup = LATTICE["mup"]
    >>> mup.roles["norm"].lr_fan_out, for_optimizer(mup, "sgd").roles["norm"].lr_fan_out
    (0.0, 1.0)
    """
    known = parse_optimizer(optimizer)
    if known.name not in rule.optimizers:
        why = f": {known.refusal}" if known.refusal else ""
        raise ConfigError(
            f"optimizer: {rule.name} says nothing for {known.name!r}{why}; "
            f"it is defined for {', '.join(sorted(rule.optimizers))}"
        )
    changed = {**known.tables.get(rule.name, {}), **known.overrides}
    roles = dict(rule.roles)
    for role, new in changed.items():
        roles[role] = replace(roles[role], lr=new.lr, lr_fan_out=new.fan_out, shifted=new.shifted)
    return replace(rule, roles=roles, axis_exponent=known.axis_exponent)
