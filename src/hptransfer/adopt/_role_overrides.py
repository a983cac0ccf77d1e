"""Read the roles that the user gives, by parameter name or by pattern."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from hptransfer._messages import check_name, nearest_name
from hptransfer.adopt.role_table import TABLE_ROLES, TableRole
from hptransfer.errors import ConfigError
from hptransfer.scaling import MATRIX_ROLES

_SUFFIX = ":transposed"


@dataclass(frozen=True)
class RoleOverride:
    """A role that the user gives, and whether the matrix is stored as (fan_in, fan_out)."""

    role: TableRole
    transposed: bool = False

    @classmethod
    def parse(cls, name: str, text: str) -> "RoleOverride":
        """Read ``"hidden"`` or ``"hidden:transposed"``."""
        role = text.removesuffix(_SUFFIX)
        transposed = role != text
        known = cast(TableRole, check_name(f"roles of {name!r}", role, TABLE_ROLES))
        if transposed and known not in MATRIX_ROLES:
            raise ConfigError(
                f"roles of {name!r}: expected {_SUFFIX!r} on a matrix "
                f"({', '.join(sorted(MATRIX_ROLES))}), found {text!r}"
            )
        return cls(known, transposed)

    @staticmethod
    def choices() -> str:
        """Return the roles that may be given, in words."""
        return f"{', '.join(TABLE_ROLES)}; {_SUFFIX!r} after it where x @ W uses it"


def read_role_overrides(
    names: Sequence[tuple[str, ...]], roles: Mapping[str, str]
) -> list[RoleOverride | None]:
    """Return the role given for each parameter, None where none is given.

    Parameters
    ----------
    names : sequence of tuple of str
        All names of each parameter.
    roles : mapping of str to str
        By name or pattern; a name goes before patterns.

    Raises
    ------
    ConfigError
        If a key names no parameter, a role is unknown, or one parameter is told two.
    """
    told: list[dict[str, RoleOverride]] = [{} for _ in names]
    for key, text in roles.items():
        hits = match_names(f"roles: {key!r}", key, names)
        for k in hits:
            told[k][key] = RoleOverride.parse(key, text)
    return [_only(each, names[k]) for k, each in enumerate(told)]


def match_names(what: str, key: str, names: Sequence[tuple[str, ...]]) -> list[int]:
    """Return which parameters a name or pattern means; at least one, else ConfigError."""
    hits = [k for k, known in enumerate(names) if key in known]
    hits = hits or [
        k for k, known in enumerate(names) if any(fnmatch.fnmatchcase(n, key) for n in known)
    ]
    if not hits:
        near = nearest_name(key, [name for known in names for name in known] or [""])
        raise ConfigError(f"{what} names no parameter of the model; the nearest is {near!r}")
    return hits


def _only(told: Mapping[str, RoleOverride], names: tuple[str, ...]) -> RoleOverride | None:
    exact = {key: each for key, each in told.items() if key in names}
    chosen = exact or dict(told)
    if len(set(chosen.values())) > 1:
        (first, one), (second, other) = list(chosen.items())[:2]
        shared = f"{' = '.join(names)} is one parameter" if len(names) > 1 else repr(names[0])
        raise ConfigError(
            f"roles: {shared}, told {one.role!r} by {first!r} and {other.role!r} by {second!r}"
        )
    return next(iter(chosen.values()), None)
