"""A table as its file holds it: Arrow columns whose cells are read as numbers, codes or blanks."""

import difflib
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hptransfer.errors import ConfigError, DataError

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]

#: More than any table of trials holds; a compressed file can claim any number.
MAX_ROWS = 10_000_000
#: More different keys than the settings and metrics of trials have.
MAX_COLUMNS = 4096
#: Bytes that a table may take in memory, and its texts once written out.
MAX_BYTES, MAX_TEXT_BYTES = 2 * 2**30, 2**29

# What trackers and data frames write where there is nothing, or a number that is none.
_EMPTY = ("", "na", "n/a", "none", "null", "<na>")
_NAN = ("nan", "+nan", "-nan")
#: Beyond these a number is as good as infinite, or as zero: no training in single precision
#: meets it, and its square still is a number.
LARGEST, SMALLEST = 1e50, 1e-50

# Numbers in the notations that people use, by the names of their parts.
_FACTORS = {"2": 2.0, "10": 10.0, "e": math.e, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "x": 1.0}
_NOTATIONS = {
    "power": r"(?P<base>2|10|e)(?:\^|\*\*)[({]?(?P<n>[+-]?\d+(?:\.\d*)?)[)}]?",
    "size": r"(?P<n>\d+(?:\.\d*)?)\s?(?P<unit>[kmbg])",
    "multiple": r"[+]?(?P<n>\d*\.?\d+(?:e[+-]?\d+)?)\s?[x×]",
}
# A number in a word, as in "gpt-125m", "d=64", "w512" and "lr1e-3", and none in "gpt2".
_NUMBER_IN_WORD = (
    r"(?<![a-z\d.])(?<!e[+-])(?:lr|eta|width|dim|[a-z])?(\d[\d.]*(?:e[+-]?\d+)?[kmbg]?)(?![\w.])"
)
# What to write in place of cells that are nearly numbers, and of any other word.
_ANY_WORD = r".*"
_HINTS = {
    r"[1-9]\d{0,2}(,\d{3})+(\.\d+)?": "write numbers without thousands separators",
    r"[+-]?\d*,\d+([eE][+-]?\d+)?": "write decimals with a point",
    r"[\d.eE+-]+\s*(±|\+/?-|\().*": "write the number alone, and its error apart",
    r"[+-]?[\d.][\d.eE+-]*\s*[%a-zA-Z†‡§*].*": "write the number alone, without unit or mark",
    r"\[.*": "write one number, such as the last of the list",
    _ANY_WORD: "say what it stands for with --map {argument},…",
}

