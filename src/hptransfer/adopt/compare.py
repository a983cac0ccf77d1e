"""Today's numbers beside a rule's, role by role, as factors.

Every factor is from the base width to the width. Those of learning rates are over the hidden
layers' own, so that they hold on any axis of the one tuned learning rate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from hptransfer.adopt._fold_multipliers import APPLICABLE
from hptransfer.adopt._role_inference import infer_roles
from hptransfer.adopt._tensor_rules import Options, TensorNumbers, resolve_tensors
from hptransfer.adopt.audit import RoleAudit
from hptransfer.adopt.role_table import ParameterRole, RoleTable
from hptransfer.adopt.today import Factory, Today, measure_init
from hptransfer.errors import ConfigError
from hptransfer.scaling import DEFAULT_OPTIMIZER, LATTICE, OPTIMIZERS, Parameterization

#: What the hidden layers are, or stands in where a model has none.
_AXIS_ROLES = ("hidden", "hidden_residual", "readout")

MUP = LATTICE["mup"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model at two widths, and a rule.

    Attributes
    ----------
    tables : tuple of RoleTable
        At the base width, at the width where initial weights are looked at, at the width.
    base, wide : Today
        What the optimizer does at the base width and at the width.
    init : tuple of mapping of str to float
        Initial stds at the base width and at the one where they are looked at.
    rule : Parameterization
        What is compared with.
    """

    tables: tuple[RoleTable, RoleTable, RoleTable]
    base: Today
    wide: Today
    init: tuple[Mapping[str, float], Mapping[str, float]]
    rule: Parameterization

    @classmethod
    def make(
        cls,
        factory: Factory,
        *,
        base: Today,
        wide: Today,
        init_width: int,
        roles: Mapping[str, str],
        rule: Parameterization,
    ) -> "Comparison":
        """Find the roles and measure the initial weights.

        Raises
        ------
        ConfigError
            If a role cannot be told, or the factory fails.
        """
        small, middle, large = (
            infer_roles(factory, base_width=base.width, width=each, roles=roles)
            for each in (base.width, init_width, wide.width)
        )
        init = measure_init(factory, base.width), measure_init(factory, init_width)
        return cls(tables=(small, middle, large), base=base, wide=wide, init=init, rule=rule)

    @property
    def width_mult(self) -> float:
        """The width ratio m."""
        return self.wide.width / self.base.width

    @property
    def optimizer(self) -> str:
        """The optimizer as rules name it; AdamW where they do not know it."""
        name = self.wide.optimizer.lower()
        return name if name in OPTIMIZERS else DEFAULT_OPTIMIZER

    @property
    def roles(self) -> dict[str, RoleAudit]:
        """Today and the rule, by role, in the order of the model."""
        lr_today, init_today = self.lr_factors(self.today_lr), self.init_factors(None)
        rule = self.usable(self.rule)
        lr_rule, init_rule = self.lr_factors(self.rule_lr(rule)), self.init_factors(rule)
        result = {}
        for role, entries in self.members().items():
            base, wide = ([t.settings[e.name] for e in entries] for t in (self.base, self.wide))
            result[role] = RoleAudit(
                num_tensors=len(entries),
                lr=median(lr for lr, _ in wide),
                base_lr=median(lr for lr, _ in base),
                lr_factor=lr_today[role],
                rule_lr_factor=lr_rule[role],
                init_std=self._init_std(1, entries),
                base_init_std=self._init_std(0, entries),
                init_factor=init_today.get(role),
                rule_init_factor=init_rule.get(role),
                weight_decay=median(decay for _, decay in wide),
                shrink=median(lr * decay for lr, decay in wide),
                base_shrink=median(lr * decay for lr, decay in base),
            )
        return result

    def usable(self, rule: Parameterization) -> Parameterization:
        """Return the rule, or µP where it says nothing for the optimizer or for tied tables."""
        tied = any(entry.role == "tied" for entry in self.tables[0])
        if self.optimizer not in rule.optimizers or (tied and rule.tied_readout is None):
            return MUP
        return rule

    def members(self) -> dict[str, list[ParameterRole]]:
        """Return the trained tensors by role."""
        members: dict[str, list[ParameterRole]] = {}
        for entry in self.tables[2]:
            if entry.name in self.wide.settings:
                members.setdefault(entry.role, []).append(entry)
        return members

    def axis_role(self) -> str:
        """Return the role whose learning rate the others' are taken over.

        Raises
        ------
        ConfigError
            If the model has no matrix to take.
        """
        members = self.members()
        known = next((role for role in _AXIS_ROLES if role in members), None)
        if known is None:
            raise ConfigError(
                "audit: expected trained matrices whose fan-in grows with width, found none"
            )
        return known

    def _init_std(self, which: int, entries: Sequence[ParameterRole]) -> float:
        """Return the median init std of those tensors that do not start at a constant, else 0."""
        return median([self.init[which][e.name] for e in entries if self.init[1][e.name]] or [0.0])

    def _resolve(self, rule: Parameterization, table: RoleTable) -> dict[str, TensorNumbers]:
        """Return a rule's numbers by tensor, multipliers taken as applied; depth does not count."""
        options = Options(
            parameterization=rule,
            optimizer=self.optimizer,
            num_layers=1,
            base_num_layers=1,
            applied=APPLICABLE,
        )
        return {each.entry.name: each for each in resolve_tensors(table, options)}

    def today_lr(self, name: str) -> float:
        """Return the factor of a tensor's learning rate today."""
        return self.wide.settings[name][0] / self.base.settings[name][0]

    def rule_lr(self, rule: Parameterization) -> Callable[[str], float]:
        """Return the factor of a tensor's learning rate under a rule."""
        base, wide = (self._resolve(rule, self.tables[k]) for k in (0, 2))
        return lambda name: wide[name].lr / base[name].lr

    def lr_factors(self, factor: Callable[[str], float]) -> dict[str, float]:
        """Return each role's factor of the learning rate, over the hidden layers'."""
        own = {
            role: _middle([factor(e.name) for e in entries])
            for role, entries in self.members().items()
        }
        axis = own[self.axis_role()]
        return {role: value / axis for role, value in own.items()}

    def hidden_exponent(self, factor: Callable[[str], float]) -> float:
        """Return the exponent of m in the hidden layers' own learning rate."""
        entries = self.members()[self.axis_role()]
        return math.log(_middle([factor(e.name) for e in entries])) / math.log(self.width_mult)

    def init_factors(self, rule: Parameterization | None) -> dict[str, float]:
        """Return each role's factor of the init std, today (None) or under a rule, if it has one.

        It is from the base width to ``init_mult`` times that.
        """
        if rule is None:
            base, wide = self.init
        else:
            base, wide = (
                {name: each.init_std for name, each in self._resolve(rule, self.tables[k]).items()}
                for k in (0, 1)
            )
        found = {
            role: [wide[e.name] / base[e.name] for e in entries if base[e.name] and wide[e.name]]
            for role, entries in self.members().items()
        }
        return {role: _middle(values) for role, values in found.items() if values}

    @property
    def init_mult(self) -> float:
        """The width ratio at which initial weights are looked at."""
        return self.tables[1].width_mult


def _middle(values: Sequence[float]) -> float:
    """Return the geometric median."""
    return math.exp(median(math.log(value) for value in values))
