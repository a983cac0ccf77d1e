"""What commands share of printing: JSON documents, and text and tables in 80 columns.

No line is longer than a terminal has columns, and no number is ever cut.
"""

import argparse
import json
import math
import re
import shutil
import sys
import textwrap
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hptransfer.stats.loss_table import Doubt

#: Exit code of a command that has answered, and met a damaged file.
EXIT_DAMAGED = 3
#: Columns that every output fits; on a terminal that has fewer, as far down as it can be read.
COLUMNS, FEWEST_COLUMNS = 80, 40
#: Letters that a word may have before a column breaks it; no number has as many.
LONGEST_WORD = 24
#: Seconds that nothing needs to be said for.
NOTICE_SECONDS = 2.0


def tell(
    args: argparse.Namespace, document: Mapping[str, Any], text: str, *, damaged: bool = False
) -> int:
    """Print what a command found, as it was asked for, and return the command's exit code."""
    if args.json:
        print_json(document)
    elif text:
        print(text)
    return EXIT_DAMAGED if damaged else 0


def tell_reading(source: str, notes: Iterable["Doubt"], damaged: Iterable[str]) -> None:
    """Say on stderr what was seen while a table was read, and which files could not be."""
    from hptransfer.report.words import describe_note

    for note in notes:
        print(f"hptransfer: note: {source}: {describe_note(note)}", file=sys.stderr)
    for line in damaged:
        print(f"hptransfer: {line}", file=sys.stderr)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document; what is no finite number is null."""
    print(json.dumps(_clean(document), ensure_ascii=False, allow_nan=False, indent=2))


def _clean(value: Any, key: object = None) -> Any:
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    elif is_dataclass(value):
        value = vars(value)
    elif hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    if isinstance(value, Mapping):
        return {str(name): _clean(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if key == "width" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


@contextmanager
def say_measuring() -> Iterator[None]:
    """Say on stderr, where the block takes a while, what a study does before its first step."""
    text = "reading the text, and measuring how fast each new width trains here"
    timer = threading.Timer(NOTICE_SECONDS, print, (f"hptransfer: {text}",), {"file": sys.stderr})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def say_clock(seconds: float) -> str:
    """Return a time as ``4:05`` or ``1:04:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def count_columns() -> int:
    """Return how many columns a line has: `COLUMNS`, or those of a narrower terminal."""
    if sys.stdout is None or not sys.stdout.isatty():
        return COLUMNS
    return max(FEWEST_COLUMNS, min(COLUMNS, shutil.get_terminal_size().columns))


def wrap(text: str) -> str:
    """Return a paragraph in lines that fit, the later ones indented; numbers stay whole."""
    return textwrap.fill(
        _INTERVAL.sub(_join, text), count_columns(), subsequent_indent="  ",
        break_long_words=False, break_on_hyphens=False,
    ).replace(_JOINT, " ")  # fmt: skip


#: An interval stays on one line: its space is this meanwhile, which no line breaks at.
_INTERVAL, _JOINT = re.compile(r"\[[^][ ]+, [^][ ]+\]"), "\N{NO-BREAK SPACE}"


def _join(interval: re.Match[str]) -> str:
    return interval[0].replace(" ", _JOINT)


def align(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows as columns two spaces apart, of words to the left and of numbers to the right.

    Texts that are too long for their column go on below themselves. What has too many columns for
    one table is several, each with the first column.

    Examples
    --------
    >>> print(align(["group", "loss"], [["sp", "3.25"], ["sp+embd", "3.1"]]))
    group    loss
    sp       3.25
    sp+embd   3.1
    """
    cells = [[_INTERVAL.sub(_join, text) for text in row] for row in (head, *rows)]
    columns = list(zip(*cells, strict=True))
    least = [_longest_word(column) for column in columns]
    tables, shown = [], [0]
    for k in range(1, len(columns)):
        if least[0] + sum(least[j] + 2 for j in (*shown[1:], k)) > count_columns():
            tables.append(shown)
            shown = [0]
        shown.append(k)
    return "\n\n".join(
        _align_columns([columns[k] for k in table], [least[k] for k in table])
        for table in (*tables, shown)
    )


def _align_columns(columns: Sequence[Sequence[str]], least: Sequence[int]) -> str:
    sizes = [max(map(len, column)) for column in columns]
    # Headings give way where that is enough, else the widest column does.
    headed = [
        max(low, *map(len, column[1:]), 0) for low, column in zip(least, columns, strict=True)
    ]
    room = count_columns() - 2 * (len(sizes) - 1)
    floor = headed if sum(headed) <= room else least
    while sum(sizes) > max(room, sum(floor)):
        wide = max(range(len(sizes)), key=lambda k: (sizes[k] > floor[k], sizes[k]))
        sizes[wide] -= 1
    right = [all(map(_NUMBER.fullmatch, column[1:])) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        parts = [
            textwrap.wrap(text, size, break_on_hyphens=False)
            for text, size in zip(row, sizes, strict=True)
        ]
        for line in zip_longest(*parts, fillvalue=""):
            padded = (
                text.rjust(size) if number else text.ljust(size)
                for text, size, number in zip(line, sizes, right, strict=True)
            )
            lines.append("  ".join(padded).rstrip())
    return "\n".join(lines).replace(_JOINT, " ")


#: A cell of a column of numbers: a number with its unit, a share, or none.
_NUMBER = re.compile(r"[×<≤+−-]?[\d.,]+(e[+−-]?\d+)?( ?(%|MiB|nats))?|[–-]?|\d+ × \d+")


def _longest_word(column: Sequence[str]) -> int:
    # Of an interval the space is none that a line breaks at.
    words = (len(word) for text in column for word in text.split(" "))
    return max(1, min(LONGEST_WORD, max(words, default=1)))
