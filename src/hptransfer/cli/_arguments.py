"""Arguments that commands share: lists, workers, which file is meant, how a table is read."""

import argparse
import math
import os
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hptransfer._messages import did_you_mean
from hptransfer.errors import ConfigError

if TYPE_CHECKING:
    from hptransfer.tables import ReadOptions

#: An argument of a command: its names, what stands for its value, its kind, its default (... where
#: it has to be given), its help.
#: A kind is a type, a tuple of choices, a key of `_KINDS`, or what argparse is told in its place.
Option: TypeAlias = tuple[str, str | None, Any, Any, str]
#: Arguments of a command. Those in a list exclude each other; a mapping has groups by their title.
Options: TypeAlias = "Sequence[Option | list[Option] | dict[str, Sequence[Option]]]"


def split_list(text: str) -> list[str]:
    """Return the parts of an option's value that commas separate."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _read_path(text: str) -> Path:
    """Return a path; an empty name, of a shell's variable not set, is no working directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a path, found an empty name")
    return Path(text)


def _read_as(
    kind: type[int] | type[float], wanted: str, *, positive: bool = False
) -> Callable[[str], float]:
    """Return a reader of an option's value, whose error says what is wanted."""

    def read(text: str) -> float:
        try:
            value = kind(text)
            if positive and not 0 < value < math.inf:
                raise ValueError
        except ValueError:
            message = f"expected {wanted}, found {text!r}"
            raise argparse.ArgumentTypeError(message) from None
        return value

    return read


positive_number = _read_as(float, "a number above 0", positive=True)
positive_count = _read_as(int, "a whole number above 0", positive=True)
#: A switch, what may be given again, what may hold commas too, numbers and paths.
_KINDS: Mapping[Any, dict[str, Any]] = {
    bool: {"action": "store_true", "default": False},
    list: {"action": "append", "default": []},
    split_list: {"action": "extend", "type": split_list, "default": []},
    int: {"type": _read_as(int, "a whole number")},
    float: {"type": _read_as(float, "a number")},
    Path: {"type": _read_path},
}


def add_options(parser: argparse._ActionsContainer, options: Options) -> None:
    """Add the arguments of a command, or of a group of them, to its parser."""
    for option in options:
        if isinstance(option, list):
            add_options(parser.add_mutually_exclusive_group(), option)
            continue
        if isinstance(option, dict):
            for title, members in option.items():
                add_options(parser.add_argument_group(title), members)
            continue
        names, metavar, kind, default, words = option
        rest: dict[str, Any] = {} if metavar is None else {"metavar": metavar}
        if default is not ...:
            rest["default"] = default
        elif names.startswith("-"):
            rest["required"] = True
        if isinstance(kind, tuple):
            rest["choices"] = kind
        else:
            rest |= kind if isinstance(kind, dict) else _KINDS.get(kind, {"type": kind})
        parser.add_argument(*names.split(), help=words, **rest)


WORKERS: Option = (
    "--workers", "N", positive_count, None,
    "groups trained at a time (default: one per core, or one on a GPU)",
)  # fmt: skip


def check_workers(workers: int | None) -> None:
    """Raise where there are to be more workers than cores.

    Raises
    ------
    ConfigError
        If there are.
    """
    most = os.cpu_count() or 1
    if workers is not None and workers > most:
        raise ConfigError(
            f"--workers: expected 1 to {most}, the cores of this machine, found {workers}"
        )


def check_output(option: str, path: Path | None) -> None:
    """Raise ConfigError where no file can be written at a path; nothing is asked of None."""
    if path is None:
        return
    if (path.exists() and not path.is_file()) or not path.parent.is_dir():
        raise ConfigError(f"{option}: expected a file in a directory that exists, found {path}")


def find_study_file(path: Path) -> Path:
    """Return the study file that is meant: ``mine`` and its folder stand for ``mine.toml``.

    Raises
    ------
    ConfigError
        If there is no such file; the nearest name there is proposed.
    """
    if path.is_file():
        return path
    # A folder may be "." or "..", which have no name to put a suffix to.
    bare = path if path.name not in ("", "..") else path.resolve()
    named = bare.parent / f"{bare.name}.toml"
    if named.is_file():
        return named
    if path.is_dir():
        inside = min(path.glob("*.toml"), default=named if bare.name else None)
        such = "ending in .toml" if inside is None else f"such as {inside}"
        raise ConfigError(
            f"{path}: expected a study file {such}, found a folder; to read its results, "
            f"hptransfer status {shlex.quote(str(path))}"
        )
    there = [file.name for file in path.parent.glob("*.toml")] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, there)
    raise ConfigError(f"{path}: no such study file{hint or '; expected a path ending in .toml'}")


