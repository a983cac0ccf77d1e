"""From a parameterization and a width to the numbers that a model and an optimizer take.

Legend: D width, H head size, m = width / base_width, η = ``base_lr`` on the hidden-aligned axis.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from hptransfer._messages import check_count, check_name, check_number
from hptransfer.errors import ConfigError
from hptransfer.scaling._named_rules import parse_rule
from hptransfer.scaling._optimizer_rules import DEFAULT_OPTIMIZER, for_optimizer
from hptransfer.scaling._parameterization import BASE_INIT, ROLES, Parameterization, Role
from hptransfer.scaling._tensor_numbers import (
    DEFAULT_AXIS,
    DEFAULT_WEIGHT_DECAY_MODE,
    Axis,
    Fans,
    RoleNumbers,
    Setting,
    WeightDecayMode,
    compute_numbers,
    parse_axis,
    parse_weight_decay_mode,
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
    weight_decay_mode : WeightDecayMode
        How λ became each role's weight decay.
    axis : Axis
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
    weight_decay_mode: WeightDecayMode
    axis: Axis
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
def _find_rule(name: str, optimizer: str) -> Parameterization:
    # A plan resolves the same few names at thousands of learning rates.
    return for_optimizer(parse_rule(name), optimizer)


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


def _divide_heads(key: str, width: int, num_heads: int) -> int:
    if width % num_heads:
        raise ConfigError(
            f"num_heads: expected a divisor of {key} {width}, found {num_heads} "
            f"(remainder {width % num_heads})"
        )
    return width // num_heads


def _resolve_head_sizes(
    *,
    width: int,
    base_width: int,
    head_size: int | None,
    num_heads: int | None,
    base_head_size: int | None,
) -> tuple[int, int]:
    """Return the head sizes at the width and at the base width; divisibility checked."""
    if base_head_size is not None:
        base_head_size = check_count("base_head_size", base_head_size)
    if num_heads is not None:
        if head_size is not None:
            raise ConfigError(
                f"head_size: expected either head_size or num_heads, "
                f"found head_size {head_size!r} and num_heads {num_heads!r}"
            )
        num_heads = check_count("num_heads", num_heads)
        grown = _divide_heads("width", width, num_heads)
        return grown, base_head_size or _divide_heads("base_width", base_width, num_heads)
    if head_size is None:
        head_size = default_head_size(width, base_width)
    head_size = check_count("head_size", head_size)
    if width % head_size:
        raise ConfigError(
            f"head_size: expected a divisor of width {width}, found {head_size} "
            f"(remainder {width % head_size})"
        )
    return head_size, base_head_size or head_size


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
        ``constant``, ``coupled`` or ``independent``: the module `_tensor_numbers` has their table.
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
    if isinstance(parameterization, str):
        rule = _find_rule(parameterization, optimizer)
    else:
        rule = for_optimizer(parameterization, optimizer)
    width = check_count("width", width)
    base_width = check_count("base_width", base_width)
    num_layers = check_count("num_layers", num_layers)
    if base_num_layers is None:
        base_num_layers = num_layers
    base_num_layers = check_count("base_num_layers", base_num_layers)
    base_lr = check_number("base_lr", base_lr, zero=False)
    weight_decay = check_number("weight_decay", weight_decay, zero=True)
    eps = check_number("eps", eps, zero=False)
    mode = parse_weight_decay_mode(weight_decay_mode)
    known_axis = parse_axis(axis)
    head_size, base_head_size = _resolve_head_sizes(
        width=width,
        base_width=base_width,
        head_size=head_size,
        num_heads=num_heads,
        base_head_size=base_head_size,
    )

    setting = Setting(
        width_mult=width / base_width,
        num_layers=num_layers,
        base_num_layers=base_num_layers,
        base_lr=base_lr,
        weight_decay=weight_decay,
        eps=eps,
        mode=mode,
        axis=known_axis,
    )
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
        weight_decay_mode=mode,
        axis=known_axis,
        base_lr=base_lr,
        roles={
            role: compute_numbers(rule, role, readout_fans if role == "readout" else fans, setting)
            for role in ROLES
        },
        attention_scale=float(attention_scale),
    )
