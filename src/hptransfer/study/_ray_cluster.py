"""A Ray cluster: the connection to it, the machines that it has, and a plan's view of them."""

import logging
import math
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from hptransfer.errors import ConfigError, HptransferError
from hptransfer.study._plan import Machine
from hptransfer.train._device import count_cores


@dataclass(frozen=True, kw_only=True)
class Node:
    """Processors and GPUs of one machine of a cluster."""

    cpus: int
    gpus: int = 0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machines of a cluster that are up.

    Attributes
    ----------
    nodes : tuple of Node
        One each.
    """

    nodes: tuple[Node, ...]

    @classmethod
    def find(cls, ray: Any) -> "Cluster":
        """Return the cluster that this process is connected to."""
        found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = [Node(cpus=int(has.get("CPU", 0)), gpus=int(has.get("GPU", 0))) for has in found]
        return cls(nodes=tuple(nodes))

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return sum(node.gpus for node in self.nodes)

    def reserve(self, *, device: str, threads: int, workers: int | None) -> dict[str, float]:
        """Return what a task declares to need.

        On a GPU it has that for itself, unless there are to be more workers than GPUs, and one
        processor. On processors it has its threads, or the largest machine where the plan is a
        larger one's.

        Raises
        ------
        ConfigError
            If it needs a GPU and there is none.
        """
        if device == "cpu":
            largest = max(node.cpus for node in self.nodes)
            return {"num_cpus": min(threads, largest or threads)}
        if self.gpus == 0:
            raise ConfigError(
                f"--engine ray: expected a GPU in the cluster, since the plan is for {device}, "
                "found none"
            )
        return {"num_cpus": 1, "num_gpus": 1 / math.ceil((workers or 1) / self.gpus)}

    def join(self, one: Machine, *, workers: int | None) -> Machine:
        """Return the whole cluster as the machine of a plan.

        Parameters
        ----------
        one : Machine
            One of its machines, with a GPU where the cluster has any.
        workers : int, optional
            Groups at a time. Default: one per GPU, or one per processor where there is no GPU.
        """
        on_gpus = one.device != "cpu"
        used = [node for node in self.nodes if (node.gpus if on_gpus else node.cpus)]
        if not used:
            return one
        # Groups at a time in all, and on one device at most.
        count = workers or (self.gpus if on_gpus else sum(node.cpus for node in used))
        if on_gpus:
            share = math.ceil(count / self.gpus)
            threads = min(node.cpus // (node.gpus * share) for node in used)
        else:
            cpus = [node.cpus for node in used]
            threads = max(1, min(sum(cpus) // count, max(cpus)))
            share = min(count, max(cpus) // threads)
        return replace(
            one,
            workers=count,
            threads=max(1, threads),
            memory=one.memory * count // share,  # a group's part of it is what it has there
        )


#: Seconds for a cluster's address to answer.
CONNECT_SECONDS = 5.0
#: Bytes of a local Ray's object store, its smallest: no data passes through it.
STORE_BYTES = 80 * 2**20

# Read by Ray when it is imported: nothing is sent anywhere, and a task without GPUs keeps its
# environment (as later versions of Ray do).
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_AUTH_MODE, _AUTH_TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
# Also read then. A Ray of this machine alone listens on the loopback interface, as it always does
# on systems that it builds no clusters of, and answers nobody without this run's token.
_CLOSED = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", _AUTH_MODE: "token"}


def _close_doors() -> None:
    """Let a Ray that is started here listen to this machine alone, and to this run's token.

    Raises
    ------
    ConfigError
        If Ray was imported before, so that it has read other settings.
    """
    if sys.modules.get("ray") is None:
        os.environ.update({**_CLOSED, _AUTH_TOKEN: secrets.token_hex(32)})
    elif os.environ.get(_AUTH_MODE) != _CLOSED[_AUTH_MODE]:
        raise ConfigError(
            f"--engine ray: expected {_AUTH_MODE}={_CLOSED[_AUTH_MODE]} in the environment before "
            "Ray is imported, or this process connected to a Ray (ray.init); found neither"
        )


@contextmanager
def open_ray(address: str | None = None) -> Iterator[ModuleType]:
    """Connect to the cluster at `address`, or start Ray on this machine, for as long as it is used.

    Where this process is connected already, that connection serves, and stays. A Ray that is
    started here listens on the loopback interface alone, and demands a token made for this run.

    Raises
    ------
    ConfigError
        If Ray is not installed, or no cluster answers at the address.
    """
    known = sys.modules.get("ray")
    connected = known is not None and known.is_initialized()
    if not connected and address is None:
        _close_doors()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "--engine ray: Ray is not installed: pip install 'hptransfer[ray]'"
        ) from None
    if address is not None:
        _require_answer(address)
    try:
        if not connected:
            _connect(ray, address)
        yield ray
    finally:
        if not connected:
            ray.shutdown()


def _connect(ray: ModuleType, address: str | None) -> None:
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    settings["address"] = address or "local"
    if address is None:
        settings |= {"num_cpus": count_cores(), "object_store_memory": STORE_BYTES}
        settings |= {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    with _keep_handlers(ray), _caught_stderr() as read_stderr:
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
def _keep_handlers(ray: ModuleType) -> Iterator[None]:
    """Keep what Ctrl-C and SIGTERM do: Ray's own handler ends the process while it starts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    utils = getattr(getattr(ray, "_private", None), "utils", None)
    setter = getattr(utils, "set_sigterm_handler", None)
    if setter is not None:
        utils.set_sigterm_handler = lambda handler: None  # type: ignore[union-attr]
    try:
        yield
    finally:
        if setter is not None:
            utils.set_sigterm_handler = setter  # type: ignore[union-attr]
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
