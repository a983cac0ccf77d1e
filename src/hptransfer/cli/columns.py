"""List the columns of a table with examples, and as which of ours each would be read."""

import argparse
import shlex

from hptransfer.cli._print import make_console, print_json
from hptransfer.cli._table_options import add_sources


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_sources(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def run(args: argparse.Namespace) -> int:
    """Print one line a column, those that are read first."""
    from hptransfer.tables import list_columns

    columns = list_columns(args.sources)
    if args.json:
        print_json({"schema": 1, "columns": columns})
        return 0
    from rich.table import Table

    table = Table(title=f"{len(columns)} columns", title_justify="left")
    for heading in ("column", "read as", "distinct", "empty", "examples"):
        table.add_column(heading, overflow="fold")
    for column in sorted(columns, key=lambda column: not column["used_as"]):
        examples = ", ".join(column["examples"])
        table.add_row(
            column["name"],
            column["used_as"],
            str(column["distinct"]),
            str(column["empty"]),
            examples,
        )
    console = make_console()
    console.print(table)
    used = {column["used_as"]: column["name"] for column in columns if column["used_as"]}
    named = [f"{ours}={name}" for ours, name in used.items() if ours != name.lower()]
    if named:
        console.print(f"--columns {shlex.quote(','.join(named))}")
    return 0
