"""Measure what a model and its optimizer do to each tensor, beside a rule, and find what is wrong.

Every factor is from the base width to the width. Those of learning rates are over the hidden
layers' own, so that they hold on any axis of the one tuned learning rate.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

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
    init_stds : list of dict
        Stds by parameter, at each; without parameters that the constructor leaves unset.
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
        self.init_stds = [
            {name: one.std for name, one in each.parameters.items() if one.kind != "unset"}
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
        tied = any(entry.role == "tied" for entry in self.tables[0])
        if self.wide.rule_optimizer not in rule.optimizers or (tied and rule.tied_readout is None):
            return MUP
        return rule

    @cached_property
    def entries(self) -> list[ParameterRole]:
        """The trained tensors."""
        return [entry for entry in self.tables[1] if entry.name in self.wide.tensors]

    @cached_property
    def by_role(self) -> dict[str, list[ParameterRole]]:
        """The trained tensors by role, in the order of the model."""
        members: dict[str, list[ParameterRole]] = {}
        for entry in self.entries:
            members.setdefault(entry.role, []).append(entry)
        return members

    @cached_property
    def axis_role(self) -> str:
        """The role whose learning rate the others' are taken over.

        Raises
        ------
        ConfigError
            If the model has no matrix to take.
        """
        known = next((role for role in _AXIS_ROLES if role in self.by_role), None)
        if known is None:
            raise ConfigError(
                "audit: expected trained matrices whose fan-in grows with width, found none"
            )
        return known

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

    @cached_property
    def today_lr(self) -> dict[str, float]:
        """The factor of each tensor's learning rate today, over the hidden layers'."""
        return self._over_axis(self._factors())

    def rule_lr(self, rule: Parameterization) -> dict[str, float]:
        """Return each tensor's lr factor under a rule, over the hidden layers'."""
        return self._over_axis(self._factors(rule))

    def hidden_exponent(self, rule: Parameterization | None = None) -> float:
        """Return the exponent of m in the hidden layers' own learning rate, today or a rule's."""
        return math.log(self._axis(self._factors(rule))) / math.log(self.width_mult)

    def _factors(self, rule: Parameterization | None = None) -> dict[str, float]:
        """Return how each tensor's learning rate goes from base width to width, of itself."""
        base: Mapping[str, Any] = self.base.tensors
        wide: Mapping[str, Any] = self.wide.tensors
        if rule is not None:
            base, wide = (self.resolve(rule, table) for table in self.tables)
        return {e.name: wide[e.name].lr / base[e.name].lr for e in self.entries}

    def _over_axis(self, factors: Mapping[str, float]) -> dict[str, float]:
        axis = self._axis(factors)
        return {name: value / axis for name, value in factors.items()}

    def _axis(self, factors: Mapping[str, float]) -> float:
        """Return the hidden layers' own factor: that of most of their scalars."""
        return find_common(factors, self.by_role[self.axis_role])

    @cached_property
    def today_init(self) -> dict[str, float]:
        """The factor of each tensor's init std today, of those that start at no constant."""
        if not self.init_stds:
            return {}
        base, wide = self.init_stds
        return {
            e.name: wide[e.name] / base[e.name]
            for e in self.entries
            if wide.get(e.name) and base.get(e.name)
        }

    def rule_init(self, rule: Parameterization) -> dict[str, float]:
        """Return the factor of each tensor's init std under a rule, if it has one."""
        if not self.init_tables:
            return {}
        base, wide = (self.resolve(rule, table) for table in self.init_tables)
        return {
            e.name: wide[e.name].init_std / base[e.name].init_std
            for e in self.entries
            if e.name in base and base[e.name].init_std and wide[e.name].init_std
        }


def find_common(values: Mapping[str, float], entries: Sequence[ParameterRole]) -> float:
    """Return the value, by parameter, that most scalars of these parameters have."""

    def weigh(value: float) -> int:
        return sum(math.prod(e.shape) for e in entries if same(values[e.name], value))

    return max(dict.fromkeys(values[e.name] for e in entries), key=weigh)


def same(one: float, other: float, tolerance: float = _SAME) -> bool:
    """Tell whether two positive numbers are the same within a relative tolerance."""
    return abs(math.log(one / other)) <= math.log1p(tolerance)


# Warnings


def num_initial_values(measures: AuditMeasures, entry: ParameterRole) -> int:
    """Return how many initial values a tensor has at the narrower width looked at."""
    tables = measures.init_tables[:1]
    return next((math.prod(e.shape) for table in tables for e in table if e.name == entry.name), 0)


