"""From a role table and a rule to the numbers of every tensor, multipliers absorbed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from hptransfer.adopt.absorb import check_applied, find_factors
from hptransfer.adopt.table import ParameterRole, RoleTable
from hptransfer.adopt.told import match_names
from hptransfer.errors import ConfigError
from hptransfer.scaling import (
    DEFAULT_AXIS,
    DEFAULT_BASE_LR,
    DEFAULT_EPS,
    DEFAULT_OPTIMIZER,
    DEFAULT_WEIGHT_DECAY,
    DEFAULT_WEIGHT_DECAY_MODE,
    ROLES,
    Parameterization,
    Role,
    RoleNumbers,
    Setting,
    compute_numbers,
    for_optimizer,
    parse_axis,
    parse_optimizer,
    parse_rule,
    parse_weight_decay_mode,
)
from hptransfer.scaling.checks import check_count, check_number

_MUON_SHAPE = 0.5  # Muon's update goes as √max(1, rows/columns)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a rule is put to use; the keyword arguments of ``param_groups`` and ``init_``.

    Attributes
    ----------
    parameterization : str or Parameterization
        A name that ``scaling.parse_rule`` knows, or a rule (``scaling.load_rule`` reads one).
    lr, weight_decay, eps : float
        The tuned learning rate on ``axis``, λ, and Adam's ε at the base width.
    weight_decay_mode : str
        ``constant``, ``coupled`` or ``independent``; see ``scaling.weight_decay``.
    optimizer : str
        One of ``scaling.OPTIMIZERS``.
    muon_lr : float or None
        Learning rate of the matrices that Muon takes; by default ``lr``.
    axis : str
        ``hidden-aligned`` or ``global``; see ``scaling.axis``.
    num_layers, base_num_layers : int or None
        Blocks, here and at the base, for rules that depend on depth.
    head_size, base_head_size : int or None
        Attention head sizes; by default those that the model's modules state.
    query : str or iterable of str
        Names or patterns of the query projections, which absorb the attention scale.
    applied : iterable of str
        What the model does itself; see ``absorb.APPLICABLE``.
    """

    parameterization: str | Parameterization
    lr: float = DEFAULT_BASE_LR
    weight_decay: float = DEFAULT_WEIGHT_DECAY
    weight_decay_mode: str = DEFAULT_WEIGHT_DECAY_MODE
    optimizer: str = DEFAULT_OPTIMIZER
    muon_lr: float | None = None
    eps: float = DEFAULT_EPS
    axis: str = DEFAULT_AXIS
    num_layers: int | None = None
    base_num_layers: int | None = None
    head_size: int | None = None
    base_head_size: int | None = None
    query: str | Iterable[str] = ()
    applied: Iterable[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class TensorNumbers:
    """What one tensor gets.

    Attributes
    ----------
    entry : ParameterRole
        The tensor.
    optimizer : str
        The optimizer that takes it: with Muon, ``muon`` or ``adamw``.
    lr, weight_decay, eps : float
        Its group's numbers.
    init_std : float
        Standard deviation of its normal init; 0 for gains and biases.
    """

    entry: ParameterRole
    optimizer: str
    lr: float
    weight_decay: float
    eps: float
    init_std: float


def resolve_tensors(
    table: RoleTable,
    options: Options,
    *,
    base_std: float | Mapping[str, float] | None = None,
) -> list[TensorNumbers]:
    """Return the numbers of every parameter of the table, in its order.

    Parameters
    ----------
    table : RoleTable
        The model's parameters.
    options : Options
        The rule and how it is put to use.
    base_std : float or mapping, optional
        Init stds at the base width: one for all, or by role, parameter name or pattern.

    Raises
    ------
    ConfigError
        If a name or number is wrong, the rule says nothing for the optimizer or for tied tables,
        or a multiplier can neither be absorbed nor is applied.
    """
    optimizer = parse_optimizer(options.optimizer)
    written = parse_rule(options.parameterization)
    rule = for_optimizer(written, options.optimizer)
    setting = _setting(table, written, options)
    if setting.weight_decay and not optimizer.decays:
        raise ConfigError(
            f"weight_decay: {optimizer.name!r} adds it to the gradient and divides both by their "
            "RMS, so that it does not shrink a tensor by lr·weight_decay; use 'adamw', found "
            f"{setting.weight_decay:g}"
        )
    is_muon = optimizer.name.startswith("muon")
    other = for_optimizer(written, DEFAULT_OPTIMIZER) if is_muon else rule
    orthogonal = setting
    if options.muon_lr is not None:
        orthogonal = replace(setting, base_lr=check_number("muon_lr", options.muon_lr, zero=False))
    stds = _base_stds(table, rule, options, base_std)
    by_muon = [is_muon and _takes_muon(entry) for entry in table]
    numbers = [
        compute_numbers(
            rule if muon else other,
            _rule_role(entry, rule),
            entry.fans,
            orthogonal if muon else setting,
            base_std=stds[k],
        )
        for k, (entry, muon) in enumerate(zip(table, by_muon, strict=True))
    ]
    factors = find_factors(
        table,
        rule,
        numbers,
        applied=check_applied(options.applied),
        query=[options.query] if isinstance(options.query, str) else list(options.query),
        head_sizes=_head_sizes(table, options),
    )
    return [
        _absorbed(
            entry,
            numbers[k],
            factors[k],
            power=optimizer.equivalence,
            optimizer="muon" if by_muon[k] else DEFAULT_OPTIMIZER if is_muon else optimizer.name,
        )
        for k, entry in enumerate(table)
    ]


def _absorbed(
    entry: ParameterRole, numbers: RoleNumbers, factor: float, *, power: float, optimizer: str
) -> TensorNumbers:
    shape = 1.0
    if optimizer == "muon" and entry.transposed:
        # The optimizer sees (fan_in, fan_out) and scales by √max(1, fan_in/fan_out).
        rows, columns = entry.fan_out, entry.fan_in
        shape = (max(1.0, rows / columns) / max(1.0, columns / rows)) ** _MUON_SHAPE
    return TensorNumbers(
        entry=entry,
        optimizer=optimizer,
        lr=numbers.lr * factor**power * shape,
        weight_decay=numbers.weight_decay / (factor**power * shape),
        eps=numbers.eps / factor,
        init_std=numbers.init_std * factor,
    )


def _rule_role(entry: ParameterRole, rule: Parameterization) -> Role:
    """Return the role whose numbers the entry takes.

    A rule in the fans themselves does not ask what grows: a matrix from a fixed input is a matrix.
    """
    if rule.absolute and entry.role == "embedding" and not entry.is_table:
        return "hidden"
    return entry.rule_role


def _takes_muon(entry: ParameterRole) -> bool:
    """Whether Muon takes the tensor: one matrix whose two dimensions grow."""
    return entry.role in ("hidden", "hidden_residual") and len(entry.shape) == 2


def _setting(table: RoleTable, rule: Parameterization, options: Options) -> Setting:
    layers = options.num_layers, options.base_num_layers
    if rule.residual_depth and None in layers:
        raise ConfigError(
            f"{rule.name}: depends on depth; give num_layers and base_num_layers, found {layers}"
        )
    num_layers = check_count("num_layers", 1 if layers[0] is None else layers[0])
    return Setting(
        width_mult=table.width_mult,
        num_layers=num_layers,
        base_num_layers=num_layers
        if layers[1] is None
        else check_count("base_num_layers", layers[1]),
        base_lr=check_number("lr", options.lr, zero=False),
        weight_decay=check_number("weight_decay", options.weight_decay, zero=True),
        eps=check_number("eps", options.eps, zero=False),
        mode=parse_weight_decay_mode(options.weight_decay_mode),
        axis=parse_axis(options.axis),
    )


def _head_sizes(table: RoleTable, options: Options) -> tuple[int | None, int | None]:
    head_size = table.head_size if options.head_size is None else options.head_size
    base = table.base_head_size if options.base_head_size is None else options.base_head_size
    for key, value in (("head_size", head_size), ("base_head_size", base)):
        if value is not None:
            check_count(key, value)
    return head_size, base


def _base_stds(
    table: RoleTable,
    rule: Parameterization,
    options: Options,
    told: float | Mapping[str, float] | None,
) -> list[float | None]:
    """Return each parameter's init std at the base width; None for the rule's own."""
    names = [(entry.name, *entry.tied) for entry in table]
    stds: list[float | None] = [
        # A matrix from a fixed input starts at 1/√fan_in, as any matrix; tables at 1.
        entry.base_fan_in**-0.5
        if entry.role == "embedding" and not entry.is_table and not rule.absolute
        else None
        for entry in table
    ]
    by_key = {role: told for role in ROLES} if isinstance(told, int | float) else dict(told or {})
    for key, value in by_key.items():
        std = check_number(f"base_std of {key}", value, zero=True)
        if key in ROLES:
            hits = [k for k, entry in enumerate(table) if entry.rule_role == key]
        else:
            hits = match_names(f"base_std: {key!r}", key, names)
        for k in hits:
            if table.parameters[k].rule_role not in ("norm", "bias"):
                stds[k] = std
    return stds
