"""Make optimizers from rules, and read what optimizers do to each tensor."""

import copy
import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from hptransfer.adopt._model_init import init_
from hptransfer.adopt._own_init import OwnInits, measure_own_init
from hptransfer.adopt._param_groups import param_groups
from hptransfer.adopt._role_inference import infer_roles
from hptransfer.adopt._user_model import (
    MAX_PARAMETERS,
    Factory,
    build_model,
    count_parameters,
    named_tensors,
    say_error,
)
from hptransfer.adopt.role_table import RoleTable
from hptransfer.errors import ConfigError
from hptransfer.scaling import DEFAULT_OPTIMIZER, LATTICE, OPTIMIZERS, Parameterization, parse_rule

_OF_INIT = ("base_std", "keep", "reset", "mode")  # keywords of init_, beside a rule's

# From a rule


@dataclass(eq=False)
class RuleOptimizer:
    """Make a model's optimizer from a rule; what `rule_optimizer` returns.

    Attributes
    ----------
    factory, base_width, rule, lr, roles, skip_frozen, make
        What `rule_optimizer` was given.
    init, options : mapping
        Keywords of ``init_``, and those of a rule.

    Examples
    --------
    >>> from torch import nn
    >>> def make(width):
    ...     return nn.Sequential(nn.Embedding(10, width), nn.Linear(width, width, bias=False),
    ...                          nn.Linear(width, 10, bias=False))
    >>> optimizer = rule_optimizer(make, base_width=32, parameterization="hayou-liu", lr=0.5)
    >>> optimizer.expect(64)  # the table's update falls as width^-1/2 by the rule
    {'0': -0.5}
    """

    factory: Factory
    base_width: int
    rule: Parameterization
    lr: float
    roles: Mapping[str, str] | None
    skip_frozen: bool
    make: Callable[..., Optimizer]
    init: Mapping[str, Any]
    options: Mapping[str, Any]
    _tables: dict[int, RoleTable] = field(default_factory=dict)
    _own: OwnInits | None = None

    def find_roles(self, width: int) -> RoleTable:
        """Return the roles of the model at a width."""
        if width not in self._tables:
            self._tables[width] = infer_roles(
                self.factory, base_width=self.base_width, width=width, roles=self.roles
            )
        return self._tables[width]

    def expect(self, width: int) -> dict[str, float]:
        """Return the exponents with which modules' changes go by the rule itself, where not 0.

        A rule of the lattice between SP and µP is judged by what µP promises: 0. Another rule may
        let the update of its tables fall on purpose, as ``u-mup`` and ``hayou-liu`` do.
        """
        exponents, table = self.rule.roles["embedding"], self.find_roles(width)
        fall = exponents.lr + exponents.multiplier
        falls = {}
        if self.rule.name not in LATTICE and fall != 0.0:
            falls = {e.name: fall for e in table if e.role == "embedding" and e.is_table}
        if self._heads_grow(table):  # query projections that absorb the attention scale
            queries = table.match("query", self.options.get("query", ()))
            falls |= {entry.name: self.rule.attention + 0.5 for entry in queries}
        return {name.rpartition(".")[0]: exponent for name, exponent in falls.items()}

    def expect_logits(self, width: int) -> float | None:
        """Return the exponent of the head size with which attention logits go at init.

        Queries and keys are independent then, so that logits go as the scale times √H.

        Returns
        -------
        float or None
            None where no head size grows with width, or not all alike.
        """
        grow = self._heads_grow(self.find_roles(width)) and not self.rule.absolute
        return self.rule.attention + 0.5 if grow else None

    def _heads_grow(self, table: RoleTable) -> bool:
        return table.head_size != table.base_head_size  # both None where they differ

    def __call__(self, width: int, model: nn.Module) -> Optimizer:
        table = self.find_roles(width)
        if self._own is None:
            self._own = measure_own_init(self.factory, table.base_width)
        rule: dict[str, Any] = {"roles": table, "parameterization": self.rule, **self.options}
        seed = torch.initial_seed()
        init_(model, seed=seed, own_inits=self._own, verbose=False, **self.init, **rule)
        groups = param_groups(model, lr=self.lr, skip_frozen=self.skip_frozen, **rule)
        return self.make(groups, lr=self.lr)


def rule_optimizer(
    factory: Factory,
    *,
    base_width: int,
    parameterization: str | Parameterization,
    lr: float,
    roles: Mapping[str, str] | None = None,
    skip_frozen: bool = True,
    make: Callable[..., Optimizer] = AdamW,
    **options: Any,
) -> RuleOptimizer:
    """Make the ``optimizer`` of a ``coordinate_check`` that puts a rule to use.

    What it returns finds the roles of the model at the width, sets the model's initial weights to
    the rule's (seeded by torch's own seed) and makes the optimizer from the rule's groups.

    Parameters
    ----------
    factory : callable
        From a width to a model, as for ``infer_roles``.
    base_width : int
        The width at which all rules agree.
    parameterization : str or Parameterization
        As for ``param_groups``.
    lr : float
        The learning rate η at every width.
    roles : mapping of str to str, optional
        As for ``infer_roles``.
    skip_frozen : bool
        Leave out parameters with ``requires_grad=False``.
    make : callable
        From the groups and ``lr=`` to an optimizer.
    **options
        ``base_std``, ``keep``, ``reset`` and ``mode`` as for ``init_``; the rest as for
        ``param_groups``.

    Returns
    -------
    RuleOptimizer
        A function of (width, model).

    Raises
    ------
    ConfigError
        If the rule is not known; and, when it is called, as ``infer_roles`` and ``param_groups``.

    Examples
    --------
    >>> from torch import nn
    >>> def make(width):
    ...     return nn.Sequential(nn.Embedding(10, width), nn.Linear(width, width, bias=False),
    ...                          nn.Linear(width, 10, bias=False))
    >>> optimizer = rule_optimizer(make, base_width=32, parameterization="mup", lr=0.5)
    >>> [group["lr"] for group in optimizer(64, make(64)).param_groups]
    [0.5, 0.25]
    """
    init = {key: options.pop(key) for key in _OF_INIT if key in options}
    rule = parse_rule(parameterization)
    return RuleOptimizer(
        factory, base_width, rule, lr, roles, skip_frozen, make, init=init, options=options
    )