def find_results(source: Path | str) -> Path | str:
    """Return where the results of a study or search file lie; any other source as it is.

    Raises
    ------
    ConfigError
        If nothing of it has been trained, or the source has no name.
    """
    path = Path(source)
    if not str(source).strip():
        raise ConfigError("expected a study or a loss table, found an empty name")
    if path.suffix != ".toml" or not path.is_file():
        return source
    try:
        said = tomllib.loads(path.read_text("utf-8"))
    except (ValueError, OSError):
        said = {}
    kind, command = ("search", "search") if "job" in said else ("study", "run")
    for folder in (Path(str(said.get("name") or path.stem)), path.with_suffix("")):
        if (folder / ("search.jsonl" if kind == "search" else "study.json")).is_file():
            return folder
    raise ConfigError(
        f"{path}: a {kind} file, of which nothing is trained here yet: hptransfer {command} "
        f"{shlex.quote(str(path))}"
    )


#: Options of the version before, by command: what is typed in their place. Those that are renamed
#: are read for one version more, with a warning.
_RENAMED = {("coordinate-check", "--widths"): "--width"}
_GONE = {
    ("fit", "--token-axis"): "hptransfer recommend TABLE --width N --tokens T",
    ("fit", "--share"): "hptransfer fit TABLE, which fits each parameterization by itself",
    ("audit", "--proxy"): "--base-width N",
    ("audit", "--target"): "--width N",
    ("coordinate-check", "--tolerance"): "coordinate_check(…, tolerance=T) in Python",
    ("search", "--parallel"): "parallel = N in the search file",
}


def read_options(command: str, argv: Sequence[str], known: Iterable[str]) -> list[str]:
    """Return a command's arguments with the spellings of the version before in today's.

    Raises
    ------
    ConfigError
        If the command has no such option; the nearest that it has is proposed.
    """
    options = [option for option in known if option.startswith("--")]
    read: list[str] = []
    in_by = 0  # words since the last --by, that one included
    for k, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if argument == "--":
            return [*read, *argv[k:]]
        if new := _RENAMED.get((command, name)):
            _warn_of_old(name, new)
            argument = f"{new}{equals}{value}"
        elif new := _GONE.get((command, name)):
            raise ConfigError(f"{name} is gone; type {new}")
        elif name.startswith("--") and not any(each.startswith(name) for each in options):
            hint = did_you_mean(name, options)
            raise ConfigError(f"no option {name}{hint}; see hptransfer {command} --help")
        # A list may be longer than a file's name, of which Path.exists would raise.
        is_there = os.path.exists(argument)  # noqa: PTH110
        is_path = in_by > 0 and (is_there or not set(argument).isdisjoint("./*"))
        if argument.startswith("-") or is_path:
            in_by = (1 + bool(equals)) * (name == "--by")
        elif in_by > 1:
            last = read.pop()
            old, new = (f"--by {last.removeprefix('--by=')}{gap}{argument}" for gap in " ,")
            _warn_of_old(old, new)
            argument = f"{last},{argument}"
        else:
            in_by *= 2
        read.append(argument)
    return read


def _warn_of_old(old: str, new: str) -> None:
    print(f"hptransfer: {old} goes with the next version; type {new}", file=sys.stderr)


