"""Measure what a model and its optimizer do to each tensor, beside a rule, and find what is wrong.

Every factor is from the base width to the width. Those of learning rates are over the hidden
layers' own, so that they hold on any axis of the one tuned learning rate.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hptransfer.adopt._fold_multipliers import APPLICABLE, Unfolded
from hptransfer.adopt._optimizers import SAY_DECAY, OptimizerSnapshot
from hptransfer.adopt._own_init import OwnInits, measure_own_init
from hptransfer.adopt._role_inference import infer_roles
from hptransfer.adopt._tensor_rules import Options, TensorNumbers, resolve_tensors
from hptransfer.adopt._user_model import (
    MAX_PARAMETERS,
    Factory,
    build_model,
    count_parameters,
    shorten_names,
)
from hptransfer.adopt.role_table import ParameterRole, RoleTable
from hptransfer.errors import ConfigError
from hptransfer.scaling import LATTICE, OPTIMIZERS, Parameterization

MUP = LATTICE["mup"]

#: What the hidden layers are, or stands in where a model has none.
_AXIS_ROLES = ("hidden", "hidden_residual", "readout")

#: A factor this far from the rule's, on either side, is called another one.
CLEAR = 1.25

#: Two exponents of m this close are the same one.
SAME_EXPONENT = 0.1

#: Fewer initial values than this say too little of a std.
ENOUGH = 200

_UNDECAYED = ("norm", "bias", "other")

_SAME = 0.01  # two factors this close, relative, are one


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Hold the numbers of one trained tensor, or their medians over a role's.

    Attributes
    ----------
    lr, base_lr : float
        Learning rate at the width and at the base width.
    lr_factor, rule_lr_factor : float
        How the learning rate over the hidden layers' goes from base width to width; the rule's.
    init_std, base_init_std, init_factor, rule_init_factor : float or None
        The same of the standard deviation of the initial values, at ``Audit.init_width``; a std is
        0 of constants, and None where they were not looked at, as is a factor where there is none.
    weight_decay : float
        The optimizer's, at the width.
    shrink, base_shrink : float
        What a step shrinks the tensor by: lr · weight_decay for AdamW.
    """

    lr: float
    base_lr: float
    lr_factor: float
    rule_lr_factor: float
    init_std: float | None
    base_init_std: float | None
    init_factor: float | None
    rule_init_factor: float | None
    weight_decay: float
    shrink: float
    base_shrink: float


@dataclass(frozen=True, kw_only=True)
class TensorAudit(Numbers):
    """One trained tensor: its name, its role, and the class of the optimizer that takes it."""

    name: str
    role: str
    optimizer: str


# Initial weights


def measure_init(factory: Factory, base_width: int, width: int) -> list[OwnInits]:
    """Measure the initial values at two widths whose models are not too big to build.

    They are the base width and the widest of it times 2^k up to the width; below the base where
    its own model is too big, or no wider one is small enough.

    Returns
    -------
    list of OwnInits
        Empty where no two such widths are found.
    """
    for pair in _list_width_pairs(base_width, width):
        try:
            if count_parameters(build_model(factory, pair[1])) <= MAX_PARAMETERS:
                return [measure_own_init(factory, each) for each in pair]
        except ConfigError:
            if pair[0] == base_width:
                raise
            return []
    return []


