"""Measure what a model and its optimizer do today to each tensor, and what a rule would do.

Every factor is from the base width to the width. Those of learning rates are over the hidden
layers' own, so that they hold on any axis of the one tuned learning rate.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hptransfer.adopt._fold_multipliers import APPLICABLE, Unfolded
from hptransfer.adopt._optimizer_facts import DecayMeaning, find_decay_meaning
from hptransfer.adopt._parameters import (
    MAX_PARAMETERS,
    Factory,
    build_model,
    count_parameters,
    named_tensors,
    say_error,
)
from hptransfer.adopt._role_inference import infer_roles
from hptransfer.adopt._tensor_rules import Options, TensorNumbers, resolve_tensors
from hptransfer.adopt.role_table import ParameterRole, RoleTable
from hptransfer.errors import ConfigError
from hptransfer.scaling import DEFAULT_OPTIMIZER, LATTICE, OPTIMIZERS, Parameterization

MakeOptimizer = Callable[..., Any]
"""From a model, or from (width, model), to an optimizer, several, or param groups."""

MUP = LATTICE["mup"]

#: What the hidden layers are, or stands in where a model has none.
_AXIS_ROLES = ("hidden", "hidden_residual", "readout")

_SAME = 0.01  # two factors this close, relative, are one


@dataclass(frozen=True, kw_only=True)
class TensorState:
    """What an optimizer does to one tensor.

    Attributes
    ----------
    lr, weight_decay : float
        Its group's numbers; before a warm-up.
    optimizer : str
        Class of the optimizer that takes it.
    decay : DecayMeaning or None
        What its weight decay means.
    matched : bool
        Whether a Muon matches the RMS of its update to Adam's.
    """

    lr: float
    weight_decay: float
    optimizer: str
    decay: DecayMeaning | None
    matched: bool = False

    @property
    def shrink(self) -> float:
        """What a step shrinks the tensor by."""
        if self.decay in ("relative", "independent"):
            return self.weight_decay
        return self.lr * self.weight_decay if self.decay == "lr" else 0.0


@dataclass(frozen=True, kw_only=True)
class OptimizerSnapshot:
    """What the optimizers do at one width.

    Attributes
    ----------
    width : int
        The factory's argument.
    tensors : mapping of str to TensorState
        By parameter.
    frozen : tuple of str
        Parameters that are not trained.
    """

    width: int
    tensors: Mapping[str, TensorState]
    frozen: tuple[str, ...]

    @property
    def classes(self) -> list[str]:
        """Classes of the optimizers, in alphabetical order."""
        return sorted({each.optimizer for each in self.tensors.values()})

    @property
    def rule_optimizer(self) -> str:
        """The optimizers as rules name them; AdamW where they do not know them."""
        known = [name.lower() for name in self.classes if name.lower() in OPTIMIZERS]
        if "muon" in known:
            matched = any(each.matched for each in self.tensors.values())
            return "muon-matched" if matched else "muon"
        return known[0] if len(known) == 1 else DEFAULT_OPTIMIZER

    @property
    def by_muon(self) -> frozenset[str]:
        """The parameters that Muon takes."""
        return frozenset(
            name for name, each in self.tensors.items() if each.optimizer.lower() == "muon"
        )


def read_optimizer(
    factory: Factory, width: int, optimizer: MakeOptimizer | None
) -> OptimizerSnapshot:
    """Read what the optimizers do to each parameter of the model at a width.

    The model is built on the meta device; on the CPU if the optimizer cannot be made there.

    Raises
    ------
    ConfigError
        If the user's functions raise or return something else, or a trained parameter is in no
        group or in two.
    """
    model = build_model(factory, width)
    try:
        made = _make(optimizer, width, model)
    except ConfigError:
        if count_parameters(model) > MAX_PARAMETERS:
            raise
        model = build_model(factory, width, device="cpu")
        made = _make(optimizer, width, model)
    names = {id(parameter): path for path, parameter in named_tensors(model)}
    tensors: dict[str, TensorState] = {}
    for index, (group, kind, decay) in enumerate(made):
        for parameter in group["params"]:
            path = names.get(id(parameter))
            if path is None:
                raise ConfigError(
                    f"optimizer: group {index} holds a tensor of shape {tuple(parameter.shape)} "
                    "that is no parameter of the model"
                )
            if path in tensors:
                raise ConfigError(f"optimizer: {path!r} is in two groups")
            tensors[path] = TensorState(
                lr=_read_lr(group, kind, index),
                weight_decay=float(group.get("weight_decay") or 0.0),
                optimizer=kind,
                decay=decay,
                matched=group.get("adjust_lr_fn") == "match_rms_adamw",
            )
    frozen = [path for path, p in named_tensors(model) if not p.requires_grad]
    missing = [path for path in names.values() if path not in tensors and path not in frozen]
    if missing:
        raise ConfigError(
            f"optimizer: {missing[0]!r} ({len(missing)} in all) is in none of its groups at width "
            f"{width}; freeze it or give it to the optimizer"
        )
    return OptimizerSnapshot(width=width, tensors=tensors, frozen=tuple(frozen))


def _read_lr(group: Mapping[str, Any], kind: str, index: int) -> float:
    # A scheduler's warmup has set lr to its first value already, and kept the peak here.
    lr = group.get("initial_lr", group["lr"])
    if lr is None:
        raise ConfigError(
            f"optimizer: {kind} has no learning rate in group {index} (lr=None: it makes its own, "
            "relative to the step); give it one, with relative_step=False"
        )
    if not float(lr) > 0:
        raise ConfigError(f"optimizer: expected lr above 0, found {float(lr):g} in group {index}")
    return float(lr)


Group = tuple[dict[str, Any], str, DecayMeaning | None]


def _make(optimizer: MakeOptimizer | None, width: int, model: nn.Module) -> list[Group]:
    if optimizer is None:
        made: Any = torch.optim.AdamW(model.parameters())
    else:
        arguments = (width, model) if _takes_width(optimizer) else (model,)
        try:
            made = optimizer(*arguments)
        except Exception as error:  # whatever the user's code raises
            raise ConfigError(
                f"optimizer: at width {width} it raised {say_error(error)}"
            ) from error
    return _read_groups(made)


def _read_groups(made: Any) -> list[Group]:
    """Return all groups, each with its optimizer's class and the meaning of its weight decay."""
    if isinstance(made, Mapping) and "optimizer" in made:
        made = made["optimizer"]  # as Lightning has it
    several: Sequence[Any] = [made] if not isinstance(made, list | tuple) else made
    if several and all(isinstance(each, Optimizer) for each in several):
        return [
            (group, type(each).__name__, find_decay_meaning(each))
            for each in several
            for group in each.param_groups
        ]
    if several and all(isinstance(each, Mapping) and "params" in each for each in several):
        short = [k for k, each in enumerate(several) if "lr" not in each]
        if short:
            raise ConfigError(f"optimizer: group {short[0]} has no lr")
        return [
            (
                {**each, "params": _as_list(each["params"])},
                "Muon" if each.get("optimizer") == "muon" else "AdamW",
                each.get("decay_semantics", "lr"),
            )
            for each in several
        ]
    raise ConfigError(
        "optimizer: expected a torch.optim.Optimizer, several, or param groups, found "
        f"{type(made).__name__}"
    )