#: What names one table: a study, files, or a tracker's directory.
SOURCES: Option = (
    "sources", "DIR|TABLE", {"nargs": "+"}, ...,
    "a study or a loss table; several files, or a quoted pattern, are one table",
)  # fmt: skip
REFERENCE: Option = (
    "--reference", "NAME", str, None, "the parameterization that R is measured against",
)  # fmt: skip
#: How a table is grouped and read.
READING: Options = (
    ("--by", "COLUMN,…", split_list, None,
     "more columns that separate fits, beside parameterization and weight_decay"),
    {"how a table is read": [
        ("--columns", "OURS=THEIRS,…", list, None,
         "the table's own column names: width=n_embd,loss=val/loss"),
        ("--where", "COLUMN=VALUE", list, None,
         "use only the rows in which a column has this value"),
        ("--map", "COLUMN:OLD=NEW,…", list, None, "read other values: size:tiny=64,small=128"),
        ("--pool", "COLUMN,…", split_list, None,
         "fit the values of parameterization or weight_decay as one"),
        ("--diverged", "STATE,…", split_list, None,
         "count failed, crashed, killed, pruned or stopped trials as diverged; none: leave out "
         "finished ones without a loss"),
        ("--unit", "UNIT", str, None,
         "of the loss: nats, bits, bits-per-byte:BYTES-PER-TOKEN, nats-per-byte:BYTES-PER-TOKEN or "
         "perplexity"),
        ("--last", "COLUMN", str, None,
         "of a table of evaluations read each run's last by this column"),
        ("--keep", "RULE", str, None,
         "of several rows of a trial read the last, or longest:COLUMN"),
    ]},
)  # fmt: skip
VERBOSE: Option = (
    "--verbose", None, bool, None, "print every number of every group, with its reason",
)  # fmt: skip


def choose_reading(args: argparse.Namespace, axes: Sequence[str] = ()) -> "ReadOptions":
    """Return how a table is read: as the options of `READING` say, with these axes."""
    return {
        "axes": axes,
        "columns": parse_columns(args.columns),
        "where": parse_where(args.where),
        "values": parse_values(args.map),
        "by": args.by,
        "pool": args.pool,
        "unit": args.unit,
        "last": args.last,
        "keep": args.keep,
        "diverged": args.diverged,
    }


def split_pairs(
    option: str, texts: Iterable[str], form: str, *, blank: bool = False, last: bool = False
) -> dict[str, str]:
    """Return the pairs ``LEFT=RIGHT`` of an option, split at the first ``=`` or at the `last`.

    With `blank` the right side may be empty.

    Raises
    ------
    ConfigError
        If one is not of that form, or one left side has two right ones.
    """
    pairs: dict[str, str] = {}
    split = str.rpartition if last else str.partition
    for text in texts:
        left, equals, right = map(str.strip, split(text, "="))
        if not (left and equals and (right or blank)):
            raise ConfigError(f"{option}: expected {form}, found {text!r}")
        if pairs.setdefault(left, right) != right:
            raise ConfigError(f"{option}: {left} is given twice, as {pairs[left]!r} and {right!r}")
    return pairs


def parse_columns(
    texts: Iterable[str], known: Sequence[str] = (), *, example: str = "width=n_embd"
) -> dict[str, str]:
    """Return the mapping that ``--columns width=n_embd,loss=val/loss`` asks for.

    Parameters
    ----------
    texts : iterable of str
        Each ``OURS=THEIRS``, or several of them separated by commas.
    known : sequence of str
        Columns that may be mapped; by default those of a loss table.
    example : str
        A part as it should be, for the error.

    Raises
    ------
    ConfigError
        If a part is not of that form, or its left side is no column of ours.
    """
    from hptransfer.tables._columns import CANONICAL, KNOWN
    from hptransfer.tables._raw_table import suggest

    listed = known or CANONICAL
    parts = [part for text in texts for part in text.split(",")]
    columns = split_pairs("--columns", parts, f"OURS=THEIRS such as {example}")
    for ours in columns:
        if ours not in (known or KNOWN):
            raise ConfigError(
                f"--columns: no column of ours is called {ours!r}"
                f"{suggest(ours, listed)}; expected one of {', '.join(listed)}"
            )
    return columns


def parse_where(texts: Iterable[str]) -> dict[str, str]:
    """Return the filter that ``--where COLUMN=VALUE`` asks for; a value may hold anything."""
    return split_pairs("--where", texts, "COLUMN=VALUE such as batch=512", blank=True)


def parse_values(texts: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the cells to replace, by column, that ``--map COLUMN:OLD=NEW,…`` asks for.

    Raises
    ------
    ConfigError
        If one is not of that form.
    """
    form = "COLUMN:OLD=NEW,… such as size:tiny=64,small=128"
    values: dict[str, dict[str, str]] = {}
    for text in texts:
        column, colon, rest = text.partition(":")
        if not (column and colon):
            raise ConfigError(f"--map: expected {form}, found {text!r}")
        found = split_pairs("--map", rest.split(","), form, blank=True, last=True)
        values.setdefault(column.strip(), {}).update(found)
    return values
