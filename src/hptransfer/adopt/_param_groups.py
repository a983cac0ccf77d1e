"""Make ordinary ``torch.optim`` param groups, one for each distinct setting that a rule gives."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Unpack

from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from hptransfer.adopt._parameters import named_tensors, shorten_names
from hptransfer.adopt._tensor_rules import (
    Options,
    RuleKeywords,
    TensorNumbers,
    gradient_exponent,
    resolve_tensors,
    scales_eps,
)
from hptransfer.adopt.role_table import ParameterRole, RoleTable
from hptransfer.errors import ConfigError
from hptransfer.scaling import DEFAULT_EPS, Parameterization, parse_optimizer, parse_rule

RULE_LR = "rule_lr"
"""The key of a group that holds the learning rate that the rule gave; ``guard`` reads it."""

RULE_DECAY = "rule_weight_decay"
"""The key of a group that holds the weight decay that the rule gave."""

RULE_OPTIMIZER = "rule_optimizer"
"""The key of a group that names the optimizer that the rule's numbers are for."""

DECAY_SEMANTICS_KEY = "decay_semantics"
"""The key of a group that says what its weight decay is for; see `Options`."""

TUNED_LR = "tuned_lr"
"""The key of a group that holds η, the learning rate that ``param_groups`` was given."""

_DIGITS = 12  # significant digits at which two settings are the same one

_MUON_SCALE = {"muon": "original", "muon-matched": "match_rms_adamw"}

_FAR = 8.0  # width ratio from which an ε that does not fall holds updates back

_LOG = logging.getLogger("hptransfer")
_LOGGED: set[str] = set()


