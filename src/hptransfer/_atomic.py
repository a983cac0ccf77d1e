"""Atomic file writes: readers see the complete file or none, even if its writer is killed.

A file is written under a temporary name in the same folder, and renamed into its place after
fsync. Its writer holds a lock on it meanwhile, so that a temporary file without a lock is what a
killed writer left behind.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system without such locks: what a killed writer leaves stays
    fcntl = None  # type: ignore[assignment]

TMP_SUFFIX = ".tmp"


@contextmanager
def atomic_write(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary file to write, which then takes the place of `path` after fsync.

    Parameters
    ----------
    path : Path
        Where the file is to be; its folder is made if it is missing.
    replace : bool
        Without it a file that is there stays, and FileExistsError says so.

    Raises
    ------
    OSError
        If the file cannot be written; it names `path`, where everything is as it was.
    """
    with naming(path):
        path.parent.mkdir(exist_ok=True)
        with _open_temporary(path) as (handle, tmp):
            yield tmp
            os.fsync(handle)
            # mkstemp's files are for their owner alone; a study on a shared folder is for a team.
            mask = os.umask(0)
            os.umask(mask)
            tmp.chmod(0o666 & ~mask)
            if replace:
                tmp.replace(path)
            else:
                os.link(tmp, path)  # fails where another process was first
        sync_folder(path.parent)


def require_writable(folder: Path) -> None:
    """Raise OSError, which names `folder`, where no file can be made in it; make it if need be."""
    with naming(folder):
        folder.mkdir(exist_ok=True)
        with _open_temporary(folder / "probe") as (handle, _):
            os.write(handle, b"?")
            os.fsync(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of the system name `path`, whatever they are about."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def _open_temporary(path: Path) -> Iterator[tuple[int, Path]]:
    """Yield a locked, empty temporary file; it is removed afterwards unless it was renamed."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=TMP_SUFFIX)
        tmp = Path(name)
        try:
            with contextlib.suppress(OSError):
                lock_file(handle, wait=True)
            if not tmp.exists():  # taken for a leftover before it was locked
                continue
            yield handle, tmp
            return
        finally:
            tmp.unlink(missing_ok=True)
            os.close(handle)


def sync_folder(folder: Path) -> None:
    """Put the names of a folder's files on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock_file(handle: int, *, wait: bool) -> bool:
    """Lock an open file; return whether that was done, False on a system without locks.

    Raises
    ------
    BlockingIOError
        If another process holds it, and this one is not to wait.
    OSError
        If the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    return fcntl is not None


def sweep_temporary(folder: Path) -> tuple[Path, ...]:
    """Remove the temporary files that killed writers left in a folder, and return their paths.

    Files that are being written stay.
    """
    swept = []
    for tmp in folder.glob(f".*{TMP_SUFFIX}"):
        # Gone meanwhile, being written, or not ours to remove: no reason to stop.
        with contextlib.suppress(OSError):
            handle = os.open(tmp, os.O_RDWR)
            try:
                if lock_file(handle, wait=False):
                    tmp.unlink(missing_ok=True)
                    swept.append(tmp)
            finally:
                os.close(handle)
    return tuple(swept)
