"""Studies: the study file, its trials, the plan, the results store and the runner."""

from typing import Literal, get_args

DEFAULT_CHECKPOINT_SECONDS = 60.0
"""Time between checkpoints of a group under way; it changes no number."""

Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
"""Where groups train: in processes of this machine, or as tasks of a Ray cluster."""
