"""Ordinary ``torch.optim`` param groups, one for each distinct setting that a rule gives."""

from collections.abc import Sequence
from typing import Any, Unpack

from torch import nn

from hptransfer.adopt.keywords import RuleKeywords
from hptransfer.adopt.names import match_model
from hptransfer.adopt.resolve import Options, TensorNumbers, resolve_tensors
from hptransfer.adopt.table import RoleTable
from hptransfer.errors import ConfigError
from hptransfer.scaling import Parameterization, parse_optimizer

RULE_LR = "rule_lr"
"""The key of a group that holds the learning rate that the rule gave; ``guard`` reads it."""

_DIGITS = 12  # significant digits at which two settings are the same one

_MUON_SCALE = {"muon": "original", "muon-matched": "match_rms_adamw"}


def param_groups(
    model: nn.Module,
    *,
    base: RoleTable,
    parameterization: str | Parameterization,
    lr: float,
    skip_frozen: bool = False,
    **options: Unpack[RuleKeywords],
) -> list[dict[str, Any]]:
    """Return param groups for ``torch.optim``, each with a readable ``name``.

    Parameters
    ----------
    model : torch.nn.Module
        The model that is trained, bare or wrapped (``torch.compile``, DDP, FSDP).
    base : RoleTable
        Its roles, from ``infer_roles``.
    parameterization : str or Parameterization
        A rule's name (the lattice from ``sp`` to ``mup``, ``everett-full``, ``everett-none``,
        ``hayou-liu``, ``completep``, ``u-mup``), or a rule of one's own.
    lr : float
        The tuned learning rate on ``axis``.
    skip_frozen : bool
        Leave out parameters with ``requires_grad=False``, which otherwise are an error.
    **options
        ``weight_decay``, ``weight_decay_mode``, ``optimizer``, ``muon_lr``, ``eps``, ``axis``,
        ``num_layers``, ``base_num_layers``, ``head_size``, ``base_head_size``, ``query`` and
        ``applied``; see ``resolve.Options``.

    Returns
    -------
    list of dict
        With ``params``, ``name``, ``lr``, ``weight_decay``, ``rule_lr`` (what ``guard`` compares
        with) and, where the optimizer is of Adam's family, ``eps``. With Muon each group also has
        ``optimizer``, ``muon`` or ``adamw``, which says to which of the two it belongs.

    Raises
    ------
    ConfigError
        If the table does not cover the model, a parameter is frozen, the rule says nothing for the
        optimizer, or a multiplier can neither be absorbed nor is applied.
    """
    settings = Options(parameterization=parameterization, lr=lr, **options)
    found = match_model(model, base)
    groups: dict[tuple[object, ...], dict[str, Any]] = {}
    members: dict[tuple[object, ...], list[TensorNumbers]] = {}
    for numbers, (name, parameter) in zip(resolve_tensors(base, settings), found, strict=True):
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
    return list(groups.values())


def _group(numbers: TensorNumbers, settings: Options) -> dict[str, Any]:
    group: dict[str, Any] = {
        "lr": numbers.lr,
        "weight_decay": numbers.weight_decay,
        RULE_LR: numbers.lr,
    }
    is_muon = settings.optimizer in _MUON_SCALE
    if numbers.optimizer == "muon":
        group["adjust_lr_fn"] = _MUON_SCALE[settings.optimizer]
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
