"""From a parameterization to the numbers that a model and an optimizer take.

`compute_numbers` gives those of one tensor, from its role, its fans and what its model's tensors
share; `resolve` those of every role of the GPT at a width.

Legend: D width, H head size, m = width / base_width, m_L = num_layers / base_num_layers, η =
``base_lr`` on the hidden-aligned axis, λ the study's weight decay.

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

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from hptransfer._messages import check_name
from hptransfer.errors import ConfigError
from hptransfer.scaling._named_rules import parse_rule
from hptransfer.scaling._optimizer_rules import DEFAULT_OPTIMIZER, for_optimizer
from hptransfer.scaling._parameterization import (
    BASE_INIT,
    DECAYED_ROLES,
    MATRIX_ROLES,
    ROLES,
    Parameterization,
    Role,
    TensorRole,
)

Axis = Literal["hidden-aligned", "global"]

DEFAULT_AXIS: Axis = "hidden-aligned"

AXES: tuple[Axis, ...] = get_args(Axis)

WeightDecayMode = Literal["constant", "coupled", "independent"]

DEFAULT_WEIGHT_DECAY_MODE: WeightDecayMode = "constant"

_DECAY_EXPONENTS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"constant": (1, 1), "coupled": (0, 0), "independent": (0, 1)}
)
"""(a, b) in λ·η^a/lr^b."""

WEIGHT_DECAY_MODES: tuple[WeightDecayMode, ...] = get_args(WeightDecayMode)


def check_count(key: str, value: int) -> int:
    """Return ``value`` as an int if it is a whole number above 0, else raise ConfigError."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if isinstance(value, bool) or count <= 0:
        raise ConfigError(f"{key}: expected a whole number above 0, found {value!r}")
    return count


def check_number(key: str, value: float, *, zero: bool) -> float:
    """Return ``value`` as a float if finite and above 0 (or 0, where ``zero`` says so).

    Raises
    ------
    ConfigError
        If it is not.
    """
    number = float(value)
    if math.isfinite(number) and (number > 0.0 or (zero and number == 0.0)):
        return number
    least = "of 0 or more" if zero else "above 0"
    raise ConfigError(f"{key}: expected a finite number {least}, found {value!r}")


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
    mode : str
        How λ becomes a tensor's weight decay: the module's table.
    axis : str
        The axis that ``base_lr`` is on.

    Raises
    ------
    ConfigError
        If there is no such mode or axis.

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
    mode: str
    axis: str

    def __post_init__(self) -> None:
        check_name("weight_decay_mode", self.mode, WEIGHT_DECAY_MODES)
        check_name("axis", self.axis, AXES)


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
    is_shifted = setting.axis != DEFAULT_AXIS and exponents.shifted
    shift = rule.axis_exponent if is_shifted else 0.0
    base_lr = setting.base_lr * m**shift  # η: what it is on the hidden-aligned axis
    if lr_ratio == m:
        # One power of m for axis and rule together: SP on the global axis is base_lr exactly.
        lr = setting.base_lr * m ** (shift + exponents.lr)
    else:
        lr = base_lr * lr_ratio**exponents.lr
    lr *= exponents.lr_factor * (fans.fan_out / fans.base_fan_out) ** exponents.lr_fan_out
    lr = check_number(f"lr of {role}", lr, zero=False)
    a, b = _DECAY_EXPONENTS[setting.mode]
    decay = setting.weight_decay * (base_lr**a / lr**b) if role in DECAYED_ROLES else 0.0
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


DEFAULT_BASE_LR = 1.0
DEFAULT_WEIGHT_DECAY = 0.0
DEFAULT_NUM_LAYERS = 12
DEFAULT_EPS = 1e-8
MAX_DEFAULT_HEAD_SIZE = 64
MIN_DEFAULT_HEAD_SIZE = 8

