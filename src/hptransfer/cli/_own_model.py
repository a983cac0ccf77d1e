"""What commands on one's own model share: arguments, roles, and errors in their words."""

from collections.abc import Iterator
from contextlib import contextmanager

from hptransfer.cli._arguments import Option, split_list, split_pairs
from hptransfer.errors import ConfigError

#: What names a model, its roles and what it does itself.
MODEL_OPTIONS: tuple[Option, ...] = (
    ("factory", "MODULE:FACTORY", str, ...,
     "a function from a width to the model; MODULE may be a file, path/to/model.py"),
    ("--role", "PARAMETER=ROLE", list, None,
     "the role of a parameter, by name or pattern, where it cannot be told"),
    ("--applied", "WORD,…", split_list, None,
     "multipliers that the model does itself: attention_scale, readout_multiplier, …"),
    ("--base-width", "N", int, ..., "the proxy's width"),
    ("--parameterization", "NAME", str, "mup",
     "the rule to compare with or to set (default %(default)s)"),
)  # fmt: skip


def read_roles(texts: list[str]) -> dict[str, str]:
    """Return the mapping that ``--role PARAMETER=ROLE`` options tell."""
    return split_pairs("--role", texts, "PARAMETER=ROLE")


def say_applied(word: str) -> str:
    """Return how a command is told what the model does itself."""
    return f"--applied {word}"


@contextmanager
def command_words() -> Iterator[None]:
    """Say errors of roles and multipliers in the command's own options."""
    from hptransfer.adopt import UnclearRolesError, UnfoldedMultiplierError

    try:
        yield
    except UnclearRolesError as error:
        options = " ".join(f"--role '{key}={role}'" for key, role in error.suggestions.items())
        raise ConfigError(error.word(f"say it: {options}")) from error
    except UnfoldedMultiplierError as error:
        raise ConfigError(error.problem.say(say_applied)) from error
