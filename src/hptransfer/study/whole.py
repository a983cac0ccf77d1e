"""Files that are there whole or not at all, whatever ends the process that writes them.

A file is written under another name beside its place, and renamed into it after fsync. Its writer
holds a lock on it meanwhile, so that one without a lock is what a killed writer left behind.
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

BESIDE_SUFFIX = ".tmp"


@contextmanager
def write_whole(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Give a file beside `path` to write; it then takes `path`'s place after fsync.

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
    with _naming(path):
        path.parent.mkdir(exist_ok=True)
        with _open_beside(path) as (handle, beside):
            yield beside
            os.fsync(handle)
            # mkstemp's files are for their owner alone; a study on a shared folder is for a team.
            mask = os.umask(0)
            os.umask(mask)
            beside.chmod(0o666 & ~mask)
            if replace:
                beside.replace(path)
            else:
                os.link(beside, path)  # fails where another process was first
        _sync_folder(path.parent)


def require_writable(folder: Path) -> None:
    """Raise OSError, which names `folder`, where no file can be made in it; make it if need be."""
    with _naming(folder):
        folder.mkdir(exist_ok=True)
        with _open_beside(folder / "probe") as (handle, _):
            os.write(handle, b"?")
            os.fsync(handle)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let errors of the system name `path`, whatever they are about."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def _open_beside(path: Path) -> Iterator[tuple[int, Path]]:
    """Give a locked, empty file beside `path`, which is gone afterwards unless it was renamed."""
    while True:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=BESIDE_SUFFIX
        )
        beside = Path(name)
        try:
            _lock(handle, wait=True)
            if not beside.exists():  # taken for a leftover before it was locked
                continue
            yield handle, beside
            return
        finally:
            beside.unlink(missing_ok=True)
            os.close(handle)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Lock an open file; return whether it is ours, which no system without locks can tell."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # another's, or a file system without locks
        return False
    return True


def sweep_beside(folder: Path) -> tuple[Path, ...]:
    """Remove what killed writers left in a folder; return it. Files being written stay."""
    swept = []
    for beside in folder.glob(f".*{BESIDE_SUFFIX}"):
        # Gone meanwhile, or not ours to remove: no reason to stop.
        with contextlib.suppress(OSError):
            handle = os.open(beside, os.O_RDWR)
            try:
                if _lock(handle, wait=False):
                    beside.unlink(missing_ok=True)
                    swept.append(beside)
            finally:
                os.close(handle)
    return tuple(swept)
