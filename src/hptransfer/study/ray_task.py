"""A Ray task: one group trained wherever Ray has put it, on the study directory itself."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hptransfer.errors import StoreError
from hptransfer.study.events import Event
from hptransfer.study.execute import Executor
from hptransfer.study.settings import SETTINGS_FILE, read_settings
from hptransfer.study.store import PLAN_FOLDER, group_path


@dataclass(frozen=True, kw_only=True)
class Site:
    """What all tasks of a run are told."""

    directory: str
    root: str
    identity: str
    checkpoint_interval: float


class Progress:
    """The actor that events pass through on their way to the driver."""

    def __init__(self) -> None:
        import asyncio

        self._lines: asyncio.Queue[str] = asyncio.Queue()

    async def put(self, line: str) -> None:
        """Take an event's line in."""
        await self._lines.put(line)

    async def take(self) -> list[str]:
        """Return what has arrived, once something has."""
        lines = [await self._lines.get()]
        while not self._lines.empty():
            lines.append(self._lines.get_nowait())
        return lines


def train_group(site: Site, name: str, progress: Any) -> str | None:
    """Train one group where Ray has put us; return its last event, None if it was finished.

    Cancelled, it saves the group and raises KeyboardInterrupt.
    """
    worker = f"{socket.gethostname()}:{os.getpid()}"
    ended: list[Event] = []

    def report(event: Event) -> None:
        event = replace(event, worker=worker)
        if not event.is_last:
            progress.put.remote(event.to_line())
        else:
            ended.append(event)

    try:
        executor = _open_site(site)
        if group_path(Path(site.directory), name).exists():
            return None
        with _unblocked_interrupt():
            executor.execute(name, report)
    except Exception as error:  # a directory that cannot be read here, say
        report(Event.from_error(name, error))
    return ended[-1].to_line()


def _open_site(site: Site) -> Executor:
    """Return the executor of a study directory, kept from task to task of one process."""
    directory = Path(site.directory)
    if not (directory / SETTINGS_FILE).exists():
        raise StoreError(
            f"{directory}: expected the study directory on every machine, under this path (a "
            f"shared folder), found no {SETTINGS_FILE} on {socket.gethostname()}"
        )
    if read_settings(directory)["identity"] != site.identity:
        raise StoreError(
            f"{directory}: expected the study directory on every machine, under this path (a "
            f"shared folder), found another study's on {socket.gethostname()}"
        )
    rounds = sorted((directory / PLAN_FOLDER).glob("*.json"))
    return _make_executor(site, tuple((path.name, path.stat().st_mtime_ns) for path in rounds))


@lru_cache(maxsize=1)
def _make_executor(site: Site, rounds: tuple[tuple[str, int], ...]) -> Executor:
    return Executor.open(
        Path(site.directory), root=Path(site.root), checkpoint_interval=site.checkpoint_interval
    )


@contextmanager
def _unblocked_interrupt() -> Iterator[None]:
    """Let SIGINT, by which Ray cancels, through: Ray starts its workers with it blocked."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
