"""Studies: the study file, its trials, the plan, the results store and the runner."""

DEFAULT_CHECKPOINT_SECONDS = 60.0
"""Time between checkpoints of a group under way; it changes no number."""
