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
    name, roles = document.get("name"), document.get("roles", {})
    names = document.get("optimizers", sorted(ADAM_OPTIMIZERS))
    _expect("name", "text in quotes", name, isinstance(name, str) and name.strip())
    _expect("name", "a name of its own", name, name not in {**LATTICE, **BEYOND_LATTICE})
    _expect("roles", "sections [roles.embedding]", roles, isinstance(roles, dict))
    _expect("optimizers", "a list of names", names, isinstance(names, list) and names)
    like = _read_like(document["like"]) if "like" in document else None
    common: dict[str, Any] = {
        "name": name,
        "roles": _read_roles(roles, like),
        "optimizers": frozenset(check_name("optimizers", each, OPTIMIZERS) for each in names),
        "source": source,
        **{key: _read_number(key, document[key]) for key in _NUMBERS if key in document},
    }
    if like is None:
        _expect("attention", _NUMBER_OR_LIKE, None, "attention" in common)
        return Parameterization(**common)
    own = sorted(name for name in names if OPTIMIZERS[name].tables)
    if own:
        raise ConfigError(
            f"optimizers: exponents for {own[0]!r} are not those for Adam, which like = "
            f"{like.name!r} means; leave like out and give every role's, found {own[0]!r}"
        )
    return replace(like, **common)


def _expect(key: str, expected: str, found: object, holds: object) -> None:
    if not holds:
        shown = "nothing" if found is None else repr(found)
        raise ConfigError(f"{key}: expected {expected}, found {shown}")


def _check_keys(where: str, found: Mapping[str, object], known: Sequence[str]) -> None:
    for key in found:
        if key not in known:
            raise ConfigError(
                f"unknown key {where + key!r}; did you mean {nearest_name(key, known)!r}? "
                f"({', '.join(known)})"
            )


def _read_like(like: Any) -> Parameterization:
    _expect("like", "a rule's name in quotes", like, isinstance(like, str))
    try:
        return parse_rule(like)
    except ConfigError as error:
        raise ConfigError(f"like: {error}") from None


def _read_number(key: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    _expect(key, "an exponent, a number from -16 to 16", value, is_number and abs(value) <= 16)
    return float(value)


def _read_roles(
    found: Mapping[str, Any], like: Parameterization | None
) -> dict[Role, RoleExponents]:
    _check_keys("roles.", found, ROLES)
    roles: dict[Role, RoleExponents] = {}
    for role in ROLES:
        section = found.get(role, {})
        _expect(f"roles.{role}", "a section", section, isinstance(section, dict))
        _check_keys(f"roles.{role}.", section, _EXPONENTS)
        exponents: dict[str, Any] = {
            key: _read_number(f"roles.{role}.{key}", value) for key, value in section.items()
        }
        if like is not None:
            roles[role] = replace(like.roles[role], **exponents)
            continue
        for key in _REQUIRED:
            _expect(f"roles.{role}.{key}", _NUMBER_OR_LIKE, None, key in exponents)
        roles[role] = RoleExponents(**exponents)
    return roles
