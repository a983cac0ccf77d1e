"""How far a trial has come: the four states that training, the store and tables share."""

from enum import StrEnum


class TrialState(StrEnum):
    """State of one training run.

    A diverged trial is a finished one, whose loss is no number; a failed one says nothing of its
    learning rate, and a rerun trains it again.
    """

    PENDING = "pending"
    COMPLETED = "completed"
    DIVERGED = "diverged"
    FAILED = "failed"
