"""Keep a search's journal, and read what has been asked, leased, told and failed so far.

The journal is a file of JSON lines that outlives kills. Many processes, on one machine or on
several with a shared folder, write it: each line is appended under a lock and is on the disk before
the call returns.
"""

import hashlib
import itertools
import json
import math
import os
import re
import socket
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hptransfer._atomic import lock_file, naming, sync_folder
from hptransfer._messages import show_value
from hptransfer.errors import DataError, StoreError
from hptransfer.stats.loss_table import LossTable


class Record(NamedTuple):
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

    Attributes
    ----------
    num_lines : int
        Lines that have been read so far.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._handle: int | None = None
        self._memory: list[Record] = []
        self._read = 0
        self.num_lines = 0

    def __str__(self) -> str:
        return "this search" if self.path is None else str(self.path)

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
                lock_file(self._handle, wait=True)
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
            self.num_lines += 1
            if raw.strip():
                records.append(_parse(raw, self.num_lines))
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
                self.num_lines += 1
                self._memory.append(Record(line=self.num_lines, content=content))
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


#: Version of the journal's records.
SCHEMA = 1
#: Name of the journal in a search's folder.
JOURNAL_NAME = "search.jsonl"
#: Owner of trials that were given away: no process's end frees them, only time.
HANDED_OFF = "handed off"
#: Characters of a key's value that a trial's name keeps.
NAME_LENGTH = 60

#: Names that say what a trial is or gave, and so are no keys.
RESERVED = ("width", "lr", "log2_lr", "seed", "loss", "step", "trial", "folder", "state")