class ParamGroups(list[dict[str, Any]]):
    """The groups that ``param_groups`` returns: a list of dicts, and what is to be said of them.

    ``print`` shows one line for each group.

    Attributes
    ----------
    names : list of list of str
        Names of each group's parameters.
    notes : tuple of str
        What one should know of the groups: which optimizer takes how many parameters, an ε that
        holds updates back. They are logged as warnings too.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        names: Iterable[list[str]] = (),
        notes: Iterable[str] = (),
    ) -> None:
        super().__init__(groups)
        self.names = list(names)
        self.notes = tuple(notes)

    def __str__(self) -> str:
        lines = [
            f"{group['name']}: lr {group['lr']:g}, wd {group['weight_decay']:g}, "
            + (f"eps {group['eps']:g}, " if "eps" in group else "")
            + f"{len(group['params'])} tensors, {_count(group):,} parameters"
            + (f", by {group['optimizer']}" if "optimizer" in group else "")
            for group in self
        ]
        return "\n".join([*lines, *self.notes])


def param_groups(
    model: nn.Module,
    *,
    roles: RoleTable | None = None,
    parameterization: str | Parameterization,
    lr: float,
    skip_frozen: bool = False,
    partial: bool = False,
    base: RoleTable | None = None,
    **options: Unpack[RuleKeywords],
) -> ParamGroups:
    """Make param groups for ``torch.optim`` that carry a rule's numbers.

    Parameters
    ----------
    model : torch.nn.Module
        The model that is trained, bare or wrapped (``torch.compile``, DDP, FSDP).
    roles : RoleTable
        Its parameters' roles, from ``infer_roles``.
    parameterization : str or Parameterization
        A rule's name (the lattice from ``sp`` to ``mup``, ``everett-full``, ``everett-none``,
        ``hayou-liu``, ``completep``, ``u-mup``), or a rule of one's own.
    lr : float
        The tuned learning rate on ``axis``.
    skip_frozen : bool
        Leave out parameters with ``requires_grad=False``, which otherwise are an error.
    partial : bool
        Take a model that holds a part of the table's parameters, as a pipeline stage does, or
        shards of them, as a tensor-parallel rank with plain tensors does.
    base : RoleTable, optional
        Another name of ``roles``.
    **options
        ``weight_decay``, ``weight_decay_mode``, ``decay_semantics``, ``optimizer``, ``muon_lr``,
        ``eps``, ``scale_eps``, ``axis``, ``num_layers``, ``base_num_layers``, ``head_size``,
        ``base_head_size``, ``query`` and ``applied``: docs/adopt.md says what each does.

    Returns
    -------
    ParamGroups
        A list of dicts with ``params``, ``name``, ``lr``, ``weight_decay``, ``rule_lr``,
        ``rule_weight_decay`` and ``rule_optimizer`` (what ``guard`` compares with), ``tuned_lr``
        and, where the optimizer is of Adam's family, ``eps``. With Muon each group also has
        ``optimizer``, ``muon`` or ``adamw``: to which of the two it belongs. Make the optimizer
        as ``AdamW(groups, lr=lr)``, so that schedulers that read its default see the right one.

    Raises
    ------
    ConfigError
        If the table does not cover the model, a parameter is frozen, the rule says nothing for the
        optimizer, or a multiplier can neither be absorbed nor is applied.

    Examples
    --------
    >>> from torch import nn, optim
    >>> from hptransfer.adopt import infer_roles
    >>> def make(width):
    ...     return nn.Sequential(nn.Embedding(10, width), nn.Linear(width, width),
    ...                          nn.Linear(width, 10, bias=False))
    >>> roles = infer_roles(make, base_width=64, width=256)
    >>> groups = param_groups(make(256), roles=roles, parameterization="mup", lr=0.5,
    ...                       weight_decay=0.25)
    >>> print(groups)
    embedding: lr 0.5, wd 0.25, eps 1e-08, 1 tensors, 2,560 parameters
    hidden+readout: lr 0.125, wd 1, eps 1e-08, 2 tensors, 68,096 parameters
    bias: lr 0.5, wd 0, eps 1e-08, 1 tensors, 256 parameters
    >>> optimizer = optim.AdamW(groups, lr=0.5)
    """
    table = pick_table(roles, base)
    settings = Options(parameterization=parameterization, lr=lr, **options)
    found = match_model(model, table, partial=partial, shards=partial)
    groups: dict[tuple[object, ...], dict[str, Any]] = {}
    members: dict[tuple[object, ...], list[TensorNumbers]] = {}
    for numbers in resolve_tensors(table, settings):
        if numbers.entry.name not in found:
            continue
        name, parameter = found[numbers.entry.name]
        if not parameter.requires_grad:
            if skip_frozen:
                continue
            raise ConfigError(
                f"param_groups: {name!r} is frozen (requires_grad=False); unfreeze it, or leave "
                "frozen parameters out with skip_frozen=True"
            )
        group = _group(numbers, settings)
        key = tuple(
            float(f"{value:.{_DIGITS - 1}e}") if isinstance(value, float) else value
            for value in group.values()
        )
        groups.setdefault(key, group | {"params": []})["params"].append(parameter)
        members.setdefault(key, []).append(numbers)
    for key, name in zip(groups, _names(list(members.values())), strict=True):
        groups[key]["name"] = name
        _remember(groups[key])
    made = list(groups.values())
    notes = [*_note_muon(made, members, settings), *_note_eps(table, made, settings)]
    for note in notes:
        if note not in _LOGGED:
            _LOGGED.add(note)
            _LOG.warning("%s", note)
    return ParamGroups(made, [[each.entry.name for each in m] for m in members.values()], notes)


def pick_table(roles: RoleTable | None, base: RoleTable | None) -> RoleTable:
    """Return the role table, given under either of its two names.

    Raises
    ------
    ConfigError
        If none is given, both are, or it is no table.
    """
    given = [each for each in (roles, base) if each is not None]
    if len(given) == 1 and isinstance(given[0], RoleTable):
        return given[0]
    found = (
        "both roles and base" if len(given) == 2 else type(given[0]).__name__ if given else "none"
    )
    raise ConfigError(f"roles: expected the table that infer_roles returns, found {found}")


def _group(numbers: TensorNumbers, settings: Options) -> dict[str, Any]:
    group: dict[str, Any] = {
        "lr": numbers.lr,
        "weight_decay": numbers.weight_decay,
        RULE_LR: numbers.lr,
        RULE_DECAY: numbers.weight_decay,
        RULE_OPTIMIZER: numbers.optimizer,
        DECAY_SEMANTICS_KEY: settings.decay_semantics,
        TUNED_LR: float(settings.lr),
    }
    is_muon = settings.optimizer in _MUON_SCALE
    if numbers.optimizer == "muon":
        group["adjust_lr_fn"] = _MUON_SCALE[settings.optimizer]
        if settings.muon_lr is not None:
            group[TUNED_LR] = float(settings.muon_lr)
    elif parse_optimizer(settings.optimizer).has_eps:
        group["eps"] = numbers.eps
    return group | ({"optimizer": numbers.optimizer} if is_muon else {})


def _names(members: Sequence[Sequence[TensorNumbers]]) -> list[str]:
    """Name each group by its roles, and by its tensors' fan-in ratio where that is not enough."""
    roles = ["+".join(dict.fromkeys(each.entry.role for each in group)) for group in members]
    names: list[str] = []
    for name, group in zip(roles, members, strict=True):
        if roles.count(name) > 1:
            entry = group[0].entry
            name += f" fan_in x{entry.fan_in / entry.base_fan_in:g}"
        if name in names:
            name += f" ({group[0].entry.name})"
        names.append(name)
    return names


