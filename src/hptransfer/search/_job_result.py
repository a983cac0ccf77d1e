"""Read a training job's losses from what it leaves: JSON lines, a trainer's state, CSV, its output.

Every reader returns all losses in order, with their steps where they have one: the last is the
job's result, the ones before it its progress.
"""

import csv
import glob
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hptransfer._messages import show_value
from hptransfer.errors import DataError

STDOUT = "stdout"
#: Keys under which a line's training step stands.
STEP_KEYS = ("step", "global_step", "_step", "iter", "iteration")
#: The key that is read where none is named, by the file's name or the end of it.
DEFAULT_KEYS = {"trainer_state.json": "eval_loss", ".csv": "val_loss"}
DEFAULT_KEY = "loss"
LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Losses of a job in order: (step or None, loss), NaN where it is no finite number.

    Attributes
    ----------
    source : str
        Where they were read, for messages.
    values : tuple of (int or None, float)
        Empty where none is there yet.
    """

    source: str
    values: tuple[tuple[int | None, float], ...]


@dataclass(frozen=True, kw_only=True)
class ResultSource:
    """Where a job's loss is read: a file, whose name may hold ``*``, and a key in it.

    Attributes
    ----------
    file : str
        A path as the search file has it, with placeholders, or ``stdout``.
    key : str
        Column or key of the loss; of nested JSON with dots.
    """

    file: str
    key: str

    @classmethod
    def parse(cls, text: str) -> "ResultSource":
        """Read ``FILE:KEY``, ``FILE``, ``stdout:KEY`` or ``stdout``.

        Examples
        --------
        >>> ResultSource.parse("out/{trial}/metrics.jsonl:val/loss")
        ResultSource(file='out/{trial}/metrics.jsonl', key='val/loss')
        >>> ResultSource.parse("out/{trial}/trainer_state.json").key
        'eval_loss'
        """
        file, _, key = text.partition(":")
        default = next((k for end, k in DEFAULT_KEYS.items() if file.endswith(end)), DEFAULT_KEY)
        return cls(file=file, key=key or default)

    def read(self, folder: Path, file: str, stdout: Path, *, since: float) -> Losses:
        """Return a job's losses so far.

        Parameters
        ----------
        folder : Path
            Where the job runs.
        file : str
            `file` with its placeholders filled.
        stdout : Path
            The log of the job's output.
        since : float
            When the job started, in seconds since 1970: an older file is an earlier job's.

        Returns
        -------
        Losses
            Empty where there is no file, or no loss in it yet.

        Raises
        ------
        DataError
            If a loss is no number; the message names file, line and key.
        """
        path = stdout if self.file == STDOUT else _find(folder, file)
        source = f"{file}:{self.key}" if path is None else f"{path}:{self.key}"
        # File systems keep times to two seconds at worst.
        if path is None or path.stat().st_mtime < since - 2.0:
            return Losses(source=source, values=())
        rows = _read_rows(path, self.key, is_lines=self.file == STDOUT)
        return Losses(
            source=source,
            values=tuple(
                (_find_step(row), _to_loss(_look_up(row, self.key), source, line))
                for line, row in rows
                if _holds(row, self.key)
            ),
        )


def _find(folder: Path, file: str) -> Path | None:
    """Return the file of a name, which may hold ``*``: the newest. None where there is none."""
    pattern = str(folder / file)
    if not any(sign in file for sign in "*?["):
        return Path(pattern) if Path(pattern).is_file() else None
    found = [Path(each) for each in glob.glob(pattern, recursive=True)]  # noqa: PTH207
    return max((each for each in found if each.is_file()), key=_age, default=None)


def _age(path: Path) -> tuple[float, str]:
    return path.stat().st_mtime, str(path)


def _read_rows(path: Path, key: str, *, is_lines: bool) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield what may hold a loss, with its line: lines of JSON, rows of CSV, entries of a log."""
    if is_lines or path.suffix in LINES:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if (row := _parse(line)) is not None:
                    yield number, row
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                yield reader.line_num, {name: text for name, text in row.items() if text}
    elif path.suffix == ".json":
        document = _parse(path.read_text(encoding="utf-8", errors="replace"))
        if document is not None and isinstance(document.get("log_history"), list):
            history = [each for each in document["log_history"] if isinstance(each, dict)]
            yield from enumerate(history, start=1)
        elif document is not None:
            yield 1, document
    else:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if text:
            yield 1, {key: text}


def _parse(text: str) -> Mapping[str, Any] | None:
    """Return a JSON object; None for anything else, such as a line that is being written."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        row = json.loads(text)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _holds(row: Mapping[str, Any], key: str) -> bool:
    return _look_up(row, key) is not _ABSENT


_ABSENT = object()


def _look_up(row: Mapping[str, Any], key: str) -> object:
    if key in row:
        return row[key]
    value: object = row
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _find_step(row: Mapping[str, Any]) -> int | None:
    for name in STEP_KEYS:
        try:
            return int(float(row[name]))
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
    return None


def _to_loss(value: object, source: str, line: int) -> float:
    """Return a loss; NaN where it is none, infinite, or null, as strict JSON writes NaN."""
    if value is None:
        return math.nan
    try:
        if isinstance(value, bool):
            raise ValueError
        loss = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DataError(
            f"{source}: line {line}: expected a loss, found {show_value(value)}"
        ) from None
    return loss if math.isfinite(loss) else math.nan
