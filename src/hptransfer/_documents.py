"""Read documents (JSON, TOML), and prove files by the digests that they carry.

A digest covers the whole content and a context, such as the study and the group that the file
belongs to: a file copied or renamed to another place does not prove that place's content.

- A binary file (Parquet, safetensors) holds `PLACEHOLDER` in its metadata when it is written;
  `seal_file` then puts the digest of everything else in the place of its zeros.
- A JSON document holds its digest under the key ``digest`` (`seal_document`).
"""

import hashlib
import hmac
import json
import mmap
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hptransfer.errors import ConfigError

_MARK = b"hptransfer-sha256="
_NUM_DIGITS = 64
PLACEHOLDER = _MARK.decode() + "0" * _NUM_DIGITS
"""What a binary file's metadata hold, once, until the file is sealed."""
DIGEST_KEY = "digest"
"""Key of a JSON document's own digest."""

MAX_DOCUMENT_BYTES = 2**28
"""The longest JSON document that is read: a plan of a million trials has a tenth of it."""
MAX_TOML_BYTES = 2**22
"""The longest TOML file that is read."""

Buffer = bytes | mmap.mmap


class DigestError(ValueError):
    """A file is not what was written, or not in the place that it was written for."""


def seal_file(path: Path, *, context: str) -> None:
    """Put a binary file's digest in the place of its `PLACEHOLDER`.

    Parameters
    ----------
    path : Path
        The file, complete but for the digest.
    context : str
        What else the digest covers; `check_digest` needs the same.
    """
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        start = content.rfind(PLACEHOLDER.encode())
        assert start >= 0, "its writer has put the placeholder there"
        start += len(_MARK)
        content[start : start + _NUM_DIGITS] = _hash(content, start, context)
        content.flush()


def check_digest(content: Buffer, *, context: str) -> bool:
    """Check the digest of a binary file's content.

    Returns
    -------
    bool
        True where the content carries a digest, and it is right; False where it carries none.

    Raises
    ------
    DigestError
        If the digest is another content's or another context's.
    """
    start = content.rfind(_MARK)  # a results file has it at its end
    if start < 0:
        return False
    start += len(_MARK)
    found = content[start : start + _NUM_DIGITS]
    if not hmac.compare_digest(found, _hash(content, start, context)):
        raise DigestError("expected the content that was written here, found another (digest)")
    return True


def check_file(path: Path, *, context: str) -> bool:
    """Check the digest of a binary file; as `check_digest`.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    if not require_regular(path):
        return False
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return check_digest(content, context=context)


def hash_file(path: Path) -> str:
    """Return the sha256 (hex) of a regular file's content.

    Raises
    ------
    DigestError
        If the file is a pipe, a device or a directory.
    OSError
        If the file cannot be read.
    """
    require_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal_document(document: Mapping[str, Any], *, context: str) -> dict[str, Any]:
    """Return a JSON document with its digest."""
    return {**document, DIGEST_KEY: _hash_document(document, context)}


def check_document(document: Mapping[str, Any], *, context: str) -> None:
    """Check the digest that a JSON document carries.

    Raises
    ------
    DigestError
        If it has none, or another content's or context's.
    """
    if not isinstance(found := document.get(DIGEST_KEY), str):
        raise DigestError("expected a digest, found none")
    if not hmac.compare_digest(found.encode(), _hash_document(document, context).encode()):
        raise DigestError("expected the content that was written here, found another (digest)")


def read_regular(path: Path, *, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises
    ------
    DigestError
        If the file is longer, or is a pipe, a device or a directory.
    OSError
        If the file cannot be read.
    """
    if (size := require_regular(path)) > limit:
        raise DigestError(f"expected at most {limit:,} bytes, found {size:,}")
    return path.read_bytes()


def require_regular(path: Path) -> int:
    """Return the size of a regular file, which opening cannot make wait.

    Raises
    ------
    DigestError
        If the file is a pipe, a device or a directory.
    OSError
        If there is no such file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DigestError("expected a file, found a directory, a pipe or a device")
    return status.st_size


def read_document(path: Path) -> dict[str, Any]:
    """Return the JSON document (an object) in a file, whatever digest it has.

    Raises
    ------
    DigestError
        If the file is longer than `MAX_DOCUMENT_BYTES`, or no JSON object in UTF-8.
    OSError
        If the file cannot be read.
    """
    try:
        document = json.loads(read_regular(path, limit=MAX_DOCUMENT_BYTES))
    except RecursionError:
        raise DigestError("expected JSON, found brackets nested too deeply") from None
    except ValueError as error:
        if isinstance(error, DigestError):
            raise
        raise DigestError(f"expected JSON, found: {error}") from None
    if not isinstance(document, dict):
        raise DigestError(f"expected a JSON object, found {type(document).__name__}")
    return document


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
        text = read_regular(path, limit=MAX_TOML_BYTES).decode("utf-8-sig")
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
    except ValueError as error:  # a path that no file can have
        raise ConfigError(f"{str(path)!r}: expected {what}, found: {error}") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected TOML, found: {error}") from None


def _hash(content: Buffer, start: int, context: str) -> bytes:
    """Return the digits for a content whose digits begin at `start`, and are left out."""
    digest = hashlib.sha256(f"{context}\n{start}\n".encode())
    with memoryview(content) as view:
        digest.update(view[:start])
        digest.update(view[start + _NUM_DIGITS :])
    return digest.hexdigest().encode()


def _hash_document(document: Mapping[str, Any], context: str) -> str:
    content = {key: value for key, value in document.items() if key != DIGEST_KEY}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{context}\n{text}".encode()).hexdigest()


def canonical_json(value: object) -> str:
    """Return the one JSON text of a value, for hashing: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
