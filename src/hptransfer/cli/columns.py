"""List the columns of a table with examples, and as which of ours each would be read."""

import argparse
import shlex

from hptransfer.cli._arguments import SOURCES, find_results
from hptransfer.cli._print import align, tell
from hptransfer.tables import list_columns

OPTIONS = (SOURCES,)


def run(args: argparse.Namespace) -> int:
    """Print one line a column, those that are read first."""
    columns = list_columns([find_results(each) for each in args.sources])
    head = ("column", "read as", "distinct", "empty", "examples")
    rows = [
        (each["name"], each["used_as"], f"{each['distinct']}", f"{each['empty']}",
         ", ".join(each["examples"]))
        for each in sorted(columns, key=lambda each: not each["used_as"])
    ]  # fmt: skip
    used = {column["used_as"]: column["name"] for column in columns if column["used_as"]}
    named = [f"{ours}={name}" for ours, name in used.items() if ours != name.lower()]
    option = f"\n--columns {shlex.quote(','.join(named))}" if named else ""
    text = f"{len(columns)} columns\n{align(head, rows)}{option}"
    return tell(args, {"schema": 1, "columns": columns}, text)
