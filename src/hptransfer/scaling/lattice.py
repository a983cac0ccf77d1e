"""The 16 parameterizations between SP and µP for Adam: four switches, each a small table."""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import combinations, permutations
from types import MappingProxyType

from hptransfer.errors import ConfigError
from hptransfer.scaling.checks import nearest_name
from hptransfer.scaling.parameterization import Parameterization, RoleExponents
from hptransfer.scaling.roles import Role

SP = Parameterization(
    name="sp",
    roles={
        "embedding": RoleExponents(init=0.0, lr=-1.0),
        "norm": RoleExponents(init=0.0, lr=-1.0),
        "bias": RoleExponents(init=0.0, lr=-1.0),
        "hidden": RoleExponents(init=-0.5, lr=-1.0),
        "hidden_residual": RoleExponents(init=-0.5, lr=-1.0, init_depth=-0.5),
        "readout": RoleExponents(init=-0.5, lr=-1.0),
    },
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
        "ln": Switch(
            roles={
                "norm": RoleExponents(init=0.0, lr=0.0),
                "bias": RoleExponents(init=0.0, lr=0.0),
            }
        ),
        "attn": Switch(attention=-1.0),
        "last": Switch(roles={"readout": RoleExponents(init=-1.0, lr=-1.0)}),
    }
)
"""The four switches in the order that canonical names use."""


TIED_READOUT = -1.0
"""µP's rule for one table that is embedding and readout: an embedding, with logits × 1/m."""

ENDS_ONLY = frozenset({"sgd", "adafactor"})
"""Optimizers under which the switches mean something else (the readout's learning rate differs
too), so that only the lattice's two ends are defined; see ``scaling.optimizers``."""


def _canonical_name(on: Iterable[str]) -> str:
    """Name the entry with these switches on: the shorter of ``sp+…`` and ``mup-…``."""
    ordered = [switch for switch in SWITCHES if switch in set(on)]
    if len(ordered) <= len(SWITCHES) // 2:
        return "+".join(["sp", *ordered])
    return "-".join(["mup", *(switch for switch in SWITCHES if switch not in ordered)])


def _apply(on: Iterable[str]) -> Parameterization:
    """Return SP with these switches' overrides; no two switches override the same entry."""
    result = replace(SP, name=_canonical_name(on))
    for switch in (SWITCHES[name] for name in on):
        attention = result.attention if switch.attention is None else switch.attention
        result = replace(result, roles={**result.roles, **switch.roles}, attention=attention)
    if len(set(on)) == len(SWITCHES):
        result = replace(result, tied_readout=TIED_READOUT)
    if len(set(on)) in (0, len(SWITCHES)):
        result = replace(result, optimizers=result.optimizers | ENDS_ONLY)
    return result


def _subsets() -> list[tuple[str, ...]]:
    return [on for size in range(len(SWITCHES) + 1) for on in combinations(SWITCHES, size)]


LATTICE: Mapping[str, Parameterization] = MappingProxyType(
    {_canonical_name(on): _apply(on) for on in _subsets()}
)
"""The 16 entries by canonical name, from ``sp`` to ``mup``, fewest switches first."""


def _spellings() -> dict[str, str]:
    """Map every accepted spelling, in lower case and without spaces, to its canonical name."""
    names: dict[str, str] = {}
    for subset in _subsets():
        rest = [switch for switch in SWITCHES if switch not in subset]
        for order in permutations(subset):
            names["+".join(["sp", *order])] = _canonical_name(subset)
            names["-".join(["mup", *order])] = _canonical_name(rest)
    return names


_SPELLINGS = _spellings()

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
    others = [switch for switch in SWITCHES if switch != "embd" and _has(parameterization, switch)]
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


def _has(parameterization: Parameterization, switch: str) -> bool:
    """Return whether an entry's numbers are those of a switch, of which SP has none."""
    changes = SWITCHES[switch]
    if changes.attention is not None:
        return parameterization.attention == changes.attention
    return all(parameterization.roles[role] == row for role, row in changes.roles.items())


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
    ranges = {"power": POWERS, "factor": FACTORS}
    numbers = {}
    for key, (low, high) in ranges.items():
        written = found[key] or "1"
        try:
            number = float(f"{float(Fraction(written)):.12g}")  # as the name will say it
        except (ValueError, ZeroDivisionError, OverflowError):
            number = math.nan
        if not low <= number <= high:
            sign = {"power": "^", "factor": "*"}[key]
            raise ConfigError(
                f"parameterization: {text!r}: expected a number from {low:g} to {high:g} after "
                f"embd's {sign!r}, found {written!r}"
            )
        numbers[key] = number
    return scale_embedding(LATTICE[_SPELLINGS[name]], **numbers)


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
    """
    # NFKC turns the micro sign into the Greek letter; lower() does the same to its capital.
    text = unicodedata.normalize("NFKC", name).lower().strip().replace("\u03bc", "mu")
    text = re.sub(r"\s*([+^*-])\s*", r"\1", text)
    if text in _SPELLINGS:
        return LATTICE[_SPELLINGS[text]]
    if (scaled := _parse_scaled(text)) is not None:
        return scaled
    parts = re.split("[+-]", text)
    twice = next((part for part in parts if part in SWITCHES and parts.count(part) > 1), None)
    problem = "is not known" if twice is None else f"has the switch {twice!r} more than once"
    nearest = nearest_name(text, _SPELLINGS)
    raise ConfigError(
        f"parameterization: {name!r} {problem}; did you mean {_SPELLINGS[nearest]!r}? "
        f"(sp, sp+SWITCH..., mup-SWITCH... or mup, with switches {', '.join(SWITCHES)})"
    )