_KEY_DIGITS = 12  # significant digits, far above a float's rounding and far below a real change


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A parameterization's numbers at one width; nothing in it refers to a rule any more.

    Attributes
    ----------
    parameterization : str
        Canonical name.
    width, base_width, num_layers, head_size, base_head_size : int
        The shape that the numbers are for.
    weight_decay_mode : str
        How λ became each role's weight decay.
    axis : str
        The axis that ``base_lr`` is on.
    base_lr : float
        The tuned learning rate, on ``axis``.
    roles : mapping of str to RoleNumbers
        One entry for each of ``ROLES``, in that order.
    attention_scale : float
        What attention logits are multiplied by.

    Examples
    --------
    >>> resolved = resolve("sp+embd", width=256, base_width=64, base_lr=2**-7)
    >>> resolved.width_mult, resolved.attention_scale
    (4.0, 0.125)
    >>> resolved.init_std("hidden", fan_in=1024)  # of the second matrix of a feed-forward block
    0.03125
    """

    parameterization: str
    width: int
    base_width: int
    num_layers: int
    head_size: int
    base_head_size: int
    weight_decay_mode: str
    axis: str
    base_lr: float
    roles: Mapping[str, RoleNumbers]
    attention_scale: float

    @property
    def width_mult(self) -> float:
        """The width ratio m = width / base_width."""
        return self.width / self.base_width

    def init_std(self, role: str, fan_in: int) -> float:
        """Return a role's init std for a tensor of another fan-in than the width.

        Hidden and readout stds go as fan_in^-1/2 at a fixed width; others do not depend on it.

        Raises
        ------
        ConfigError
            If the role is unknown or ``fan_in`` is no whole number above 0.
        """
        known = cast(Role, check_name("role", role, ROLES))
        ratio = check_count("fan_in", fan_in) / self.width
        return float(self.roles[known].init_std * ratio ** BASE_INIT[known].fan_in)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``hptransfer rules --json``."""
        return {
            "schema": 1,
            "parameterization": self.parameterization,
            "width": self.width,
            "base_width": self.base_width,
            "weight_decay_mode": self.weight_decay_mode,
            "roles": {role: dict(vars(numbers)) for role, numbers in self.roles.items()},
            "attention_scale": self.attention_scale,
        }

    def key(self) -> tuple[float, ...]:
        """Return width and all numbers, at 12 significant digits.

        Two parameterizations with equal keys train the same model in the same way, whatever
        they are called, so a plan trains one of them.
        """
        numbers = [value for role in ROLES for value in vars(self.roles[role]).values()]
        numbers.append(self.attention_scale)
        # Most numbers of a model occur several times.
        rounded = {x: float(f"{x:.{_KEY_DIGITS - 1}e}") for x in set(numbers)}
        return (self.width, *map(rounded.__getitem__, numbers))


@lru_cache
def _find_rule(rule: str | Parameterization, optimizer: str) -> Parameterization:
    # A plan resolves the same few rules at thousands of learning rates.
    return for_optimizer(parse_rule(rule), optimizer)


def default_head_size(width: int, base_width: int) -> int:
    """Return the largest power of two up to 64 that divides both widths.

    Raises
    ------
    ConfigError
        If that is less than 8: a head size is then for the caller to choose.

    Examples
    --------
    >>> default_head_size(768, 192)
    64
    >>> default_head_size(96, 48)
    16
    """
    head_size = math.gcd(MAX_DEFAULT_HEAD_SIZE, width, base_width)
    if head_size < MIN_DEFAULT_HEAD_SIZE:
        raise ConfigError(
            f"head_size: no power of two from {MIN_DEFAULT_HEAD_SIZE} to {MAX_DEFAULT_HEAD_SIZE} "
            f"divides both width {width} and base_width {base_width}; give head_size or num_heads"
        )
    return head_size


def _divide(key: str, number: int, whole: str, size: int) -> int:
    """Return a size over a number that has to divide it."""
    number = check_count(key, number)
    if size % number:
        raise ConfigError(
            f"{key}: expected a divisor of {whole} {size}, found {number} "
            f"(remainder {size % number})"
        )
    return size // number