Key = str | int | float | bool
Group = tuple[tuple[str, Key], ...]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run: its width, learning rate and seed, and what else tells it apart.

    Attributes
    ----------
    width : int or float
        Model width.
    lr : float
        Learning rate on the swept axis.
    seed : int
        Seed.
    keys : mapping of str to str, int, float or bool
        Settings that make a search of their own, such as ``parameterization``.

    Examples
    --------
    >>> Trial(width=128, lr=2**-6.25, seed=0, keys={"parameterization": "mup"}).id
    'parameterization-mup_w128_log2lr-6.25_s0'
    """

    width: int | float
    lr: float
    seed: int
    keys: Mapping[str, Key] = field(default_factory=dict, hash=False)

    @property
    def id(self) -> str:
        """Name of the trial, for messages, files and folders: unique within a search."""
        log2_lr = round(math.log2(self.lr), 6)
        rate = f"log2lr{log2_lr:.10g}" if 2.0**log2_lr == self.lr else f"lr{self.lr!r}"
        keys = [f"{name}-{_slug(value)}" for name, value in self.keys.items()]
        return "_".join([*keys, f"w{self.width!r}", rate, f"s{self.seed}"])

    @property
    def group(self) -> Group:
        """The keys as a tuple, by which trials of one search are found."""
        return tuple(self.keys.items())


def _slug(value: Key) -> str:
    """Return a value as part of a file name; what it loses, a hash keeps."""
    text = str(value)
    slug = re.sub(r"[^A-Za-z0-9.+-]+", "-", text)[:NAME_LENGTH]
    return slug if slug == text else f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


class Lease(NamedTuple):
    """Who has a trial, and until when it is theirs (seconds since 1970)."""

    owner: str
    until: float


class Told(NamedTuple):
    """A trial's final loss, NaN where it diverged, and the journal's line that says so."""

    loss: float
    line: int


class SearchState:
    """What a search's journal says, read as far as it goes.

    Attributes
    ----------
    settings : mapping or None
        The last ``search`` record; None where the journal is new.
    places : mapping of Group to list of (width, log2(lr))
        What was asked for, in order.
    told : mapping of Trial to Told
        Final losses.
    partial : mapping of Trial to mapping of int to float
        Losses by step of trials, running or ended.
    leases : mapping of str to Lease
        By trial's id.
    failed : mapping of str to str
        Why each trial that is set aside failed, by its id.
    damaged : list of str
        One line for each line of the journal that cannot be read.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.settings: Mapping[str, Any] | None = None
        self.settings_line = 0
        self.places: dict[Group, list[tuple[float, float]]] = {}
        self.told: dict[Trial, Told] = {}
        self.partial: dict[Trial, dict[int, float]] = {}
        self.leases: dict[str, Lease] = {}
        self.failed: dict[str, str] = {}
        self.damaged: list[str] = []

    def read_new(self) -> "SearchState":
        """Take in what others have written since; return this state.

        Raises
        ------
        DataError
            If a trial is told twice and the losses differ; the message names both lines.
        StoreError
            If the journal is no search's, or of a newer version.
        """
        for record in self.journal.read_new():
            self._take(record)
        return self

    def _take(self, record: Record) -> None:
        content = record.content
        if content is None:
            if record.line == 1:
                raise StoreError(
                    f"{self.journal}: line 1: expected a search's journal, found "
                    f"{show_value(record.text)}"
                )
            named = re.search(r'"trial": "([^"]+)"', record.text)
            about = f" (about trial {named[1]})" if named else ""
            self.damaged.append(
                f"{self.journal}: line {record.line}: cut in the middle, left out{about}"
            )
            return
        try:
            self._take_event(content, record.line)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{self.journal}: line {record.line}: expected a search's record, found "
                f"{show_value(record.text)} ({type(error).__name__}: {error})"
            ) from None

    def _take_event(self, content: Mapping[str, Any], line: int) -> None:
        event = content["event"]
        if event == "search":
            if content["schema"] != SCHEMA:
                raise StoreError(
                    f"{self.journal}: line {line}: expected schema {SCHEMA}, found "
                    f"{content['schema']}: a newer hptransfer wrote it"
                )
            self.settings, self.settings_line = content, line
        elif event == "ask":
            places = self.places.setdefault(tuple(content["keys"].items()), [])
            places += [(content["width"], place) for place in content["log2_lr"]]
        elif event == "lease":
            lease = Lease(owner=content["owner"], until=content["until"])
            self.leases.update(dict.fromkeys(content["trials"], lease))
        elif event == "release":
            for trial in content["trials"]:
                self.leases.pop(trial, None)
        elif event == "fail":
            self.leases.pop(content["trial"], None)
            self.failed[content["trial"]] = content["reason"]
        elif event == "retry":
            for trial in [content["trial"]] if "trial" in content else list(self.failed):
                self.failed.pop(trial, None)
        elif event == "tell":
            self._take_loss(content, line)
        # Events of later versions of this schema are no reason to stop.

    def _take_loss(self, content: Mapping[str, Any], line: int) -> None:
        rest = {name: content[name] for name in ("width", "seed", "keys")}
        trial = Trial(lr=float(content["lr"]), **rest)
        loss = math.nan if content["loss"] is None else float(content["loss"])
        if content.get("step") is not None:
            self.partial.setdefault(trial, {})[content["step"]] = loss
            return
        before = self.told.get(trial)
        if before is not None and not agree(before.loss, loss):
            raise DataError(self.say_disagreement(trial, before, loss, line))
        if before is None:
            self.told[trial] = Told(loss=loss, line=line)
        self.leases.pop(trial.id, None)
        self.failed.pop(trial.id, None)

    def say_disagreement(self, trial: Trial, before: Told, loss: float, line: int) -> str:
        """Return in words that a trial was told twice, and that the losses differ."""
        return (
            f"{self.journal}: line {line}: expected the loss of trial {trial.id} that line "
            f"{before.line} tells, {say_loss(before.loss)}, found {say_loss(loss)}; remove the "
            "line that is wrong"
        )

    def groups(self) -> list[Group]:
        """Return the keys of each search, in the order of the settings."""
        names = {} if self.settings is None else self.settings["keys"]
        found: list[Group] = [()]
        for name, values in names.items():
            found = [(*group, (name, value)) for group in found for value in values]
        return found

    def trials(self, group: Group, places: Iterable[tuple[float, float]]) -> list[Trial]:
        """Return the trials of a search at these widths and log2(lr), with every seed."""
        assert self.settings is not None
        return [
            Trial(width=width, lr=2.0**place, seed=seed, keys=dict(group))
            for width, place in dict.fromkeys(places)
            for seed in self.settings["seeds"]
        ]

    def asked(self, group: Group) -> list[Trial]:
        """Return the trials of a search that were asked for."""
        return self.trials(group, self.places.get(group, ()))

    def is_open(self, trial: Trial) -> bool:
        """Whether a trial is neither told nor set aside."""
        return trial not in self.told and trial.id not in self.failed

    def outstanding(self, group: Group) -> list[Trial]:
        """Return the trials of a search that were asked for, and neither told nor set aside."""
        return [each for each in self.asked(group) if self.is_open(each)]

    def table(self, group: Group | None = None) -> LossTable:
        """Return the final losses as a loss table, of one search or of all.

        Returns
        -------
        LossTable
            Sorted by keys, width, learning rate and seed, whatever order they were told in; no
            rows where nothing is told.
        """
        order = {each: number for number, each in enumerate(self.groups())}
        found = [each for each in self.told if group in (None, each.group)]
        found.sort(key=lambda each: (order[each.group], each.width, each.lr, each.seed))
        return self._tabulate([(each, self.told[each].loss, each.keys) for each in found])

    def partial_table(self) -> LossTable:
        """Return the losses told at steps as a loss table whose groups are keys and ``step``."""
        rows = [
            (each, loss, {**each.keys, "step": step})
            for each, losses in self.partial.items()
            for step, loss in losses.items()
        ]
        rows.sort(key=lambda row: (row[2]["step"], row[0].width, row[0].lr, row[0].seed))
        return self._tabulate(rows)

    def _tabulate(self, rows: Sequence[tuple[Trial, float, Mapping[str, Key]]]) -> LossTable:
        """Return trials, their losses and groups, in this order, as a loss table."""
        names = rows[0][2] if rows else ()
        return LossTable(
            width=np.array([each.width for each, _, _ in rows], dtype=np.float64),
            lr=np.array([each.lr for each, _, _ in rows], dtype=np.float64),
            loss=np.array([loss for _, loss, _ in rows], dtype=np.float64),
            seed=np.array([each.seed for each, _, _ in rows], dtype=np.int64),
            groups={
                name: np.array([keys[name] for _, _, keys in rows], dtype=object) for name in names
            },
            source=str(self.journal),
        )


