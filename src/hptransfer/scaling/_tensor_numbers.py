"""Numbers of one tensor: what a rule gives for its role, its fans and the model's ratios.

Legend: m = width / base_width, m_L = num_layers / base_num_layers, η = ``base_lr`` on the
hidden-aligned axis, λ the study's weight decay.

``base_lr`` can be swept on two axes. On ``hidden-aligned`` (the default) it is η of the rules, so
that hidden matrices get η/m under every rule of the lattice and a rule that transfers has its
optimum at one place. On ``global`` SP gives every tensor lr = ``base_lr``, as a plain PyTorch user
writes it. Both are one family: a trial at (``global``, base_lr) *is* the trial at
(``hidden-aligned``, η = base_lr·m), and all its numbers, weight decay in ``constant`` mode
included, follow from that η.

AdamW shrinks a tensor by lr · weight_decay at each step; the modes of weight decay are:

=============== ============== ========================================
mode            weight_decay   shrink per step
=============== ============== ========================================
``constant``    λ·η/lr         η·λ, the same at every width and role
``coupled``     λ              lr·λ (PyTorch's own AdamW)
``independent`` λ/lr           λ, whatever the learning rate
=============== ============== ========================================
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, cast

from hptransfer._messages import check_name, check_number
from hptransfer.errors import ConfigError
from hptransfer.scaling._parameterization import (
    BASE_INIT,
    DECAYED_ROLES,
    MATRIX_ROLES,
    Parameterization,
    TensorRole,
)

Axis = Literal["hidden-aligned", "global"]

DEFAULT_AXIS: Axis = "hidden-aligned"

AXIS_EXPONENTS: Mapping[Axis, float] = MappingProxyType({"hidden-aligned": 0.0, "global": 1.0})
"""η = base_lr · m^exponent."""

AXES: tuple[Axis, ...] = tuple(AXIS_EXPONENTS)


def parse_axis(name: str) -> Axis:
    """Return the axis of that name, or raise ConfigError with the nearest known one.

    Examples
    --------
    >>> parse_axis("global")
    'global'
    """
    return cast(Axis, check_name("axis", name, AXES))


WeightDecayMode = Literal["constant", "coupled", "independent"]

DEFAULT_WEIGHT_DECAY_MODE: WeightDecayMode = "constant"

_EXPONENTS: Mapping[WeightDecayMode, tuple[int, int]] = MappingProxyType(
    {"constant": (1, 1), "coupled": (0, 0), "independent": (0, 1)}
)
"""(a, b) in λ·η^a/lr^b."""

WEIGHT_DECAY_MODES: tuple[WeightDecayMode, ...] = tuple(_EXPONENTS)


def parse_weight_decay_mode(name: str) -> WeightDecayMode:
    """Return the mode of that name, or raise ConfigError with the nearest known one.

    Examples
    --------
    >>> parse_weight_decay_mode("coupled")
    'coupled'
    >>> parse_weight_decay_mode("constnat")
    Traceback (most recent call last):
        ...
    hptransfer.errors.ConfigError: weight_decay_mode: expected one of constant, coupled, ...
    """
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

    Examples
    --------
    >>> from hptransfer.scaling import resolve
    >>> readout = resolve("mup", width=256, base_width=64, base_lr=2**-7).roles["readout"]
    >>> readout.init_std, readout.lr  # 64^-1/2 / m and η/m, at m = 4
    (0.03125, 0.001953125)
    """

    init_std: float
    lr: float
    weight_decay: float
    multiplier: float
    residual_multiplier: float
    eps: float


@dataclass(frozen=True, kw_only=True)
class Fans:
    """How many inputs and outputs a tensor has, here and at the base width.

    Examples
    --------
    >>> up = Fans(fan_in=256, base_fan_in=64, fan_out=1024, base_fan_out=256)
    >>> up.fan_in / up.base_fan_in
    4.0
    """

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

    Examples
    --------
    >>> setting = Setting(
    ...     width_mult=4.0, num_layers=12, base_num_layers=12, base_lr=2**-7, weight_decay=0.1,
    ...     eps=1e-8, mode="constant", axis="hidden-aligned",
    ... )
    >>> setting.width_mult * setting.base_lr
    0.03125
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
        Its exponents for the optimizer in use; see `for_optimizer`.
    role : TensorRole
        The tensor's role; a tied table takes ``embedding`` here.
    fans : Fans
        The tensor's own.
    setting : Setting
        The model's.
    base_std : float, optional
        Its init std at the base width; by default that of ``BASE_INIT``.

    Raises
    ------
    ConfigError
        If a number is no finite float or no learning rate above 0, or the rule has no base width
        that the axis could be shifted by.

    Examples
    --------
    >>> from hptransfer.scaling import LATTICE
    >>> setting = Setting(
    ...     width_mult=4.0, num_layers=12, base_num_layers=12, base_lr=2**-7, weight_decay=0.1,
    ...     eps=1e-8, mode="constant", axis="hidden-aligned",
    ... )
    >>> fans = Fans(fan_in=256, base_fan_in=64, fan_out=256, base_fan_out=64)
    >>> hidden = compute_numbers(LATTICE["mup"], "hidden", fans, setting)
    >>> hidden.lr, hidden.init_std, hidden.weight_decay  # η/m, fan_in^-1/2, λ·m
    (0.001953125, 0.0625, 0.4)
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
