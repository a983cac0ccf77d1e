"""Reading a TOML file, and saying in one line what is wrong with it as a file."""

import tomllib
from pathlib import Path
from typing import Any

from hptransfer._digest import DigestError, read_regular
from hptransfer.errors import ConfigError

#: The longest file that is read.
MAX_BYTES = 2**22


def read_toml(path: Path, *, what: str) -> dict[str, Any]:
    """Return the document of a TOML file in UTF-8 (a byte order mark is skipped).

    Parameters
    ----------
    path : Path
        The file.
    what : str
        What it should be, for messages, such as ``a study file``.

    Raises
    ------
    ConfigError
        If the file is missing, unreadable, not UTF-8 or not TOML (with the line).
    """
    try:
        text = read_regular(path, limit=MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected {what}, found no such file") from None
    except DigestError as error:
        raise ConfigError(f"{path}: expected {what}; {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: expected {what}, found: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: expected UTF-8 text, found byte 0x{error.object[error.start]:02x} "
            f"at offset {error.start}"
        ) from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected TOML, found: {error}") from None
