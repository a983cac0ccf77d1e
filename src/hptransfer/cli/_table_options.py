"""The options by which a table is named and read, shared by the commands that read one."""

import argparse
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from hptransfer.cli._arguments import find_results, split_list
from hptransfer.errors import ConfigError

if TYPE_CHECKING:
    from hptransfer.tables import LoadedTable, TableSource


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
        ("pool", "COLUMN", "fit the values of parameterization or weight_decay as one"),
        ("diverged", "STATE", "count failed, crashed, killed, pruned or stopped trials as "
         "diverged; none: leave out finished ones without a loss"),
    ):  # fmt: skip
        rows.add_argument(f"--{option}", action="append", default=[], metavar=metavar, help=words)
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
    from hptransfer.report.table_notes import describe_note
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
    from hptransfer.tables.table_columns import CANONICAL, KNOWN

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
    from hptransfer.tables.wording import suggest

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
