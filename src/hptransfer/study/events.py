"""Progress events of a group in training; a training process writes each as one line of JSON."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from hptransfer._messages import describe_error

DEFAULT_CHECKPOINT_SECONDS = 60.0
"""Time between checkpoints of a group in training; it changes no number."""

EngineName = Literal["local", "ray"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
"""Where groups train: in processes of this machine, or as tasks of a Ray cluster."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A progress event of one group.

    Attributes
    ----------
    kind : str
        ``start``: set up, to go on from `step`; ``step``: still training; ``evaluate``: all steps
        are taken, the held-out loss is measured; ``note``: something to tell the user meanwhile;
        ``done``: its results are stored; ``failed``: they are not.
    group : str
        The group's name.
    step, steps : int
        Steps taken, and steps in all.
    losses : tuple of float
        Training losses of the runs still alive at the last step, in nats.
    completed, diverged : int
        Trials by how they ended, with ``done``.
    message : str
        One line on what went wrong, with ``failed`` and ``note``.
    worker : str
        The training process, as ``HOST:PID``, from an engine that spans machines.
    fatal : bool
        With ``failed``: results cannot be stored, those of other groups neither.

    Examples
    --------
    >>> event = Event(kind="done", group="width-64-0a1b2c3d", completed=8)
    >>> event.is_last, Event.from_line(event.to_line()) == event
    (True, True)
    """

    kind: Literal["start", "step", "evaluate", "note", "done", "failed"]
    group: str
    step: int = 0
    steps: int = 0
    losses: tuple[float, ...] = ()
    completed: int = 0
    diverged: int = 0
    message: str = ""
    worker: str = ""
    fatal: bool = False

    @property
    def is_last(self) -> bool:
        """Whether this is the group's final event."""
        return self.kind in ("done", "failed")

    @classmethod
    def from_error(cls, group: str, error: BaseException) -> "Event":
        """Return the ``failed`` event of a group for an exception, with its message on one line."""
        return cls(kind="failed", group=group, message=describe_error(error))

    def to_line(self) -> str:
        """Return the event as one line of JSON."""
        document = asdict(self)
        document["losses"] = [loss for loss in self.losses if math.isfinite(loss)]
        return json.dumps(document, allow_nan=False)

    @classmethod
    def from_line(cls, line: str) -> "Event":
        """Return the event that `to_line` wrote as this line."""
        document = json.loads(line)
        return cls(**{**document, "losses": tuple(document["losses"])})
