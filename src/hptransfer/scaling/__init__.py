"""Rules become numbers: parameterizations, the SP-to-µP lattice, and ``resolve``.

A parameterization is data: a table of exponents in m = width / base_width, one row for each role
a tensor can have. ``resolve`` turns it, at a width, into init std, learning rate, weight decay
and multiplier per role and one attention scale; models and optimizers only ever see those.

>>> from hptransfer.scaling import resolve
>>> sp, mup = (resolve(name, width=256, base_width=64) for name in ("sp", "µP"))
>>> sp.roles["embedding"].lr, mup.roles["embedding"].lr
(0.25, 1.0)
"""

from hptransfer.scaling._named_rules import (
    BEYOND_LATTICE,
    LATTICE,
    SWITCHES,
    parse_parameterization,
    parse_rule,
)
from hptransfer.scaling._optimizer_rules import (
    DEFAULT_OPTIMIZER,
    OPTIMIZERS,
    for_optimizer,
    parse_optimizer,
)
from hptransfer.scaling._parameterization import (
    DECAYED_ROLES,
    MATRIX_ROLES,
    ROLES,
    Parameterization,
    Role,
    RoleExponents,
    TensorRole,
)
from hptransfer.scaling._resolve import (
    AXES,
    DEFAULT_AXIS,
    DEFAULT_BASE_LR,
    DEFAULT_EPS,
    DEFAULT_NUM_LAYERS,
    DEFAULT_WEIGHT_DECAY,
    DEFAULT_WEIGHT_DECAY_MODE,
    WEIGHT_DECAY_MODES,
    Axis,
    Fans,
    Resolved,
    RoleNumbers,
    Setting,
    WeightDecayMode,
    compute_numbers,
    resolve,
)
from hptransfer.scaling._rule_file import build_rule, load_rule

__all__ = [
    "AXES",
    "BEYOND_LATTICE",
    "DECAYED_ROLES",
    "DEFAULT_AXIS",
    "DEFAULT_BASE_LR",
    "DEFAULT_EPS",
    "DEFAULT_NUM_LAYERS",
    "DEFAULT_OPTIMIZER",
    "DEFAULT_WEIGHT_DECAY",
    "DEFAULT_WEIGHT_DECAY_MODE",
    "LATTICE",
    "MATRIX_ROLES",
    "OPTIMIZERS",
    "ROLES",
    "SWITCHES",
    "WEIGHT_DECAY_MODES",
    "Axis",
    "Fans",
    "Parameterization",
    "Resolved",
    "Role",
    "RoleExponents",
    "RoleNumbers",
    "Setting",
    "TensorRole",
    "WeightDecayMode",
    "build_rule",
    "compute_numbers",
    "for_optimizer",
    "load_rule",
    "parse_optimizer",
    "parse_parameterization",
    "parse_rule",
    "resolve",
]
