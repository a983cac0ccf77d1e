"""Watch that the learning rates and decays of an optimizer's groups keep the rule's ratios."""

import copy
import logging
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hptransfer._messages import check_name
from hptransfer.adopt._optimizers import (
    SAY_DECAY,
    find_decay_meaning,
    takes_numbers_of,
)
from hptransfer.adopt._param_groups import (
    DECAY_SEMANTICS_KEY,
    RULE_DECAY,
    RULE_LR,
    RULE_OPTIMIZER,
    TUNED_LR,
    rules_given,
)
from hptransfer.adopt._user_model import named_tensors, say_error
from hptransfer.errors import ConfigError
from hptransfer.scaling._resolve import check_count

TOLERANCE = 1e-6
"""Relative; schedulers compute in float64, some in float32."""

_LOG = logging.getLogger("hptransfer")

_MAX_BEHIND = 1000  # steps by which one optimizer may be behind another

_ADVICE = (
    "a scheduler has overwritten them instead of multiplying all by one factor (OneCycleLR takes "
    "max_lr as a list, one for each group; a cosine must go to eta_min = 0, or be a LambdaLR)"
)


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a schedule does to the groups, without training.

    Attributes
    ----------
    steps : int
        Optimizer steps that were asked for.
    step : int or None
        The step, from 0, before which the guard would break; None if it never does.
    reason : str
        The guard's line at that step; "" if it never breaks.
    low, high : float
        Smallest and largest factor on the rule's learning rates until then.
    """

    steps: int
    step: int | None
    reason: str
    low: float
    high: float

    def __bool__(self) -> bool:
        return self.step is None

    def __str__(self) -> str:
        span = f"lr from {self.low:.4g} to {self.high:.4g} of the rule's"
        if self.step is None:
            return f"rehearsal: {self.steps} steps keep the rule's ratios; {span}"
        return (
            f"rehearsal: breaks in step {self.step} of {self.steps} "
            f"({100 * self.step / self.steps:.1f} %): {self.reason}"
        )


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """What the rule gave to one group, copied when the guard was made."""

    name: str
    lr: float
    weight_decay: float

    @classmethod
    def read(cls, group: dict[str, Any], index: int, *, late: bool = False) -> "_Rule":
        name = str(group.get("name", "no name"))
        if RULE_LR not in group:
            raise ConfigError(
                f"guard: group {index} was added after the guard and has no {RULE_LR!r}; add "
                "groups that param_groups returns, and make the guard again"
                if late
                else f"guard: group {index} ({name}) has no {RULE_LR!r}; make the optimizer from "
                "the groups that param_groups returns"
            )
        decay = group.get(RULE_DECAY, group.get("weight_decay", 0.0))
        return cls(name=name, lr=group[RULE_LR], weight_decay=float(decay))


class _Watched:
    """One optimizer that is watched, its rule, and its steps that others have not taken yet."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._reference = weakref.ref(optimizer)
        self.kind = type(optimizer).__name__
        self.rules = [_Rule.read(g, k) for k, g in enumerate(optimizer.param_groups)]
        self.count = 0
        self.factors: deque[float] = deque()

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer; None once it is gone."""
        return self._reference()

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Its groups."""
        optimizer = self.optimizer
        return [] if optimizer is None else optimizer.param_groups

    @property
    def factor(self) -> float:
        """The factor on the rule's learning rates."""
        return float(self.groups[0]["lr"]) / self.rules[0].lr

    def find_break(self) -> str | None:
        """Return what is wrong with its groups; None if nothing is."""
        rules, late = self.rules, self.groups[len(self.rules) :]
        try:
            rules += [_Rule.read(g, i, late=True) for i, g in enumerate(late, len(rules))]
        except ConfigError as error:
            return str(error)
        return _find_break(self.groups, rules)


