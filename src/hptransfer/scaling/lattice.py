"""The 16 parameterizations between SP and µP for Adam: four switches, each a small table."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
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


def parse_parameterization(name: str) -> Parameterization:
    """Return the lattice entry that ``name`` means.

    ``sp+a+b`` is SP with switches a and b on, ``mup-a-b`` is all four less a and b. Switches
    come in any order, letters in either case, with spaces around any part; ``µp`` is ``mup``
    (with the micro sign or the Greek letter).

    Raises
    ------
    ConfigError
        If the name is not one of these or repeats a switch; the nearest known name is given.
    """
    # NFKC turns the micro sign into the Greek letter; lower() does the same to its capital.
    text = unicodedata.normalize("NFKC", name).lower().strip().replace("\u03bc", "mu")
    text = re.sub(r"\s*([+-])\s*", r"\1", text)
    if text in _SPELLINGS:
        return LATTICE[_SPELLINGS[text]]
    parts = re.split("[+-]", text)
    twice = next((part for part in parts if part in SWITCHES and parts.count(part) > 1), None)
    problem = "is not known" if twice is None else f"has the switch {twice!r} more than once"
    nearest = nearest_name(text, _SPELLINGS)
    raise ConfigError(
        f"parameterization: {name!r} {problem}; did you mean {_SPELLINGS[nearest]!r}? "
        f"(sp, sp+SWITCH..., mup-SWITCH... or mup, with switches {', '.join(SWITCHES)})"
    )
