"""List the columns of a table with examples, and as which of ours each would be read."""

import argparse
import shlex

from hptransfer.cli._arguments import add_sources, find_results
from hptransfer.cli._print import align, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_sources(parser)


def run(args: argparse.Namespace) -> int:
    """Print one line a column, those that are read first."""
    from hptransfer.tables import list_columns

    columns = list_columns([find_results(each) for each in args.sources])
    if args.json:
        print_json({"schema": 1, "columns": columns})
        return 0
    print(f"{len(columns)} columns")
    head = ("column", "read as", "distinct", "empty", "examples")
    rows = [
        (each["name"], each["used_as"], f"{each['distinct']}", f"{each['empty']}",
         ", ".join(each["examples"]))
        for each in sorted(columns, key=lambda each: not each["used_as"])
    ]  # fmt: skip
    print(align(head, rows))
    used = {column["used_as"]: column["name"] for column in columns if column["used_as"]}
    named = [f"{ours}={name}" for ours, name in used.items() if ours != name.lower()]
    if named:
        print(f"--columns {shlex.quote(','.join(named))}")
    return 0
