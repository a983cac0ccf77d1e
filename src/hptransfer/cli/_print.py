"""What commands share of printing: JSON documents, and tables."""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


#: Exit code of a command that has answered, and met a damaged file.
EXIT_DAMAGED = 3


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how much is printed, and how."""
    parser.add_argument(
        "--verbose", action="store_true", help="print every number of every group, with its reason"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document; what is no finite number is null."""
    print(json.dumps(_clean(document), ensure_ascii=False, allow_nan=False, indent=2))


def make_console() -> "Console":
    """Return a console on stdout that prints names as they are, never as markup."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() else 120
    return Console(file=sys.stdout, markup=False, highlight=False, emoji=False, width=wide)


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _whole(item) if key == "width" else _clean(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _whole(width: Any) -> Any:
    width = _clean(width)
    return int(width) if isinstance(width, float) and width.is_integer() else width
