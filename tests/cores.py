"""Every core for what has to run at the same time: a process of tests may be kept on one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def every_core() -> Iterator[None]:
    """Let processes that are started meanwhile run on every core, beside each other."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
