"""Audit what a model and its optimizer do today, tensor by tensor, against the rules.

Factors are from the base width to the width; learning rates' are relative to the hidden layers',
so that they do not depend on how the one tuned learning rate is written.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from torch import nn

from hptransfer.adopt._audit_findings import (
    CLEAR,
    ENOUGH,
    MUP,
    SAME_EXPONENT,
    AuditMeasures,
    Numbers,
    TensorAudit,
    find_warnings,
    same,
    say_factor,
)
from hptransfer.adopt._fold_multipliers import check_applied
from hptransfer.adopt._optimizers import MakeOptimizer, OptimizerSnapshot, read_optimizer
from hptransfer.adopt._parameters import find_token_table, list_parameters
from hptransfer.adopt._user_model import Factory, build_model
from hptransfer.errors import ConfigError
from hptransfer.scaling import BEYOND_LATTICE, LATTICE, Parameterization, parse_rule
from hptransfer.scaling._resolve import check_count

DEFAULT_RULE = "mup"

_EMBEDDING = ("embedding", "tied")
_INPUTS = "what multiplies inputs of a fixed size"  # a stem, or the second of low-rank factors


@dataclass(frozen=True, kw_only=True)
class RoleAudit(Numbers):
    """One role's ``num_tensors`` trained tensors, summed up; numbers are medians over them.

    No verdict rests on it: each tensor is judged by its own numbers.
    """

    num_tensors: int


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Whether the embedding layer is held back.

    Attributes
    ----------
    held_back : bool
        Whether ``factor`` is clearly above 1.
    factor : float
        The learning rate that µP gives the table that is furthest behind, over today's, at the
        width.
    verdict, fix : str
        In words, one line each; no fix where none is needed.
    """

    held_back: bool
    factor: float
    verdict: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One warning: its kind, for programs, and its one line."""

    kind: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The rule that today's numbers are, tensor by tensor.

    Attributes
    ----------
    lr, init : str or None
        The first rule whose learning rates, and whose init, go with width as today's; None for
        no rule.
    axis : str
        ``hidden-aligned`` where the hidden learning rate falls as the rule's, ``global`` where it
        stays, else ``own``.
    """

    lr: str | None
    init: str | None
    axis: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Hold what ``audit`` found; ``to_dict`` is the document of ``hptransfer audit --json``.

    Attributes
    ----------
    model, optimizer, optimizer_class : str
        What was looked at.
    width, base_width : int
        The target's and the proxy's.
    init_width, init_base_width : int or None
        The widths between which initial weights are looked at: ``width`` and ``base_width`` unless
        those models are too big to build; None where they were not looked at.
    parameterization : str
        The rule compared with.
    tensors : tuple of TensorAudit
        Every trained tensor.
    roles : mapping of str to RoleAudit
        The tensors summed up by role, for reading; empty where the model is another one at the
        base width.
    nearest : Nearest or None
        The rule that today's numbers are.
    embedding : Embedding or None
        The verdict; None without an embedding.
    warnings : tuple of Finding
        All else that is wrong.

    Examples
    --------
    >>> from torch import nn
    >>> def make(width):
    ...     return nn.Sequential(nn.Embedding(50, width), nn.Linear(width, width, bias=False),
    ...                          nn.Linear(width, 50, bias=False))
    >>> found = audit(make, base_width=64, width=256)
    >>> found.embedding.held_back, found.nearest.lr, found.width_mult
    (True, 'sp', 4.0)
    >>> [warning.kind for warning in found.warnings]
    ['init']
    """

    model: str
    optimizer: str
    optimizer_class: str
    width: int
    base_width: int
    init_width: int | None
    init_base_width: int | None
    parameterization: str
    tensors: tuple[TensorAudit, ...] = ()
    roles: Mapping[str, RoleAudit] = field(default_factory=dict)
    nearest: Nearest | None = None
    embedding: Embedding | None = None
    warnings: tuple[Finding, ...] = ()

    @property
    def width_mult(self) -> float:
        """The width ratio m = width / base_width."""
        return self.width / self.base_width

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, schema 1."""
        return {"schema": 1, **asdict(self), "width_mult": self.width_mult}


