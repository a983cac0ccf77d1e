"""Multipliers that a rule wants and groups cannot set: absorbed where exact, else refused.

A tensor W behind a multiplier s is the tensor V = sW without one (abc-equivalence): the rule's
multipliers go into the tensor's init, learning rate, ε and weight decay. Where they cannot, the
rule names the number and the place, and refuses until ``applied`` says that the model does it.
"""

from collections.abc import Iterable, Mapping, Sequence

from hptransfer.adopt.table import ParameterRole, RoleTable
from hptransfer.adopt.told import match_names
from hptransfer.errors import ConfigError
from hptransfer.scaling import MATRIX_ROLES, ROLES, Parameterization, RoleNumbers
from hptransfer.scaling.checks import check_name

ALL_MULTIPLIERS = "multipliers"
ATTENTION = "attention_scale"
RESIDUAL = "residual_multiplier"
READOUT = "readout_multiplier"

APPLICABLE: tuple[str, ...] = (
    ATTENTION,
    RESIDUAL,
    ALL_MULTIPLIERS,
    *(f"{role}_multiplier" for role in ROLES),
)
"""What ``applied`` may hold; ``multipliers`` means every role's."""


def check_applied(applied: Iterable[str]) -> frozenset[str]:
    """Return what the caller says the model does itself, or raise ConfigError for other words."""
    words = [applied] if isinstance(applied, str) else applied
    return frozenset(check_name("applied", word, APPLICABLE) for word in words)


def find_factors(
    table: RoleTable,
    rule: Parameterization,
    numbers: Sequence[RoleNumbers],
    *,
    applied: frozenset[str],
    query: Sequence[str],
    head_sizes: tuple[int | None, int | None],
) -> list[float]:
    """Return the multiplier s that each tensor of the table absorbs.

    Parameters
    ----------
    table : RoleTable
        The model's parameters.
    rule : Parameterization
        For the optimizer in use.
    numbers : sequence of RoleNumbers
        The rule's numbers, one for each parameter.
    applied : frozenset of str
        What the model does itself.
    query : sequence of str
        Names or patterns of the query projections, which may absorb the attention scale.
    head_sizes : tuple of (int or None)
        Head size, and that at the base width.

    Raises
    ------
    ConfigError
        If a multiplier can neither be absorbed nor is applied.
    """
    factors = [
        _role_factor(entry, rule, each, applied) for entry, each in zip(table, numbers, strict=True)
    ]
    residual = _residual_factors(table, rule, numbers, applied)
    attention = _attention_factors(table, rule, applied, query, head_sizes)
    return [
        factor * residual.get(_module_of(entry), 1.0) * attention.get(_module_of(entry), 1.0)
        for factor, entry in zip(factors, table, strict=True)
    ]


def _module_of(entry: ParameterRole) -> str:
    """Return the path of the module that holds the parameter: its bias has the same."""
    return entry.name.rpartition(".")[0]


def _role_factor(
    entry: ParameterRole, rule: Parameterization, numbers: RoleNumbers, applied: frozenset[str]
) -> float:
    if entry.role == "tied":
        _check_tied(entry, rule, numbers, applied)
    if numbers.multiplier == 1.0 or {ALL_MULTIPLIERS, f"{entry.rule_role}_multiplier"} & applied:
        return 1.0
    if entry.rule_role in MATRIX_ROLES or (entry.rule_role == "embedding" and entry.role != "tied"):
        return numbers.multiplier
    raise ConfigError(
        f"{rule.name}: the output of {entry.name!r} ({entry.role}) is multiplied by "
        f"{numbers.multiplier:.6g}, which no group can set; do it in the model and say "
        f'applied={{"{entry.rule_role}_multiplier"}}'
    )