def _count(group: dict[str, Any]) -> int:
    return sum(int(parameter.numel()) for parameter in group["params"])


def _note_muon(
    groups: Sequence[dict[str, Any]],
    members: dict[tuple[object, ...], list[TensorNumbers]],
    settings: Options,
) -> list[str]:
    """Say how many parameters each of two optimizers takes, and what Muon cannot take apart."""
    if settings.optimizer not in _MUON_SCALE:
        return []
    counts = {"muon": 0, "adamw": 0}
    for group in groups:
        counts[group["optimizer"]] += _count(group)
    total = sum(counts.values()) or 1
    notes = [
        f"param_groups: Muon takes {100 * counts['muon'] / total:.3g} % of the parameters and "
        f"AdamW {100 * counts['adamw'] / total:.3g} %"
    ]
    entries = [each.entry for group in members.values() for each in group]
    stacked = [each.name for each in entries if _is_hidden(each) and len(each.shape) > 2]
    if stacked:
        notes.append(
            f"param_groups: {shorten_names(stacked)} hold stacks of matrices, which torch's Muon "
            "does not take: AdamW trains them; a Muon that orthogonalises each one, or one "
            "parameter for each expert, would"
        )
    narrow = [
        each.name
        for each in entries
        if _is_hidden(each) and len(each.shape) == 2 and len(each.infinite) < 2
    ]
    if narrow:
        notes.append(
            f"param_groups: {shorten_names(narrow)} have one dimension that does not grow: AdamW "
            "trains them"
        )
    return notes


def _is_hidden(entry: ParameterRole) -> bool:
    return entry.role in ("hidden", "hidden_residual")


def _note_eps(table: RoleTable, groups: Sequence[dict[str, Any]], settings: Options) -> list[str]:
    """Say where Adam's ε stays while the gradients fall with width."""
    rule, m = parse_rule(settings.parameterization), table.width_mult
    falls = gradient_exponent(rule) <= -1.0 and not rule.absolute
    stays = any(group.get("eps") == settings.eps for group in groups)
    if not (falls and stays and settings.scale_eps is None and m >= _FAR):
        return []
    if settings.eps < DEFAULT_EPS or scales_eps(rule):
        return []
    return [
        f"param_groups: under {rule.name} the gradients of tables and hidden matrices fall {m:g} "
        f"times and eps stays {settings.eps:g}, which holds rare rows back; give scale_eps=True "
        "(eps / m there), or a smaller eps"
    ]


_GIVEN: Any = WeakTensorKeyDictionary()
"""By parameter, the learning rates and decays that param_groups gave in this process."""