#: Kinds of notes with which an answer is risky at best: the table mixes what the fit cannot see.
RISKY = frozenset({
    "varies", "stops", "partial", "outlier", "spelling", "byte_unit", "other_rate", "mark", "score",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TableNote:
    """One thing to know about a table that was read; `hptransfer.report` makes the sentence.

    Attributes
    ----------
    kind : str
        What it is: ``left_out``, ``varies`` and so on, as `docs/tables.md` lists them.
    values : mapping of str to object
        Names and numbers of it.

    Examples
    --------
    >>> TableNote(kind="varies", values={"columns": "optimizer"}).risky
    True
    """

    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def risky(self) -> bool:
        """Whether an answer from the table is risky at best."""
        return self.kind in RISKY or bool(self.values.get("risky"))


class Need(Enum):
    """What a number must be: how a message says it, and the least that it is."""

    ANY = "a number", -LARGEST
    POSITIVE = "a positive number", SMALLEST
    NOT_NEGATIVE = "a number of 0 or more", 0.0
    WHOLE = "a whole number", -LARGEST

    def fits(self, values: Floats) -> Bools:
        """Tell which numbers are what they need to be; NaN never is."""
        fine = (values >= self.value[1]) & (values <= LARGEST)
        return np.asarray(fine & (values == np.floor(values)) if self is Need.WHOLE else fine)


@dataclass(frozen=True)
class RawTable:
    """Cells as read, before any meaning is given to them, and what their source says beside.

    Attributes
    ----------
    source : str
        The file or directory, for messages.
    columns : mapping of str to pyarrow.Array
        Cells by column name, all of one length: text, whole numbers, doubles, booleans or null.
    describe_row : callable
        Says where a row of the file stands, ``"row 3 (line 4)"``; it may read the file again.
    rows : ndarray of int, shape (rows,)
        Which rows of the file these are, from 0.
    last_steps : mapping of str to ndarray
        Of all runs of a tracker: the last step at which each metric was logged, NaN where never.
    notes : list of TableNote
        What was seen while it was read; one list of all tables that are made of one.
    damaged : sequence of str
        A line for each file of the source that could not be read.
    is_ours : bool
        Whether a study or a search of ours wrote it: one setting by construction, whole rows.
    by : sequence of str
        Columns of a search that separate fits.
    settings : mapping
        Contents of a study's ``study.json``.
    ours, groups : mapping of str to str
        Names in the file of our columns, and of those that separate fits; empty until chosen.
    """

    source: str
    columns: Mapping[str, pa.Array]
    describe_row: Callable[[int], str]
    rows: Ints
    last_steps: Mapping[str, Floats] = field(default_factory=dict)
    notes: list[TableNote] = field(default_factory=list)
    damaged: Sequence[str] = ()
    is_ours: bool = False
    by: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def say_row(self, row: int) -> str:
        """Return where a row stands in its file."""
        return self.describe_row(int(self.rows[row]))

    def place(self, row: int, column: str = "") -> str:
        """Return where a row or, with its name, a cell of it stands, for messages."""
        return f"{self.source}: {self.say_row(row)}{column and f': column {column!r}'}"

    def cell(self, row: int, column: str) -> object:
        """Return one cell: text, a number, a boolean or None."""
        return self.columns[column][int(row)].as_py()

    def take(self, rows: Ints) -> "RawTable":
        """Return the table of some rows, in any order and as often as they are named."""
        if len(rows) == len(self) and (np.diff(rows, prepend=-1) == 1).all():
            return self
        columns = {name: column.take(pa.array(rows)) for name, column in self.columns.items()}
        return replace(self, columns=columns, rows=self.rows[rows])

    def add(self, columns: Mapping[str, pa.Array]) -> "RawTable":
        """Return the table with further columns, or others in place of those of their names."""
        return replace(self, columns={**self.columns, **columns})

    def tell(self, kind: str, **values: object) -> None:
        """Note one thing to know about the table: its kind, with names and numbers."""
        self.notes.append(TableNote(kind=kind, values=values))

    def encode(self, column: str) -> tuple[Ints, list[object]]:
        """Return a column as codes, shape (rows,), and its distinct cells by first appearance."""
        coded = self.columns[column].dictionary_encode(null_encoding="encode")
        return np.asarray(coded.indices, dtype=np.int64), coded.dictionary.to_pylist()

    def name_cells(self, column: str, *, each: bool = False) -> tuple[Ints, list[object]]:
        """Return names of groups as codes and names: numbers where all that are there are some.

        With `each` a cell that is a number is one whatever the others are.
        """
        codes, values = self.encode(column)
        names = ["" if v is None else clean(v) if isinstance(v, str) else v for v in values]
        numbers = [parse_plain(name) for name in names]
        pairs = [*zip(names, numbers, strict=True)]
        if each or all(math.isfinite(n) or is_empty(name) for name, n in pairs):
            names = [_shorten(n) if math.isfinite(n) else name for name, n in pairs]
        index: dict[object, int] = {}
        again = np.array([index.setdefault(name, len(index)) for name in names], dtype=np.int64)
        return again[codes], list(index)

    def map_cells(self, column: str, read: Callable[[object], Any], kind: Any = object) -> Any:
        """Return what a function makes of each cell, shape (rows,).

        Raises
        ------
        DataError
            If the function raises ValueError of what it expected, with the first such cell.
        """
        codes, values = self.encode(column)
        found = np.empty(len(values), kind)
        for code, value in enumerate(values):
            try:
                found[code] = read(value)
            except ValueError as error:
                raise self.refuse(int(np.argmax(codes == code)), column, *error.args) from error
        return found[codes]

    def numbers(self, column: str) -> Floats:
        """Return a column as numbers; NaN where a cell is none."""
        cells = self.columns[column]
        if pa.types.is_boolean(cells.type):
            cells = pa.nulls(len(cells))
        elif pa.types.is_string(cells.type):
            cells = pc.if_else(pc.equal(cells, ""), pa.scalar(None, pa.string()), cells)
        try:
            found = pc.cast(cells, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            found = self.map_cells(column, parse_number, np.float64)
        return np.asarray(found, dtype=np.float64)

    def blanks(self, column: str) -> Bools:
        """Return which cells of a column are empty, which is less than not being a number."""
        cells = self.columns[column]
        blank = cells.is_null()
        if pa.types.is_string(cells.type):
            bare = pc.utf8_lower(pc.utf8_trim_whitespace(cells))
            blank = pc.or_(blank, pc.is_in(bare, pa.array(_EMPTY)))
        return np.array(blank.to_numpy(zero_copy_only=False), dtype=bool)

    def require(self, name: str, option: str, columns: Mapping[str, str] | None = None) -> str:
        """Return the file's name of a column that an option asked for, by that name or by ours.

        Raises
        ------
        ConfigError
            If there is no such column.
        """
        found = name if name in self.columns else (columns or {}).get(name, clean(name))
        if found not in self.columns:
            raise ConfigError(lack_column(f"{self.source}: {option}", clean(name), self.columns))
        return found

    def read(
        self, column: str, need: Need, numbers: Floats | None = None, hint: str = ""
    ) -> Floats:
        """Return a column's numbers, or refuse the first cell that is not what it needs to be."""
        found = self.numbers(column) if numbers is None else numbers
        fine = need.fits(found)
        if not fine.all():
            raise self.refuse(int(np.argmin(fine)), column, need, hint)
        return found

    def read_measured(self, column: str, unless: Bools | bool = False) -> Floats:
        """Return numbers that may be missing, NaN there; a word is refused, but in some rows."""

        def check(cell: object) -> None:
            if not (is_empty(cell) or is_nan(cell)):
                raise ValueError(Need.ANY)

        numbers = self.numbers(column)
        odd = np.flatnonzero(np.isnan(numbers) & np.logical_not(unless))
        self.take(odd).map_cells(column, check)
        return numbers

    def refuse(self, row: int, column: str, need: Need | str, hint: str = "") -> DataError:
        """Return the error of a cell that is not what was expected, with what helps."""
        cell, expected = self.cell(row, column), need.value[0] if isinstance(need, Need) else need
        found = show(cell)
        if is_empty(cell) and not is_nan(cell):
            found, hint = "an empty cell", hint or self._tell_apart(column)
        elif need is not expected and isinstance(cell, str) and math.isnan(parse_number(cell)):
            text = clean(cell)[:60]
            form = next(form for form in _HINTS if re.fullmatch(form, text))
            told = re.findall(_NUMBER_IN_WORD, text.lower())
            number = told[0] if len(told) == 1 and need is Need.POSITIVE else "NUMBER"
            argument = shlex.quote(f"{column}:{text}={number}")
            hint = _HINTS[form].format(argument=argument)
            hint += " (nan where it diverged)" if need is Need.ANY and form == _ANY_WORD else ""
        return unexpected(self.place(row, column), expected, found, hint)

    def _tell_apart(self, column: str) -> str:
        """Return advice on rows that lack a column's cell: which word of another tells them."""
        empty = self.blanks(column)
        for name in self.columns:
            codes, values = self.encode(name)
            full = np.unique(codes[~empty])
            is_word = len(full) == 1 and math.isnan(parse_number(values[full[0]]))
            if is_word and not np.isin(codes[empty], full).any():
                value = shlex.quote(f"{name}={say(values[full[0]])}")
                return f"leave such rows out with --where {value}"
        return ""


def make_raw(
    source: object,
    columns: Sequence[tuple[str, Any]],
    describe_row: Callable[[int], str] = lambda row: f"row {row + 1}",
    **about: Any,
) -> RawTable:
    """Return a raw table of Arrow columns; one without a name, such as an index, is nobody's.

    What `about` names are further attributes of `RawTable`.

    Raises
    ------
    DataError
        If a name stands twice, or there are no rows, or more rows or columns than a table has.
    """
    rows = len(columns[0][1]) if columns else 0
    check_size(source, rows, len(columns))
    names = check_names(source, [name for name, _ in columns])
    if not rows:
        raise DataError(f"{source}: empty table; expected a row for each trial, found none")
    named = zip(names, (cells for _, cells in columns), strict=True)
    found = {name: _simplify(source, cells) for name, cells in named if name}
    return RawTable(str(source), found, describe_row, np.arange(rows), **about)


def check_names(source: object, names: Iterable[str]) -> list[str]:
    """Return a header's names in printable characters, or refuse one that stands twice."""
    cleaned = [clean(name) for name in names]
    for name in cleaned:
        if name and cleaned.count(name) > 1:
            where = [str(k) for k, other in enumerate(cleaned, start=1) if other == name]
            raise DataError(
                f"{source}: header: column {name[:60]!r} stands {len(where)} times "
                f"(columns {name_some(where, 6)}); expected each name once"
            )
    return cleaned


def check_size(source: object, rows: int = 0, columns: int = 0, size: float = 0) -> None:
    """Refuse more than `MAX_ROWS` rows, `MAX_COLUMNS` columns or `MAX_BYTES` bytes."""
    if rows > MAX_ROWS:
        raise unexpected(source, f"at most {MAX_ROWS:,} rows", "more")
    if columns > MAX_COLUMNS:
        raise unexpected(source, f"at most {MAX_COLUMNS} different keys in a table", "more")
    if size > MAX_BYTES:
        hint = "write the columns that are used to a file of their own"
        expected = f"a table of at most {MAX_BYTES / 2**30:.0f} GiB"
        raise unexpected(source, expected, f"{size / 2**30:.1f} GiB", hint)


def _simplify(source: object, cells: Any) -> pa.Array:
    """Return a column as text, whole numbers, doubles, booleans or null."""
    types = pa.types
    cells = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    if types.is_dictionary(cells.type):
        values = _simplify(source, cells.dictionary)
        # A long text repeated by index takes little in a file, and anything once written out.
        sizes = pc.binary_length(values).take(cells.indices) if types.is_string(values.type) else []
        if (pc.sum(sizes).as_py() or 0) > MAX_TEXT_BYTES:
            raise unexpected(source, "a table of trials", "texts of GiB")
        return values.take(cells.indices)
    kind = cells.type
    if types.is_boolean(kind) or types.is_string(kind) or types.is_null(kind):
        return cells
    if types.is_integer(kind) and not types.is_uint64(kind):
        return cells.cast(pa.int64())
    if types.is_floating(kind) or types.is_decimal(kind):
        return cells.cast(pa.float64())
    with suppress(pa.ArrowException):
        if not types.is_nested(kind):
            return cells.cast(pa.string())
    return pa.array(["[…]"] * len(cells))  # a curve, or bytes, is no cell


def map_values(raw: RawTable, changes: Mapping[str, Mapping[str, str]]) -> RawTable:
    """Return a table with other values in some cells, by column and old value.

    Raises
    ------
    ConfigError
        If there is no such column, or no such value in it.
    """
    for column, words in changes.items():
        name = raw.require(column, "--map")
        text = raw.columns[name].cast(pa.string())
        for word, new in words.items():
            text = pc.if_else(pa.array(_find_value(raw, "--map", name, word)), new, text)
        raw = raw.add({name: text})
    return raw


def filter_rows(raw: RawTable, where: Mapping[str, str], columns: Mapping[str, str]) -> RawTable:
    """Return the rows in which each named column, by the file's name or ours, has its value.

    Raises
    ------
    ConfigError
        If a column is not there, or no row has the value; those that it has are given.
    """
    for ours, value in where.items():
        rows = _find_value(raw, "--where", raw.require(ours, "--where", columns), value)
        raw = raw.take(np.flatnonzero(rows))
    return raw


def _shorten(number: float) -> float:
    """Return a whole number as an int."""
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _find_value(raw: RawTable, option: str, name: str, value: str) -> Bools:
    """Return the rows in which a column has a value, or raise the error of one that none has.

    Numbers are compared as numbers (``512`` is ``5.12e2``), all else as text without its outer
    blanks; an empty value asks for empty cells.
    """
    number, text = parse_plain(value), clean(value)[:60]

    def is_same(cell: object) -> bool:
        return say(cell) == text if math.isnan(number) else parse_plain(cell) == number

    found: Bools = raw.map_cells(name, is_same, bool)
    if not found.any():
        seen = [*dict.fromkeys(map(say, raw.columns[name].unique().to_pylist()))]
        raise ConfigError(
            f"{raw.source}: {option}: no cell of {name!r} is {clean(value)!r}"
            f"{suggest(value, seen)}; found {name_some(seen)}"
        )
    return found


def say(cell: object) -> str:
    return "" if cell is None else clean(str(cell))[:60]


def make_column(cells: Sequence[object]) -> pa.Array:
    """Return cells of any kinds as a column: numbers where all of them are, else text."""
    # Cells of several kinds are text, and so are hashes, which are no doubles.
    with suppress(pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return _simplify("", pa.array(cells))
    return pa.array([None if cell is None else str(cell) for cell in cells], pa.string())


def join_codes(*parts: NDArray[Any]) -> Ints:
    """Return one code for each different combination of values, by first appearance."""
    key = np.zeros(len(parts[0]), dtype=np.int64)
    for part in parts:
        code = np.asarray(pa.array(part).dictionary_encode(null_encoding="encode").indices)
        # Renumbered each time, so that the product of two codes is far from overflowing.
        joined = pa.array(key * (code.max(initial=0) + 1) + code)
        key = np.asarray(joined.dictionary_encode().indices, dtype=np.int64)
    return key


def find_repeats(codes: Ints, values: Floats) -> tuple[Ints, Ints]:
    """Return the first row of each code, and the rows with another value than it."""
    kept = np.unique(codes, return_index=True)[1]
    before = values[kept[codes]]
    return kept, np.flatnonzero((before != values) & ~(np.isnan(before) & np.isnan(values)))


def count_codes(codes: Ints) -> int:
    """Return how many different codes there are."""
    return int(codes.max(initial=-1)) + 1


def is_empty(cell: object) -> bool:
    """Tell whether a cell holds nothing, or no number, by any of the usual spellings."""
    return cell is None or (isinstance(cell, str) and cell.strip().lower() in (*_EMPTY, "nan"))


def is_nan(cell: object) -> bool:
    """Tell whether a cell says outright that it is not a number."""
    return isinstance(cell, float) or (isinstance(cell, str) and cell.strip().lower() in _NAN)


def parse_plain(cell: object) -> float:
    """Return a cell as a number, NaN where it is not written as a decimal one."""
    # True is a number to Python and a slip in a table; "1_000" likewise.
    if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):
        return math.nan
    try:
        # Papers and word processors write a minus sign where programs write a hyphen.
        return float(cell.replace("\u2212", "-") if isinstance(cell, str) else cell)  # type: ignore[arg-type]
    except OverflowError:  # a whole number beyond the largest float
        return math.inf
    except (TypeError, ValueError):
        return math.nan


def parse_number(cell: object) -> float:
    """Return a cell as a number, NaN where it is none: ``64``, ``2^-11``, ``19M``, ``0.25x``.

    Examples
    --------
    >>> [parse_number(cell) for cell in ("1e-3", "2^-2", "10**3", "19M", "0.25x", "1_0", True)]
    [0.001, 0.25, 1000.0, 19000000.0, 0.25, nan, nan]
    """
    number = parse_plain(cell)
    return read_notation(cell)[1] if math.isnan(number) else number


def read_notation(cell: object) -> tuple[str, float]:
    """Return in which notation a cell is written, and its number: ``("multiple", 0.25)``.

    Returns
    -------
    tuple of str and float
        ``power``, ``size`` or ``multiple``; ``("", nan)`` for any other cell.
    """
    text = cell.strip().lower() if isinstance(cell, str) and len(cell) < 40 else ""
    for kind, form in _NOTATIONS.items():
        if found := re.fullmatch(form, text):
            parts = found.groupdict()
            number = float(parts["n"]) * _FACTORS[parts.get("unit", "x")]
            try:
                return kind, _FACTORS[parts["base"]] ** number if "base" in parts else number
            except OverflowError:
                return kind, math.inf
    return "", math.nan


def unexpected(place: object, expected: str, found: object, hint: str = "") -> DataError:
    """Return the error that says what was expected at a place, what was found and what helps."""
    return DataError(f"{place}: expected {expected}, found {found}{hint and '; '}{hint}")


def clean(text: str) -> str:
    """Return text in one line of printable characters: what is none is a blank."""
    if text.isprintable():
        return text.strip()
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def show(cell: object, most: int = 40) -> str:
    """Return a cell as a message shows it: quoted where it is text, and cut where it is long."""
    text = clean(repr(cell[:most] if isinstance(cell, str) else cell))
    return text if len(text) <= most else text[: most - 1] + "…"


def name_some(names: Iterable[object], most: int = 12) -> str:
    """Return the first few of many names, and how many more there are."""
    texts = [clean(str(name)) for name in names]
    shown = ", ".join(text if len(text) <= 60 else text[:59] + "…" for text in texts[:most])
    return shown + (f" and {len(texts) - most} more" if len(texts) > most else "")


def lack_column(
    place: object, name: str, have: Iterable[str], *, why: str = "", hint: str = ""
) -> str:
    """Return the message of a column that is not there, with the nearest of those that are."""
    near = suggest(name, have)
    return f"{place}: no column {name!r}{why}{near}; found {name_some(have) or 'none'}{hint}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean …?"`` with the nearest known names, or nothing.

    Examples
    --------
    >>> suggest("widht", ["width", "lr"])
    "; did you mean 'width'?"
    """
    if len(name) > 100:
        return ""
    # Long names and very many are no typing errors, and comparing them takes long.
    lowered = {other.lower(): other for other in [*known][:1000] if len(other) <= 100}
    near = difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.5)
    # A tracker's "val/loss" or "train.width" is what its last part says.
    near += [low for low in lowered if name.lower() in low and low not in near]
    names = " or ".join(repr(lowered[low]) for low in near[:3])
    return names and f"; did you mean {names}?"
