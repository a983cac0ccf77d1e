"""Arguments that commands share: lists, workers, which file is meant, how a table is read."""

import argparse
import os
import sys
import tomllib
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hptransfer._messages import did_you_mean
from hptransfer.errors import ConfigError

if TYPE_CHECKING:
    from hptransfer.tables import LoadedTable, TableSource


def split_list(text: str) -> list[str]:
    """Return the parts of an option's value that commas separate."""
    return [part.strip() for part in text.split(",") if part.strip()]


def positive_number(text: str) -> float:
    """Return a number above 0; argparse words the error of another."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return value


def check_workers(workers: int | None, *, most: int | None = None) -> None:
    """Raise where a number of workers is below 1, or above `most`, the cores by default.

    Raises
    ------
    ConfigError
        If it is.
    """
    most = os.cpu_count() or 1 if most is None else most
    if workers is not None and not 1 <= workers <= most:
        raise ConfigError(
            f"--workers: expected 1 to {most}, the cores of this machine, found {workers}"
        )


def find_study_file(path: Path) -> Path:
    """Return the study file that is meant: ``mine`` and its folder stand for ``mine.toml``.

    Raises
    ------
    ConfigError
        If there is no such file; the nearest name there is proposed.
    """
    if path.is_file():
        return path
    named = path.with_name(f"{path.name}.toml")
    if named.is_file():
        return named
    if path.is_dir():
        raise ConfigError(
            f"{path}: expected a study file such as {named}, found a folder; to read its results, "
            f"hptransfer status {path}"
        )
    there = [file.name for file in path.parent.glob("*.toml")] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, there)
    raise ConfigError(f"{path}: no such study file{hint or '; expected a path ending in .toml'}")


def find_results(source: Path | str) -> Path | str:
    """Return where the results of a study file lie; any other source as it is.

    Raises
    ------
    ConfigError
        If nothing of the study has been trained.
    """
    path = Path(source)
    if path.suffix != ".toml" or not path.is_file():
        return source
    try:
        name = tomllib.loads(path.read_text("utf-8")).get("name")
    except (ValueError, OSError):
        name = None
    for folder in (Path(str(name or path.stem)), path.with_suffix("")):
        if (folder / "study.json").is_file():
            return folder
    raise ConfigError(
        f"{path}: a study file, of which nothing is trained here yet: hptransfer run {path}"
    )


#: Options of the version before, by command: what is typed in their place. Those that are still
#: an option's other spelling are read for one version more, with a warning.
_RENAMED = {("coordinate-check", "--widths"): "--width"}
_GONE = {
    ("fit", "--token-axis"): "hptransfer recommend TABLE --width N --tokens T",
    ("audit", "--proxy"): "--base-width N",
    ("audit", "--target"): "--width N",
}


def read_options(
    command: str, argv: Sequence[str], known: Iterable[str], refuse: Callable[[str], None]
) -> list[str]:
    """Return a command's arguments with the spellings of the version before in today's.

    The first option that the command does not have is refused, with the nearest that it has.
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
            refuse(f"{name} is gone; type {new}")
        elif name.startswith("--") and not any(each.startswith(name) for each in options):
            hint = did_you_mean(name, options)
            refuse(f"no option {name}{hint}; see hptransfer {command} --help")
        if argument.startswith("-") or Path(argument).exists() or set(argument) & set("./*"):
            in_by = (1 + bool(equals)) * (name == "--by")
        elif in_by > 1:
            before = read[-1].removeprefix("--by=")
            _warn_of_old(f"--by {before} {argument}", f"--by {before},{argument}")
            argument = f"{read.pop()},{argument}"
        else:
            in_by *= 2
        read.append(argument)
    return read


def _warn_of_old(old: str, new: str) -> None:
    print(f"hptransfer: {old} goes with the next version; type {new}", file=sys.stderr)


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name one table: a study, files, or a tracker's directory."""
    parser.add_argument(
        "sources", nargs="+", metavar="DIR|TABLE", help="a study or a loss table; several files, "
        "or a quoted pattern, are one table",
    )  # fmt: skip


def add_source_arguments(parser: argparse.ArgumentParser, *, reference: bool = True) -> None:
    """Add the options by which a table is read, grouped and, with `reference`, compared."""
    parser.add_argument(
        "--by", type=split_list, action="extend", default=[], metavar="COLUMN,…",
        help="more columns that separate fits, beside parameterization and weight_decay",
    )  # fmt: skip
    if reference:
        parser.add_argument(
            "--reference", metavar="NAME", help="the parameterization that R is measured against"
        )
    rows = parser.add_argument_group("how a table is read")
    for option, metavar, words in (
        ("columns", "OURS=THEIRS,…", "the table's own column names: width=n_embd,loss=val/loss"),
        ("where", "COLUMN=VALUE", "use only the rows in which a column has this value"),
        ("map", "COLUMN:OLD=NEW,…", "read other values: size:tiny=64,small=128"),
    ):
        rows.add_argument(f"--{option}", action="append", default=[], metavar=metavar, help=words)
    for option, metavar, words in (
        ("pool", "COLUMN,…", "fit the values of parameterization or weight_decay as one"),
        ("diverged", "STATE,…", "count failed, crashed, killed, pruned or stopped trials as "
         "diverged; none: leave out finished ones without a loss"),
    ):  # fmt: skip
        rows.add_argument(
            f"--{option}", type=split_list, action="extend", default=[], metavar=metavar, help=words
        )
    for option, metavar, words in (
        ("unit", "UNIT", "of the loss: nats, bits, bits-per-byte:BYTES-PER-TOKEN or perplexity"),
        ("last", "COLUMN", "of a table of evaluations read each run's last by this column"),
        ("keep", "RULE", "of several rows of a trial read the last, or longest:COLUMN"),
    ):
        rows.add_argument(f"--{option}", metavar=metavar, help=words)


