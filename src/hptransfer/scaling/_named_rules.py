"""Parameterizations by name: the 16 between SP and µP for Adam, and rules beyond that lattice.

The lattice is four switches on SP, each a small table; the other rules are tables of their own.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import combinations, permutations
from types import MappingProxyType

from hptransfer._messages import nearest_name, show_value
from hptransfer.errors import ConfigError
from hptransfer.scaling._parameterization import (
    ADAM_OPTIMIZERS,
    Parameterization,
    Role,
    RoleExponents,
)


def _standard_init(
    *, embedding: float, hidden: float, readout: float, gain: float = 0.0
) -> dict[Role, RoleExponents]:
    """Return SP's init with these exponents of the learning rate."""
    return {
        "embedding": RoleExponents(init=0.0, lr=embedding),
        "norm": RoleExponents(init=0.0, lr=gain),
        "bias": RoleExponents(init=0.0, lr=gain),
        "hidden": RoleExponents(init=-0.5, lr=hidden),
        "hidden_residual": RoleExponents(init=-0.5, lr=hidden, init_depth=-0.5),
        "readout": RoleExponents(init=-0.5, lr=readout),
    }


SP = Parameterization(
    name="sp",
    roles=_standard_init(embedding=-1.0, hidden=-1.0, readout=-1.0, gain=-1.0),
    attention=-0.5,
    optimizers=frozenset({"adam", "adamw", "lion", "muon", "muon-matched"}),
)
"""The standard parameterization: one learning rate for every tensor, written η/m."""


@dataclass(frozen=True, kw_only=True)
class Switch:
    """What one switch overrides of SP: whole rows of the table, or the attention exponent."""

    roles: Mapping[Role, RoleExponents] = field(default_factory=dict, hash=False)
    attention: float | None = None


SWITCHES: Mapping[str, Switch] = MappingProxyType(
    {
        "embd": Switch(roles={"embedding": RoleExponents(init=0.0, lr=0.0)}),
        "ln": Switch(roles=dict.fromkeys(("norm", "bias"), RoleExponents(init=0.0, lr=0.0))),
        "attn": Switch(attention=-1.0),
        "last": Switch(roles={"readout": RoleExponents(init=-1.0, lr=-1.0)}),
    }
)
"""The four switches in the order that canonical names use."""


TIED_READOUT = -1.0
"""µP's rule for one table that is embedding and readout: an embedding, with logits × 1/m."""

ENDS_ONLY = frozenset({"sgd", "adafactor"})
"""Optimizers under which the switches mean something else (the readout's learning rate differs
too), so that only the lattice's two ends are defined; see ``OPTIMIZERS``."""


def _canonical_name(on: Iterable[str]) -> str:
    """Name the entry with these switches on: the shorter of ``sp+…`` and ``mup-…``."""
    ordered = [switch for switch in SWITCHES if switch in set(on)]
    if len(ordered) <= len(SWITCHES) // 2:
        return "+".join(["sp", *ordered])
    return "-".join(["mup", *(switch for switch in SWITCHES if switch not in ordered)])


def _apply(name: str, on: tuple[str, ...]) -> Parameterization:
    """Return SP with these switches' overrides; no two switches override the same entry."""
    result = replace(SP, name=name)
    for switch in (SWITCHES[name] for name in on):
        attention = result.attention if switch.attention is None else switch.attention
        result = replace(result, roles={**result.roles, **switch.roles}, attention=attention)
    if len(on) in (0, len(SWITCHES)):
        result = replace(
            result,
            tied_readout=TIED_READOUT if on else None,
            optimizers=result.optimizers | ENDS_ONLY,
        )
    return result


_SWITCHED_ON: Mapping[str, tuple[str, ...]] = {
    _canonical_name(on): on
    for size in range(len(SWITCHES) + 1)
    for on in combinations(SWITCHES, size)
}

LATTICE: Mapping[str, Parameterization] = MappingProxyType(
    {name: _apply(name, on) for name, on in _SWITCHED_ON.items()}
)
"""The 16 entries by canonical name, from ``sp`` to ``mup``, fewest switches first."""


def _spell_lattice() -> dict[str, Parameterization]:
    """Map every accepted spelling, in lower case and without spaces, to its entry."""
    entries: dict[str, Parameterization] = {}
    for name, on in _SWITCHED_ON.items():
        rest = _canonical_name([switch for switch in SWITCHES if switch not in on])
        for order in permutations(on):
            entries["+".join(["sp", *order])] = LATTICE[name]
            entries["-".join(["mup", *order])] = LATTICE[rest]
    return entries