def _check_tied(
    entry: ParameterRole, rule: Parameterization, numbers: RoleNumbers, applied: frozenset[str]
) -> None:
    if rule.tied_readout is None:
        raise ConfigError(
            f"{rule.name}: {entry.name!r} is embedding and readout at once ({entry.tied[0]!r}), "
            "for which the rule says nothing; untie them, or use mup or completep"
        )
    multiplier = (entry.fan_out / entry.base_fan_out) ** rule.tied_readout
    if multiplier != 1.0 and not {ALL_MULTIPLIERS, READOUT} & applied:
        raise ConfigError(
            f"{rule.name}: logits of the tied table {entry.name!r} are multiplied by "
            f"{multiplier:.6g}, which no group can set; do it in the model and say "
            f'applied={{"{READOUT}"}}'
        )


def _residual_factors(
    table: RoleTable,
    rule: Parameterization,
    numbers: Sequence[RoleNumbers],
    applied: frozenset[str],
) -> Mapping[str, float]:
    """Return, by module, the residual multiplier that its weight and bias absorb."""
    if rule.residual_depth == 0.0 or RESIDUAL in applied:
        return {}
    factors = {
        _module_of(entry): each.residual_multiplier
        for entry, each in zip(table, numbers, strict=True)
        if entry.role == "hidden_residual"
    }
    if factors:
        return factors
    raise ConfigError(
        f"{rule.name}: residual branches are multiplied by (num_layers / base_num_layers)"
        f'^{rule.residual_depth:g}; tell the projections onto the residual stream (roles={{"…": '
        f'"hidden_residual"}}), or do it in the model and say applied={{"{RESIDUAL}"}}'
    )


def _attention_factors(
    table: RoleTable,
    rule: Parameterization,
    applied: frozenset[str],
    query: Sequence[str],
    head_sizes: tuple[int | None, int | None],
) -> Mapping[str, float]:
    """Return, by module, what the query projections absorb of the attention logit scale."""
    head_size, base_head_size = head_sizes
    if ATTENTION in applied:
        return {}
    if rule.absolute and head_size is None:
        raise ConfigError(
            f"{rule.name}: attention logits are multiplied by H^{rule.attention:g}, and no module "
            f'states the head size H; give head_size, or say applied={{"{ATTENTION}"}} where the '
            "model does it or has no attention"
        )
    if head_size is None or base_head_size is None:
        return {}
    base = 1 if rule.absolute else base_head_size
    scale = base**-0.5 * (head_size / base) ** rule.attention
    factor = scale * head_size**0.5
    if abs(factor - 1.0) < 1e-12:
        return {}
    if not query:
        raise ConfigError(
            f"{rule.name}: attention logits are multiplied by {scale:.6g} at head size "
            f"{head_size}, not by 1/√{head_size} = {head_size**-0.5:.6g}, which no group can set; "
            f'do it in the model and say applied={{"{ATTENTION}"}}, or name the query projections '
            'that absorb it (query="*.q_proj.weight")'
        )
    names = [(entry.name, *entry.tied) for entry in table]
    entries = table.parameters
    hits = {k for key in query for k in match_names(f"query: {key!r}", key, names)}
    for k in sorted(hits):
        _check_query(entries[k], entries, rule, scale)
    return {_module_of(entries[k]): factor for k in sorted(hits)}


def _check_query(
    entry: ParameterRole, entries: Sequence[ParameterRole], rule: Parameterization, scale: float
) -> None:
    """Raise if the attention scale cannot be absorbed by this query projection exactly."""
    around = _module_of(entry).rpartition(".")[0]
    normed = [
        each.name
        for each in entries
        if each.role == "norm" and _module_of(each).rpartition(".")[0] == around
    ]
    why = None
    if entry.role == "bias":
        return
    if entry.role != "hidden":
        why = f"it is {entry.role}, not hidden"
    elif entry.fan_out >= 2 * entry.fan_in:
        why = "it seems to hold queries, keys and values in one"
    elif normed:
        why = f"{normed[0]!r} normalises what it puts out"
    if why:
        raise ConfigError(
            f"query: {entry.name!r} cannot absorb {rule.name}'s attention scale {scale:.6g}: "
            f'{why}; do it in the model and say applied={{"{ATTENTION}"}}'
        )