def _as_list(params: Any) -> list[Any]:
    return [params] if isinstance(params, torch.Tensor) else list(params)


def _takes_width(function: MakeOptimizer) -> bool:
    """Tell whether the function needs two arguments, as a coordinate check's does."""
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    return len(needed) == 2


# Initial weights


@dataclass(frozen=True, kw_only=True)
class InitStds:
    """Stds of the initial values at two widths, by parameter."""

    widths: tuple[int, int]
    base: Mapping[str, float]
    wide: Mapping[str, float]


def measure_init(factory: Factory, base_width: int, width: int) -> InitStds | None:
    """Measure the stds of initial values at two widths whose models are not too big to build.

    They are the base width and the widest of it times 2^k up to the width; below the base where
    its own model is too big, or no wider one is small enough.

    Returns
    -------
    InitStds or None
        None where no two such widths are found.
    """

    def fits(each: int) -> bool:
        return count_parameters(build_model(factory, each)) <= MAX_PARAMETERS

    wide = width
    if not fits(width):
        wide = base_width
        while 2 * wide < width and fits(2 * wide):
            wide *= 2
    base, below = base_width, False
    try:
        while not fits(wide):
            below = True
            if wide % 2:
                return None
            wide //= 2
        if wide <= base_width:
            below = True
            if wide % 2:
                return None
            base = wide // 2
        return InitStds(
            widths=(base, wide), base=_measure(factory, base), wide=_measure(factory, wide)
        )
    except ConfigError:
        if not below:
            raise
        return None