def audit(
    factory: Factory,
    *,
    base_width: int,
    width: int,
    optimizer: MakeOptimizer | None = None,
    parameterization: str | Parameterization = DEFAULT_RULE,
    roles: Mapping[str, str] | None = None,
    applied: str | Iterable[str] = (),
    model_name: str = "factory",
    optimizer_name: str = "",
    say_applied: Callable[[str], str] | None = None,
) -> Audit:
    """Compare what a model and its optimizer do today to each tensor with a rule.

    Parameters
    ----------
    factory : callable
        From a width to the model, with its initial weights.
    base_width, width : int
        The proxy's and the target's.
    optimizer : callable, optional
        From a model, or from (width, model), to what trains it: an optimizer, several, or param
        groups. By default ``torch.optim.AdamW(model.parameters())``.
    parameterization : str or Parameterization
        The rule whose numbers stand beside today's.
    roles : mapping of str to str, optional
        As for ``infer_roles``.
    applied : str or iterable of str
        Multipliers that the model does itself, as for ``param_groups``.
    model_name, optimizer_name : str
        How the result calls them.
    say_applied : callable, optional
        Words how ``applied`` is given, for a command.

    Returns
    -------
    Audit
        Every trained tensor, the verdict on the look-up tables, and warnings.

    Raises
    ------
    ConfigError
        If a name or number is wrong, the user's functions fail, a parameter is in no group, or a
        role cannot be told.

    Examples
    --------
    >>> from torch import nn
    >>> def make(width):
    ...     return nn.Sequential(nn.Embedding(50, width), nn.Linear(width, width, bias=False),
    ...                          nn.Linear(width, 50, bias=False))
    >>> found = audit(make, base_width=64, width=256)
    >>> found.embedding.factor
    4.0
    >>> print(found.embedding.fix)
    give '0.weight' a group of their own with lr=0.004 at width 256, 4 times today's
    """
    base_width, width = check_count("base_width", base_width), check_count("width", width)
    if width <= base_width:
        raise ConfigError(f"width: expected more than base_width {base_width}, found {width}")
    rule = parse_rule(parameterization)
    given = check_applied(applied)
    base, wide = (read_optimizer(factory, each, optimizer) for each in (base_width, width))
    models = [build_model(factory, each) for each in (base_width, width)]
    tied = [any(each.is_tied_table for each in list_parameters(model)) for model in models]
    warnings = [*_warn_of_frozen(wide), *_warn_of_models(models, tied)]
    found = Audit(
        model=model_name,
        optimizer=optimizer_name or "torch.optim.AdamW(model.parameters())",
        optimizer_class=", ".join(wide.classes),
        width=width,
        base_width=base_width,
        init_width=None,
        init_base_width=None,
        parameterization=rule.name,
    )
    if tied[0] == tied[1]:
        told = {**_tell_readouts(*models), **(roles or {})}
        measures = AuditMeasures(
            factory, base=base, wide=wide, roles=told, rule=rule, applied=given
        )
        warnings += find_warnings(measures, say_applied)
        looked = measures.init_widths or (None, None)
        found = replace(
            found,
            init_base_width=looked[0],
            init_width=looked[1],
            tensors=measures.tensors,
            roles=_sum_up(measures.by_role),
            nearest=_find_nearest(measures),
            embedding=_judge_embedding(measures),
        )
    findings = tuple(Finding(kind=kind, message=message) for kind, message in warnings)
    return replace(found, warnings=findings)


# The two models


def _tell_readouts(base: nn.Module, wide: nn.Module) -> dict[str, str]:
    """Return the roles of readouts whose outputs follow a vocabulary that is another one.

    Both of their dimensions differ then, as a hidden matrix's do.
    """
    pairs = list(zip(base.named_modules(), wide.named_modules(), strict=False))
    rows = [
        (one.num_embeddings, other.num_embeddings)
        for (_, one), (_, other) in pairs
        if isinstance(one, nn.Embedding) and isinstance(other, nn.Embedding)
    ]
    return {
        f"{name}.weight": "readout"
        for (name, one), (_, other) in pairs
        if isinstance(one, nn.Linear)
        and isinstance(other, nn.Linear)
        and one.out_features != other.out_features
        and (one.out_features, other.out_features) in rows
    }


def _warn_of_models(models: Sequence[nn.Module], tied: Sequence[bool]) -> Iterator[tuple[str, str]]:
    """Yield in what the two models differ that transfer assumes equal."""
    tables = [find_token_table(model) for model in models]
    rows = [0 if each is None else each.num_embeddings for each in tables]
    for key, words, (one, other) in (("vocab_size", "vocabulary", rows), ("tied", "tying", tied)):
        if one != other:
            yield (
                key,
                f"proxy and target differ in {words} ({one} and {other}), which transfer across "
                "width assumes equal",
            )


def _warn_of_frozen(wide: OptimizerSnapshot) -> Iterator[tuple[str, str]]:
    if wide.frozen:
        yield (
            "frozen",
            f"{wide.frozen[0]!r} ({len(wide.frozen)} in all) is frozen: no rule holds for it",
        )


# Tensors and roles


def _sum_up(by_role: Mapping[str, Sequence[TensorAudit]]) -> dict[str, RoleAudit]:
    """Return the medians of the tensors' numbers by role."""
    return {
        role: RoleAudit(
            num_tensors=len(members),
            **{
                key: _middle(key, [getattr(each, key) for each in members])
                for key in Numbers.__dataclass_fields__
            },
        )
        for role, members in by_role.items()
    }


