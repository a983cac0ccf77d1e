"""Runs of Weights & Biases as they lie on disk, read without wandb.

```
wandb/offline-run-…/run-ID.wandb      a log of records: settings, history, summary, how it ended
wandb/run-…/files/wandb-summary.json  beside config.yaml, of a run whose log is not there
```

The log is LevelDB's (blocks of 32 KiB, records with a checksum) of ``wandb_internal.proto``'s
messages.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hptransfer.errors import DataError
from hptransfer.tables.jsonl import parse_cells, parse_object, to_cells
from hptransfer.tables.runs import Run
from hptransfer.tables.text import clean
from hptransfer.tables.wire import as_bytes, as_int, as_text, read_fields

#: What a log's name ends with, and its first bytes.
SUFFIX = ".wandb"
MAGIC = b":W&B"

SUMMARY_FILE = "wandb-summary.json"
HISTORY_FILE = "wandb-history.jsonl"
_CONFIG_FILE = "config.yaml"

_HEADER = 7
_BLOCK = 1 << 15
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4

# Fields of a record, of its run, of a change of settings or summary, and of one item of these.
_HISTORY, _SUMMARY, _CONFIG, _METRIC, _RUN, _EXIT = 2, 3, 5, 12, 17, 18
_RUN_ID, _RUN_PROJECT, _RUN_CONFIG, _RUN_GROUP, _RUN_JOB, _RUN_NAME = 1, 3, 4, 6, 7, 8
_UPDATE, _REMOVE = 1, 2
_KEY, _NESTED_KEY, _VALUE = 1, 2, 16

_ABOUT = {_RUN_PROJECT: "project", _RUN_GROUP: "group", _RUN_JOB: "job_type", _RUN_NAME: "name"}

# What the library keeps for itself.
_OWN = "_wandb"


def read_log(path: Path) -> Run:
    """Return the run of a ``.wandb`` file.

    A metric's value is its summary, as W&B shows it: the last one logged, unless the run set
    another. Where a metric has a summary of its own instead (``loss.min``), the last one logged
    is still there. The state is ``finished`` or ``failed`` by the exit code, and ``crashed`` where
    the log has none: the process was killed, or is still at work.

    Raises
    ------
    ValueError
        If the file is no such log, or is damaged before its end.
    """
    log = _Log()
    for record in _scan(path.read_bytes()):
        for number, value in read_fields(record):
            log.take(number, value)
    metrics = _expand(log.summary, media=False)
    # Older versions keep no summary beside the history, and `define_metric` can leave values out.
    if "_step" not in metrics or log.has_definitions:
        metrics = _expand(log.read_history(), media=False) | metrics
    return Run(
        name=log.about.pop("run", path.stem.removeprefix("run-")),
        state=log.state,
        about=log.about,
        config=_expand(log.config),
        metrics=metrics,
    )


class _Log:
    """What the records of a run have said so far; values are JSON."""

    def __init__(self) -> None:
        self.state = "crashed"
        self.has_definitions = False
        self.about: dict[str, str] = {}
        self.config: dict[str, str] = {}
        self.summary: dict[str, str] = {}
        self._history: list[bytes] = []

    def take(self, number: int, value: int | bytes) -> None:
        """Take one field of a record."""
        if number == _HISTORY:
            self._history.append(as_bytes(value))
        elif number == _SUMMARY:
            _change(self.summary, as_bytes(value))
        elif number == _CONFIG:
            _change(self.config, as_bytes(value))
        elif number == _RUN:
            for field, found in read_fields(as_bytes(value)):
                if field == _RUN_CONFIG:
                    _change(self.config, as_bytes(found))
                elif field == _RUN_ID:
                    self.about["run"] = as_text(found)
                elif field in _ABOUT and found:
                    self.about[_ABOUT[field]] = as_text(found)
        elif number == _METRIC:
            self.has_definitions = True
        elif number == _EXIT:
            codes = [as_int(code) for field, code in read_fields(as_bytes(value)) if field == 1]
            self.state = "failed" if any(codes) else "finished"

    def read_history(self) -> dict[str, str]:
        """Return the last value of each key."""
        last: dict[str, str] = {}
        for record in self._history:
            _change(last, record, fields=(_UPDATE,))
        return last


def _scan(data: bytes) -> Iterator[bytes]:
    """Return a log's records; one that a killed process left unfinished at the end is none."""
    if not data.startswith(MAGIC):
        raise ValueError("expected a log of Weights & Biases, found other first bytes")
    place, record = _HEADER, b""
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:  # too little for a header is filled up with zeros
            place += left
            continue
        checksum, size, kind = struct.unpack_from("<IHB", data, place)
        end = place + _HEADER + size
        if end > len(data):
            return
        if zlib.crc32(data[place + 6 : end]) != checksum or not _FULL <= kind <= _LAST:
            if not any(data[place:]):  # space reserved and never written
                return
            raise ValueError(f"damaged record at byte {place}")
        part = data[place + _HEADER : end]
        record = part if kind in (_FULL, _FIRST) else record + part
        if kind in (_FULL, _LAST):
            yield record
        place = end


