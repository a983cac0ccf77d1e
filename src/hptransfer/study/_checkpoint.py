"""The checkpoint of a group in training: saved every so often, and when a signal ends it."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import safetensors

from hptransfer._atomic import atomic_write
from hptransfer._documents import DIGEST_KEY, PLACEHOLDER, DigestError, check_file, seal_file
from hptransfer._messages import describe_error
from hptransfer.train._trainer import CheckpointError, Snapshot, Training

#: Share of the time that training may wait for its checkpoints.
CHECKPOINT_SHARE = 0.02
#: Bytes of state that are copied or written in a second, before that is known.
COPIED_PER_SECOND = 2e9
#: Key of the file's metadata for those who have trained the group.
_MADE_BY = "made_by"
#: Key of the file's metadata for the hash of the user's own code.
_CODE = "code"
_HELD = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def defer_signals() -> Iterator[Sequence[int]]:
    """Defer Ctrl-C and SIGTERM to the end of the block, which then delivers the last one.

    The block looks between steps at the list of those that have arrived, and ends early. Signals
    that the process ignores stay ignored; outside the main thread, where Python delivers none,
    nothing is deferred.
    """
    held: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    before = {
        signum: signal.signal(signum, lambda received, frame: held.append(received))
        for signum in _HELD
        if signal.getsignal(signum) is not signal.SIG_IGN
    }
    try:
        yield held
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if held:
            signal.raise_signal(held[-1])


class Checkpoint:
    """The checkpoint of a group in training, saved every so often.

    From a device the state is copied to the host at once and written while training goes on. The
    first save that fails is reported, and training goes on; a later failure is reported again only
    after a save that worked.

    Parameters
    ----------
    path : Path
        The file.
    interval : float
        Seconds between saves; more where training would wait for them for over 2 % of the time.
        With 0 each block of steps is saved, whatever that takes.
    context : str
        Study and group, which the file's digest covers too.
    made_by : str
        Versions, device and precision, which the bits depend on.
    code : str, optional
        Hash of the user's own code, without which the checkpoint is of no use; None for the GPT.
    num_bytes : int
        Size of the state, from which the wait for the first is estimated.

    Attributes
    ----------
    makers : list of str
        What has trained the group so far, in order; the last is `made_by`.
    """

    def __init__(
        self,
        path: Path,
        interval: float,
        *,
        context: str,
        made_by: str,
        code: str | None = None,
        num_bytes: int = 0,
    ) -> None:
        self.path = path
        self._code = code
        self.makers = [made_by]
        self._context = context
        self._interval = interval
        self._next = self._after(num_bytes / COPIED_PER_SECOND)
        self._writer: threading.Thread | None = None
        self._message = ""
        self._troubled = False

    def restore(self, training: Training) -> str:
        """Go on from the checkpoint, if there is one; return what the user is to be told, or "".

        That is why the group starts anew, or who made the checkpoint where bits may differ.
        """
        try:
            if not check_file(self.path, context=self._context):
                raise DigestError("expected a digest, found none")
            with safetensors.safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
            if self._code is not None and metadata.get(_CODE) != self._code:
                return "its checkpoint is of other code: the group starts anew"
            training.restore(self.path)
        except FileNotFoundError:
            return ""
        except (CheckpointError, DigestError, safetensors.SafetensorError, OSError) as error:
            if not self.path.exists():  # another process has just finished the group
                return ""
            reason = str(error) if isinstance(error, DigestError) else describe_error(error)
            return f"its checkpoint is damaged, the group starts anew: {reason}"
        *_, now = self.makers
        before = json.loads(metadata.get(_MADE_BY, '["an older version, which records nothing"]'))
        if before[-1] == now:
            self.makers = before
            return ""
        self.makers = [*before, now]
        return f"its checkpoint is by {before[-1]}; it goes on by {now}: bits may differ"

    def save_if_due(self, training: Training, *, at_once: bool = False) -> str:
        """Save the training where it is time and the last save is written, or at once.

        Returns what the user is to be told, each time once; "" for nothing.
        """
        start = time.monotonic()
        is_writing = self._writer is not None and self._writer.is_alive()
        if at_once:
            self.save(training)
        elif start >= self._next and not is_writing:
            if training.copies_state:
                self._join()
                step, snapshot = training.step, training.snapshot()
                self._writer = threading.Thread(target=self._write, args=(step, snapshot))
                self._writer.start()
            else:
                self.save(training)
            self._next = self._after(time.monotonic() - start)
        message, self._message = self._message, ""
        return message

    def _after(self, seconds: float) -> float:
        """Return when the next save is due, if one takes so long."""
        if self._interval == 0:
            return 0.0
        return time.monotonic() + max(self._interval, seconds / CHECKPOINT_SHARE)

    def save(self, training: Training) -> None:
        """Save the training, and wait until it is written."""
        self._join()
        self._write(training.step, training.snapshot(copy=False))

    def _write(self, step: int, snapshot: Snapshot) -> None:
        try:
            made_by = {_MADE_BY: json.dumps(self.makers), _CODE: self._code or ""}
            metadata = {**snapshot.metadata, **made_by, DIGEST_KEY: PLACEHOLDER}
            with atomic_write(self.path) as tmp:
                replace(snapshot, metadata=metadata).write(tmp)
                seal_file(tmp, context=self._context)
        except (OSError, MemoryError) as error:
            if not self._troubled:
                why = describe_error(error)
                self._message = f"no checkpoint at step {step}, training goes on: {why}"
            self._troubled = True
        else:
            self._troubled = False

    def _join(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def remove(self) -> None:
        """Remove the file, and whatever is being written to it.

        A file that cannot be removed does no harm.
        """
        self._join()
        with contextlib.suppress(OSError):
            self.path.unlink()
