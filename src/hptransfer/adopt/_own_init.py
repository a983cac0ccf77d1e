"""Measure what a model's own constructor writes: constants, noise, patterns, or nothing at all.

The factory is run twice on the CPU under two seeds, with uninitialised memory filled with NaN, so
that what memory happens to hold decides nothing.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hptransfer.adopt._parameters import QUERY_WORDS, split_words
from hptransfer.adopt._user_model import (
    MAX_PARAMETERS,
    Factory,
    build_model,
    count_parameters,
    find_buffers,
    name_pattern,
    named_tensors,
    real_values,
    seeded,
)
from hptransfer.adopt.role_table import ParameterRole, RoleTable
from hptransfer.errors import ConfigError

Kind = Literal["constant", "noise", "structured", "unset"]
"""``noise``: random with mean 0; ``structured``: values with a mean or a pattern of their own;
``unset``: memory that the constructor never writes."""

_SHIFTED = 0.3  # a mean above this many stds is no noise's, beside what chance makes of few
_CHANCE = 4.0  # standard errors; those of a Student's t would pass any mean of a few values
_ALIKE, _SURE = 0.5, 0.95  # correlation of two draws above which they share a pattern
_SMOOTH = 0.3  # correlation of neighbours above which values are a pattern
_HEAVY = 12.0  # kurtosis above which values are a pattern, such as an identity's
_ENOUGH = 64  # values from which those of another width must be much alike
_CLOSE = 0.04  # stds that are alike, relative
_NEAR_0 = 1e-3  # values below it stand for zeros
_FEW = 16  # values below which a pattern cannot be told from noise
_SEEDS = 8  # that tell whether few values have a mean


@dataclass(frozen=True, kw_only=True)
class _Spread:
    """What values look like.

    Attributes
    ----------
    mean, std, low, high : float
        Of the values; not finite where one of them is not.
    smooth : float
        The largest correlation of neighbours along a dimension.
    heavy : bool
        Whether the tails are heavier than any noise's.
    size : int
        How many values there are.
    """

    mean: float
    std: float
    low: float
    high: float
    smooth: float
    heavy: bool
    size: int

    @property
    def is_near_0(self) -> bool:
        """Whether several values stand for zeros."""
        return self.size > 1 and max(-self.low, self.high) < _NEAR_0

    @property
    def is_finite(self) -> bool:
        """Whether every value is finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def _sum_up(values: Tensor) -> _Spread:
    mean, std, smooth, heavy = float(values.mean()), float(values.std(correction=0)), 0.0, False
    if std != 0.0 and values.numel() >= _FEW:
        centred = (values - mean) / std
        for dim, length in enumerate(values.shape):
            if length >= 4:
                a, b = centred.narrow(dim, 0, length - 1), centred.narrow(dim, 1, length - 1)
                smooth = max(smooth, abs(float((a * b).mean())))
        heavy = float(centred.pow(4).mean()) > _HEAVY
    return _Spread(
        mean=mean,
        std=std,
        low=float(values.min()),
        high=float(values.max()),
        smooth=smooth,
        heavy=heavy,
        size=values.numel(),
    )


