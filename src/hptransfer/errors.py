"""The errors a user can meet, under one base class; each carries the command's exit code."""


class HptransferError(Exception):
    """Base class: its message is one line that a user can act on.

    Attributes
    ----------
    exit_code : int
        What a command exits with: 2 where the input was wrong, 1 where the work failed.
    """

    exit_code = 1


class ConfigError(HptransferError):
    """A study file, an option or a parameterization's name is wrong."""

    exit_code = 2


class DataError(HptransferError):
    """Text or a loss table is wrong; the message names file, column or row."""

    exit_code = 2


class StoreError(HptransferError):
    """A study directory is damaged or belongs to another study."""

    exit_code = 2


class FitError(HptransferError):
    """A table holds nothing that the asked-for fit could use."""

    exit_code = 2
