"""One training process: takes group names on stdin, reports events on stdout.

Started by the local engine as ``python -m hptransfer.study.worker DIR ROOT SECONDS``, SECONDS
being the time between checkpoints. It ends when its stdin closes, on SIGTERM with a checkpoint,
and, should the runner have been killed, at its next report.
"""

import os
import signal
import sys
from pathlib import Path

from hptransfer.errors import HptransferError
from hptransfer.study.events import Event
from hptransfer.study.execute import Executor


def main(directory: Path, root: Path, checkpoint_interval: float) -> None:
    """Train the groups named on stdin until it closes."""
    # Ctrl-C reaches the whole terminal; the runner decides what it means and ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries that print must not disturb the reports.
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def report(event: Event) -> None:
        try:
            print(event.to_line(), file=reports)
        except BrokenPipeError:
            os._exit(1)  # the runner is gone; nobody would read a traceback

    executor = Executor.open(directory, root=root, checkpoint_interval=checkpoint_interval)
    for line in sys.stdin:
        executor.execute(line.strip(), report)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
    except HptransferError as error:
        print(f"hptransfer: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
