"""Run one trial's command as a process that outlives its runner, and end it politely.

A job runs in a process group of its own, under a shell that writes its exit code into the trial's
folder, and holds a lock there while it lives: a runner that was killed leaves a job that the next
runner takes over.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hptransfer._atomic import atomic_write

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

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
            record = JobRecord(
                **{
                    **content,
                    "devices": tuple(content["devices"]),
                    "command": tuple(content["command"]),
                }
            )
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
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
