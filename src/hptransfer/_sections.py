"""Sections of a settings file: their common types, and in one line what is wrong with one."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from hptransfer._messages import find_nearest_name, show_value
from hptransfer.errors import ConfigError

T = TypeVar("T")

_EXPECTED: Mapping[str, str] = {
    "missing": "a value",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "greater_than": "a value above {gt:g}",
    "greater_than_equal": "a value of {ge:g} or more",
    "less_than": "a value below {lt:g}",
    "less_than_equal": "a value of {le:g} or less",
    "literal_error": "{expected}",
    "too_short": "at least one value",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "text that is not empty",
    "dict_type": "a section of keys and values",
}
"""What pydantic's error types expected, in words; its ``ctx`` fills the braces."""


def fault(expected: str, found: object, *, key: str = "", note: str = "") -> PydanticCustomError:
    """Return an error for a validator to raise.

    Parameters
    ----------
    expected : str
        What should stand there.
    found : object
        What does.
    key : str
        ``section.key``, where the validator sees more than the one field at fault.
    note : str
        Appended in brackets.
    """
    text = f"expected {expected}, found {show_value(found)}" + (f" ({note})" if note else "")
    return PydanticCustomError("fault", "{text}", {"text": text, "key": key})


def as_grid(value: object) -> tuple[Any, ...]:
    """Return a list's values, or the one value that stands for a list of one."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def check_distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    """Return values of which none stands twice; a second one is a fault."""
    seen: set[T] = set()
    for value in values:
        if value in seen:
            raise fault("each value once", value, note="twice")
        seen.add(value)
    return values


def check_name(name: str) -> str:
    """Return a name that can be a folder's; anything else is a fault."""
    if not name.strip() or not name.isprintable() or "/" in name:
        raise fault("a name in printable letters without '/'", name)
    if name in (".", "..") or name.startswith("-"):
        raise fault("a name that a folder and a command can have", name)
    return name


Count = Annotated[int, Field(gt=0, lt=2**31)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Adding 0.0 turns -0.0 into 0.0, which would else have a hash of its own.
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(lambda x: x + 0.0)]
# The bounds keep 2^x, and its multiples by width ratios, a normal finite float.
Octaves = Annotated[float, Field(ge=-500, le=500, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Grid = Annotated[
    tuple[T, ...], Field(min_length=1), BeforeValidator(as_grid), AfterValidator(check_distinct)
]


class Section(BaseModel):
    """What all sections share: frozen, strict, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    input_keys: ClassVar[tuple[str, ...]] = ()
    """Keys of the file that become another field."""


def refuse(error: ValidationError, *, model: type[BaseModel], source: str) -> NoReturn:
    """Raise a ConfigError that says the first thing wrong, in one line.

    An unknown key comes first: what is then missing is most often the same key, misspelled.
    """
    faults = error.errors(include_url=False)
    unknown = [each for each in faults if each["type"] == "extra_forbidden"]
    if unknown:
        raise ConfigError(f"{source}: {_describe_unknown(unknown[0], model)}") from None
    raise ConfigError(f"{source}: {_describe_faults(faults, model)}") from None


def _sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the sections by name, and what an array of them, ``[[points]]``, is made of."""
    return {
        name: section
        for name, info in model.model_fields.items()
        for section in (info.annotation, *get_args(info.annotation)[:1])
        if isinstance(section, type) and issubclass(section, BaseModel)
    }


def _known_keys(section: type[BaseModel]) -> list[str]:
    return [*section.model_fields, *getattr(section, "input_keys", ())]


def _describe_unknown(each: ErrorDetails, model: type[BaseModel]) -> str:
    *within, name = path = [part for part in each["loc"] if isinstance(part, str)]
    sections = _sections(model)
    homes = [f"{home}.{name}" for home, one in sections.items() if name in _known_keys(one)]
    is_section = not within and isinstance(each["input"], Mapping)
    if within:
        known = _known_keys(sections[within[0]])
        homes += [name] * (name in model.model_fields and name not in sections)
    else:
        known = [field for field in model.model_fields if (field in sections) == is_section]
    nearest = homes[0] if homes else find_nearest_name(name, known)
    hint = f"did you mean '{nearest}'?" if nearest else f"known: {', '.join(known)}"
    return f"unknown {'section' if is_section else 'key'} {'.'.join(path)!r}; {hint}"


#: Last parts of a fault's place that no file has: alternatives of a type.
_ALTERNATIVES = ("bool", "int", "float", "str", "constrained-int", "constrained-float")


def _describe_faults(faults: list[ErrorDetails], model: type[BaseModel]) -> str:
    """Return the first fault; where a value may be of several types, what each of them expects."""
    first, key = faults[0], _name_place(faults[0])
    context = first.get("ctx", {})
    if first["type"] == "fault":
        return f"{context['key'] or key}: {context['text']}"
    found = None if first["type"] == "missing" else first["input"]
    if key in _sections(model):
        return f"{key}: expected a section [{key}], found {show_value(found)}"
    alike = [
        each for each in faults if _name_place(each) == key and each["input"] is first["input"]
    ]
    takes_any = any(each["type"] == "float_type" for each in alike)
    expected = dict.fromkeys(
        _EXPECTED.get(each["type"], "{msg}").format(msg=each["msg"], **each.get("ctx", {}))
        for each in alike
        if not (takes_any and each["type"].startswith("int_"))
    )
    *others, last = expected
    wanted = f"{', '.join(others)} or {last}" if others else last
    return f"{key}: expected {wanted}, found {show_value(found)}"


def _name_place(each: ErrorDetails) -> str:
    place = list(each["loc"])
    if place and place[-1] in _ALTERNATIVES:
        del place[-1]
    # An index into a list is left out: the found value already says which one.
    return ".".join(part for part in place if isinstance(part, str))
