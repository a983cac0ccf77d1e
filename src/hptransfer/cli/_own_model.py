"""What commands on one's own model share: arguments, roles, and errors in their words."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from hptransfer.cli._arguments import split_list
from hptransfer.errors import ConfigError


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that name a model, its roles and what it does itself."""
    parser.add_argument(
        "factory", metavar="MODULE:FACTORY",
        help="a function from a width to the model; MODULE may be a file, path/to/model.py",
    )  # fmt: skip
    parser.add_argument(
        "--role", action="append", default=[], metavar="PARAMETER=ROLE",
        help="the role of a parameter, by name or pattern, where it cannot be told",
    )  # fmt: skip
    parser.add_argument(
        "--applied", type=split_list, action="extend", default=[], metavar="WORD,…",
        help="multipliers that the model does itself: attention_scale, readout_multiplier, …",
    )  # fmt: skip


def read_roles(texts: list[str]) -> dict[str, str]:
    """Return the mapping that ``--role PARAMETER=ROLE`` options tell.

    Raises
    ------
    ConfigError
        If one is not of that form.
    """
    roles: dict[str, str] = {}
    for text in texts:
        name, equals, role = text.partition("=")
        if not (name and equals and role):
            raise ConfigError(f"--role: expected PARAMETER=ROLE, found {text!r}")
        roles[name] = role
    return roles


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