def resolve(
    parameterization: str | Parameterization,
    *,
    width: int,
    base_width: int,
    base_lr: float = DEFAULT_BASE_LR,
    weight_decay: float = DEFAULT_WEIGHT_DECAY,
    weight_decay_mode: str = DEFAULT_WEIGHT_DECAY_MODE,
    axis: str = DEFAULT_AXIS,
    head_size: int | None = None,
    num_heads: int | None = None,
    base_head_size: int | None = None,
    num_layers: int = DEFAULT_NUM_LAYERS,
    base_num_layers: int | None = None,
    eps: float = DEFAULT_EPS,
    optimizer: str = DEFAULT_OPTIMIZER,
) -> Resolved:
    """Return the numbers of a parameterization at a width.

    Parameters
    ----------
    parameterization : str or Parameterization
        A name that ``parse_rule`` knows, or a rule of the caller's own.
    width, base_width : int
        The width D to resolve at, and the one at which all rules agree.
    base_lr : float
        The tuned learning rate on ``axis``, above 0.
    weight_decay : float
        λ, 0 or more.
    weight_decay_mode : str
        ``constant``, ``coupled`` or ``independent``: the module has their table.
    axis : str
        ``hidden-aligned`` or ``global``.
    head_size : int, optional
        A head size H that stays as the width grows. Give this or ``num_heads``, not both; with
        neither, ``default_head_size`` chooses.
    num_heads : int, optional
        A number of heads that stays, so that H = width / num_heads grows.
    base_head_size : int, optional
        H_base of the attention scale √H_base/H; by default the head size at ``base_width``. The
        value 1 gives the plain 1/H.
    num_layers : int
        Blocks; sets the init of the two projections onto the residual stream in each.
    base_num_layers : int, optional
        Blocks of the base model, for rules that scale depth (m_L = num_layers / base_num_layers);
        by default ``num_layers``.
    eps : float
        Adam's ε at the base width, above 0.
    optimizer : str
        One of ``scaling.OPTIMIZERS``.

    Raises
    ------
    ConfigError
        If a name is unknown, a number is out of its range, the head size or number of heads does
        not divide the width, or a result is no finite float.

    Examples
    --------
    >>> rates = {role: n.lr for role, n in resolve("mup", width=1024, base_width=256).roles.items()}
    >>> rates["embedding"], rates["hidden"], rates["readout"]
    (1.0, 0.25, 0.25)
    >>> resolve("mupp", width=1024, base_width=256)
    Traceback (most recent call last):
        ...
    hptransfer.errors.ConfigError: parameterization: 'mupp' is not known; did you mean 'mup'? ...
    """
    rule = _find_rule(parameterization, optimizer)
    width, base_width = check_count("width", width), check_count("base_width", base_width)
    num_layers = check_count("num_layers", num_layers)
    if base_num_layers is None:
        base_num_layers = num_layers
    setting = Setting(
        width_mult=width / base_width,
        num_layers=num_layers,
        base_num_layers=check_count("base_num_layers", base_num_layers),
        base_lr=check_number("base_lr", base_lr, zero=False),
        weight_decay=check_number("weight_decay", weight_decay, zero=True),
        eps=check_number("eps", eps, zero=False),
        mode=weight_decay_mode,
        axis=axis,
    )
    if base_head_size is not None:
        base_head_size = check_count("base_head_size", base_head_size)
    if num_heads is None:
        head_size = default_head_size(width, base_width) if head_size is None else head_size
        _divide("head_size", head_size, "width", width)
        base_head_size = base_head_size or head_size
    elif head_size is not None:
        raise ConfigError(
            f"head_size: expected either head_size or num_heads, "
            f"found head_size {head_size!r} and num_heads {num_heads!r}"
        )
    else:
        head_size = _divide("num_heads", num_heads, "width", width)
        base_head_size = base_head_size or _divide("num_heads", num_heads, "base_width", base_width)
    fans = Fans(fan_in=width, base_fan_in=base_width, fan_out=width, base_fan_out=base_width)
    readout_fans = Fans(fan_in=width, base_fan_in=base_width, fan_out=1, base_fan_out=1)
    scale_base = 1 if rule.absolute else base_head_size
    attention_scale = scale_base**-0.5 * (head_size / scale_base) ** rule.attention
    return Resolved(
        parameterization=rule.name,
        width=width,
        base_width=base_width,
        num_layers=num_layers,
        head_size=head_size,
        base_head_size=base_head_size,
        weight_decay_mode=weight_decay_mode,
        axis=axis,
        base_lr=setting.base_lr,
        roles={
            role: compute_numbers(rule, role, readout_fans if role == "readout" else fans, setting)
            for role in ROLES
        },
        attention_scale=float(attention_scale),
    )
