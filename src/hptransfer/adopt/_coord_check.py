"""Check coordinates: train a few steps at several widths and see what keeps its size.

Shape letters: W widths, S seeds.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from hptransfer._messages import check_count, check_number
from hptransfer.adopt._activations import (
    ModuleFilter,
    Outputs,
    holds_or_is_leaf,
    record,
    rms,
    same_shapes,
)
from hptransfer.adopt._coord_check_result import (
    DEFAULT_TOLERANCE,
    LOGITS,
    CoordinateCheck,
    ModuleCheck,
)
from hptransfer.adopt._model_init import set_weights
from hptransfer.adopt._own_init import OwnInits, measure_own_init
from hptransfer.adopt._param_groups import param_groups
from hptransfer.adopt._parameters import (
    Factory,
    build_model,
    canonical_name,
    find_layout,
    find_vocabulary,
    named_tensors,
)
from hptransfer.adopt._role_inference import infer_roles
from hptransfer.adopt._role_overrides import match_names
from hptransfer.adopt._tensor_rules import RuleKeywords
from hptransfer.adopt.role_table import RoleTable
from hptransfer.errors import ConfigError
from hptransfer.scaling import LATTICE, Parameterization, parse_rule
from hptransfer.stats.slope import MIN_WIDTHS

Loss = Callable[[nn.Module, Any], Tensor]
"""From a model and a batch to the loss that is trained on."""

MakeOptimizer = Callable[[int, nn.Module], Optimizer]
"""From a width and a fresh model to its optimizer; it may also set the initial weights."""

DEFAULT_STEPS = 4
DEFAULT_SEEDS = (0, 1)


class RuleOptimizer:
    """The ``optimizer`` of a ``coordinate_check`` that puts a rule to use; see `rule_optimizer`.

    Attributes
    ----------
    rule : Parameterization
        The rule.
    """

    def __init__(
        self,
        factory: Factory,
        *,
        base_width: int,
        rule: Parameterization,
        lr: float,
        roles: Mapping[str, str] | None,
        init: Mapping[str, Any],
        skip_frozen: bool,
        make: Callable[..., Optimizer],
        options: RuleKeywords,
    ) -> None:
        self.rule = rule
        self._factory, self._base_width, self._lr = factory, base_width, lr
        self._roles, self._init, self._make = roles, init, make
        self._skip_frozen, self._options = skip_frozen, options
        self._tables: dict[int, RoleTable] = {}
        self._own: OwnInits | None = None

    def find_roles(self, width: int) -> RoleTable:
        """Return the roles of the model at a width."""
        if width not in self._tables:
            self._tables[width] = infer_roles(
                self._factory, base_width=self._base_width, width=width, roles=self._roles
            )
        return self._tables[width]

    def expect(self, width: int) -> dict[str, float]:
        """Return the exponents with which modules' changes go by the rule itself, where not 0.

        A rule of the lattice between SP and µP is judged by what µP promises: 0. Another rule may
        let the update of its tables fall on purpose, as ``u-mup`` and ``hayou-liu`` do.
        """
        exponents, table = self.rule.roles["embedding"], self.find_roles(width)
        fall = exponents.lr + exponents.multiplier
        expected = {}
        if self.rule.name not in LATTICE and fall != 0.0:
            expected = {
                entry.name.rpartition(".")[0]: fall
                for entry in table
                if entry.role == "embedding" and entry.is_table
            }
        if self._heads_grow(table):  # query projections that absorb the attention scale
            names = [(entry.name, *entry.tied) for entry in table]
            query = self._options.get("query", ())
            for key in [query] if isinstance(query, str) else query:
                for k in match_names(f"query: {key!r}", key, names):
                    path = table.parameters[k].name.rpartition(".")[0]
                    expected[path] = self.rule.attention + 0.5
        return expected

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
        sizes = table.head_size, table.base_head_size
        return None not in sizes and sizes[0] != sizes[1]

    def __call__(self, width: int, model: nn.Module) -> Optimizer:
        table = self.find_roles(width)
        if self._own is None:
            self._own = measure_own_init(self._factory, table.base_width)
        set_weights(
            model,
            table,
            parameterization=self.rule,
            seed=torch.initial_seed(),
            own=self._own,
            factory=self._factory,
            options=self._options,
            **self._init,
        )
        groups = param_groups(
            model,
            roles=table,
            parameterization=self.rule,
            lr=self._lr,
            skip_frozen=self._skip_frozen,
            **self._options,
        )
        return self._make(groups, lr=self._lr)


def rule_optimizer(
    factory: Factory,
    *,
    base_width: int,
    parameterization: str | Parameterization,
    lr: float,
    roles: Mapping[str, str] | None = None,
    base_std: float | Mapping[str, float] | None = None,
    keep: str | Iterable[str] = (),
    reset: str | Iterable[str] = (),
    mode: str = "draw",
    skip_frozen: bool = True,
    make: Callable[..., Optimizer] = AdamW,
    **options: Unpack[RuleKeywords],
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
    base_std, keep, reset, mode
        As for ``init_``.
    skip_frozen : bool
        Leave out parameters with ``requires_grad=False``.
    make : callable
        From the groups and ``lr=`` to an optimizer.
    **options
        As for ``param_groups``.

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
    return RuleOptimizer(
        factory,
        base_width=base_width,
        rule=parse_rule(parameterization),
        lr=lr,
        roles=roles,
        init={"base_std": base_std, "keep": keep, "reset": reset, "mode": mode},
        skip_frozen=skip_frozen,
        make=make,
        options=options,
    )


def coordinate_check(
    factory: Factory,
    widths: Sequence[int],
    *,
    optimizer: MakeOptimizer,
    batches: Sequence[Any],
    loss: Loss | None = None,
    steps: int = DEFAULT_STEPS,
    warmup: int = 0,
    seeds: Sequence[int] = DEFAULT_SEEDS,
    tolerance: float = DEFAULT_TOLERANCE,
    modules: ModuleFilter = holds_or_is_leaf,
    name: str = "model",
) -> CoordinateCheck:
    """Train a model a few steps at several widths and judge how its activations go with width.

    Where a rule does its work, every module's output changes by an amount that does not depend on
    width (Yang & Hu 2021; Yang et al. 2022, appendix D.1, "coordinate checking"): the slope of
    ln(RMS of the change) against ln(width) is 0 within ``tolerance``. A negative slope is a module
    that stops learning as the model widens, a positive one a module that blows up. A matrix with a
    fixed number of outputs (the readout) is judged by what its own update adds; attention logits
    are looked at too, so that a scale of 1/√H where the rule wants 1/H shows.

    Parameters
    ----------
    factory : callable
        From a width to a model.
    widths : sequence of int
        At least three different ones; a factor of 8 or more between the ends tells most.
    optimizer : callable
        From (width, model) to the optimizer, and the place to set the initial weights too if the
        factory does not; ``rule_optimizer`` makes one from a parameterization.
    batches : sequence
        What ``loss`` takes; the outputs are compared on the first, the steps go through all, again
        and again.
    loss : callable, optional
        From (model, batch) to the training loss. By default a batch is a mapping of keywords and
        the model's output has a ``loss``, as in Hugging Face's models.
    steps : int
        Optimizer steps.
    warmup : int
        Steps over which the learning rates rise linearly, for a check at the learning rate that is
        meant and not a small one.
    seeds : sequence of int
        Each is set as torch's seed before ``factory`` is called; the caller's random state stays.
    tolerance : float
        How far from its expected value a slope may be.
    modules : callable, optional
        From (path, module) to whether it is looked at; by default those without modules in them
        and those with parameters of their own, such as torch's attention and stacks of experts.
    name : str
        What the result is called, such as the parameterization.

    Returns
    -------
    CoordinateCheck
        A verdict for each module; modules without one and parameters that were not looked at are
        listed.

    Raises
    ------
    ConfigError
        If there are too few widths, no seeds or batches, or what a callable returns is not what is
        written here.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> def make(width):
    ...     return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width),
    ...                          nn.ReLU(), nn.Linear(width, 2))
    >>> data = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    >>> check = coordinate_check(
    ...     make, [32, 64, 128],
    ...     optimizer=rule_optimizer(make, base_width=32, parameterization="mup", lr=2**-8),
    ...     batches=[data], loss=lambda model, batch: (model(batch) - batch[:, :2]).square().mean(),
    ... )
    >>> check.passed
    True
    """
    if len(set(widths)) < MIN_WIDTHS:
        raise ConfigError(
            f"widths: expected at least {MIN_WIDTHS} different ones, found {list(widths)}"
        )
    for key, given in (("seeds", seeds), ("batches", batches)):
        if not len(given):
            raise ConfigError(f"{key}: expected at least one, found none")
    steps = check_count("steps", steps)
    tolerance = check_number("tolerance", tolerance, zero=False)
    widths = sorted({check_count("width", width) for width in widths})
    fixed = _find_fixed_outputs(factory, widths[0], widths[-1])
    seen = _Records(steps=steps, num_widths=len(widths), num_seeds=len(seeds))
    with torch.random.fork_rng():
        for w, width in enumerate(widths):
            for s, seed in enumerate(seeds):
                torch.manual_seed(seed)
                model = factory(width)
                _check_type("factory", model, nn.Module)
                stepper = optimizer(width, model)
                _check_type("optimizer", stepper, Optimizer)
                trial = _Trial(model, loss or _default_loss, batches, _without(modules, fixed))
                seen.put(w, s, trial.train(stepper, steps, warmup, fixed), model)
    expected: Mapping[str, float] = {}
    logits = None
    if isinstance(optimizer, RuleOptimizer):
        expected, logits = optimizer.expect(widths[-1]), optimizer.expect_logits(widths[-1])
    return seen.judge(
        name=name,
        widths=widths,
        seeds=seeds,
        tolerance=tolerance,
        expected=expected,
        logits=logits,
    )


def make_token_batches(
    factory: Factory, width: int, *, count: int = 4, size: int = 4, length: int = 16
) -> tuple[list[Any], Loss | None]:
    """Make batches of token sequences that can be learned, and the loss that goes with them.

    In a sequence each token is the last one plus a step of 1 to 3, modulo the vocabulary.

    Parameters
    ----------
    factory : callable
        From a width to a model with a look-up table for its tokens.
    width : int
        A width that it takes.
    count, size, length : int
        Batches, sequences in each, and tokens in each sequence.

    Returns
    -------
    batches : list
        Mappings of ``input_ids`` and ``labels`` where the model takes those, else token tensors of
        shape (size, length + 1).
    loss : callable or None
        None where the model's output has a ``loss``; else the mean next-token loss of its logits,
        or what it returns where that is a single number.

    Raises
    ------
    ConfigError
        If the model has no look-up table.

    Examples
    --------
    >>> from torch import nn
    >>> def make(width):
    ...     return nn.Sequential(nn.Embedding(10, width), nn.Linear(width, 10))
    >>> batches, loss = make_token_batches(make, 32)
    >>> len(batches), tuple(batches[0].shape)
    (4, (4, 17))
    """
    model = build_model(factory, width)
    vocabulary = find_vocabulary(model)
    if vocabulary is None:
        raise ConfigError(
            "batches: the model has no look-up table for tokens; give batches, and a loss"
        )
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(vocabulary, (count, size, 1), generator=generator)
    step = torch.randint(1, 4, (count, size, 1), generator=generator)
    tokens = (start + step * torch.arange(length + 1)) % vocabulary
    if {"input_ids", "labels"} <= set(inspect.signature(model.forward).parameters):
        return [{"input_ids": each[:, :-1], "labels": each[:, :-1]} for each in tokens], None
    return list(tokens), _next_token_loss


def _next_token_loss(model: nn.Module, batch: Tensor) -> Tensor:
    output = model(batch[:, :-1])
    logits = getattr(output, "logits", output)
    if isinstance(logits, Tensor) and logits.dim() != 3:
        logits = model(batch)
    if isinstance(logits, Tensor) and logits.numel() == 1:
        return logits
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        raise ConfigError(
            "loss: expected logits of (sequences, tokens, vocabulary) from the model, or give a "
            f"loss; found {type(logits).__name__}"
        )
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def _find_fixed_outputs(factory: Factory, narrow: int, wide: int) -> list[str]:
    """Return the matrices whose inputs grow with width and whose outputs do not, by module."""
    shapes: list[dict[str, tuple[int, int]]] = []
    for width in (narrow, wide):
        fans = {}
        for path, module in build_model(factory, width).named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.dim() == 2:
                shape = tuple(weight.shape)
                layout = find_layout(module, "weight", shape)
                if layout.use == "matrix":
                    fans[canonical_name(path)] = layout.fans(shape)
                elif layout.use == "unknown":  # a class of one's own, as a router's
                    fans[canonical_name(path)] = shape[1], shape[0]
        shapes.append(fans)
    return [
        path
        for path, (fan_in, fan_out) in shapes[0].items()
        if path in shapes[1] and shapes[1][path][0] > fan_in and shapes[1][path][1] == fan_out
    ]


def _without(modules: ModuleFilter, fixed: Sequence[str]) -> ModuleFilter:
    """Leave out modules around the last readout, whose outputs are the readout's."""
    if modules is not holds_or_is_leaf or not fixed:
        return modules
    last = fixed[-1]
    return lambda name, module: modules(name, module) and not last.startswith(f"{name}.")


