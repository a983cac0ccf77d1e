"""Weight-decay modes: which ``weight_decay`` an AdamW tensor gets.

AdamW shrinks a tensor by lr · weight_decay at each step. With λ the study's weight decay, η the
base learning rate on the hidden-aligned axis, and lr the tensor's own:

=============== ============== ========================================
mode            weight_decay   shrink per step
=============== ============== ========================================
``constant``    λ·η/lr         η·λ, the same at every width and role
``coupled``     λ              lr·λ (PyTorch's own AdamW)
``independent`` λ/lr           λ, whatever the learning rate
=============== ============== ========================================
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, cast

from hptransfer.scaling.checks import check_name
from hptransfer.scaling.roles import DECAYED_ROLES, TensorRole

WeightDecayMode = Literal["constant", "coupled", "independent"]

DEFAULT_WEIGHT_DECAY_MODE: WeightDecayMode = "constant"

_EXPONENTS: Mapping[WeightDecayMode, tuple[int, int]] = MappingProxyType(
    {"constant": (1, 1), "coupled": (0, 0), "independent": (0, 1)}
)
"""(a, b) in λ·η^a/lr^b."""

WEIGHT_DECAY_MODES: tuple[WeightDecayMode, ...] = tuple(_EXPONENTS)


def parse_weight_decay_mode(name: str) -> WeightDecayMode:
    """Return the mode of that name, or raise ConfigError with the nearest known one."""
    return cast(WeightDecayMode, check_name("weight_decay_mode", name, WEIGHT_DECAY_MODES))


def resolve_weight_decay(
    role: TensorRole, *, mode: WeightDecayMode, weight_decay: float, eta: float, lr: float
) -> float:
    """Return AdamW's ``weight_decay`` for a tensor of this role.

    Parameters
    ----------
    role : TensorRole
        Gains, biases and ``other`` get 0 in every mode.
    mode : WeightDecayMode
        See the module's table.
    weight_decay : float
        λ, 0 or more.
    eta : float
        η, the base learning rate on the hidden-aligned axis.
    lr : float
        The tensor's own learning rate, above 0.
    """
    if role not in DECAYED_ROLES:
        return 0.0
    a, b = _EXPONENTS[mode]
    return float(weight_decay * (eta**a / lr**b))