def load(
    source: "TableSource", args: argparse.Namespace, *, axes: Sequence[str] = ()
) -> "LoadedTable":
    """Read a source as the options say; notes and damaged files go to stderr."""
    from hptransfer.report.words import describe_note
    from hptransfer.tables import read_source

    several = not isinstance(source, str | os.PathLike)
    named = [source] if isinstance(source, str | os.PathLike) else list(source)
    found = [find_results(os.fspath(each)) for each in named]
    loaded = read_source(
        found if several else found[0],
        columns=parse_columns(args.columns),
        by=args.by,
        pool=args.pool,
        where=parse_where(args.where),
        values=parse_values(args.map),
        unit=args.unit,
        last=args.last,
        keep=args.keep,
        diverged=args.diverged,
        axes=axes,
    )
    for note in loaded.notes:
        print(f"hptransfer: note: {loaded.table.source}: {describe_note(note)}", file=sys.stderr)
    for line in loaded.damaged:
        print(f"hptransfer: {line}", file=sys.stderr)
    return loaded


def parse_columns(texts: Iterable[str]) -> dict[str, str]:
    """Return the mapping that ``--columns width=n_embd,loss=val/loss`` asks for.

    Parameters
    ----------
    texts : iterable of str
        Each ``OURS=THEIRS``, or several of them separated by commas.

    Raises
    ------
    ConfigError
        If a part is not of that form, or its left side is no column of ours.
    """
    from hptransfer.tables._columns import CANONICAL, KNOWN

    return parse_mapping(texts, known=KNOWN, listed=CANONICAL, example="width=n_embd")


def parse_mapping(
    texts: Iterable[str], *, known: Collection[str], listed: Sequence[str], example: str
) -> dict[str, str]:
    """Return the mapping of ``--columns`` for any set of columns of ours.

    Parameters
    ----------
    texts : iterable of str
        As for `parse_columns`.
    known : collection of str
        Columns that may be mapped.
    listed : sequence of str
        Those of them that an error names.
    example : str
        A part as it should be, for the error.

    Raises
    ------
    ConfigError
        As for `parse_columns`.
    """
    from hptransfer.tables._raw_table import suggest

    columns: dict[str, str] = {}
    for part in (part for text in texts for part in text.split(",")):
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not (ours and equals and theirs):
            raise ConfigError(f"--columns: expected OURS=THEIRS such as {example}, found {part!r}")
        if ours not in known:
            raise ConfigError(
                f"--columns: no column of ours is called {ours!r}"
                f"{suggest(ours, listed)}; expected one of {', '.join(listed)}"
            )
        if columns.setdefault(ours, theirs) != theirs:
            raise ConfigError(
                f"--columns: {ours} is given twice, as {columns[ours]!r} and {theirs!r}"
            )
    return columns


def parse_where(texts: Sequence[str]) -> dict[str, str]:
    """Return the filter that ``--where COLUMN=VALUE`` asks for.

    Parameters
    ----------
    texts : sequence of str
        Each ``COLUMN=VALUE``; the value may hold anything, commas and ``=`` included.

    Raises
    ------
    ConfigError
        If one is not of that form, or one column is to have two values.
    """
    where: dict[str, str] = {}
    for text in texts:
        name, equals, value = (piece.strip() for piece in text.partition("="))
        if not (name and equals):
            raise ConfigError(f"--where: expected COLUMN=VALUE such as batch=512, found {text!r}")
        if where.setdefault(name, value) != value:
            raise ConfigError(
                f"--where: {name} is to be both {where[name]!r} and {value!r}; expected one value"
            )
    return where


def parse_values(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the cells to replace, by column, that ``--map COLUMN:OLD=NEW,…`` asks for.

    Raises
    ------
    ConfigError
        If one is not of that form.
    """
    values: dict[str, dict[str, str]] = {}
    for text in texts:
        column, colon, rest = text.partition(":")
        for pair in rest.split(","):
            old, equals, new = (piece.strip() for piece in pair.partition("="))
            if not (colon and column and old and equals):
                raise ConfigError(
                    "--map: expected COLUMN:OLD=NEW,… such as size:tiny=64,small=128, found "
                    f"{text!r}"
                )
            values.setdefault(column.strip(), {})[old] = new
    return values