def read_search(path: Path) -> SearchState:
    """Read a search's journal.

    Parameters
    ----------
    path : Path
        The journal, such as ``search.jsonl`` in the folder of ``hptransfer search``.

    Returns
    -------
    SearchState
        All that the journal says; ``.table()`` is its loss table.

    Raises
    ------
    StoreError
        If the file is no search's journal.
    DataError
        If a trial is told twice and the losses differ.

    Examples
    --------
    >>> from hptransfer.search import LrSearch
    >>> search = LrSearch(widths=[64, 128], journal="search.jsonl")
    >>> search.tell(search.ask(1)[0], 3.25)
    >>> read_search(Path("search.jsonl")).table().loss
    array([3.25])
    """
    state = SearchState(Journal(path))
    state.read_new()
    if state.settings is None:
        raise StoreError(f"{path}: expected a search's journal, found no 'search' record in it")
    return state


def agree(first: float, second: float) -> bool:
    """Whether two losses of a trial are the same: equal, or both diverged."""
    return first == second or (math.isnan(first) and math.isnan(second))


def say_loss(loss: float) -> str:
    """Return a loss in words."""
    return "diverged" if math.isnan(loss) else repr(loss)


class Owner:
    """Who holds leases: one object of one process; its name says so in a journal.

    Its leases are free when the object is gone, or the process.
    """

    def __init__(self) -> None:
        self.number = next(_numbers)
        _alive[self.number] = self

    def end(self) -> None:
        """Give up all leases, with nothing written."""
        _alive.pop(self.number, None)

    def __str__(self) -> str:
        pid = os.getpid()
        return f"{_name_machine()}:{pid}:{_started(pid)}:{self.number}"


_numbers = itertools.count()
_alive: "weakref.WeakValueDictionary[int, Owner]" = weakref.WeakValueDictionary()


def has_ended(owner: str) -> bool:
    """Whether an owner is known to be gone: it was of this machine, and has ended."""
    if owner == HANDED_OFF:
        return False
    machine, pid, started, number = owner.rsplit(":", 3)
    if machine != _name_machine():
        return False
    if _started(int(pid)) != started:
        return True
    return int(pid) == os.getpid() and int(number) not in _alive


def _name_machine() -> str:
    # Containers of one host may share its name, but not its process numbers.
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return f"{socket.gethostname()}/{space}".replace(":", "-")


def _started(pid: int) -> str:
    """Return when a process started, in ticks of its machine; empty where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except OSError:
            return "alive"
        return "alive"
    # The name in brackets may hold anything; the state follows it, and 18 fields on the start.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
