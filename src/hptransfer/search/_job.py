"""Run one trial's command as a process that outlives its runner, and read the losses it leaves.

A job runs in a process group of its own, under a shell that writes its exit code into the trial's
folder, and holds a lock there while it lives: a runner that was killed leaves a job that the next
runner takes over. Losses are read from JSON lines, a trainer's state, CSV or the job's output, all
in order, with their steps where they have one: the last is the result, the others its progress.
"""

import contextlib
import csv
import glob
import json
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hptransfer._atomic import atomic_write, lock_file
from hptransfer._messages import show_value
from hptransfer.errors import DataError

#: Writes the command's exit code over the blanks of a file that is there: on a full disk too.
SHELL = '"$@"; code=$?; printf "%s" "$code" 1<>"$0"; exit "$code"'
BLANK = b" " * 8
JOB_FILE, LOCK_FILE, EXIT_FILE = "job.json", "running", "exit-code"
STDOUT_LOG, STDERR_LOG = "stdout.log", "stderr.log"


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """What a trial's folder says of its job, for a runner that comes later."""

    pid: int
    host: str
    started: float
    devices: tuple[str, ...]
    command: tuple[str, ...]


class Job:
    """A trial's job: started here, or found running, or found ended and not told.

    Attributes
    ----------
    folder : Path
        The trial's folder.
    record : JobRecord
        What it says.
    """

    def __init__(
        self, folder: Path, record: JobRecord, process: "subprocess.Popen[bytes] | None" = None
    ) -> None:
        self.folder = folder
        self.record = record
        self._process = process

    @classmethod
    def start(
        cls,
        folder: Path,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        devices: tuple[str, ...],
    ) -> "Job | None":
        """Start a trial's command.

        Returns
        -------
        Job or None
            None where the trial's last job is still running.

        Raises
        ------
        OSError
            If the folder cannot be written, or there is no such program.
        """
        folder.mkdir(parents=True, exist_ok=True)
        handle = _lock(folder / LOCK_FILE)
        if handle is None:
            return None
        try:
            _keep_logs(folder)
            (folder / EXIT_FILE).write_bytes(BLANK)
            with (folder / STDOUT_LOG).open("wb") as out, (folder / STDERR_LOG).open("wb") as err:
                process = subprocess.Popen(
                    ["/bin/sh", "-c", SHELL, str(folder / EXIT_FILE), *command],
                    cwd=cwd,
                    env=dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                    pass_fds=(handle,),
                )
            record = JobRecord(
                pid=process.pid,
                host=socket.gethostname(),
                started=time.time(),
                devices=devices,
                command=tuple(command),
            )
            try:
                with atomic_write(folder / JOB_FILE) as tmp:
                    tmp.write_text(json.dumps(asdict(record)), encoding="utf-8")
            except OSError:
                # Nobody could find it again.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        finally:
            os.close(handle)
        return cls(folder, record, process)

    @classmethod
    def find(cls, folder: Path) -> "Job | None":
        """Return the job that an earlier runner left in a folder; None where there is none.

        It runs still, or has ended and left its exit code; one that was killed left nothing.
        """
        try:
            content = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
            listed = {name: tuple(content[name]) for name in ("devices", "command")}
            record = JobRecord(**{**content, **listed})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        job = cls(folder, record)
        return job if job.is_running or job.exit_code is not None else None

    @property
    def is_here(self) -> bool:
        """Whether it was started on this machine, where it can be ended."""
        return self.record.host == socket.gethostname()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        if self._process is not None:
            return self._process.poll() is None
        return self._written_code() is None and self._is_locked()

    @property
    def exit_code(self) -> int | None:
        """The code that it ended with, 128 + n for signal n; None where nobody saw it end."""
        if self._process is None:
            return self._written_code()
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def stop(self, grace: float) -> None:
        """End it by SIGTERM, and by SIGKILL where it has not ended `grace` seconds later."""
        self.signal(signal.SIGTERM)
        self.wait_or_kill(time.monotonic() + grace)

    def signal(self, signum: int) -> None:
        """Send a signal to it and to all that it has started."""
        if self.is_here and self._is_locked():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.record.pid, signum)

    def wait_or_kill(self, deadline: float) -> None:
        """Wait until it has ended, and kill it at a time of the monotonic clock."""
        while self._is_locked() and self.is_here:
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        if self._process is not None:
            self._process.wait()

    def forget(self) -> None:
        """Let the folder say no more that a job's end is to be told; its logs stay."""
        (self.folder / JOB_FILE).unlink(missing_ok=True)

    def _written_code(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / EXIT_FILE).read_bytes())
        return None

    def _is_locked(self) -> bool:
        handle = _lock(self.folder / LOCK_FILE)
        if handle is None:
            return True
        os.close(handle)
        return False


def _lock(path: Path) -> int | None:
    """Open and lock a file; None where another process holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock_file(handle, wait=False)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _keep_logs(folder: Path) -> None:
    """Keep the logs of an earlier try beside those to come, numbered."""
    if not (folder / STDOUT_LOG).exists():
        return
    number = sum(1 for _ in folder.glob("stdout.*.log")) + 1
    for name in (STDOUT_LOG, STDERR_LOG):
        stem, _, suffix = name.rpartition(".")
        with contextlib.suppress(FileNotFoundError):
            (folder / name).rename(folder / f"{stem}.{number}.{suffix}")


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
        values = (
            (_find_step(row), _to_loss(value, source, line))
            for line, row in rows
            if (value := _look_up(row, self.key)) is not _ABSENT
        )
        return Losses(source=source, values=tuple(values))


def _find(folder: Path, file: str) -> Path | None:
    """Return the file of a name, which may hold ``*``: the newest. None where there is none."""
    pattern = str(folder / file)
    is_pattern = any(sign in file for sign in "*?[")
    names = glob.glob(pattern, recursive=True) if is_pattern else [pattern]  # noqa: PTH207
    ages = ((Path(name).stat().st_mtime, name) for name in names if Path(name).is_file())
    newest = max(ages, default=None)
    return None if newest is None else Path(newest[1])


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
