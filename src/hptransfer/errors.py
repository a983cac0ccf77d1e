"""The errors a user can meet, under one base class; each carries the command's exit code."""


class HptransferError(Exception):
    """Base class: its message is one line that a user can act on.

    Attributes
    ----------
    exit_code : int
        What a command exits with: 2 where the input was wrong, 1 where the work failed.

    Examples
    --------
    >>> from hptransfer import resolve
    >>> try:
    ...     resolve("mup", width=0, base_width=64)
    ... except HptransferError as error:
    ...     print(f"exit {error.exit_code}: {error}")
    exit 2: width: expected a whole number above 0, found 0
    """

    exit_code = 1


class ConfigError(HptransferError):
    """A study file, an option or a parameterization's name is wrong.

    Examples
    --------
    >>> from hptransfer import parse_parameterization
    >>> parse_parameterization("spp")
    Traceback (most recent call last):
        ...
    hptransfer.errors.ConfigError: parameterization: 'spp' is not known; did you mean 'sp'? ...
    """

    exit_code = 2


class DataError(HptransferError):
    """Text or a loss table is wrong; the message names file, column or row.

    Examples
    --------
    >>> from hptransfer import read_table
    >>> read_table("losses.csv")
    Traceback (most recent call last):
        ...
    hptransfer.errors.DataError: losses.csv: ...
    """

    exit_code = 2


class StoreError(HptransferError):
    """A study directory is damaged or belongs to another study.

    Examples
    --------
    >>> from pathlib import Path
    >>> from hptransfer.study import read_status
    >>> read_status(Path("no-study"))
    Traceback (most recent call last):
        ...
    hptransfer.errors.StoreError: no-study...
    """

    exit_code = 2


class FitError(HptransferError):
    """A table holds nothing that the asked-for fit could use.

    Examples
    --------
    >>> from hptransfer import LossTable, fit_table
    >>> fit_table(LossTable(width=[64, 128], lr=[0.01, -0.01], loss=[3.0, 2.8], seed=[0, 0]))
    Traceback (most recent call last):
        ...
    hptransfer.errors.FitError: ...column lr, row 2: expected a positive number, found -0.01
    """

    exit_code = 2