@dataclass(frozen=True, kw_only=True)
class OwnInit(_Spread):
    """One tensor's initial values in the factory's own model.

    Attributes
    ----------
    kind : Kind
        What they are. A constant is ``mean``.
    frozen : bool
        Whether the parameter is not trained.
    fixed : bool
        Whether two seeds give the same values.
    """

    kind: Kind
    frozen: bool
    fixed: bool

    def holds(self, values: Tensor) -> bool:
        """Tell whether values could be what the constructor wrote, and not memory's garbage.

        Another width has other values, of about the same mean, std, smoothness and tails. A
        constant may be another one of about the same size.
        """
        here = _sum_up(real_values(values))
        if not here.is_finite:
            return False
        if self.kind == "constant":
            scale = max(abs(here.low), abs(here.high), 1e-300) / max(abs(self.mean), 1e-300)
            alike = self.mean * here.low > 0 and 1e-3 < scale < 1e3
            return here.low == here.high and (alike or here.low == self.mean)
        reach = (self.high - self.low) * (0.4 if self.size >= _ENOUGH else 3)
        is_within = self.low - reach <= here.low and here.high <= self.high + reach
        if not is_within and (self.kind == "structured" or self.size < _ENOUGH):
            return False  # more draws of one noise reach further
        if min(here.size, self.size) < _ENOUGH:
            return here.low < here.high or here.size == 1
        return (
            abs(here.mean - self.mean) <= 0.5 * self.std
            and 0.1 * self.std < here.std < 10 * self.std
            and abs(here.smooth - self.smooth) < _SMOOTH
            and here.heavy == self.heavy
        )


@dataclass(frozen=True, kw_only=True)
class OwnInits:
    """The initial values of a factory's own model at one width, by parameter and buffer.

    ``copies`` holds frozen parameters that are drawn and equal a trained one, by their names.
    """

    width: int
    parameters: dict[str, OwnInit]
    buffers: dict[str, OwnInit]
    copies: dict[str, str]

    def find_foreign(self, held: Mapping[str, Tensor]) -> list[str]:
        """Return the names of buffers that hold what the constructor does not write."""
        return [
            name
            for name, values in held.items()
            if values.numel() and (own := self.buffers.get(name)) and own.kind != "unset"
            if not own.holds(values)
        ]


def measure_own_init(factory: Factory, width: int) -> OwnInits:
    """Measure the initial values that a factory's own model has at a width.

    A model above ``MAX_PARAMETERS`` is looked at at half the width, again and again.

    Raises
    ------
    ConfigError
        If the factory fails, or its model is too large at every width that it takes.
    """
    while count_parameters(build_model(factory, width)) > MAX_PARAMETERS:
        if width % 2:
            raise ConfigError(
                f"factory: its model is too large to look at its own initial values at width "
                f"{width}; give a smaller base width"
            )
        width //= 2
    (one, buffers), (other, others) = (_draw(factory, width, seed) for seed in (0, 1))
    parameters = {
        name: _describe(p, other[name], frozen=not p.requires_grad) for name, p in one.items()
    }
    parameters |= _judge_few(parameters, [one, other], lambda k: _draw(factory, width, k)[0])
    return OwnInits(
        width=width,
        parameters=parameters,
        buffers={
            name: _describe(each, others[name])
            for name, each in buffers.items()
            if name in others and each.numel()
        },
        copies=_find_copies(one, parameters),
    )


def _find_copies(tensors: Mapping[str, Tensor], inits: Mapping[str, OwnInit]) -> dict[str, str]:
    """Return, by frozen parameter that is drawn, the trained one whose values it holds."""
    trained = {
        (inits[name].mean, inits[name].std, each.shape): name
        for name, each in tensors.items()
        if not inits[name].frozen
    }
    found = {
        name: trained.get((inits[name].mean, inits[name].std, each.shape))
        for name, each in tensors.items()
        if inits[name].frozen and not inits[name].fixed
    }
    return {
        name: of for name, of in found.items() if of and torch.equal(tensors[name], tensors[of])
    }


