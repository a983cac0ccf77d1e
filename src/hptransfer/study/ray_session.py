"""Ray's session: the connection to a cluster, or a Ray started on this machine for a run."""

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from hptransfer.errors import ConfigError, HptransferError
from hptransfer.train.device import count_cores

#: Seconds for a cluster's address to answer.
CONNECT_SECONDS = 5.0
#: Bytes of a local Ray's object store, its smallest: no data passes through it.
STORE_BYTES = 80 * 2**20

# Read by Ray when it is imported: nothing is sent anywhere, and a task without GPUs keeps its
# environment (as later versions of Ray do).
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def import_ray() -> ModuleType:
    """Return Ray.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "--engine ray: Ray is not installed: pip install 'hptransfer[ray]'"
        ) from None
    return ray


@contextmanager
def open_ray(address: str | None = None) -> Iterator[ModuleType]:
    """Connect to the cluster at `address`, or start Ray on this machine, for as long as it is used.

    Where this process is connected already, that connection serves, and stays.

    Raises
    ------
    ConfigError
        If Ray is not installed, or no cluster answers at the address.
    """
    ray = import_ray()
    if address is not None:
        _require_answer(address)
    if ray.is_initialized():
        yield ray
        return
    try:
        _connect(ray, address)
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: ModuleType, address: str | None) -> None:
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # Ports on the loopback interface only: nobody else is to reach them.
        settings |= {"address": "local", "_node_ip_address": "127.0.0.1"}
        settings |= {"num_cpus": count_cores(), "object_store_memory": STORE_BYTES}
        settings |= {"include_dashboard": False}
    else:
        settings |= {"address": address}
    with _keep_handlers(), _caught_stderr() as read_stderr:
        try:
            ray.init(**settings)
            return
        # It also ends a process that it cannot connect.
        except (ray.exceptions.RayError, OSError, RuntimeError, ValueError, SystemExit) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "AuthToken" in read_stderr():
            reason = "it asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH"
    if address is None:
        raise HptransferError(f"--engine ray: Ray did not start here: {reason}")
    raise ConfigError(f"--address: expected a Ray cluster at {address!r}, found none ({reason})")


@contextmanager
def _keep_handlers() -> Iterator[None]:
    """Restore what Ctrl-C and SIGTERM do, which Ray sets to its own liking."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def _caught_stderr() -> Iterator[Callable[[], str]]:
    """Keep off the terminal what Ray's core writes past Python; give a way to read it."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)

        def read() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield read
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _require_answer(address: str) -> None:
    """Ask the port itself: Ray would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ConfigError(
            f"--address: expected HOST:PORT of a Ray cluster's head or 'auto', found {address!r}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--address: expected a Ray cluster at {address!r}, nothing answers there ({error})"
        ) from None
