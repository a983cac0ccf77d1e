"""A user's own rule from a TOML file.

.. code-block:: toml

    name = "ours"
    like = "mup"                  # what is not said here is that rule's
    optimizers = ["adamw", "lion"]
    attention = -0.5

    [roles.embedding]
    lr = -0.5                     # exponent in m = width / base_width
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

from hptransfer._documents import read_toml
from hptransfer._messages import nearest_name
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
    path = source
    _check_keys(path, "", document, _KEYS)
    name = document.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{path}: name: expected text in quotes, found {name!r}")
    if name in LATTICE or name in BEYOND_LATTICE:
        raise ConfigError(f"{path}: name: expected a name of its own, found {name!r}")
    like = _read_like(path, document)
    roles = _read_roles(path, document.get("roles", {}), like)
    numbers = {key: _read_number(path, key, document[key]) for key in _NUMBERS if key in document}
    if like is None and "attention" not in numbers:
        raise ConfigError(
            f"{path}: attention: expected a number, or like = a rule's name; found nothing"
        )
    optimizers = _read_optimizers(path, document.get("optimizers", sorted(ADAM_OPTIMIZERS)))
    own = sorted(name for name in optimizers if OPTIMIZERS[name].tables)
    if like is not None and own:
        raise ConfigError(
            f"{path}: optimizers: exponents for {own[0]!r} are not those for Adam, which like = "
            f"{like.name!r} means; leave like out and give every role's, found {own[0]!r}"
        )
    common: dict[str, Any] = {
        "name": name,
        "roles": roles,
        "optimizers": optimizers,
        "source": str(path),
        **numbers,
    }
    return Parameterization(**common) if like is None else replace(like, **common)


def _check_keys(
    path: Path | str, where: str, found: Mapping[str, object], known: tuple[str, ...]
) -> None:
    for key in found:
        if key not in known:
            raise ConfigError(
                f"{path}: unknown key {where + key!r}; did you mean {nearest_name(key, known)!r}? "
                f"({', '.join(known)})"
            )


def _read_like(path: Path | str, document: Mapping[str, Any]) -> Parameterization | None:
    if "like" not in document:
        return None
    like = document["like"]
    if not isinstance(like, str):
        raise ConfigError(f"{path}: like: expected a rule's name in quotes, found {like!r}")
    try:
        return parse_rule(like)
    except ConfigError as error:
        raise ConfigError(f"{path}: like: {error}") from None


def _read_number(path: Path | str, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 16:
        raise ConfigError(
            f"{path}: {key}: expected an exponent, a number from -16 to 16, found {value!r}"
        )
    return float(value)


def _read_roles(
    path: Path | str, found: object, like: Parameterization | None
) -> dict[Role, RoleExponents]:
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: roles: expected sections [roles.embedding], found {found!r}")
    _check_keys(path, "roles.", found, get_args(Role))
    roles: dict[Role, RoleExponents] = {}
    for role in ROLES:
        section = found.get(role, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: roles.{role}: expected a section, found {section!r}")
        _check_keys(path, f"roles.{role}.", section, _EXPONENTS)
        exponents: dict[str, Any] = {
            key: _read_number(path, f"roles.{role}.{key}", value) for key, value in section.items()
        }
        missing = [key for key in _REQUIRED if key not in exponents]
        if like is not None:
            roles[role] = replace(like.roles[role], **exponents)
        elif missing:
            raise ConfigError(
                f"{path}: roles.{role}.{missing[0]}: expected a number, or like = a rule's name; "
                "found nothing"
            )
        else:
            roles[role] = RoleExponents(**exponents)
    return roles


def _read_optimizers(path: Path | str, found: object) -> frozenset[str]:
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{path}: optimizers: expected a list of names, found {found!r}")
    for name in found:
        if str(name) not in OPTIMIZERS:
            raise ConfigError(
                f"{path}: optimizers: expected {', '.join(OPTIMIZERS)}, found {name!r}; "
                f"did you mean {nearest_name(str(name), OPTIMIZERS)!r}?"
            )
    return frozenset(found)
