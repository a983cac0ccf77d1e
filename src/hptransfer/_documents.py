"""Read documents (JSON, TOML), and prove files by the digests that they carry.

A digest covers the whole content and a context, such as the study and the group that the file
belongs to: a file copied or renamed to another place does not prove that place's content.

- A binary file (Parquet, safetensors) holds `PLACEHOLDER` in its metadata when it is written;
  `seal_file` then puts the digest of everything else in the place of its zeros. A part that few
  readers want may have a digest of its own (`PART_PLACEHOLDER`), which the file's covers in the
  part's place: who does not read the part need not hash it.
- A JSON document holds its digest under the key ``digest``: that of what it says
  (`seal_document`), or, where it is long, that of its text as of a binary file.
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

_MARK, _PART_MARK = b"hptransfer-sha256=", b"hptransfer-part="
_NUM_DIGITS, _NUM_PLACE = 64, 20
PLACEHOLDER = _MARK.decode() + "0" * _NUM_DIGITS
"""What a binary file's metadata hold, once, until the file is sealed."""
# Before it, where the part begins and ends, and its digest.
_PART_LENGTH = len(_PART_MARK) + 2 * _NUM_PLACE + _NUM_DIGITS
PART_PLACEHOLDER = _PART_MARK.decode() + "0" * (2 * _NUM_PLACE + _NUM_DIGITS) + PLACEHOLDER
"""The same where a part has a digest of its own."""
DIGEST_KEY = "digest"
"""Key of a JSON document's own digest."""

MAX_DOCUMENT_BYTES = 2**28
"""The longest JSON document that is read: a plan of a million trials has a tenth of it."""
MAX_TOML_BYTES = 2**22
"""The longest TOML file that is read."""

#: Kinds of TOML files: a section that only this kind has, and the command that reads it.
_KINDS = {"a study file": ("data", "run"), "a search file": ("job", "search")}

_OTHER = "expected the content that was written here, found another (digest)"

Buffer = bytes | mmap.mmap


class DigestError(ValueError):
    """A file is not what was written, or not in the place that it was written for."""


def seal_file(path: Path, *, context: str, part: tuple[int, int] | None = None) -> None:
    """Put a binary file's digest in the place of its `PLACEHOLDER`.

    Parameters
    ----------
    path : Path
        The file, complete but for the digest.
    context : str
        What else the digest covers; `check_digest` needs the same.
    part : tuple of int, optional
        Where the part that has a digest of its own begins and ends; the file then holds
        `PART_PLACEHOLDER`.
    """
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        start = content.rfind(_MARK) + len(_MARK)
        assert start > len(_MARK), "its writer has put the placeholder there"
        if part is not None:
            place = start - len(_MARK) - _PART_LENGTH
            digits = b"%020d%020d" % part + _hash(content, *part)
            content[place + len(_PART_MARK) : place + _PART_LENGTH] = digits
        digits = _hash_all(content, start, context, *(part or (0, 0)))
        content[start : start + _NUM_DIGITS] = digits
        content.flush()


def check_digest(content: Buffer, *, context: str, whole: bool = True) -> bool:
    """Check the digest of a binary file's content.

    Parameters
    ----------
    content : bytes or mmap
        The file's.
    context : str
        As for `seal_file`.
    whole : bool
        Whether to check the part that has a digest of its own too.

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
    begin = end = 0
    place = start - _PART_LENGTH
    if place >= 0 and content[place : place + len(_PART_MARK)] == _PART_MARK:
        place += len(_PART_MARK)
        limits = content[place : place + 2 * _NUM_PLACE]
        if limits.isdigit():
            begin, end = int(limits[:_NUM_PLACE]), int(limits[_NUM_PLACE:])
        if not 0 < begin <= end <= place:
            raise DigestError(_OTHER)
        place += 2 * _NUM_PLACE
    start += len(_MARK)
    digits = content[start : start + _NUM_DIGITS]
    if digits != _hash_all(content, start, context, begin, end) or (
        whole and begin < end and content[place : place + _NUM_DIGITS] != _hash(content, begin, end)
    ):
        raise DigestError(_OTHER)
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
        raise DigestError(_OTHER)


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
    return _parse(read_regular(path, limit=MAX_DOCUMENT_BYTES))


def read_sealed_document(path: Path, *, context: str, unsealed: int) -> dict[str, Any]:
    """Return the JSON document (an object) in a file, once its digest is checked.

    A long document holds that of its text, which is hashed as it is.

    Parameters
    ----------
    path : Path
        The file.
    context : str
        As for `seal_file`.
    unsealed : int
        The schema whose documents carry no digest.

    Raises
    ------
    DigestError
        If it is no JSON object, or its digest is another content's or context's.
    OSError
        If the file cannot be read.
    """
    content = read_regular(path, limit=MAX_DOCUMENT_BYTES)
    document = _parse(content)
    if not check_digest(content, context=context) and document.get("schema") != unsealed:
        check_document(document, context=context)
    return document


def _parse(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except RecursionError:
        raise DigestError("expected JSON, found brackets nested too deeply") from None
    except ValueError as error:
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
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected TOML, found: {error}") from None
    for other, (section, command) in _KINDS.items():
        if what in _KINDS and section in document and _KINDS[what][0] not in document:
            raise ConfigError(
                f"{path}: expected {what}, found {other}; hptransfer {command} {path} reads it"
            )
    return document


def _hash_all(content: Buffer, start: int, context: str, begin: int, end: int) -> bytes:
    """Return the digits for a content whose digits begin at `start`.

    They are left out, and the part from `begin` to `end`.
    """
    digest = hashlib.sha256(f"{context}\n{start}\n".encode())
    with memoryview(content) as view:
        digest.update(view[:begin])
        digest.update(view[end:start])
        digest.update(view[start + _NUM_DIGITS :])
    return digest.hexdigest().encode()


def _hash(content: Buffer, begin: int, end: int) -> bytes:
    with memoryview(content) as view:
        return hashlib.sha256(view[begin:end]).hexdigest().encode()


def _hash_document(document: Mapping[str, Any], context: str) -> str:
    content = {key: value for key, value in document.items() if key != DIGEST_KEY}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{context}\n{text}".encode()).hexdigest()


def canonical_json(value: object) -> str:
    """Return the one JSON text of a value, for hashing: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
