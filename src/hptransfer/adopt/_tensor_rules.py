"""Resolve a role table and a rule to the numbers of every tensor, multipliers folded in."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from hptransfer._messages import check_name
from hptransfer.adopt._fold_multipliers import (
    Folder,
    Unfolded,
    UnfoldedMultiplierError,
    check_applied,
)
from hptransfer.adopt.role_table import AttentionHeads, ParameterRole, RoleTable
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
    Setting,
    TensorRole,
    compute_numbers,
    for_optimizer,
    parse_optimizer,
    parse_rule,
)
from hptransfer.scaling._resolve import check_count, check_number

_MUON_SHAPE = 0.5  # Muon's update goes as √max(1, rows/columns)

DECAY_SEMANTICS = ("lr", "relative", "independent")
"""What an optimizer's step shrinks a tensor by: lr · wd (``lr``, as torch's AdamW), lr /
initial lr · wd (``relative``), or wd (``independent``)."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hold how a rule is put to use: the keyword arguments of ``param_groups`` and ``init_``.

    Attributes
    ----------
    parameterization : str or Parameterization
        A name that ``scaling.parse_rule`` knows, or a rule (``scaling.load_rule`` reads one).
    lr, weight_decay, eps : float
        The tuned learning rate on ``axis``, λ, and Adam's ε at the base width.
    weight_decay_mode : str
        ``constant``, ``coupled`` or ``independent``.
    decay_semantics : str
        What the optimizer's step shrinks a tensor by: ``lr`` (lr · weight_decay, as torch's
        optimizers do), ``relative`` (lr / initial lr · weight_decay) or ``independent``
        (weight_decay). The groups' weight decay is such that the shrink is the rule's.
    optimizer : str
        One of ``scaling.OPTIMIZERS``.
    muon_lr : float or None
        Learning rate of the matrices that Muon takes; by default ``lr``.
    scale_eps : bool or None
        Whether Adam's ε falls with the gradients of what stands before the readout (1/m under µP).
        None: under rules that scale ε themselves, such as ``completep``.
    axis : str
        ``hidden-aligned`` or ``global``.
    num_layers, base_num_layers : int or None
        Blocks, here and at the base, for rules that depend on depth.
    head_size, base_head_size : int or None
        Attention head sizes; by default those that the model's modules state.
    query : str or iterable of str
        Names or patterns of the query projections, which absorb the attention scale.
    applied : iterable of str
        Multipliers that the model does itself: ``attention_scale``, ``residual_multiplier``,
        ``multipliers`` (all roles'), or one role's, such as ``readout_multiplier``.

    Examples
    --------
    >>> Options(parameterization="mup", lr=2**-6).optimizer
    'adamw'
    """

    parameterization: str | Parameterization
    lr: float = DEFAULT_BASE_LR
    weight_decay: float = DEFAULT_WEIGHT_DECAY
    weight_decay_mode: str = DEFAULT_WEIGHT_DECAY_MODE
    decay_semantics: str = "lr"
    optimizer: str = DEFAULT_OPTIMIZER
    muon_lr: float | None = None
    eps: float = DEFAULT_EPS
    scale_eps: bool | None = None
    axis: str = DEFAULT_AXIS
    num_layers: int | None = None
    base_num_layers: int | None = None
    head_size: int | None = None
    base_head_size: int | None = None
    query: str | Iterable[str] = ()
    applied: Iterable[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class TensorNumbers:
    """Hold what one tensor gets from a rule; `resolve_tensors` makes one for each.

    Attributes
    ----------
    entry : ParameterRole
        The tensor.
    optimizer : str
        The optimizer that takes it: with Muon, ``muon`` or ``adamw``.
    lr, weight_decay, eps : float
        Its group's numbers.
    init_std : float
        Standard deviation of its normal init; 0 for what starts at a constant.

    Examples
    --------
    >>> from torch import nn
    >>> from hptransfer.adopt import infer_roles
    >>> def make(width):
    ...     return nn.Sequential(nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 4))
    >>> table = infer_roles(make, base_width=64, width=256)
    >>> hidden = resolve_tensors(table, Options(parameterization="mup", lr=0.5))[2]
    >>> hidden.entry.name, hidden.optimizer, hidden.lr, hidden.init_std
    ('1.weight', 'adamw', 0.125, 0.0625)
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
    init_scales: Mapping[str, float] | None = None,
    by_muon: Collection[str] | None = None,
    problems: list[Unfolded] | None = None,
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
    init_scales : mapping of str to float, optional
        Factors on the default init std, by parameter, such as a scaling with depth.
    by_muon : collection of str, optional
        The parameters that Muon takes; by default the matrices whose two dimensions grow.
    problems : list, optional
        Takes the multipliers that no group can set, which otherwise are an error.

    Raises
    ------
    ConfigError
        If a name or number is wrong, the rule says nothing for the optimizer or for tied tables,
        or a multiplier can neither be absorbed nor is applied.

    Examples
    --------
    >>> from torch import nn
    >>> from hptransfer.adopt import infer_roles
    >>> def make(width):
    ...     return nn.Sequential(nn.Embedding(10, width), nn.Linear(width, width, bias=False),
    ...                          nn.Linear(width, 10, bias=False))
    >>> table = infer_roles(make, base_width=64, width=256)
    >>> for each in resolve_tensors(table, Options(parameterization="mup", lr=0.5)):
    ...     print(each.entry.role, each.lr, each.init_std)
    embedding 0.5 1.0
    hidden 0.125 0.0625
    readout 0.125 0.03125
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
    stds = _base_stds(table, rule, base_std, init_scales or {})
    if by_muon is None:
        by_muon = [
            entry.name
            for entry in table
            if entry.role in ("hidden", "hidden_residual")
            and len(entry.shape) == len(entry.infinite) == 2
        ]
    takes = [is_muon and entry.name in by_muon for entry in table]
    numbers = [
        compute_numbers(
            rule if muon else other,
            _rule_role(entry, rule),
            entry.fans,
            orthogonal if muon else setting,
            base_std=stds[k],
        )
        for k, (entry, muon) in enumerate(zip(table, takes, strict=True))
    ]
    folder = Folder(table, rule, check_applied(options.applied))
    factors = folder.fold(numbers, options.query, _heads(table, options))
    if problems is not None:
        problems += folder.problems
    elif folder.problems:
        raise UnfoldedMultiplierError(folder.problems[0])
    semantics = check_name("decay_semantics", options.decay_semantics, DECAY_SEMANTICS)
    eps_factors = _eps_factors(table, written, options)
    made = []
    for entry, each, muon, factor, eps_factor in zip(
        table, numbers, takes, factors, eps_factors, strict=True
    ):
        shape = 1.0
        if muon and entry.transposed:
            # The optimizer sees (fan_in, fan_out) and scales by √max(1, fan_in/fan_out).
            rows, columns = entry.fan_out, entry.fan_in
            shape = (max(1.0, rows / columns) / max(1.0, columns / rows)) ** _MUON_SHAPE
        lr = each.lr * factor**optimizer.equivalence * shape
        decay = each.weight_decay / (factor**optimizer.equivalence * shape)
        made.append(
            TensorNumbers(
                entry=entry,
                optimizer="muon" if muon else DEFAULT_OPTIMIZER if is_muon else optimizer.name,
                lr=lr,
                weight_decay=decay if semantics == "lr" else lr * decay,
                eps=each.eps * eps_factor / factor,
                init_std=each.init_std * factor,
            )
        )
    return made


