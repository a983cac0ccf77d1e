"""A user's own rule from a TOML file.

.. code-block:: toml

    name = "ours"
    like = "mup"                  # what is not said here is that rule's
    optimizers = ["adamw", "lion"]
    attention = -0.5

    [roles.embedding]
    lr = -0.5                     # exponent in m = width / base_width
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hptransfer._documents import read_toml
from hptransfer._messages import check_name, nearest_name
from hptransfer.errors import ConfigError
from hptransfer.scaling._named_rules import BEYOND_LATTICE, LATTICE, parse_rule
from hptransfer.scaling._optimizer_rules import OPTIMIZERS
from hptransfer.scaling._parameterization import (
    ADAM_OPTIMIZERS,
    ROLES,
    Parameterization,
    Role,
    RoleExponents,
)

_NUMBERS = ("attention", "residual_depth", "tied_readout")
_KEYS = ("name", "like", "optimizers", *_NUMBERS, "roles")
_NO_EXPONENTS = ("lr_factor", "shifted")
_EXPONENTS = tuple(e.name for e in fields(RoleExponents) if e.name not in _NO_EXPONENTS)
_REQUIRED = ("init", "lr")
_NUMBER_OR_LIKE = "a number, or like = a rule's name"


def load_rule(path: Path | str) -> Parameterization:
    """Return the rule that a TOML file holds.

    Parameters
    ----------
    path : Path or str
        Its keys are ``name``, ``like`` (a rule that the rest comes from; by default none),
        ``optimizers`` (by default adam and adamw), ``attention``, ``residual_depth``,
        ``tied_readout``, and for each role the exponents of ``RoleExponents``. Without ``like``
        every role needs ``init`` and ``lr``, and the rule ``attention``.

    Raises
    ------
    ConfigError
        If the file cannot be read, a key is missing or unknown, or a value is no number; the
        message names the file and the key.

    Examples
    --------
    >>> lines = ['name = "ours"', 'like = "mup"', "[roles.embedding]", "lr = -0.5"]
    >>> _ = Path("ours.toml").write_text("\\n".join(lines))
    >>> load_rule("ours.toml").roles["embedding"].lr
    -0.5
    """
    return build_rule(read_toml(Path(path), what="a rule in TOML"), source=str(path))


def build_rule(document: Mapping[str, Any], *, source: str) -> Parameterization:
    """Return the rule that a table holds, which has the keys of a rule file.

    Parameters
    ----------
    document : mapping
        As ``load_rule`` reads it.
    source : str
        Where the table stands, for messages.

    Raises
    ------
    ConfigError
        As ``load_rule``.

    Examples
    --------
    >>> ours = {"name": "ours", "like": "mup", "roles": {"embedding": {"lr": -0.5}}}
    >>> build_rule(ours, source="study.toml").roles["embedding"].lr
    -0.5
    """
    try:
        return _build(document, source)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _build(document: Mapping[str, Any], source: str) -> Parameterization:
    _check_keys("", document, _KEYS)
    name = document.get("name")
    if not isinstance(name, str) or not name.strip():
        raise _refusal("name", "text in quotes", name)
    if name in LATTICE or name in BEYOND_LATTICE:
        raise _refusal("name", "a name of its own", name)
    like = _read_like(document["like"]) if "like" in document else None
    roles = _read_roles(document.get("roles", {}), like)
    numbers: dict[str, Any] = {
        key: _read_number(key, document[key]) for key in _NUMBERS if key in document
    }
    optimizers = _read_optimizers(document.get("optimizers", sorted(ADAM_OPTIMIZERS)))
    common = {"name": name, "roles": roles, "optimizers": optimizers, "source": source, **numbers}
    if like is None:
        if "attention" not in numbers:
            raise _refusal("attention", _NUMBER_OR_LIKE)
        return Parameterization(**common)
    own = sorted(name for name in optimizers if OPTIMIZERS[name].tables)
    if own:
        raise ConfigError(
            f"optimizers: exponents for {own[0]!r} are not those for Adam, which like = "
            f"{like.name!r} means; leave like out and give every role's, found {own[0]!r}"
        )
    return replace(like, **common)


def _refusal(key: str, expected: str, *found: object) -> ConfigError:
    shown = repr(found[0]) if found else "nothing"
    return ConfigError(f"{key}: expected {expected}, found {shown}")


def _check_keys(where: str, found: Mapping[str, object], known: Sequence[str]) -> None:
    for key in found:
        if key not in known:
            raise ConfigError(
                f"unknown key {where + key!r}; did you mean {nearest_name(key, known)!r}? "
                f"({', '.join(known)})"
            )


def _read_like(like: object) -> Parameterization:
    if not isinstance(like, str):
        raise _refusal("like", "a rule's name in quotes", like)
    try:
        return parse_rule(like)
    except ConfigError as error:
        raise ConfigError(f"like: {error}") from None


def _read_number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 16:
        raise _refusal(key, "an exponent, a number from -16 to 16", value)
    return float(value)


def _read_roles(found: object, like: Parameterization | None) -> dict[Role, RoleExponents]:
    if not isinstance(found, dict):
        raise _refusal("roles", "sections [roles.embedding]", found)
    _check_keys("roles.", found, ROLES)
    roles: dict[Role, RoleExponents] = {}
    for role in ROLES:
        section = found.get(role, {})
        if not isinstance(section, dict):
            raise _refusal(f"roles.{role}", "a section", section)
        _check_keys(f"roles.{role}.", section, _EXPONENTS)
        exponents: dict[str, Any] = {
            key: _read_number(f"roles.{role}.{key}", value) for key, value in section.items()
        }
        missing = [key for key in _REQUIRED if key not in exponents]
        if like is None and missing:
            raise _refusal(f"roles.{role}.{missing[0]}", _NUMBER_OR_LIKE)
        roles[role] = replace(like.roles[role], **exponents) if like else RoleExponents(**exponents)
    return roles


def _read_optimizers(found: object) -> frozenset[str]:
    if not isinstance(found, list) or not found:
        raise _refusal("optimizers", "a list of names", found)
    return frozenset(check_name("optimizers", name, OPTIMIZERS) for name in found)