def _draw(factory: Factory, width: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the parameters and the buffers of a model built under a seed."""
    with seeded(seed), _unset_is_nan():
        model = build_model(factory, width, device="cpu")
    return dict(named_tensors(model)), dict(find_buffers(model))


@contextmanager
def _unset_is_nan() -> Iterator[None]:
    """Let memory that no constructor writes hold NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        memory.fill_uninitialized_memory = fill


def _describe(one: Tensor, other: Tensor, *, frozen: bool = False) -> OwnInit:
    values, second = real_values(one), real_values(other)
    spread, fixed = _sum_up(values), torch.equal(values, second)
    kind: Kind = "structured"
    if not spread.is_finite:
        kind = "unset"
    elif spread.low == spread.high and fixed:
        kind = "constant"
    elif _is_noise(values, second, spread):
        kind = "noise"
    return OwnInit(kind=kind, frozen=frozen, fixed=fixed, **vars(spread))


def _judge_few(
    inits: Mapping[str, OwnInit],
    draws: list[dict[str, Tensor]],
    draw: Callable[[int], dict[str, Tensor]],
) -> dict[str, OwnInit]:
    """Describe tensors of a few random values by those of the same tensor in all layers.

    The bound of `_is_shifted` is passed by chance in 2 of 100 draws of four values, so what passes
    it is drawn under more seeds.
    """
    found: dict[str, OwnInit] = {}
    alike: dict[tuple[str, int], list[str]] = {}
    for name, each in inits.items():
        is_few = each.size < _FEW and each.is_finite and not each.fixed
        if is_few and (each.std != 0.0 or each.size == 1):  # not one number, drawn for all
            alike.setdefault((name_pattern(name), each.size), []).append(name)
    for names in alike.values():
        is_own = any(inits[name].kind == "structured" for name in names)
        if is_own or _is_shifted([real_values(each[name]) for each in draws for name in names]):
            for seed in range(len(draws), _SEEDS):
                more = draw(seed).items()
                draws.append({name: each for name, each in more if each.numel() < _FEW})
            is_own = _is_shifted([real_values(each[name]) for each in draws for name in names])
        low, high = min(inits[n].low for n in names), max(inits[n].high for n in names)
        for name in names:
            found[name] = replace(inits[name], kind="structured" if is_own else "noise")
            if is_own:
                found[name] = replace(found[name], low=low, high=high)
    return found


def _is_shifted(several: Sequence[Tensor]) -> bool:
    values = torch.cat([each.flatten() for each in several])
    far = _SHIFTED + _CHANCE / math.sqrt(len(values))
    return abs(float(values.mean())) > far * float(values.std())


def _is_noise(values: Tensor, second: Tensor, spread: _Spread) -> bool:
    """Tell whether values are independent draws of mean 0.

    Two draws under two seeds tell most. A constructor that seeds its own draws gives the same
    twice: then neighbours that differ, and no heavy tails, tell noise from a pattern.
    """
    size, fixed = spread.size, torch.equal(values, second) or second.shape != values.shape
    if size == 1:
        return not fixed
    if not fixed and spread.std == 0.0:
        return False  # one number, drawn for all
    if _is_shifted([values] if fixed else [values, second]):
        return False
    if fixed:
        return size >= _FEW and spread.smooth <= _SMOOTH and not spread.heavy
    if size < _FEW:
        return True
    scale = spread.std * (float(second.std(correction=0)) or 1.0)
    alike = float(((values - spread.mean) * (second - second.mean())).mean()) / scale
    return abs(alike) < max(_ALIKE, min(_SURE, 4 / math.sqrt(size)))


# Scalings, with depth above all, that these values show


def find_init_scales(table: RoleTable, own: OwnInits) -> dict[str, tuple[float, str]]:
    """Find factors on hidden matrices' init std that the model's own init shows.

    They are 1/√(2L), 1/√L, 1/√(2(l+1)) and 1/√(l+1), with L layers and l the tensor's own, and
    1/√H on query projections, all relative to most of the hidden matrices, whose stds are taken
    as they are or times √fan_in, whichever explains more of them.

    Returns
    -------
    dict of str to (float, str)
        The factor and its formula, by parameter; without those whose factor is 1.
    """
    entries = [
        entry
        for entry in table
        if entry.role == "hidden"
        and (each := own.parameters.get(entry.name)) is not None
        and each.kind == "noise"
    ]
    tied = _tied_scales(table, own)
    if len(entries) < 2:
        return tied
    best: tuple[tuple[int, int], dict[str, tuple[float, str]]] = ((-1, 0), {})
    for power in (0.5, 0.0):
        relative = {e.name: own.parameters[e.name].std * e.base_fan_in**power for e in entries}
        common = _most_common(list(relative.values()))
        ratios = {name: value / common for name, value in relative.items()}
        found = _explain(entries, ratios, table)
        plain = sum(abs(r - 1) < _CLOSE for r in ratios.values())
        # Of equal ones, that with fewer factors.
        best = max(best, ((plain + len(found), plain), found), key=lambda each: each[0])
    # Layers that the base lacks scale as their likes, unless the scaling is a layer's own.
    scales = best[1]
    alike: dict[str, set[tuple[float, str]]] = {}
    for name, value in scales.items():
        alike.setdefault(name_pattern(name), set()).add(value)
    for entry in table:
        values = alike.get(name_pattern(entry.name), set())
        if entry.name not in own.parameters and len(values) == 1:
            [scales[entry.name]] = values
    return scales | tied


def _tied_scales(table: RoleTable, own: OwnInits) -> dict[str, tuple[float, str]]:
    """Return the factor of tied tables whose own std is below 1/√width, as many are at 0.02."""
    scales = {}
    for entry in table:
        each = own.parameters.get(entry.name)
        if entry.role == "tied" and each is not None and each.kind == "noise":
            factor = each.std * entry.base_fan_out**0.5
            if factor < 1.0:
                scales[entry.name] = factor, ""
    return scales


def _most_common(values: Sequence[float]) -> float:
    """Return the largest cluster's mean; of equal ones that of the largest values."""

    def members(centre: float) -> list[float]:
        return [value for value in values if abs(value / centre - 1) < _CLOSE]

    centre = max(sorted(values, reverse=True), key=lambda value: len(members(value)))
    chosen = members(centre)
    return sum(chosen) / len(chosen)


def _explain(
    entries: Sequence[ParameterRole], ratios: Mapping[str, float], table: RoleTable
) -> dict[str, tuple[float, str]]:
    patterns: dict[str, list[ParameterRole]] = {}
    for entry in entries:
        patterns.setdefault(name_pattern(entry.name), []).append(entry)
    sizes = {each.fan_out for each in table if each.role in ("embedding", "tied") and each.is_table}
    found: dict[str, tuple[float, str]] = {}
    for pattern, members in patterns.items():
        count = len(members)
        close = [_CLOSE + 2 * (2 * math.prod(each.base_shape)) ** -0.5 for each in members]
        indices = [next((int(p) for p in e.name.split(".") if p.isdigit()), -1) for e in members]
        formulas: list[tuple[str, list[float]]] = [("", [1.0] * count)]
        if "*" in pattern and all(each.fan_out in sizes or not sizes for each in members):
            formulas += [
                (f"1/√(2·{count} layers)", [(2 * count) ** -0.5] * count),
                (f"1/√({count} layers)", [count**-0.5] * count),
            ]
        if min(indices) >= 0 and count >= 2:
            formulas += [
                ("1/√(2(l+1))", [(2 * (k + 1)) ** -0.5 for k in indices]),
                ("1/√(l+1)", [(k + 1) ** -0.5 for k in indices]),
            ]
        if table.base_head_size and QUERY_WORDS & set(split_words(members[0].name)):
            size = table.base_head_size
            formulas.append((f"1/√{size}, the head size", [size**-0.5] * count))
        for reason, factors in formulas:
            if reason and max(abs(f - 1) for f in factors) <= 0.1:
                continue  # no scaling
            pairs = zip(members, factors, close, strict=True)
            if all(abs(ratios[each.name] / f - 1) < c for each, f, c in pairs):
                if reason:
                    found |= {e.name: (f, reason) for e, f in zip(members, factors, strict=True)}
                break
    return found