def _list_width_pairs(base_width: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield pairs of widths at which to look, the widest first, and below the base at the end."""
    yield base_width, width
    wide = base_width
    while 2 * wide < width:
        wide *= 2
    while wide > base_width:
        yield base_width, wide
        wide //= 2
    while wide % 2 == 0:
        yield wide // 2, wide
        wide //= 2


# Beside a rule


class AuditMeasures:
    """A model at two widths and a rule; what is computed is kept.

    Attributes
    ----------
    base, wide : OptimizerSnapshot
        What the optimizers do at the base width and at the width.
    asked, rule : Parameterization
        What is asked for; and what is compared with: that, or µP where that says nothing for this
        model.
    tables : list of RoleTable
        At the base width and at the width.
    init_widths : list of int
        The two widths at which initial values were looked at; empty where they were not.
    init_values : list of dict
        What parameters start at, at each; without those that the constructor leaves unset.
    init_tables : list of RoleTable
        At each.

    Raises
    ------
    ConfigError
        If a role cannot be told, or the factory fails.
    """

    def __init__(
        self,
        factory: Factory,
        *,
        base: OptimizerSnapshot,
        wide: OptimizerSnapshot,
        roles: Mapping[str, str],
        rule: Parameterization,
        applied: frozenset[str],
    ) -> None:
        def pair(*widths: int) -> list[RoleTable]:
            return [
                infer_roles(factory, base_width=min(widths), width=each, roles=roles)
                for each in widths
            ]

        self.base, self.wide, self._applied = base, wide, applied
        self.width_mult = wide.width / base.width
        self.tables = pair(base.width, wide.width)
        own = measure_init(factory, base.width, wide.width)
        self.init_widths = [each.width for each in own]
        self.init_values = [
            {name: one for name, one in each.parameters.items() if one.kind != "unset"}
            for each in own
        ]
        self.init_tables = pair(*self.init_widths) if own else []
        self.asked, self.rule = rule, self.usable(rule)

    @property
    def init_mult(self) -> float:
        """The width ratio at which initial weights are looked at; 1 where they are not."""
        return self.init_widths[1] / self.init_widths[0] if self.init_widths else 1.0

    def usable(self, rule: Parameterization) -> Parameterization:
        """Return the rule, or µP where it says nothing for the optimizer or for tied tables."""
        tied = any(entry.role == "tied" and entry.infinite for entry in self.tables[0])
        if self.wide.rule_optimizer not in rule.optimizers or (tied and rule.tied_readout is None):
            return MUP
        return rule

    @cached_property
    def entries(self) -> list[ParameterRole]:
        """The trained tensors."""
        return [entry for entry in self.tables[1] if entry.name in self.wide.tensors]

    @cached_property
    def tensors(self) -> tuple[TensorAudit, ...]:
        """The trained tensors' numbers, in the order of the model."""
        (lr, _), (rule_lr, _) = self.find_lr_factors(), self.find_lr_factors(self.rule)
        init, rule_init = self.find_init_factors(), self.find_init_factors(self.rule)
        base_values, values = self.init_values or ({}, {})
        tensors = []
        for name, role in ((entry.name, entry.role) for entry in self.entries):
            base, wide = self.base.tensors[name], self.wide.tensors[name]
            tensors.append(
                TensorAudit(
                    name=name,
                    role=role,
                    optimizer=wide.optimizer,
                    lr=wide.lr,
                    base_lr=base.lr,
                    lr_factor=lr[name],
                    rule_lr_factor=rule_lr[name],
                    init_std=values[name].std if name in values else None,
                    base_init_std=base_values[name].std if name in base_values else None,
                    init_factor=init.get(name),
                    rule_init_factor=rule_init.get(name),
                    weight_decay=wide.weight_decay,
                    shrink=wide.shrink,
                    base_shrink=base.shrink,
                )
            )
        return tuple(tensors)

    @cached_property
    def by_role(self) -> dict[str, list[TensorAudit]]:
        """The trained tensors by role, in the order of the model."""
        members: dict[str, list[TensorAudit]] = {}
        for each in self.tensors:
            members.setdefault(each.role, []).append(each)
        return members

    @cached_property
    def axis_entries(self) -> list[ParameterRole]:
        """The tensors whose learning rate the others' are taken over.

        Raises
        ------
        ConfigError
            If the model has no matrix to take.
        """
        for role in _AXIS_ROLES:
            if known := [entry for entry in self.entries if entry.role == role]:
                return known
        raise ConfigError(
            "audit: expected trained matrices whose fan-in grows with width, found none"
        )

    def resolve(
        self, rule: Parameterization, table: RoleTable, problems: list[Unfolded] | None = None
    ) -> dict[str, TensorNumbers]:
        """Return a rule's numbers by tensor; depth does not count.

        With ``problems``, the multipliers that no group can set are put there; else all are taken
        as applied.
        """
        options = Options(
            parameterization=rule,
            optimizer=self.wide.rule_optimizer,
            num_layers=1,
            base_num_layers=1,
            applied=APPLICABLE if problems is None else self._applied,
        )
        numbers = resolve_tensors(table, options, by_muon=self.wide.by_muon, problems=problems)
        return {each.entry.name: each for each in numbers}

    def find_problems(self) -> list[Unfolded]:
        """Return the multipliers that the rule wants and groups cannot set."""
        problems: list[Unfolded] = []
        self.resolve(self.rule, self.tables[1], problems)
        return problems

    def find_lr_factors(
        self, rule: Parameterization | None = None
    ) -> tuple[dict[str, float], float]:
        """Return how learning rates go with width, today or under a rule.

        Returns
        -------
        factors : dict of str to float
            Each tensor's, over the hidden layers'.
        exponent : float
            Of m, in the hidden layers' own.
        """
        sides: Sequence[Mapping[str, object]] = [self.base.tensors, self.wide.tensors]
        if rule is not None:
            sides = [self.resolve(rule, table) for table in self.tables]
        factors = self._find_factors("lr", sides)
        axis = find_common(factors, self.axis_entries)
        exponent = math.log(axis) / math.log(self.width_mult)
        return {name: value / axis for name, value in factors.items()}, exponent

    def find_init_factors(self, rule: Parameterization | None = None) -> dict[str, float]:
        """Return the factor of each tensor's init std, today or under a rule, if it has one."""
        if rule is None:
            return self._find_factors("std", self.init_values)
        return self._find_factors("init_std", [self.resolve(rule, t) for t in self.init_tables])

    def _find_factors(self, key: str, sides: Sequence[Mapping[str, object]]) -> dict[str, float]:
        """Return how a number goes from the first side to the other, where neither has it at 0."""
        numbers = [{n: getattr(each, key) for n, each in side.items()} for side in sides]
        return {
            name: numbers[1][name] / numbers[0][name]
            for name in (entry.name for entry in self.entries)
            if numbers and numbers[0].get(name) and numbers[1].get(name)
        }

    @cached_property
    def num_initial_values(self) -> dict[str, int]:
        """How many initial values each tensor has at the narrower width looked at."""
        return {each.name: math.prod(each.shape) for t in self.init_tables[:1] for each in t}


def find_common(values: Mapping[str, float], entries: Sequence[ParameterRole]) -> float:
    """Return the value, by parameter, that most scalars of these parameters have."""

    def weigh(value: float) -> int:
        return sum(math.prod(e.shape) for e in entries if same(values[e.name], value))

    return max(dict.fromkeys(values[e.name] for e in entries), key=weigh)


def same(one: float, other: float, tolerance: float = _SAME) -> bool:
    """Tell whether two positive numbers are the same within a relative tolerance."""
    return abs(math.log(one / other)) <= math.log1p(tolerance)


# Warnings


def find_warnings(
    measures: AuditMeasures, say_applied: Callable[[str], str] | None
) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of what is wrong beside the embedding.

    Kinds: optimizer, decay_semantics, tied or rule, multiplier, spread, base_width, weight_decay,
    decayed, init, init_unseen.
    """
    yield from _warn_of_optimizers(measures)
    if measures.rule is not measures.asked:
        name, wanted = measures.asked.name, measures.wide.rule_optimizer
        kind, what = "rule", f"{name} says nothing for {wanted}"
        if measures.asked.tied_readout is None and any(
            entry.role == "tied" and entry.infinite for entry in measures.entries
        ):
            kind, what = (
                "tied",
                f"embedding and readout are one table, for which {name} says nothing: untie them, "
                "or use mup or completep and scale the logits",
            )
        yield kind, f"{what}; compared with mup here"
    for problem in measures.find_problems():
        yield "multiplier", problem.say(say_applied)
    yield from _warn_of_spread(measures)
    yield from _warn_of_base(measures)
    yield from _warn_of_decay(measures)
    yield from _warn_of_init(measures)


def _warn_of_optimizers(measures: AuditMeasures) -> Iterator[tuple[str, str]]:
    for name in measures.wide.classes:
        if name.lower() not in OPTIMIZERS:
            yield "optimizer", f"no rule speaks of {name}: it is compared as if it were AdamW"
    for name in measures.wide.classes:
        states = [s for s in measures.wide.tensors.values() if s.optimizer == name]
        meaning = next((s.decay for s in states if s.weight_decay), "lr")
        if meaning is not None and meaning != "lr":
            way = f"param_groups(decay_semantics='{meaning}') makes groups for it"
            yield (
                "decay_semantics",
                f"a step of {name} shrinks a tensor by {SAY_DECAY[meaning]}, where rules count on "
                f"lr · weight_decay: {'use AdamW' if meaning == 'gradient' else way}",
            )


def _say_who(role: str, tensors: Sequence[TensorAudit], names: Sequence[str]) -> str:
    """Return the role where all of its tensors are meant, else their names."""
    return role if len(names) == len(tensors) else shorten_names(names)


def _warn_of_spread(measures: AuditMeasures) -> Iterator[tuple[str, str]]:
    """Yield tensors whose learning rate goes with width otherwise than their role's others'."""
    for role, tensors in measures.by_role.items():
        beside = {each.name: each.lr_factor / each.rule_lr_factor for each in tensors}
        common = find_common(beside, [e for e in measures.entries if e.role == role])
        alike = [each for each in tensors if same(beside[each.name], common, CLEAR - 1)]
        usual = alike[0].lr_factor
        odd: dict[str, list[str]] = {}
        for each in tensors:
            # Where all go alike today, it is the rule that tells them apart.
            if each not in alike and not same(each.lr_factor, usual, CLEAR - 1):
                odd.setdefault(say_factor(each.lr_factor), []).append(each.name)
        for factor, names in odd.items():
            yield (
                "spread",
                f"the learning rate of {shorten_names(names)} goes {factor} over the hidden "
                f"layers', and that of the other {role} tensors {say_factor(usual)}: a tensor "
                "forgotten in another group?",
            )


def _warn_of_base(measures: AuditMeasures) -> Iterator[tuple[str, str]]:
    """Yield whether the groups differ at the base width, where every rule has them equal."""
    if measures.wide.rule_optimizer.startswith("muon"):
        return  # its matrices have a learning rate of their own
    base, axis = measures.base.width, measures.axis_entries
    own = find_common({each.name: each.base_lr for each in measures.tensors}, axis)
    for role, tensors in measures.by_role.items():
        odd = [each for each in tensors if not same(each.base_lr, own)]
        if not odd:
            continue
        first, who = odd[0], _say_who(role, tensors, [each.name for each in odd])
        exponent = math.log(first.lr_factor) / math.log(measures.width_mult)
        agree = "their ratio is the same at every width"
        if abs(exponent) >= SAME_EXPONENT:
            agree = f"they agree at width {base * (first.base_lr / own) ** (-1 / exponent):.4g}"
        yield (
            "base_width",
            f"at the base width {base} the learning rates of {who} and {axis[0].role} differ "
            f"({first.base_lr:.4g} and {own:.4g}), so nothing agrees there; {agree}",
        )
        return


def _warn_of_decay(measures: AuditMeasures) -> Iterator[tuple[str, str]]:
    changed, decayed = [], []
    for role, tensors in measures.by_role.items():
        odd: dict[tuple[float, float], list[str]] = {}
        for each in tensors:
            pair = each.base_shrink, each.shrink
            if min(pair) > 0 and not same(*pair):
                odd.setdefault(pair, []).append(each.name)
        changed += [
            f"{_say_who(role, tensors, names)} ({base:.3g} at width {measures.base.width}, "
            f"{wide:.3g} at {measures.wide.width})"
            for (base, wide), names in odd.items()
        ]
        if role in _UNDECAYED and any(each.shrink > 0 for each in tensors):
            decayed.append(role)
    if changed:
        yield (
            "weight_decay",
            f"weight decay's shrink per step changes with width: {', '.join(changed)}; keep "
            "lr·weight_decay (weight_decay_mode='constant')",
        )
    if decayed:
        yield (
            "decayed",
            f"weight decay also shrinks {' and '.join(decayed)} tensors, which rules leave alone",
        )


def _warn_of_init(measures: AuditMeasures) -> Iterator[tuple[str, str]]:
    """Yield roles and tensors whose initial weights go with width otherwise than the rule's."""
    widths = measures.init_widths
    if widths[:1] != [measures.base.width]:
        yield (
            "init_unseen",
            f"the proxy is too large to build: initial weights were looked at from width "
            f"{widths[0]} to {widths[1]}, below it"
            if widths
            else "initial weights were not looked at: the models are too large to build, and the "
            "factory takes no smaller width",
        )
    for role, tensors in measures.by_role.items():
        odd = [
            (each.name, each.init_factor, each.rule_init_factor)
            for each in tensors
            if each.init_factor
            and each.rule_init_factor
            and role not in _UNDECAYED
            and measures.num_initial_values[each.name] >= ENOUGH
            and not same(each.init_factor, each.rule_init_factor, CLEAR - 1)
        ]
        if not odd:
            continue
        _, today, rule = odd[0]
        law = (
            "every rule lets it go as 1/√fan_in,"
            if role.startswith("hidden")
            else f"under {measures.rule.name} it goes"
        )
        yield (
            "init",
            f"init std of {_say_who(role, tensors, [name for name, *_ in odd])} goes "
            f"{say_factor(today)} as width goes {say_factor(measures.init_mult)}; {law} "
            f"{say_factor(rule)}",
        )


def say_factor(factor: float | None) -> str:
    """Say a factor, such as an audit's, in words.

    Parameters
    ----------
    factor : float or None
        Above 0.

    Returns
    -------
    str
        ``×16``, ``÷16`` or ``×1``; "" for None.

    Examples
    --------
    >>> say_factor(0.25), say_factor(16.0), say_factor(None)
    ('÷4', '×16', '')
    """
    if factor is None:
        return ""
    times = f"{max(factor, 1 / factor):.3g}"
    return f"÷{times}" if factor < 1 and times != "1" else f"×{times}"