def gradient_exponent(rule: Parameterization) -> float:
    """Return the power of m with which gradients of what stands before the readout go.

    They pass through the readout, whose entries go as m^(init + multiplier): −1 under µP.
    """
    readout = rule.roles["readout"]
    return readout.init + readout.multiplier


def _own_eps(rule: Parameterization, role: TensorRole) -> float:
    """Return the exponent of a role's ε beside that of its multiplier."""
    exponents = rule.get_exponents(role)
    return exponents.eps - exponents.multiplier


def scales_eps(rule: Parameterization) -> bool:
    """Tell whether a rule lets Adam's ε fall with width itself, as ``completep`` does."""
    return not rule.absolute and any(_own_eps(rule, role) != 0.0 for role in ROLES)


def _eps_factors(table: RoleTable, rule: Parameterization, options: Options) -> list[float]:
    """Return what each tensor's ε is multiplied by, beside what the rule itself says of it."""
    if options.scale_eps and rule.absolute:
        raise ConfigError(f"scale_eps: {rule.name} has no base width to scale ε from")
    wanted = scales_eps(rule) if options.scale_eps is None else options.scale_eps
    factor = table.width_mult ** gradient_exponent(rule) if wanted else 1.0
    return [
        factor
        if entry.role != "readout" and _own_eps(rule, entry.rule_role) == 0.0 and entry.infinite
        else 1.0
        for entry in table
    ]