def find_warnings(
    measures: AuditMeasures, say_applied: Callable[[str], str] | None
) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of what is wrong beside the embedding.

    Kinds: optimizer, decay_semantics, tied or rule, multiplier, spread, base_width, weight_decay,
    decayed, init, init_unseen.
    """
    yield from _warn_of_optimizers(measures)
    if measures.rule is not measures.asked:
        name = measures.asked.name
        tied = measures.asked.tied_readout is None and any(
            entry.role == "tied" for entry in measures.entries
        )
        yield (
            "tied" if tied else "rule",
            f"embedding and readout are one table, for which {name} says nothing: untie them, or "
            "use mup or completep and scale the logits; compared with mup here"
            if tied
            else f"{name} says nothing for {measures.wide.rule_optimizer}; compared with mup here",
        )
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


def _say_who(role: str, entries: Sequence[ParameterRole], names: Sequence[str]) -> str:
    """Return the role where all of its tensors are meant, else their names."""
    return role if len(names) == len(entries) else shorten_names(names)


def _warn_of_spread(measures: AuditMeasures) -> Iterator[tuple[str, str]]:
    """Yield tensors whose learning rate goes with width otherwise than their role's others'."""
    rule = measures.rule_lr(measures.rule)
    for role, entries in measures.by_role.items():
        beside = {e.name: measures.today_lr[e.name] / rule[e.name] for e in entries}
        common = find_common(beside, entries)
        usual = next(e.name for e in entries if same(beside[e.name], common, CLEAR - 1))
        odd: dict[str, list[str]] = {}
        for name, value in beside.items():
            today = measures.today_lr[name]
            # Where all go alike today, it is the rule that tells them apart.
            if not (
                same(value, common, CLEAR - 1) or same(today, measures.today_lr[usual], CLEAR - 1)
            ):
                odd.setdefault(say_factor(today), []).append(name)
        for factor, names in odd.items():
            yield (
                "spread",
                f"the learning rate of {shorten_names(names)} goes {factor} over the hidden "
                f"layers', and that of the other {role} tensors "
                f"{say_factor(measures.today_lr[usual])}: a tensor forgotten in another group?",
            )


def _warn_of_base(measures: AuditMeasures) -> Iterator[tuple[str, str]]:
    """Yield whether the groups differ at the base width, where every rule has them equal."""
    if measures.wide.rule_optimizer.startswith("muon"):
        return  # its matrices have a learning rate of their own
    base, axis = measures.base, measures.axis_role
    own = find_common(
        {name: each.lr for name, each in base.tensors.items()}, measures.by_role[axis]
    )
    for role, entries in measures.by_role.items():
        odd = [e for e in entries if not same(base.tensors[e.name].lr, own)]
        if not odd:
            continue
        first = odd[0]
        lr = base.tensors[first.name].lr
        who = _say_who(role, entries, [e.name for e in odd])
        told = (
            f"at the base width {base.width} the learning rates of {who} and {axis} "
            f"differ ({lr:.4g} and {own:.4g}), so nothing agrees there"
        )
        factor = measures.today_lr[first.name]
        exponent = math.log(factor) / math.log(measures.width_mult)
        if abs(exponent) < SAME_EXPONENT:
            yield "base_width", f"{told}; their ratio is the same at every width"
        else:
            agree = base.width * (lr / own) ** (-1 / exponent)
            yield "base_width", f"{told}; they agree at width {agree:.4g}"
        return


def _warn_of_decay(measures: AuditMeasures) -> Iterator[tuple[str, str]]:
    changed, decayed = [], []
    for role, entries in measures.by_role.items():
        pairs = {
            e.name: (measures.base.tensors[e.name].shrink, measures.wide.tensors[e.name].shrink)
            for e in entries
        }
        odd = {n: p for n, p in pairs.items() if min(p) > 0 and not same(*p)}
        for base, wide in dict.fromkeys(odd.values()):
            names = [n for n, p in odd.items() if p == (base, wide)]
            changed.append(
                f"{_say_who(role, entries, names)} ({base:.3g} at width {measures.base.width}, "
                f"{wide:.3g} at {measures.wide.width})"
            )
        if role in _UNDECAYED and any(wide > 0 for _, wide in pairs.values()):
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
    if not widths:
        yield (
            "init_unseen",
            "initial weights were not looked at: the models are too large to build, and the "
            "factory takes no smaller width",
        )
        return
    if widths[0] != measures.base.width:
        yield (
            "init_unseen",
            f"the proxy is too large to build: initial weights were looked at from width "
            f"{widths[0]} to {widths[1]}, below it",
        )
    rule = measures.rule_init(measures.rule)
    for role, entries in measures.by_role.items():
        if role in _UNDECAYED:
            continue
        today = measures.today_init
        names = [
            e.name
            for e in entries
            if e.name in today
            and e.name in rule
            and num_initial_values(measures, e) >= ENOUGH
            and not same(today[e.name], rule[e.name], CLEAR - 1)
        ]
        if not names:
            continue
        law = (
            "every rule lets it go as 1/√fan_in,"
            if role.startswith("hidden")
            else f"under {measures.rule.name} it goes"
        )
        yield (
            "init",
            f"init std of {_say_who(role, entries, names)} goes {say_factor(today[names[0]])} as "
            f"width goes {say_factor(measures.init_mult)}; {law} {say_factor(rule[names[0]])}",
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
