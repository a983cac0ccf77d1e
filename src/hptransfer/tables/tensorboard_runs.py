"""Runs in TensorBoard's event files, read without TensorBoard.

An event file is a TFRecord (length, masked CRC-32C, payload, masked CRC-32C) of ``event.proto``'s
messages. A folder of event files is a run; its settings are those of the HParams plugin.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hptransfer.tables.runs import Run, Runs
from hptransfer.tables.text import clean
from hptransfer.tables.wire import as_bytes, as_float, as_int, as_text, read_fields

#: What every event file's name holds.
MARK = "tfevents"

# Payloads beyond this are pictures and graphs: they are skipped.
_LARGEST = 1 << 16

# Fields of an event, of a summary's value, of its metadata, of a tensor.
_STEP, _SUMMARY = 2, 5
_TAG, _SIMPLE, _TENSOR, _METADATA = 1, 2, 8, 9
_PLUGIN, _PLUGIN_NAME, _PLUGIN_CONTENT = 1, 1, 2
_DTYPE, _CONTENT, _FLOATS, _DOUBLES = 1, 4, 5, 6
_KINDS = {1: "<f", 2: "<d"}  # of a tensor: float and double

# Fields of the HParams plugin's data, and its states.
_START, _END, _HPARAMS = 3, 4, 1
_STATES = {0: "", 1: "SUCCESS", 2: "FAILED", 3: "RUNNING"}
_NUMBER, _TEXT, _BOOL = 2, 3, 4


@dataclass
class _Folder:
    """What the event files of one folder hold."""

    config: dict[str, object] | None = None
    state: str = "RUNNING"
    whole: bool = True
    metrics: dict[str, tuple[int, float]] = field(default_factory=dict)


def read_events(root: Path, files: Sequence[Path]) -> Runs:
    """Return the runs of event files under `root`: one for each folder with settings.

    A metric's value is that of its last step. ``SummaryWriter.add_hparams`` writes settings to a
    folder of their own inside the run's: where a folder has one such, the two are one run. The
    folders of a run that hold no settings (``validation``, say) are part of it, with their names
    before their metrics'. A run without settings beside others with them has not come to its end,
    or is no trial, and is left out with a note.
    """
    folders: dict[Path, _Folder] = {}
    damaged: list[str] = []
    for path in sorted(files):
        folder = folders.setdefault(path.parent, _Folder())
        try:
            for payload in _scan(path):
                _take(folder, payload)
        except (OSError, ValueError, struct.error) as error:
            folder.whole = False
            damaged.append(f"{path}: damaged: {clean(str(error))[:200]}")
    runs, without = _merge(root, folders)
    notes = ["TensorBoard runs; a metric is its value at its last step"]
    if without and len(without) < len(runs):
        notes.append(f"{len(without)} run(s) without hparams left out")
        runs = [run for run in runs if run.name not in without]
    return Runs(runs=runs, damaged=damaged, notes=notes)


def _merge(root: Path, folders: Mapping[Path, _Folder]) -> tuple[list[Run], set[str]]:
    """Return one run for each session of the folders, and names of those without settings."""

    def above(path: Path) -> Path | None:
        return next((parent for parent in path.parents if parent in folders), None)

    sessions = {path for path, folder in folders.items() if folder.config is not None}
    inside: dict[Path, list[Path]] = {}
    for path in sorted(sessions):
        parent = above(path)
        if parent is not None and parent not in sessions:
            inside.setdefault(parent, []).append(path)
    # The only session directly inside a folder without settings is that folder's.
    home = {paths[0]: parent for parent, paths in inside.items() if len(paths) == 1}
    tops = {home.get(path, path): path for path in sessions}
    metrics: dict[Path, dict[str, tuple[int, float]]] = {}
    partial: set[Path] = set()
    for path, folder in sorted(folders.items()):
        top, prefix = path, ""
        if path in sessions:
            top = home.get(path, path)
        elif path not in tops:
            over = next((parent for parent in path.parents if parent in tops), None)
            if over is not None:
                top, prefix = over, f"{path.relative_to(over).as_posix()}/"
        if not folder.whole:
            partial.add(top)
        found = metrics.setdefault(top, {})
        for name, last in folder.metrics.items():
            if prefix + name not in found or found[prefix + name][0] <= last[0]:
                found[prefix + name] = last
    runs, without = [], set()
    for top, found in sorted(metrics.items()):
        if top in partial:
            continue
        session = folders.get(tops.get(top, top), _Folder())
        name = top.relative_to(root).as_posix()
        if session.config is None:
            without.add(name)
        runs.append(
            Run(
                name=name,
                state=session.state if session.config is not None else "",
                config=session.config or {},
                metrics={tag: value for tag, (_, value) in found.items()},
            )
        )
    return runs, without


def _scan(path: Path) -> Iterator[bytes]:
    """Return an event file's payloads; one that a killed process left unfinished is none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:
            length, checksum = struct.unpack("<QI", head)
            if _mask(_crc(head[:8])) != checksum:
                raise ValueError(f"damaged record before byte {file.tell()}")
            if file.tell() + length + 4 > size:
                return
            if length > _LARGEST:
                file.seek(length + 4, 1)
                continue
            payload = file.read(length)
            (checksum,) = struct.unpack("<I", file.read(4))
            if _mask(_crc(payload)) != checksum:
                raise ValueError(f"damaged record before byte {file.tell()}")
            yield payload