class _Module:
    """A module's RMS values over steps, widths and seeds; NaN where it did not run."""

    def __init__(self, kind: str, *, learns: bool, shape: tuple[int, int, int]) -> None:
        self.kind, self.learns = kind, learns
        self.activation = np.full(shape, math.nan)
        self.change = np.full(shape, math.nan)
        self.own = np.full(shape, math.nan)
        self.ran = np.zeros(shape[1:], dtype=bool)
        self.reshaped = False


class _Records:
    """What every module did at every width and seed."""

    def __init__(self, *, steps: int, num_widths: int, num_seeds: int) -> None:
        self._shape = (1 + steps, num_widths, num_seeds)
        self._modules: dict[str, _Module] = {}
        self._unseen: dict[str, None] = {}

    def put(self, w: int, s: int, trial: "_Run", model: nn.Module) -> None:
        for path, values in trial.values.items():
            if path not in self._modules:
                module = None if path.endswith(f"[{LOGITS}]") else model.get_submodule(path)
                self._modules[path] = _Module(
                    LOGITS if module is None else type(module).__name__,
                    learns=module is not None
                    and any(parameter.requires_grad for parameter in module.parameters()),
                    shape=self._shape,
                )
            each = self._modules[path]
            each.activation[:, w, s], each.change[:, w, s], each.own[:, w, s] = zip(
                *values, strict=True
            )
            each.ran[w, s] = True
            each.reshaped |= path in trial.reshaped
        if w == s == 0:
            self._unseen = dict.fromkeys(trial.find_unseen(model))

    def judge(
        self,
        *,
        name: str,
        widths: Sequence[int],
        seeds: Sequence[int],
        tolerance: float,
        expected: Mapping[str, float],
        logits: float | None,
    ) -> CoordinateCheck:
        """Return the verdicts; what cannot be judged is listed."""
        judged: list[ModuleCheck] = []
        constant: list[str] = []
        unjudged: list[tuple[str, str]] = []
        for path, each in self._modules.items():
            if not each.ran.all():
                unjudged.append((path, "it did not run at every width"))
                continue
            if each.reshaped:
                unjudged.append((path, "its output changed its shape"))
                continue
            if not (each.learns or np.any(each.change[1:] != 0.0)):
                constant.append(path)
                continue
            has_own = bool(np.isfinite(each.own[1:]).all())
            judged.append(
                ModuleCheck(
                    name=path or "(model)",
                    kind=each.kind,
                    widths=tuple(widths),
                    activation=each.activation,
                    change=each.change[1:],
                    tolerance=tolerance,
                    own_change=each.own[1:] if has_own else None,
                    expected=expected.get(path, 0.0),
                    expected_init=logits if each.kind == LOGITS else None,
                )
            )
        if not judged:
            raise ConfigError("modules: expected at least one whose output changes, found none")
        return CoordinateCheck(
            name=name,
            widths=tuple(widths),
            seeds=tuple(seeds),
            tolerance=tolerance,
            modules=tuple(judged),
            constant=tuple(constant),
            unjudged=tuple(unjudged),
            unseen=tuple(self._unseen),
        )