def _middle(key: str, values: Sequence[float | None]) -> Any:
    """Return a number's median: geometric of factors, and of stds without the constants' zeros."""
    known = [value for value in values if value is not None]
    if key.endswith("init_std") and known:
        known = [value for value in known if value] or [0.0]
    if key.endswith("factor"):
        return math.exp(median(map(math.log, known))) if known else None
    return median(known) if known else None


# Verdicts


def _judge_embedding(measures: AuditMeasures) -> Embedding | None:
    """Return whether a look-up table is held back, by what factor, and what mends it."""
    present = [entry for entry in measures.entries if entry.role in _EMBEDDING]
    entries = [entry for entry in present if entry.is_table] or present
    layer = "the embedding layer" if entries and entries[0].is_table else _INPUTS
    if not entries:
        return None
    (wanted, _), (today, _) = measures.find_lr_factors(MUP), measures.find_lr_factors()
    factors = {entry.name: wanted[entry.name] / today[entry.name] for entry in entries}
    worst = max(factors, key=lambda name: factors[name])
    factor = factors[worst]
    span = f"from width {measures.base.width} to {measures.wide.width}"
    beside = (
        f"its learning rate over the hidden layers' goes {say_factor(today[worst])} {span}, "
        f"{say_factor(wanted[worst])} under µP"
    )
    if factor <= CLEAR:
        ahead = "ahead of µP" if factor < 1 / CLEAR else "not held back"
        return Embedding(held_back=False, factor=factor, verdict=f"{layer} is {ahead}: {beside}")
    held = {name: each for name, each in factors.items() if each > CLEAR}
    subject = f"{layer} is held back by"
    if len(held) < len(factors) or not all(same(each, factor) for each in held.values()):
        names = ", ".join(map(repr, held))
        verb = "are" if len(held) > 1 else "is"
        kind = "tables" if entries[0].is_table else "inputs"
        subject = f"{names} ({len(held)} of {len(factors)} {kind}) {verb} held back by"
        subject += " up to" * (len(set(held.values())) > 1)
    return Embedding(
        held_back=True,
        factor=factor,
        verdict=f"{subject} a factor of {factor:.3g}: {beside}",
        fix="; ".join(_say_fix(measures, held)),
    )


def _say_fix(measures: AuditMeasures, held: Mapping[str, float]) -> Iterator[str]:
    """Yield one line for each learning rate that held-back tables should have."""
    groups: dict[str, list[str]] = {}
    for name, factor in held.items():
        groups.setdefault(f"{factor * measures.wide.tensors[name].lr:.4g}", []).append(name)
    for lr, names in groups.items():
        yield (
            f"give {', '.join(map(repr, names))} a group of their own with lr={lr} at width "
            f"{measures.wide.width}, {held[names[0]]:.3g} times today's"
        )


def _find_nearest(measures: AuditMeasures) -> Nearest:
    """Return the rules that today's learning rates and initial weights go with width as."""
    (lr, hidden), init = measures.find_lr_factors(), measures.find_init_factors()
    enough = {name for name, size in measures.num_initial_values.items() if size >= ENOUGH}
    known = (LATTICE["sp"], MUP, *LATTICE.values(), *BEYOND_LATTICE.values())
    rules = [rule for rule in known if not rule.absolute and measures.usable(rule) is rule]
    by_lr = [
        rule
        for rule in rules
        if _alike(measures.width_mult, lr, measures.find_lr_factors(rule)[0], lr)
    ]
    by_init = [
        rule
        for rule in rules
        if init and _alike(measures.init_mult, init, measures.find_init_factors(rule), enough)
    ]
    both = [rule for rule in by_lr if rule in by_init]
    chosen, first_init = (next(iter(both + each), None) for each in (by_lr, by_init))
    fall = 0.0 if chosen is None else hidden - measures.find_lr_factors(chosen)[1]
    axis = "own"
    if chosen is not None and abs(fall) < SAME_EXPONENT:
        axis = "hidden-aligned"
    elif chosen is not None and abs(fall - chosen.axis_exponent) < SAME_EXPONENT:
        axis = "global"
    return Nearest(
        lr=chosen.name if chosen else None,
        init=first_init.name if first_init else None,
        axis=axis,
    )


def _alike(
    ratio: float, today: Mapping[str, float], rule: Mapping[str, float], names: Iterable[str]
) -> bool:
    """Tell whether the factors of the tensors that both have are the same powers of a ratio."""
    return all(
        abs(math.log(today[name] / rule[name])) <= SAME_EXPONENT * math.log(ratio)
        for name in names
        if name in today and name in rule
    )