_SPELLINGS = _spell_lattice()

_SCALED = re.compile(r"\+embd(?:\^(?P<power>[^+*^]+))?(?:\*(?P<factor>[^+*^]+))?(?=\+|$)")
"""A part ``embd^e*c`` of a name that starts with ``sp``; either may be missing."""

POWERS = (-4.0, 4.0)
FACTORS = (1e-6, 1e6)
"""Least and largest e and c of ``embd^e*c``."""


def scale_embedding(
    parameterization: Parameterization, *, power: float, factor: float
) -> Parameterization:
    """Return a lattice entry with the embedding's learning rate (η/m)·c·m^e.

    Parameters
    ----------
    parameterization : Parameterization
        An entry of the lattice; its switch ``embd`` does not matter.
    power : float
        e: 0 is SP's own scaling, 1 that of the switch ``embd``.
    factor : float
        c: 1 is SP's own learning rate at the base width.

    Returns
    -------
    Parameterization
        The entry itself where e and c are one's own: SP's or the switch's.

    Examples
    --------
    >>> scale_embedding(LATTICE["sp"], power=0.5, factor=4).name
    'sp+embd^0.5*4'
    >>> scale_embedding(LATTICE["sp"], power=1, factor=1).name
    'sp+embd'
    """
    others = [switch for switch in _SWITCHED_ON[parameterization.name] if switch != "embd"]
    if factor == 1 and power in (0, 1):
        return LATTICE[_canonical_name(["embd", *others] if power else others)]
    scaled = "embd" + (f"^{power:.12g}" if power != 1 else "")
    scaled += f"*{factor:.12g}" if factor != 1 else ""
    embedding = replace(SP.roles["embedding"], lr=power - 1.0, lr_factor=factor)
    return replace(
        parameterization,
        name="+".join(["sp", scaled, *others]),
        roles={**parameterization.roles, "embedding": embedding},
        tied_readout=None,  # no rule says what a table of both roles then takes
        optimizers=SP.optimizers - ENDS_ONLY,
    )


def _parse_scaled(text: str) -> Parameterization | None:
    """Return the rule of a name with ``embd^e*c`` in it; None where the rest is no name.

    Raises
    ------
    ConfigError
        If e or c is no number in its range.
    """
    found = _SCALED.search(text)
    if found is None:
        return None
    name = text[: found.start()] + "+embd" + text[found.end() :]
    if name not in _SPELLINGS:
        return None
    numbers = {}
    for key, sign, (low, high) in (("power", "^", POWERS), ("factor", "*", FACTORS)):
        written = found[key] or "1"
        try:
            number = float(f"{float(Fraction(written)):.12g}")  # as the name will say it
        except (ValueError, ZeroDivisionError, OverflowError):
            number = math.nan
        if not low <= number <= high:
            raise ConfigError(
                f"parameterization: {text!r}: expected a number from {low:g} to {high:g} after "
                f"embd's {sign!r}, found {written!r}"
            )
        numbers[key] = number
    return scale_embedding(_SPELLINGS[name], **numbers)


def parse_parameterization(name: str) -> Parameterization:
    """Return the lattice entry, or one with a scaled embedding, that ``name`` means.

    ``sp+a+b`` is SP with switches a and b on, ``mup-a-b`` is all four less a and b. Switches
    come in any order, letters in either case, with spaces around any part; ``µp`` is ``mup``
    (with the micro sign or the Greek letter). In ``sp+embd^e*c`` the embedding's learning rate is
    (η/m)·c·m^e; e and c are 1 where they are left out, and may be fractions such as 1/2.

    Raises
    ------
    ConfigError
        If the name is not one of these or repeats a switch; the nearest known name is given.

    Examples
    --------
    >>> parse_parameterization("SP + last + embd").name
    'sp+embd+last'
    >>> parse_parameterization("µP-embd").name
    'mup-embd'
    >>> parse_parameterization("sp+embd^1/2").roles["embedding"].lr  # of SP's −1, with m^(1/2)
    -0.5
    """
    return _parse(name, {})