def _measure(factory: Factory, width: int) -> dict[str, float]:
    """Return the standard deviation of each parameter's initial values, under torch's seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(factory, width, device="cpu")
    return {
        path: float(parameter.detach().double().std(correction=0))
        for path, parameter in named_tensors(model)
    }


# Beside a rule


@dataclass(frozen=True, kw_only=True)
class AuditMeasures:
    """A model at two widths and a rule; what is computed is kept.

    Attributes
    ----------
    tables : tuple of RoleTable
        At the base width and at the width.
    base, wide : OptimizerSnapshot
        What the optimizers do at the base width and at the width.
    init : InitStds or None
        Initial stds, where they were looked at.
    init_tables : tuple of RoleTable or None
        At the two widths of ``init``.
    rule : Parameterization
        What is compared with, or µP where that says nothing for this model.
    applied : frozenset of str
        What the model does itself.
    """

    tables: tuple[RoleTable, RoleTable]
    base: OptimizerSnapshot
    wide: OptimizerSnapshot
    init: InitStds | None
    init_tables: tuple[RoleTable, RoleTable] | None
    asked: Parameterization
    applied: frozenset[str]

    @classmethod
    def make(
        cls,
        factory: Factory,
        *,
        base: OptimizerSnapshot,
        wide: OptimizerSnapshot,
        roles: Mapping[str, str],
        rule: Parameterization,
        applied: frozenset[str],
    ) -> "AuditMeasures":
        """Find the roles and measure the initial weights.

        Raises
        ------
        ConfigError
            If a role cannot be told, or the factory fails.
        """

        def pair(narrow: int, width: int) -> tuple[RoleTable, RoleTable]:
            one, other = (
                infer_roles(factory, base_width=narrow, width=each, roles=roles)
                for each in (narrow, width)
            )
            return one, other

        init = measure_init(factory, base.width, wide.width)
        return cls(
            tables=pair(base.width, wide.width),
            base=base,
            wide=wide,
            init=init,
            init_tables=None if init is None else pair(*init.widths),
            asked=rule,
            applied=applied,
        )

    @property
    def width_mult(self) -> float:
        """The width ratio m."""
        return self.wide.width / self.base.width

    @property
    def init_mult(self) -> float:
        """The width ratio at which initial weights are looked at; 1 where they are not."""
        return 1.0 if self.init is None else self.init.widths[1] / self.init.widths[0]

    @cached_property
    def rule(self) -> Parameterization:
        """The rule that is asked for, or µP where that says nothing for this model."""
        return self.usable(self.asked)

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
    def axis_role(self) -> str:
        """The role whose learning rate the others' are taken over.

        Raises
        ------
        ConfigError
            If the model has no matrix to take.
        """
        present = {entry.role for entry in self.entries}
        known = next((role for role in _AXIS_ROLES if role in present), None)
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
            applied=APPLICABLE if problems is None else self.applied,
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
        return self._over_axis(
            {e.name: self.wide.tensors[e.name].lr / self.base.tensors[e.name].lr
             for e in self.entries}
        )  # fmt: skip

    def rule_lr(self, rule: Parameterization) -> dict[str, float]:
        """Return each tensor's lr factor under a rule, over the hidden layers'."""
        return self._over_axis(self._rule_factors(rule))

    def _rule_factors(self, rule: Parameterization) -> dict[str, float]:
        base, wide = (self.resolve(rule, table) for table in self.tables)
        return {e.name: wide[e.name].lr / base[e.name].lr for e in self.entries}

    def _over_axis(self, factors: Mapping[str, float]) -> dict[str, float]:
        axis = self._axis(factors)
        return {name: value / axis for name, value in factors.items()}

    def _axis(self, factors: Mapping[str, float]) -> float:
        """Return the hidden layers' own factor: that of most of their scalars."""
        return find_common(
            [
                (factors[e.name], math.prod(e.shape))
                for e in self.entries
                if e.role == self.axis_role
            ]
        )

    def hidden_exponent(self, rule: Parameterization | None = None) -> float:
        """Return the exponent of m in the hidden layers' own learning rate, today or a rule's."""
        if rule is None:
            own = {
                e.name: self.wide.tensors[e.name].lr / self.base.tensors[e.name].lr
                for e in self.entries
            }
        else:
            own = self._rule_factors(rule)
        return math.log(self._axis(own)) / math.log(self.width_mult)

    @cached_property
    def today_init(self) -> dict[str, float]:
        """The factor of each tensor's init std today, of those that start at no constant."""
        if self.init is None:
            return {}
        base, wide = self.init.base, self.init.wide
        return {
            e.name: wide[e.name] / base[e.name]
            for e in self.entries
            if wide.get(e.name) and base.get(e.name)
        }

    def rule_init(self, rule: Parameterization) -> dict[str, float]:
        """Return the factor of each tensor's init std under a rule, if it has one."""
        if self.init_tables is None:
            return {}
        base, wide = (self.resolve(rule, table) for table in self.init_tables)
        return {
            e.name: wide[e.name].init_std / base[e.name].init_std
            for e in self.entries
            if e.name in base and base[e.name].init_std and wide[e.name].init_std
        }


def find_common(values: Sequence[tuple[float, float]]) -> float:
    """Return the value that most of the weight has, of pairs of a value and its weight."""
    best, most = values[0][0], -1.0
    for value, _ in values:
        weight = sum(w for other, w in values if same(value, other))
        if weight > most:
            best, most = value, weight
    return best


def same(one: float, other: float, tolerance: float = _SAME) -> bool:
    """Tell whether two positive numbers are the same within a relative tolerance."""
    return abs(math.log(one / other)) <= math.log1p(tolerance)