# What classes of optimizers mean

DecayMeaning = Literal["lr", "relative", "independent", "gradient"]
"""What a step shrinks a tensor by: lr · wd, lr / initial lr · wd, wd, or (``gradient``) nothing,
as wd is added to a gradient that is then divided by its RMS."""

SAY_DECAY: Mapping[str, str] = {
    "lr": "lr · weight_decay",
    "relative": "lr / initial lr · weight_decay",
    "independent": "weight_decay, whatever the lr",
    "gradient": "nothing (weight_decay enters the gradient, which is divided by its RMS)",
}

_TRIAL_STEPS = 8
_PLAIN_OFF = ("nesterov", "fused", "capturable", "differentiable", "scale_parameter")

_ADAMS = frozenset({"adamw", "adam", "nadam", "radam", "sparseadam"})


def takes_numbers_of(optimizer: Optimizer, rule_optimizer: str) -> bool:
    """Tell by an optimizer's class or an ancestor's whether groups for ``rule_optimizer`` fit it.

    Returns
    -------
    bool
        True where no class is known.
    """
    wanted = _ADAMS if rule_optimizer in _ADAMS else {rule_optimizer}
    for each in type(optimizer).__mro__:
        name = each.__name__.lower()
        is_torchs = each is not Optimizer and each.__module__.startswith("torch.optim.")
        if name in _ADAMS or name in OPTIMIZERS or is_torchs:
            return name in wanted
    return True


def find_decay_meaning(optimizer: Optimizer) -> DecayMeaning | None:
    """Return what an optimizer's weight decay means, by steps on four numbers without a gradient.

    From two fresh starts, the second at half the learning rate, it takes as many steps as RAdam
    takes before it divides by the RMS of gradients; the last step's shrink is looked at.

    Returns
    -------
    DecayMeaning or None
        None where it shrinks nothing, or cannot be tried, such as one that runs on a GPU alone.
    """
    lr, decay = 0.1, 0.5
    start = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    plain: dict[str, Any] = {"momentum": 0.0}
    plain |= dict.fromkeys(_PLAIN_OFF, False)
    settings = {k: plain.get(k, v) for k, v in optimizer.param_groups[0].items() if k != "params"}
    shrinks = []
    try:
        for rate in (lr, lr / 2):
            probe: Any = copy.copy(optimizer)
            parameter = torch.nn.Parameter(start.clone())
            numbers = {"lr": rate, "weight_decay": decay, "initial_lr": lr, "params": [parameter]}
            probe.param_groups, probe.state = [settings | numbers], defaultdict(dict)
            probe.defaults = {k: plain.get(k, v) for k, v in optimizer.defaults.items()}
            probe._optimizer_step_pre_hooks = OrderedDict()
            probe._optimizer_step_post_hooks = OrderedDict()
            for _ in range(_TRIAL_STEPS):
                before = parameter.detach().clone()
                parameter.grad = torch.zeros_like(parameter)
                type(optimizer).step(probe)
            shrinks.append(1.0 - parameter.detach() / before)
    except Exception:  # whatever another's optimizer raises
        return None
    one, two = (float(each.mean()) for each in shrinks)
    if abs(one) < 1e-6:
        return None
    if float((shrinks[0] - one).abs().max()) > 0.02 * abs(one):
        return "gradient"
    half = abs(two / one - 0.5) < 0.05
    if abs(one / (lr * decay) - 1) < 0.05 and half:
        return "lr"
    if abs(one / decay - 1) < 0.05:
        return "relative" if half else "independent"
    return None


# What optimizers do to a model

MakeOptimizer = Callable[..., Any]
"""From a model, or from (width, model), to an optimizer, several, or param groups."""


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
        """What a step shrinks the tensor by; as AdamW's where that is not known."""
        if self.decay == "gradient":
            return 0.0
        by_lr = self.decay in ("lr", None)
        return self.weight_decay * (self.lr if by_lr else 1.0)


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
    """Return all groups, each with its optimizer's class and the meaning of its weight decay."""
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
    if isinstance(made, Mapping) and "optimizer" in made:
        made = made["optimizer"]  # as Lightning has it
    several: Sequence[Any] = made if isinstance(made, list | tuple) else [made]
    wrong = ConfigError(
        "optimizer: expected a torch.optim.Optimizer, several, or param groups, found "
        f"{type(made).__name__}"
    )
    groups: list[Group] = []
    for k, each in enumerate(several):
        if isinstance(each, Optimizer):
            meaning = find_decay_meaning(each)
            groups += [(group, type(each).__name__, meaning) for group in each.param_groups]
        elif isinstance(each, Mapping) and "params" in each:
            if "lr" not in each:
                raise ConfigError(f"optimizer: group {k} has no lr")
            params = each["params"]
            params = [params] if isinstance(params, torch.Tensor) else list(params)
            kind = "Muon" if each.get("optimizer") == "muon" else "AdamW"
            groups.append(({**each, "params": params}, kind, each.get("decay_semantics", "lr")))
        else:
            raise wrong
    if not groups:
        raise wrong
    return groups


def _takes_width(function: MakeOptimizer) -> bool:
    """Tell whether the function needs two arguments, as a coordinate check's does."""
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    return len(needed) == 2