def _rule_role(entry: ParameterRole, rule: Parameterization) -> TensorRole:
    """Return the role whose numbers the entry takes.

    A rule in the fans themselves does not ask what grows: a matrix from a fixed input is a matrix.
    """
    if rule.absolute and entry.role == "embedding" and not entry.is_table:
        return "hidden"
    return entry.rule_role


def _setting(table: RoleTable, rule: Parameterization, options: Options) -> Setting:
    told = options.num_layers, options.base_num_layers
    own = table.num_layers, table.base_num_layers
    layers = tuple(b if a is None else a for a, b in zip(told, own, strict=True))
    if rule.residual_depth and None in layers:
        raise ConfigError(
            f"{rule.name}: depends on depth; give num_layers and base_num_layers, found {layers}"
        )
    if table.num_layers is not None and not rule.residual_depth and None in told:
        raise ConfigError(
            f"{rule.name}: says nothing of depth, and the model has {table.num_layers} layers, "
            f"{table.base_num_layers} at the base width; let the factory build the target's depth "
            "at both widths, or use completep"
        )
    num_layers = check_count("num_layers", 1 if layers[0] is None else layers[0])
    base_layers = num_layers if layers[1] is None else layers[1]
    return Setting(
        width_mult=table.width_mult,
        num_layers=num_layers,
        base_num_layers=check_count("base_num_layers", base_layers),
        base_lr=check_number("lr", options.lr, zero=False),
        weight_decay=check_number("weight_decay", options.weight_decay, zero=True),
        eps=check_number("eps", options.eps, zero=False),
        mode=options.weight_decay_mode,
        axis=options.axis,
    )


def _heads(table: RoleTable, options: Options) -> list[AttentionHeads]:
    """Return the head sizes by module, or those that the caller gives for the whole model."""
    told = {"head_size": options.head_size, "base_head_size": options.base_head_size}
    for key, value in told.items():
        if value is not None:
            check_count(key, value)
    if table.heads and set(told.values()) == {None}:
        return list(table.heads)
    head_size = options.head_size or table.head_size
    if head_size is None:
        return []
    base = options.base_head_size or table.base_head_size or head_size
    return [AttentionHeads(module="", head_size=head_size, base_head_size=base)]


def _base_stds(
    table: RoleTable,
    rule: Parameterization,
    told: float | Mapping[str, float] | None,
    init_scales: Mapping[str, float],
) -> list[float | None]:
    """Return each parameter's init std at the base width; None for the rule's own."""
    stds = {e.name: _default_std(e, rule, init_scales.get(e.name)) for e in table}
    by_key = dict.fromkeys(ROLES, told) if isinstance(told, int | float) else dict(told or {})
    for key, value in by_key.items():
        std = check_number(f"base_std of {key}", value, zero=True)
        of_role = [entry for entry in table if entry.rule_role == key]
        for entry in of_role if key in ROLES else table.match("base_std", key):
            if entry.rule_role not in ("norm", "bias", "other"):
                stds[entry.name] = std
    return list(stds.values())


def _default_std(entry: ParameterRole, rule: Parameterization, scale: float | None) -> float | None:
    """Return a parameter's default init std at the base width; None for the rule's own."""
    if entry.role == "tied":
        # Its logits start near 0: at 1/√width, or at the model's own std where that is smaller.
        return float(entry.base_fan_out**-0.5) * (1.0 if scale is None else scale)
    if scale is not None and not rule.absolute:
        return float(entry.base_fan_in**-0.5) * scale
    if entry.role == "embedding" and not entry.is_table and not rule.absolute:
        # A matrix from a fixed input starts at 1/√fan_in, as any matrix; tables at 1.
        return float(entry.base_fan_in**-0.5)
    return None