class _Run:
    """What one training run gave: RMS values by module, and which outputs changed their shape."""

    def __init__(self) -> None:
        self.values: dict[str, list[tuple[float, float, float]]] = {}
        self.reshaped: set[str] = set()

    def find_unseen(self, model: nn.Module) -> list[str]:
        """Return the trained parameters of no module that was looked at."""
        seen = set(self.values)
        modules = dict(model.named_modules())
        inside = {path for path in seen if isinstance(modules.get(path), nn.MultiheadAttention)}

        def is_seen(name: str) -> bool:
            path = name.rpartition(".")[0]
            return path in seen or any(path.startswith(f"{around}.") for around in inside)

        return [n for n, p in named_tensors(model) if p.requires_grad and not is_seen(n)]


def _copy_parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in module.named_parameters()}


class _Trial:
    """One model at one width and seed."""

    def __init__(
        self, model: nn.Module, loss: Loss, batches: Sequence[Any], modules: ModuleFilter
    ) -> None:
        self._model, self._loss, self._batches, self._modules = model, loss, batches, modules

    def train(self, optimizer: Optimizer, steps: int, warmup: int, fixed: Sequence[str]) -> _Run:
        """Train, and look at the modules before the first step and after each."""
        run = _Run()
        before = {path: _copy_parameters(self._model.get_submodule(path)) for path in fixed}
        first = self._look(before)
        for path, tensors in first.tensors.items():
            run.values[path] = [(rms(tensors), 0.0, math.nan)]
        peaks = [group["lr"] for group in optimizer.param_groups]
        for step in range(steps):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                if warmup:
                    group["lr"] = peak * min(1.0, (step + 1) / warmup)
            optimizer.zero_grad()
            value = _check_loss(self._loss(self._model, self._batches[step % len(self._batches)]))
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            now = self._look(before)
            for path, earlier in first.tensors.items():
                after = now.tensors.get(path, [])
                if not same_shapes(after, earlier):
                    run.reshaped.add(path)
                own = rms(now.own[path]) if path in now.own else math.nan
                run.values[path].append((rms(after), rms(after, earlier), own))
        return run

    def _look(self, before: Mapping[str, Mapping[str, Tensor]]) -> Outputs:
        return record(
            self._model,
            lambda: _check_loss(self._loss(self._model, self._batches[0])),
            self._modules,
            before,
        )


def _default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the ``loss`` of the output of a model that is called with the batch's keywords."""
    if not isinstance(batch, Mapping):
        raise ConfigError(
            f"loss: expected a function of (model, batch), or batches that are mappings of the "
            f"model's keywords, found none and a batch of type {type(batch).__name__}"
        )
    output = model(**batch)
    if not hasattr(output, "loss"):
        raise ConfigError(
            f"loss: expected a function of (model, batch), or a model whose output has a loss, "
            f"found none and an output of type {type(output).__name__}"
        )
    value: Tensor = output.loss
    return value


def _check_loss(value: object) -> Tensor:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value
    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ConfigError(f"loss: expected a tensor of one element, found {found}")


def _check_type(key: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise ConfigError(
            f"{key}: expected it to return a {kind.__module__}.{kind.__qualname__}, "
            f"found {type(value).__name__}"
        )
