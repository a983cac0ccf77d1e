"""Rules become numbers: parameterizations, the SP-to-µP lattice, and ``resolve``.

A parameterization is data: a table of exponents in m = width / base_width, one row for each role
a tensor can have. ``resolve`` turns it, at a width, into init std, learning rate, weight decay
and multiplier per role and one attention scale; models and optimizers only ever see those.

>>> from hptransfer.scaling import resolve
>>> sp, mup = (resolve(name, width=256, base_width=64) for name in ("sp", "µP"))
>>> sp.roles["embedding"].lr, mup.roles["embedding"].lr
(0.25, 1.0)
"""

from hptransfer.scaling.axis import AXES, DEFAULT_AXIS, Axis, parse_axis
from hptransfer.scaling.lattice import LATTICE, SWITCHES, parse_parameterization, scale_embedding
from hptransfer.scaling.numbers import Fans, RoleNumbers, Setting, compute_numbers
from hptransfer.scaling.optimizers import (
    DEFAULT_OPTIMIZER,
    OPTIMIZERS,
    OptimizerRule,
    for_optimizer,
    parse_optimizer,
)
from hptransfer.scaling.parameterization import Parameterization, RoleExponents
from hptransfer.scaling.resolve import (
    DEFAULT_BASE_LR,
    DEFAULT_EPS,
    DEFAULT_NUM_LAYERS,
    DEFAULT_WEIGHT_DECAY,
    Resolved,
    default_head_size,
    resolve,
)
from hptransfer.scaling.roles import BASE_INIT, DECAYED_ROLES, MATRIX_ROLES, ROLES, Role, TensorRole
from hptransfer.scaling.rules import BEYOND_LATTICE, parse_rule
from hptransfer.scaling.table import load_rule
from hptransfer.scaling.weight_decay import (
    DEFAULT_WEIGHT_DECAY_MODE,
    WEIGHT_DECAY_MODES,
    WeightDecayMode,
    parse_weight_decay_mode,
)

__all__ = [
    "AXES",
    "BASE_INIT",
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
    "OptimizerRule",
    "Parameterization",
    "Resolved",
    "Role",
    "RoleExponents",
    "RoleNumbers",
    "Setting",
    "TensorRole",
    "WeightDecayMode",
    "compute_numbers",
    "default_head_size",
    "for_optimizer",
    "load_rule",
    "parse_axis",
    "parse_optimizer",
    "parse_parameterization",
    "parse_rule",
    "parse_weight_decay_mode",
    "resolve",
    "scale_embedding",
]
