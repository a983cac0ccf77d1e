"""Signals that wait for the end of a training step, when everything is in order to be saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HELD = (signal.SIGINT, signal.SIGTERM)


class HeldSignals:
    """What has arrived while signals are held; the last one counts."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Take note of a signal."""
        self.received = signum


@contextmanager
def hold_signals() -> Iterator[HeldSignals]:
    """Hold Ctrl-C and SIGTERM back; what has arrived is delivered when the block ends.

    The block looks at `received` between steps and ends early. Signals that the process ignores
    stay ignored; outside the main thread, where Python delivers none, nothing is held.
    """
    held = HeldSignals()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    before = {
        signum: signal.signal(signum, held)
        for signum in HELD
        if signal.getsignal(signum) is not signal.SIG_IGN
    }
    try:
        yield held
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if held.received is not None:
            signal.raise_signal(held.received)
