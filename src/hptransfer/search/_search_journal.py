"""Append what happens in a search to a file of JSON lines that outlives kills, and read it.

Many processes, on one machine or on several with a shared folder, write one journal: each line is
appended under a lock and is on the disk before the call returns.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hptransfer._atomic import naming, sync_folder

try:
    import fcntl
except ImportError:  # a system without such locks: one process at a time
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of a journal: its number from 1, and what it says (None where it is damaged)."""

    line: int
    content: Mapping[str, Any] | None
    text: str = ""


class Journal:
    """Append to and read a file of JSON lines; without a path, keep the lines in memory.

    Parameters
    ----------
    path : Path or None
        The file; it is made, with its folder, when the first line is written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._handle: int | None = None
        self._memory: list[Record] = []
        self._read = 0
        self._lines = 0

    def __str__(self) -> str:
        return "this search" if self.path is None else str(self.path)

    @property
    def num_lines(self) -> int:
        """Number of lines that have been read so far."""
        return self._lines

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the journal alone: what is read inside stays true until the block ends.

        A last line that a killed writer cut off is ended first, so that it is a line of its own.

        Raises
        ------
        OSError
            If the file cannot be opened, made or written; it names the path.
        """
        if self.path is None:
            yield
            return
        with naming(self.path):
            self._handle = _open(self.path)
        try:
            with naming(self.path):
                if fcntl is not None:
                    fcntl.flock(self._handle, fcntl.LOCK_EX)
                size = os.lseek(self._handle, 0, os.SEEK_END)
                if size and os.pread(self._handle, 1, size - 1) != b"\n":
                    self._write(b"\n")
            yield
        finally:
            os.close(self._handle)  # which unlocks it
            self._handle = None

    def read_new(self) -> list[Record]:
        """Return the lines that were added since the last call.

        Returns
        -------
        list of Record
            Empty where nothing is new, or there is no file. A last line without its end is not
            among them: it is being written, or was cut off, which `lock` settles.
        """
        if self.path is None:
            new, self._memory = self._memory, []
            return new
        try:
            with naming(self.path), self.path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        records = []
        for raw in data[:end].split(b"\n")[:-1]:
            self._lines += 1
            if raw.strip():
                records.append(_parse(raw, self._lines))
        self._read += end
        return records

    def append(self, contents: Sequence[Mapping[str, Any]]) -> None:
        """Write lines at the end, in a block of `lock`; they are then on the disk.

        Raises
        ------
        OSError
            If they cannot be written; it names the path. The file is then as it was.
        """
        if self.path is None:
            for content in contents:
                self._lines += 1
                self._memory.append(Record(line=self._lines, content=content))
        elif contents:
            lines = (json.dumps(each, ensure_ascii=False, allow_nan=False) for each in contents)
            with naming(self.path):
                self._write("".join(f"{line}\n" for line in lines).encode())

    def _write(self, data: bytes) -> None:
        assert self._handle is not None, "append is called in a block of lock"
        size = os.lseek(self._handle, 0, os.SEEK_END)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            os.fsync(self._handle)
        except OSError:
            os.ftruncate(self._handle, size)
            raise


def _open(path: Path) -> int:
    """Open a file to read and append, and make it, for good, where there is none."""
    try:
        return os.open(path, os.O_RDWR)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        sync_folder(path.parent)
        return handle


def _parse(raw: bytes, line: int) -> Record:
    text = raw.decode("utf-8", errors="replace").strip()
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    whole = isinstance(content, dict) and isinstance(content.get("event"), str)
    return Record(line=line, content=content if whole else None, text=text)