def _change(
    values: dict[str, str], change: bytes, *, fields: Sequence[int] = (_UPDATE, _REMOVE)
) -> None:
    """Apply a change of settings, of the summary or of the history to `values`."""
    for number, item in read_fields(change):
        if number not in fields or isinstance(item, int):
            continue
        keys, text = [], "null"
        for field, value in read_fields(item):
            if field in (_KEY, _NESTED_KEY):
                keys.append(as_text(value))
            elif field == _VALUE:
                text = as_text(value)
        name = ".".join(filter(None, keys))
        if number == _UPDATE:
            values[name] = text
        else:
            values.pop(name, None)


def _expand(values: Mapping[str, str], *, media: bool = True) -> dict[str, object]:
    """Return JSON values as cells, nested ones under names joined by dots."""
    cells: dict[str, object] = {}
    for name, text in values.items():
        if name.partition(".")[0] == _OWN or (not media and '"_type"' in text):
            continue
        cells.update(parse_cells(name, text))
    return cells


def read_files(folder: Path) -> Run:
    """Return the run of a ``files`` folder whose log is not there: its settings and summary.

    Without a summary the last value of each key of the history stands for it. How the run ended
    is not written there, so its state is empty.

    Raises
    ------
    ValueError, OSError
        If a file is damaged.
    DataError
        If settings are there and PyYAML is not.
    """
    config: dict[str, object] = {}
    settings = folder / _CONFIG_FILE
    if settings.is_file():
        for name, value in _read_yaml(settings).items():
            if not isinstance(value, Mapping) or "value" not in value or name == _OWN:
                continue
            config.update(parse_cells(name, json.dumps(value["value"], default=str)))
    metrics: dict[str, object] = {}
    summary = folder / SUMMARY_FILE
    if summary.is_file():
        metrics.update(to_cells(parse_object(summary.read_text(encoding="utf-8"))))
    else:
        with (folder / HISTORY_FILE).open(encoding="utf-8") as file:
            for line in filter(str.strip, file):
                metrics.update(to_cells(parse_object(line)))
    inside = folder.parent if folder.name == "files" else folder
    return Run(
        name=inside.name,
        state="",
        config=config,
        metrics={k: v for k, v in metrics.items() if k.partition(".")[0] != _OWN},
    )


def _read_yaml(path: Path) -> Mapping[str, object]:
    try:
        import yaml
    except ImportError:
        raise DataError(
            f"{path}: reading settings in YAML needs PyYAML: pip install 'hptransfer[wandb]'"
        ) from None
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(clean(str(error))[:200]) from None
    if not isinstance(found, Mapping):
        raise ValueError("expected a run's settings, found other content")
    return {str(name): value for name, value in found.items()}
