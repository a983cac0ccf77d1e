"""The role table: what each parameter of a model is, as plain data that a checkpoint can hold."""

import fnmatch
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

from torch import nn

from hptransfer._messages import check_name, nearest_name
from hptransfer.errors import ConfigError
from hptransfer.scaling import MATRIX_ROLES, ROLES, Fans, TensorRole

TableRole = TensorRole | Literal["tied"]
"""A role of the rules, ``other`` (a parameter that no rule speaks of), or ``tied``: one table that
is both embedding and readout."""

TABLE_ROLES: tuple[TableRole, ...] = (*ROLES, "tied", "other")

_SCHEMA = 1
_SUFFIX = ":transposed"


@dataclass(frozen=True, kw_only=True)
class ParameterRole:
    """One parameter.

    Attributes
    ----------
    name : str
        As ``named_parameters`` gives it, without the prefixes of wrappers.
    role : str
        One of ``TABLE_ROLES``.
    shape, base_shape : tuple of int
        Here and at the base width.
    fan_in, fan_out, base_fan_in, base_fan_out : int
        Numbers of inputs that one output sums over, and of outputs.
    infinite : tuple of int
        Dimensions that grow with width.
    is_table : bool
        Whether it is looked up or added, not multiplied: an embedding whose fan-in is no sum.
    transposed : bool
        Whether a matrix is stored as (fan_in, fan_out), as in x @ W.
    tied : tuple of str
        Other names of the same tensor.
    """

    name: str
    role: TableRole
    shape: tuple[int, ...]
    base_shape: tuple[int, ...]
    fan_in: int
    fan_out: int
    base_fan_in: int
    base_fan_out: int
    infinite: tuple[int, ...]
    is_table: bool = False
    transposed: bool = False
    tied: tuple[str, ...] = ()

    @property
    def fans(self) -> Fans:
        """The fans as the rules take them."""
        return Fans(
            fan_in=self.fan_in,
            base_fan_in=self.base_fan_in,
            fan_out=self.fan_out,
            base_fan_out=self.base_fan_out,
        )

    @property
    def rule_role(self) -> TensorRole:
        """The role whose numbers it takes: a tied table's are the embedding's."""
        return "embedding" if self.role == "tied" else self.role


@dataclass(frozen=True, kw_only=True)
class AttentionHeads:
    """The head size of one attention module, here and at the base width.

    Attributes
    ----------
    module : str
        Path of the module in the model.
    head_size, base_head_size : int
        Size of its query heads.
    """

    module: str
    head_size: int
    base_head_size: int


@dataclass(frozen=True, kw_only=True)
class RoleTable:
    """Every parameter of a model at one width, against a base width.

    Attributes
    ----------
    width, base_width : int
        The widths that the model factory was given.
    parameters : tuple of ParameterRole
        In the model's order; a shared tensor stands once.
    head_size, base_head_size : int or None
        The head size of all attention modules; None where there are none, or they differ.
    heads : tuple of AttentionHeads
        The head size of each attention module.
    num_layers, base_num_layers : int or None
        Layers, where their number is another one at the base width; else None.
    factory : callable or None
        What ``infer_roles`` was given. ``init_`` reads the model's own initial values from it; it
        is no part of the JSON document or of a comparison.

    Examples
    --------
    >>> from torch import nn
    >>> from hptransfer.adopt import infer_roles
    >>> def make(width):
    ...     return nn.Sequential(nn.Embedding(10, width), nn.Linear(width, width),
    ...                          nn.Linear(width, 10, bias=False))
    >>> table = infer_roles(make, base_width=64, width=256)
    >>> [(each.name, each.role) for each in table][:2]
    [('0.weight', 'embedding'), ('1.weight', 'hidden')]
    >>> RoleTable.from_json(table.to_json()) == table
    True
    """

    width: int
    base_width: int
    parameters: tuple[ParameterRole, ...]
    head_size: int | None = None
    base_head_size: int | None = None
    heads: tuple[AttentionHeads, ...] = ()
    num_layers: int | None = None
    base_num_layers: int | None = None
    factory: Callable[[int], nn.Module] | None = field(default=None, repr=False, compare=False)

    @property
    def width_mult(self) -> float:
        """The width ratio m = width / base_width."""
        return self.width / self.base_width

    def __iter__(self) -> Iterator[ParameterRole]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, name: str) -> ParameterRole:
        for each in self.parameters:
            if name == each.name or name in each.tied:
                return each
        raise KeyError(name)

    def match(self, key: str, given: str | Iterable[str]) -> list[ParameterRole]:
        """Return the parameters that names or patterns mean, in order.

        Raises
        ------
        ConfigError
            If one names no parameter; ``key`` says where it was given.
        """
        names = [(entry.name, *entry.tied) for entry in self]
        patterns = [given] if isinstance(given, str) else given
        hits = {k for each in patterns for k in _match_names(f"{key}: {each!r}", each, names)}
        return [self.parameters[k] for k in sorted(hits)]

    def __getstate__(self) -> dict[str, Any]:
        # A factory is often a lambda, which no other process could read.
        return {**self.__dict__, "factory": None}

    def to_json(self) -> str:
        """Return the table as one JSON document, without its factory."""
        values = {key: getattr(self, key) for key in self.__dataclass_fields__ if key != "factory"}
        for key in ("parameters", "heads"):
            values[key] = [asdict(each) for each in values[key]]
        return json.dumps({"schema": _SCHEMA, **values}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "RoleTable":
        """Return the table that ``to_json`` wrote.

        Raises
        ------
        ConfigError
            If the text is no such document.
        """
        try:
            document = json.loads(text)
            schema = document.pop("schema")
        except (ValueError, AttributeError, KeyError, TypeError):
            raise ConfigError(
                "role table: expected the JSON document of RoleTable.to_json, found other text"
            ) from None
        if schema != _SCHEMA:
            raise ConfigError(f"role table: expected schema {_SCHEMA}, found {schema!r}")
        try:
            parameters = tuple(_read_parameter(each) for each in document.pop("parameters"))
            heads = tuple(AttentionHeads(**each) for each in document.pop("heads", ()))
            return cls(parameters=parameters, heads=heads, **document)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"role table: a key is missing or unknown ({error})") from None


def _read_parameter(document: dict[str, Any]) -> ParameterRole:
    if document["role"] not in TABLE_ROLES:
        raise ConfigError(
            f"role table: {document['name']}: expected one of {', '.join(TABLE_ROLES)}, "
            f"found {document['role']!r}"
        )
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
    }
    return ParameterRole(**values)


# Roles that the user gives


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
        hits = _match_names(f"roles: {key!r}", key, names)
        for k in hits:
            told[k][key] = RoleOverride.parse(key, text)
    return [_only(each, names[k]) for k, each in enumerate(told)]


def _match_names(what: str, key: str, names: Sequence[tuple[str, ...]]) -> list[int]:
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