def _make_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE = _make_table()


def _crc(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli's polynomial) of some bytes."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _mask(crc: int) -> int:
    """Return a checksum as TFRecords hold it."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _take(folder: _Folder, payload: bytes) -> None:
    """Take one event's scalars and settings."""
    step, summaries = 0, []
    for number, value in read_fields(payload):
        if number == _STEP:
            step = as_int(value)
        elif number == _SUMMARY:
            summaries.append(as_bytes(value))
    for summary in summaries:
        for number, value in read_fields(summary):
            if number == 1:
                _take_value(folder, step, as_bytes(value))


def _take_value(folder: _Folder, step: int, data: bytes) -> None:
    tag, number, plugin, content = "", None, "", b""
    for name, value in read_fields(data):
        if name == _TAG:
            tag = as_text(value)
        elif name == _SIMPLE:
            number = as_float(value)
        elif name == _TENSOR:
            number = _read_tensor(as_bytes(value))
        elif name == _METADATA:
            plugin, content = _read_plugin(as_bytes(value))
    if plugin == "hparams":
        _take_hparams(folder, content)
    elif tag and number is not None and plugin in ("", "scalars"):
        before = folder.metrics.get(tag)
        if before is None or before[0] <= step:
            folder.metrics[tag] = (step, number)


def _read_plugin(data: bytes) -> tuple[str, bytes]:
    """Return the name and the data of the plugin that a value's metadata names."""
    name, content = "", b""
    for number, value in read_fields(data):
        if number == _PLUGIN:
            for key, found in read_fields(as_bytes(value)):
                if key == _PLUGIN_NAME:
                    name = as_text(found)
                elif key == _PLUGIN_CONTENT:
                    content = as_bytes(found)
    return name, content


def _read_tensor(data: bytes) -> float | None:
    """Return the value of a tensor of one float or double; None of any other."""
    kind, raw = "", b""
    for number, value in read_fields(data):
        if number == _DTYPE:
            kind = _KINDS.get(as_int(value), "")
        elif number in (_CONTENT, _FLOATS, _DOUBLES):
            raw += as_bytes(value)
    if not kind or len(raw) != struct.calcsize(kind):
        return None
    found: float = struct.unpack(kind, raw)[0]
    return found


def _take_hparams(folder: _Folder, content: bytes) -> None:
    for number, value in read_fields(content):
        if number == _START:
            folder.config = folder.config or {}
            for key, entry in read_fields(as_bytes(value)):
                if key == _HPARAMS:
                    name, cell = _read_hparam(as_bytes(entry))
                    folder.config[name] = cell
        elif number == _END:
            codes = [as_int(code) for key, code in read_fields(as_bytes(value)) if key == 1]
            folder.state = _STATES.get(codes[-1] if codes else 0, "")


def _read_hparam(entry: bytes) -> tuple[str, object]:
    """Return the name and the value of one setting."""
    name = ""
    cell: object = None
    for number, value in read_fields(entry):
        if number == 1:
            name = as_text(value)
            continue
        for kind, found in read_fields(as_bytes(value)):
            if kind == _NUMBER:
                number_found = as_float(found)
                whole = math.isfinite(number_found) and number_found.is_integer()
                cell = int(number_found) if whole else number_found
            elif kind == _TEXT:
                cell = clean(as_text(found))
            elif kind == _BOOL:
                cell = bool(found)
    return name, cell
