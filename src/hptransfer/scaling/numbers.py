"""The numbers of one tensor: what a rule gives for its role, its fans and the model's ratios.

Legend: m = width / base_width, m_L = num_layers / base_num_layers, η = ``base_lr`` on the
hidden-aligned axis.
"""

from dataclasses import dataclass

from hptransfer.errors import ConfigError
from hptransfer.scaling.axis import AXIS_EXPONENTS, DEFAULT_AXIS, Axis
from hptransfer.scaling.checks import check_number
from hptransfer.scaling.parameterization import Parameterization
from hptransfer.scaling.roles import BASE_INIT, MATRIX_ROLES, TensorRole
from hptransfer.scaling.weight_decay import WeightDecayMode, resolve_weight_decay


@dataclass(frozen=True, kw_only=True)
class RoleNumbers:
    """The numbers of one role at one width, or of one tensor.

    Attributes
    ----------
    init_std : float
        Standard deviation of the normal init, for hidden roles at fan_in = width; 0 for gains,
        which start at 1, and biases, which start at 0.
    lr : float
        Learning rate of the tensor.
    weight_decay : float
        AdamW's ``weight_decay`` of the tensor: each step shrinks it by lr · weight_decay.
    multiplier : float
        Forward multiplier on the tensor's output.
    residual_multiplier : float
        Multiplier on the residual branch that the tensor stands in.
    eps : float
        Adam's ε for the tensor.
    """

    init_std: float
    lr: float
    weight_decay: float
    multiplier: float
    residual_multiplier: float
    eps: float


@dataclass(frozen=True, kw_only=True)
class Fans:
    """How many inputs and outputs a tensor has, here and at the base width."""

    fan_in: int
    base_fan_in: int
    fan_out: int
    base_fan_out: int


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all tensors of one model share: ratios, tuned numbers, and how they are read.

    Attributes
    ----------
    width_mult : float
        m of the model.
    num_layers, base_num_layers : int
        Blocks, here and at the base.
    base_lr, weight_decay, eps : float
        The tuned learning rate on ``axis``, λ, and Adam's ε at the base width.
    mode : WeightDecayMode
        How λ becomes a tensor's weight decay.
    axis : Axis
        The axis that ``base_lr`` is on.
    """

    width_mult: float
    num_layers: int
    base_num_layers: int
    base_lr: float
    weight_decay: float
    eps: float
    mode: WeightDecayMode
    axis: Axis


def compute_numbers(
    rule: Parameterization,
    role: TensorRole,
    fans: Fans,
    setting: Setting,
    *,
    base_std: float | None = None,
) -> RoleNumbers:
    """Return the numbers of a tensor.

    Parameters
    ----------
    rule : Parameterization
        Its exponents for the optimizer in use; see ``optimizers.for_optimizer``.
    role : TensorRole
        The tensor's role; a tied table takes ``embedding`` here.
    fans : Fans
        The tensor's own.
    setting : Setting
        The model's.
    base_std : float, optional
        Its init std at the base width; by default that of ``roles.BASE_INIT``.

    Raises
    ------
    ConfigError
        If a number is no finite float or no learning rate above 0, or the rule has no base width
        that the axis could be shifted by.
    """
    exponents, base = rule.get_exponents(role), BASE_INIT[role]
    m, depth = setting.width_mult, setting.num_layers / setting.base_num_layers
    if rule.absolute and setting.axis != DEFAULT_AXIS:
        raise ConfigError(
            f"axis: {rule.name} is defined by the fans themselves and has no base width to shift "
            f"an axis by; expected {DEFAULT_AXIS!r}, found {setting.axis!r}"
        )
    if rule.absolute:
        base_fan_in, blocks = 1, 0.5
        fan_ratio = float(fans.fan_in if role in MATRIX_ROLES else fans.fan_out)
        lr_ratio = fan_ratio
    else:
        base_fan_in, blocks = fans.base_fan_in, setting.base_num_layers
        fan_ratio = fans.fan_in / fans.base_fan_in if role in MATRIX_ROLES else m
        # One learning rate for every tensor follows the model, whatever a tensor's own fans.
        lr_ratio = m if rule.is_uniform else fan_ratio
    shift = AXIS_EXPONENTS[setting.axis] * rule.axis_exponent if exponents.shifted else 0.0
    eta = setting.base_lr * m**shift
    if lr_ratio == m:
        # One power of m for axis and rule together: SP on the global axis is base_lr exactly.
        lr = setting.base_lr * m ** (shift + exponents.lr)
    else:
        lr = eta * lr_ratio**exponents.lr
    lr *= exponents.lr_factor * (fans.fan_out / fans.base_fan_out) ** exponents.lr_fan_out
    lr = check_number(f"lr of {role}", lr, zero=False)
    decay = resolve_weight_decay(
        role, mode=setting.mode, weight_decay=setting.weight_decay, eta=eta, lr=lr
    )
    if base_std is None:
        base_std = base.scale * base_fan_in**base.fan_in * (2 * blocks) ** base.depth
    return RoleNumbers(
        init_std=base_std * fan_ratio**exponents.init * depth**exponents.init_depth,
        lr=lr,
        weight_decay=check_number(f"weight_decay of {role}", decay, zero=True),
        multiplier=fan_ratio**exponents.multiplier,
        residual_multiplier=depth**rule.residual_depth if role == "hidden_residual" else 1.0,
        eps=setting.eps * fan_ratio**exponents.eps * depth**exponents.eps_depth,
    )