def _remember(group: dict[str, Any]) -> None:
    for parameter in group["params"]:
        given = _GIVEN.setdefault(parameter, set())
        given.add((group[RULE_LR], group[RULE_DECAY]))


def rules_given(parameters: Iterable[nn.Parameter]) -> set[tuple[float, float]]:
    """Return the (lr, weight decay) that param_groups gave to these parameters.

    Returns
    -------
    set
        Empty where the groups were made in another process, or for other tensors.
    """
    first = next(iter(parameters), None)
    return set() if first is None else set(_GIVEN.get(first, ()))


# The model beside the table


def match_model(
    model: nn.Module, table: RoleTable, *, partial: bool = False, shards: bool = False
) -> dict[str, tuple[str, nn.Parameter]]:
    """Return the model's parameters with their names, by the name of the table's entry.

    Parameters
    ----------
    model : torch.nn.Module
        Bare or wrapped.
    table : RoleTable
        Its roles.
    partial : bool
        Whether entries of the table may be missing in the model.
    shards : bool
        Whether a parameter may be a shard, smaller in one dimension.

    Raises
    ------
    ConfigError
        If one is missing on either side, or a shape differs.
    """
    found = dict(named_tensors(model))
    names = {name: entry.name for entry in table for name in (entry.name, *entry.tied)}
    for name, parameter in found.items():
        if name not in names:
            raise _unknown(name, parameter)
    by_entry = {names[name]: (name, parameter) for name, parameter in found.items()}
    for entry in table:
        if entry.name not in by_entry:
            if partial:
                continue
            raise ConfigError(
                f"role table: {entry.name!r} is in the table and no parameter of the model; "
                "make the table from the same factory, or say partial=True where the model is a "
                "part of it, such as a pipeline stage"
            )
        parameter = by_entry[entry.name][1]
        shape = tuple(parameter.shape)
        if shape == entry.shape or tuple(getattr(parameter, "ds_shape", ())) == entry.shape:
            continue
        if shards and _is_shard(shape, entry.shape):
            continue
        raise _other_shape(entry, shape, table, is_zero=hasattr(parameter, "ds_id"))
    if len(by_entry) != len(found):
        one = next(name for name in found if by_entry[names[name]][0] != name)
        raise ConfigError(
            f"role table: {one!r} and {by_entry[names[one]][0]!r} are one parameter in the table "
            "and two in the model; tie them as the factory does"
        )
    return {entry.name: by_entry[entry.name] for entry in table if entry.name in by_entry}


def _is_shard(shape: Sequence[int], whole: Sequence[int]) -> bool:
    if len(shape) != len(whole):
        return False
    smaller = [(a, b) for a, b in zip(shape, whole, strict=True) if a != b]
    return len(smaller) == 1 and smaller[0][0] < smaller[0][1]


def _unknown(name: str, parameter: nn.Parameter) -> ConfigError:
    if "_flat_param" in name:
        return ConfigError(
            f"role table: {name!r} is FSDP1's flat parameter, in which many are one; wrap with "
            "FullyShardedDataParallel(…, use_orig_params=True), or use fully_shard (FSDP2)"
        )
    return ConfigError(
        f"role table: {name!r}, shape {tuple(parameter.shape)}, is a parameter of the "
        "model and not in the table; make the table from the same factory"
    )


def _other_shape(
    entry: ParameterRole, shape: tuple[int, ...], table: RoleTable, *, is_zero: bool
) -> ConfigError:
    what = (
        f"role table: {entry.name!r} has shape {entry.shape} in the table (width {table.width}) "
        f"and {shape} in the model"
    )
    if is_zero or shape == (0,):
        return ConfigError(
            f"{what}: DeepSpeed's ZeRO has taken it apart; call init_ and param_groups before "
            "deepspeed.initialize, and guard(engine.optimizer) after"
        )
    if _is_shard(shape, entry.shape):
        return ConfigError(
            f"{what}: a shard as a plain tensor; use DTensors (FSDP2, parallelize_module), or make "
            "groups with partial=True, and initial weights before sharding"
        )
    return ConfigError(what)