def _parse(name: str, others: Mapping[str, Parameterization]) -> Parameterization:
    """Return the rule of a spelling; `others` are those beside the lattice, free of spaces."""
    # NFKC turns the micro sign into the Greek letter; lower() does the same to its capital.
    text = unicodedata.normalize("NFKC", name).lower().strip().replace("\u03bc", "mu")
    text = re.sub(r"\s*([+^*-])\s*", r"\1", text)
    found = _SPELLINGS.get(text) or others.get("".join(text.split())) or _parse_scaled(text)
    if found is not None:
        return found
    parts = re.split("[+-]", text)
    twice = next((part for part in parts if part in SWITCHES and parts.count(part) > 1), None)
    problem = "is not known" if twice is None else f"has the switch {twice!r} more than once"
    spellings = {**_SPELLINGS, **others}
    nearest = spellings[nearest_name(text, spellings)].name
    names = dict.fromkeys(rule.name for rule in others.values())
    known = ", ".join([*names, "sp, sp+SWITCH..., mup-SWITCH... or mup"])
    raise ConfigError(
        f"parameterization: {show_value(name)} {problem}; did you mean {nearest!r}? "
        f"({known}, with switches {', '.join(SWITCHES)})"
    )


_COMPLETEP_HIDDEN = RoleExponents(init=-0.5, lr=-1.0, eps=-1.0, eps_depth=-1.0)
_UNIT_HIDDEN = RoleExponents(init=0.0, lr=-0.5, multiplier=-0.5)

_BEYOND = (
    Parameterization(
        name="everett-full",
        roles=_standard_init(embedding=0.0, hidden=-1.0, readout=-1.0),
        attention=-0.5,
        source="Everett et al. 2407.05872: standard init, full alignment, Adam",
    ),
    Parameterization(
        name="everett-none",
        roles=_standard_init(embedding=0.0, hidden=-0.5, readout=-0.5),
        attention=-0.5,
        source="Everett et al. 2407.05872: standard init, no alignment, Adam",
    ),
    Parameterization(
        name="hayou-liu",
        roles=_standard_init(embedding=-0.5, hidden=-1.0, readout=-1.0),
        attention=-0.5,
        source="Hayou & Liu 2506.15025: the vocabulary is larger than the width, Adam",
    ),
    replace(
        LATTICE["mup"],
        name="completep",
        roles={
            **LATTICE["mup"].roles,
            **dict.fromkeys(("hidden", "hidden_residual"), _COMPLETEP_HIDDEN),
        },
        residual_depth=-1.0,
        optimizers=ADAM_OPTIMIZERS,
        source="Dey et al. 2505.01618: µP in width, residual branches × 1/m_L in depth",
    ),
    Parameterization(
        name="u-mup",
        roles={
            "embedding": RoleExponents(init=0.0, lr=-0.5),
            **dict.fromkeys(("norm", "bias"), RoleExponents(init=0.0, lr=0.0)),
            **dict.fromkeys(("hidden", "hidden_residual"), _UNIT_HIDDEN),
            "readout": RoleExponents(init=0.0, lr=0.0, multiplier=-1.0),
        },
        attention=-1.0,
        absolute=True,
        source="Blake et al. 2407.17465: unit-scaled µP, in the fans themselves",
    ),
)

BEYOND_LATTICE: Mapping[str, Parameterization] = MappingProxyType(
    {rule.name: rule for rule in _BEYOND}
)
"""Rules that are no point between SP and µP, by name."""

_SPELLINGS_BEYOND: Mapping[str, Parameterization] = {
    **BEYOND_LATTICE,
    "umup": BEYOND_LATTICE["u-mup"],
    "complete-p": BEYOND_LATTICE["completep"],
}


def parse_rule(rule: str | Parameterization) -> Parameterization:
    """Return the rule of that name: one of the lattice, or one beyond it.

    Parameters
    ----------
    rule : str or Parameterization
        A name in any case (``u-µP`` and ``u mup`` are ``u-mup``), or a rule itself, which is
        returned.

    Raises
    ------
    ConfigError
        If the name is not known; the nearest known name is given.

    Examples
    --------
    >>> parse_rule("u-µP").source
    'Blake et al. 2407.17465: unit-scaled µP, in the fans themselves'
    >>> parse_rule("mup").name
    'mup'
    """
    if isinstance(rule, Parameterization):
        return rule
    return _parse(rule, _SPELLINGS_BEYOND)