class Guard:
    """What ``guard`` returns: checks before every optimizer step, until removed.

    Attributes
    ----------
    notes : tuple of str
        What is no break and yet worth knowing; logged as warnings too.
    """

    def __init__(self, optimizers: Sequence[Optimizer], on_break: str) -> None:
        self._on_break = on_break
        self._all = [_Watched(each) for each in optimizers]
        self._compares = len(self._all) > 1
        self._said: set[str] = set()
        self.notes: tuple[str, ...] = ()
        self._handles = [
            each.register_step_pre_hook(partial(self._before_step, own))
            for each, own in zip(optimizers, self._all, strict=True)
        ]
        # The optimizers' hooks keep the guard alive, and it keeps neither them nor torch's hook.
        own = weakref.ref(self)

        def before_any_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if (watch := own()) is not None:
                watch._before_any_step(optimizer)

        self._handles.append(register_optimizer_step_pre_hook(before_any_step))
        weakref.finalize(self, self._handles[-1].remove)

    @property
    def _watched(self) -> list[_Watched]:
        """Those of the optimizers that are still there."""
        return [each for each in self._all if each.optimizer is not None]

    # Called by torch

    def _before_step(self, own: _Watched, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        own.count += 1
        message, apart = own.find_break(), self._compare(own)  # both: a step counts for all
        self._break(message or apart)

    def _before_any_step(self, optimizer: Optimizer) -> None:
        """Find an optimizer of another's that trains the parameters that are watched."""
        if any(optimizer is each.optimizer for each in self._watched):
            return
        if all(RULE_LR in group for group in optimizer.param_groups):
            return  # it has a rule of its own
        watched = [group for each in self._watched for group in each.groups]
        if any(group is own for group in optimizer.param_groups for own in watched):
            return  # a wrapper that steps the watched optimizer itself
        names = {id(p): group.get("name", "no name") for group in watched for p in group["params"]}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in names:
                    self._break(
                        f"guard: another optimizer ({type(optimizer).__name__}, lr "
                        f"{float(group['lr']):.6g}) trains parameters of group "
                        f"{names[id(parameter)]!r}: an engine has made its own; give it these "
                        "groups and watch guard(engine.optimizer), or remove() this guard"
                    )
                    return

    # Examining

    def check(self) -> None:
        """Compare the groups with the rule now.

        Raises
        ------
        ConfigError
            If the ratios between learning rates, or between weight decays, are not the rule's
            (with ``on_break="warn"`` it is logged); the message names two groups and both ratios.
        """
        for message in self._find_breaks(together=len({each.count for each in self._watched}) == 1):
            self._break(message)

    def _break(self, message: str | None) -> None:
        if message is None:
            return
        if self._on_break == "raise":
            raise ConfigError(message)
        if message not in self._said:
            self._said.add(message)
            _LOG.warning("%s", message)

    def _find_breaks(self, *, together: bool = True) -> Iterator[str]:
        """Yield what is wrong with each optimizer, and between those that are stepped together."""
        for each in self._watched:
            if message := each.find_break():
                yield message
        factors = [(each.factor, each.kind) for each in self._watched]
        compares = together and self._compares and len(factors) > 1
        if compares and (message := _say_apart(factors)):
            yield message

    def _compare(self, own: _Watched) -> str | None:
        """Compare the optimizers' factors in their steps of one number, once all have taken it."""
        if not self._compares:
            return None
        own.factors.append(own.factor)
        if all(each.factors for each in self._watched):
            return _say_apart([(each.factors.popleft(), each.kind) for each in self._watched])
        if len(own.factors) <= _MAX_BEHIND:
            return None
        self._compares = False
        late = min(self._watched, key=lambda each: each.count)
        return (
            f"guard: {late.kind} has taken {late.count or 'no'} step{'s' * (late.count != 1)} and "
            f"is more than {_MAX_BEHIND} behind the others: they are compared with one another no "
            "longer; guard optimizers that step at different times apart"
        )

    # Without training

    def rehearse(
        self, schedulers: Any, steps: int, *, metric: float = 1.0, quiet: bool = False
    ) -> Rehearsal:
        """Run a schedule without training and find the step at which the guard would break.

        Copies of the schedulers drive the groups, which are then put back as they were.

        Parameters
        ----------
        schedulers : scheduler, callable or list
            Those of the watched optimizers, as ``torch.optim.lr_scheduler`` makes them; or a
            function of the step that writes into the optimizers' groups.
        steps : int
            Optimizer steps, each followed by one step of each scheduler.
        metric : float
            What a ``ReduceLROnPlateau`` is told at each step.
        quiet : bool
            Return a rehearsal that breaks, whatever ``on_break`` says.

        Returns
        -------
        Rehearsal
            True where the schedule keeps the rule's ratios to the end.

        Raises
        ------
        ConfigError
            If it breaks (with ``on_break="warn"`` it is logged), or a scheduler drives another
            optimizer or cannot be copied.

        Examples
        --------
        >>> import torch
        >>> from torch import nn
        >>> from hptransfer.adopt import guard, infer_roles, param_groups
        >>> def make(width):
        ...     return nn.Sequential(nn.Linear(4, width), nn.Linear(width, width),
        ...                          nn.Linear(width, 2))
        >>> roles = infer_roles(make, base_width=16, width=64)
        >>> groups = param_groups(make(64), roles=roles, parameterization="mup", lr=0.01)
        >>> optimizer = torch.optim.AdamW(groups, lr=0.01)
        >>> cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
        >>> print(guard(optimizer).rehearse(cosine, 100))
        rehearsal: 100 steps keep the rule's ratios; lr from 0.0002467 to 1 of the rule's
        """
        steps = check_count("steps", steps)
        several = schedulers if isinstance(schedulers, list | tuple) else [schedulers]
        optimizers = [each.optimizer for each in self._watched if each.optimizer]
        runs = [_copy_scheduler(each, optimizers, metric) for each in several]
        groups = [group for each in self._watched for group in each.groups]
        held = [dict(group) for group in groups]
        tensors = [v for group in held for v in group.values() if isinstance(v, Tensor)]
        before = [each.clone() for each in tensors]
        step, reason, low, high = None, None, float("inf"), 0.0
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that no optimizer steps between
                for k in range(steps):
                    reason = next(self._find_breaks(), None)
                    if reason is None:
                        factor = self._watched[0].factor
                        low, high = min(low, factor), max(high, factor)
                        reason = _advance(runs, k)
                    if reason is not None:
                        step = k
                        break
        finally:
            for each, value in zip(tensors, before, strict=True):
                each.copy_(value)  # whoever holds the tensor reads it
            for group, own in zip(groups, held, strict=True):
                group.clear()
                group.update(own)
        result = Rehearsal(
            steps=steps, step=step, reason=reason or "", low=min(low, high), high=high
        )
        if not result and not quiet:
            self._break(str(result))
        return result

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()


def guard(
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    model: nn.Module | None = None,
    on_break: str = "raise",
) -> Guard:
    """Watch that schedulers and resumes leave the groups' ratios as the rule gave them.

    A scheduler must multiply every group's learning rate by one factor, and every weight decay too.
    Some overwrite instead: ``OneCycleLR`` with one ``max_lr``, ``CosineAnnealingLR`` with an
    ``eta_min`` above 0, ``CyclicLR``, a decay schedule that writes one number into all groups. The
    groups are compared with the rule at once, and before each ``optimizer.step()``, so that no step
    is taken with changed ratios. The guard keeps its own copy of the rule, so that a checkpoint of
    another run cannot bring that run's back unseen.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer or several
        Made from the groups of ``param_groups``, before or after schedulers are made. Several
        (Muon and AdamW) are also compared with one another, step by step, until one has taken 1000
        steps fewer than another: that raises once, and ends a run that does not catch it.
    model : torch.nn.Module, optional
        Where given, the optimizers together must hold every parameter of it that is trained.
    on_break : str
        ``raise`` a ConfigError, or ``warn`` (log, once for each message) and go on.

    Returns
    -------
    Guard
        ``check()`` compares at any time, ``rehearse(scheduler, steps)`` runs a schedule without
        training, ``remove()`` ends the watch.

    Raises
    ------
    ConfigError
        If a group is not one of ``param_groups``, ratios are changed already, the optimizer is of
        another class than the groups are for, its weight decay means something else, another
        optimizer trains the same parameters, or the optimizers lack a parameter of the model. A
        later step raises for these too, and once where an optimizer falls 1000 steps behind.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from hptransfer.adopt import infer_roles, param_groups
    >>> def make(width):
    ...     return nn.Sequential(nn.Linear(4, width), nn.Linear(width, width),
    ...                          nn.Linear(width, 2))
    >>> roles = infer_roles(make, base_width=16, width=64)
    >>> groups = param_groups(make(64), roles=roles, parameterization="mup", lr=0.01)
    >>> optimizer = torch.optim.AdamW(groups, lr=0.01)
    >>> watch = guard(optimizer)
    >>> optimizer.param_groups[0]["lr"] = 0.5
    >>> watch.check()
    Traceback (most recent call last):
    hptransfer.errors.ConfigError: guard: groups 'embedding+bias' and 'hidden+readout' have lr 0.5 \
and 0.0025, where the rule gave 0.01 and 0.0025: a scheduler has overwritten them instead of \
multiplying all by one factor (OneCycleLR takes max_lr as a list, one for each group; a cosine \
must go to eta_min = 0, or be a LambdaLR)
    """
    several = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    on_break = check_name("on_break", on_break, ("raise", "warn"))
    if not several or not all(isinstance(each, Optimizer) for each in several):
        raise ConfigError(
            f"guard: expected a torch.optim.Optimizer or several, found {type(optimizer).__name__}"
        )
    watch = Guard(several, on_break)
    try:
        for message in _find_faults(several, model):
            watch._break(message)
        watch.check()
    except ConfigError:
        watch.remove()
        raise
    watch.notes = tuple(_find_notes(several))
    for note in watch.notes:
        _LOG.warning("%s", note)
    return watch


def _say_apart(factors: Collection[tuple[float, str]]) -> str | None:
    """Return what is wrong with (factor on the rule's rates, class) of several optimizers."""
    (low, slow), (high, fast) = min(factors), max(factors)
    if high - low <= TOLERANCE * abs(high):
        return None
    return (
        f"guard: {fast} is at {high:.6g} of the rule's learning rates and {slow} at {low:.6g}: "
        "one of them has no schedule, or another one; schedule both alike, or guard them apart"
    )


def _find_faults(optimizers: Sequence[Optimizer], model: nn.Module | None) -> Iterable[str]:
    """Yield what is wrong before any step."""
    if model is not None and (message := _find_missing(optimizers, model)):
        yield message
    for each in optimizers:
        kind = type(each).__name__
        wanted = {g[RULE_OPTIMIZER] for g in each.param_groups if RULE_OPTIMIZER in g}
        for name in sorted(wanted):
            if not takes_numbers_of(each, name):
                yield (
                    f"guard: the groups' numbers are for {name!r} and the optimizer is {kind}; "
                    f'make them with optimizer="{kind.lower()}", or use what they are for'
                )
        decays = [g for g in each.param_groups if g.get("weight_decay", 0.0)]
        meaning = find_decay_meaning(each) if decays else None
        said = {g.get(DECAY_SEMANTICS_KEY, "lr") for g in decays}
        if meaning is not None and said and said != {meaning}:
            way = f'make them with decay_semantics="{meaning}"'
            if meaning == "gradient":
                way = "use an optimizer that decouples it, such as AdamW"
            yield (
                f"guard: a step of {kind} shrinks a tensor by {SAY_DECAY[meaning]}, and the "
                f"groups' weight decay is for {SAY_DECAY[said.pop()]}; {way}"
            )
        for group in each.param_groups:
            given = rules_given(group["params"])
            if given and (group[RULE_LR], group.get(RULE_DECAY)) not in given:
                lrs = ", ".join(f"{lr:.6g}" for lr, _ in sorted(given))
                yield (
                    f"guard: group {group.get('name', 'no name')!r} has the rule's lr "
                    f"{group[RULE_LR]:.6g}, where param_groups gave {lrs}: a checkpoint of another "
                    "run has been loaded"
                )
                break


def _find_missing(optimizers: Sequence[Optimizer], model: nn.Module) -> str | None:
    held = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    missing = [
        name for name, each in named_tensors(model) if each.requires_grad and id(each) not in held
    ]
    if not missing:
        return None
    two = any("optimizer" in group for each in optimizers for group in each.param_groups)
    way = (
        "pass both optimizers, guard([muon, adamw], model=model)"
        if two and len(optimizers) == 1
        else "pass it all the groups that param_groups returns"
    )
    return (
        f"guard: {missing[0]!r} ({len(missing)} in all) is trained and in no group of the "
        f"optimizer; {way}"
    )


def _find_notes(optimizers: Sequence[Optimizer]) -> Iterable[str]:
    for each in optimizers:
        default = each.defaults.get("lr")
        tuned = {g[TUNED_LR] for g in each.param_groups if TUNED_LR in g}
        if default is None or not tuned:
            continue
        if all(abs(float(default) - lr) > TOLERANCE * lr for lr in tuned):
            kind, lr = type(each).__name__, max(tuned)
            yield (
                f"guard: {kind}'s default lr is {float(default):.6g} and the tuned one {lr:.6g}: "
                "schedulers that read it (cosine_with_min_lr, polynomial) set another floor; make "
                f"it {kind}(groups, lr={lr:.6g})"
            )


def _find_break(groups: Sequence[dict[str, Any]], rules: Sequence[_Rule]) -> str | None:
    """Return what is wrong with groups beside the rule's copy; None if nothing is."""
    pairs = list(zip(groups, rules, strict=False))
    for group, rule in pairs:
        if group.get(RULE_LR) != rule.lr:
            return (
                f"guard: group {rule.name!r} has the rule's lr {group.get(RULE_LR):.6g}, and had "
                f"{rule.lr:.6g} when the guard was made: a checkpoint of another run has been "
                "loaded, with that run's learning rates"
            )
    rows = {
        key: [(rule.name, float(g[key]), getattr(rule, key)) for g, rule in pairs if key in g]
        for key in ("lr", "weight_decay")
    }
    if message := _find_apart("lr", rows["lr"], _ADVICE):
        return message
    for name, decay, given in rows["weight_decay"]:
        if given == 0.0 and decay != 0.0:
            return (
                f"guard: group {name!r} has weight decay {decay:.6g}, and the rule does not decay "
                "it: a schedule has overwritten it; multiply each group's own instead"
            )
    decays = [row for row in rows["weight_decay"] if row[2]]
    advice = "a schedule has overwritten them; multiply each group's own by one factor"
    return _find_apart("weight decay", decays, advice)


def _find_apart(what: str, rows: Sequence[tuple[str, float, float]], advice: str) -> str | None:
    """Return what is wrong with (group, number, the rule's) where the ratios are not one."""
    ratios = [number / given for _, number, given in rows]
    low, high = min(ratios, default=0.0), max(ratios, default=0.0)
    if high - low <= TOLERANCE * abs(high):
        return None
    one, other = (rows[k] for k in sorted((ratios.index(low), ratios.index(high))))
    return (
        f"guard: groups {one[0]!r} and {other[0]!r} have {what} {one[1]:.6g} and {other[1]:.6g}, "
        f"where the rule gave {one[2]:.6g} and {other[2]:.6g}: {advice}"
    )


def _copy_scheduler(
    scheduler: Any, optimizers: Sequence[Optimizer], metric: float
) -> Callable[[int], object]:
    """Return the step of a copy of a scheduler that drives the same optimizer."""
    inner = scheduler
    while not hasattr(inner, "optimizer") and hasattr(inner, "scheduler"):
        inner = inner.scheduler  # a trainer's wrapper
    kind = type(inner).__name__
    if not hasattr(inner, "step"):
        if callable(inner):
            made: Callable[[int], object] = inner
            return made
        raise ConfigError(f"rehearse: expected a scheduler or a function of the step, found {kind}")
    why = "it names no optimizer that it drives"
    if drives := getattr(inner, "optimizer", None):
        if not any(drives is each for each in optimizers):
            raise ConfigError(f"rehearse: {kind} drives another optimizer than the guard watches")
        try:
            copied = copy.deepcopy(inner, {id(each): each for each in optimizers})
        except Exception as error:  # whatever another's scheduler holds
            why = str(error)
        else:
            told = [metric] if kind == "ReduceLROnPlateau" else []
            return lambda step: copied.step(*told)
    raise ConfigError(f"rehearse: {kind} cannot be copied ({why}); give a function of the step")


def _advance(runs: Sequence[Callable[[int], object]], step: int) -> str | None:
    try:
        for run in runs:
            run(step)
    except Exception as error:  # a schedule that is shorter than the run, say
        return f"the scheduler raised {say_error(error)}"
    return None
