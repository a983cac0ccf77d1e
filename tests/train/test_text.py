import importlib.machinery
import importlib.util
import json
from itertools import pairwise
from pathlib import Path
from random import Random

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hptransfer.errors import DataError
from hptransfer.train import _text as text_module
from hptransfer.train._text import load_documents, split_documents

DOCUMENTS = ["the first\ndocument", "the second: naïve café ☃", "x"]


def refusal(text: str, root: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_documents(text, root=root)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_jsonl(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class TestFiles:
    @pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("blank", ["\n\n", "\n \t\n", "\n\n\n \n\n"])
    def test_blank_lines_separate_the_documents_of_a_txt(
        self, tmp_path: Path, newline: str, blank: str
    ) -> None:
        content = ("\n\n" + blank.join(DOCUMENTS) + "\n\n").replace("\n", newline)
        (tmp_path / "a.txt").write_bytes(content.encode())
        assert load_documents("files:a.txt", root=tmp_path) == DOCUMENTS

    def test_a_byte_order_mark_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
        assert load_documents("files:a.txt", root=tmp_path) == ["one"]

    def test_jsonl_has_one_document_a_line(self, tmp_path: Path) -> None:
        odd = "a line separator\u2028inside"
        lines = [json.dumps({"id": 1, "text": d}) for d in DOCUMENTS]
        lines += ["", json.dumps({"text": odd}, ensure_ascii=False), json.dumps({"text": " \n"})]
        write_jsonl(tmp_path / "a.jsonl", lines)
        assert load_documents("files:*.jsonl", root=tmp_path) == [*DOCUMENTS, odd]

    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
    def test_parquet_has_a_text_column(self, tmp_path: Path, kind: pa.DataType) -> None:
        columns = {"id": [1, 2, 3, 4, 5], "text": pa.array([*DOCUMENTS, None, ""], kind)}
        pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
        assert load_documents("files:a.parquet", root=tmp_path) == DOCUMENTS

    def test_files_are_read_in_sorted_order_at_any_depth(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("b.txt", "a/z.txt", "a/c/d.txt", "a/other.md"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(name)
        expected = ["a/c/d.txt", "a/z.txt", "b.txt"]
        assert load_documents("files:**/*.txt", root=tmp_path) == expected
        assert load_documents(f"files:{tmp_path}/**/*.txt") == expected
        assert load_documents("files:*.txt", root=tmp_path) == ["b.txt"]
        monkeypatch.chdir(tmp_path)
        assert load_documents("files:b.txt") == ["b.txt"]

    def test_a_url_is_read_as_fsspec_reads_it(self, tmp_path: Path) -> None:
        memory = fsspec.filesystem("memory")
        write_jsonl(tmp_path / "b.jsonl", [json.dumps({"text": DOCUMENTS[0]})])
        pq.write_table(pa.table({"text": DOCUMENTS[1:]}), tmp_path / "c.parquet")
        for name in ("b.jsonl", "c.parquet"):
            memory.pipe(f"/corpus/deep/{name}", (tmp_path / name).read_bytes())
        assert load_documents("files:memory://corpus/**/*.*", root=tmp_path) == DOCUMENTS
        assert "memory://" in refusal("files:memory://corpus/*.txt", tmp_path)
        memory.pipe("/corpus/bad.txt", b"\xff")
        assert "memory:///corpus/bad.txt: expected UTF-8" in refusal(
            "files:memory://corpus/bad.txt", tmp_path
        )

    @pytest.mark.parametrize(
        ("url", "part"), [("no-such://a/b.txt", "no-such"), ("adl://a/b.txt", "adlfs")]
    )
    def test_a_url_that_cannot_be_opened_says_why(
        self, tmp_path: Path, url: str, part: str
    ) -> None:
        message = refusal(f"files:{url}", tmp_path)
        assert f"'files:{url}'" in message
        assert part in message

    def test_no_match_names_the_pattern(self, tmp_path: Path) -> None:
        message = refusal("files:none/*.txt", tmp_path)
        assert "'files:none/*.txt'" in message
        assert "no match" in message

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "corpus").mkdir()
        assert "corpus is a folder" in refusal("files:corpus", tmp_path)
        assert "is a folder" in refusal("files:", tmp_path)

    def test_an_unknown_suffix_names_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.md").write_text("x")
        assert refusal("files:*", tmp_path).endswith(
            "a.md: expected one of .txt, .jsonl, .parquet, found .md"
        )

    @pytest.mark.parametrize("names", [["a.txt"], ["a.txt", "b.txt"]])
    def test_blank_text_is_refused(self, tmp_path: Path, names: list[str]) -> None:
        for name in names:
            (tmp_path / name).write_text(" \n\n\t\n")
        where = "a.txt" if len(names) == 1 else "2 files"
        assert refusal("files:*.txt", tmp_path).endswith(where)

    def test_undecodable_bytes_name_file_and_place(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"abc\xff")
        message = refusal("files:a.txt", tmp_path)
        assert "a.txt" in message
        assert "byte 0xff at byte 3" in message

    def test_an_unreadable_file_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(path: Path, mode: str) -> bytes:
            raise PermissionError(13, "Permission denied", str(path))

        (tmp_path / "a.txt").write_text("x")
        monkeypatch.setattr(Path, "open", refuse)
        assert refusal("files:a.txt", tmp_path).endswith("a.txt: cannot be read: Permission denied")

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            (b"{", "expected one JSON object"),
            (b'["text"]', "expected a JSON object, found list"),
            (b'{"body": "x", "id": 1}', "expected field 'text', found 'body', 'id'"),
            (b'{"text": ' + b"9" * 5000 + b"}", "expected one JSON object"),
            (b"{}", "expected field 'text', found none"),
            (b'{"text": 3}', "field 'text': expected a string, found int"),
            (b'{"text": "\\ud800"}', "half a surrogate pair"),
            (b'{"text": "\xff"}', "expected UTF-8 text, found byte 0xff"),
        ],
    )
    def test_a_bad_jsonl_line_names_file_and_line(
        self, tmp_path: Path, line: bytes, expected: str
    ) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
        message = refusal("files:a.jsonl", tmp_path)
        assert "a.jsonl, line 2" in message
        assert expected in message

    def test_a_bad_parquet_file_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        path.write_bytes(b"PAR1 no")
        assert "a.parquet: expected a Parquet file" in refusal("files:a.parquet", tmp_path)
        pq.write_table(pa.table({"body": ["x"]}), path)
        assert "expected column 'text', found 'body'" in refusal("files:a.parquet", tmp_path)
        pq.write_table(pa.table({"text": [1]}), path)
        assert "expected strings, found int64" in refusal("files:a.parquet", tmp_path)
        broken = pa.array([b"ok", b"\xff\xfe"]).view(pa.string())
        pq.write_table(pa.table({"text": broken}), path)
        assert "a.parquet, column 'text': expected UTF-8" in refusal("files:a.parquet", tmp_path)


class TestWiki:
    def test_the_installed_summaries(self) -> None:
        if importlib.util.find_spec(text_module.WIKI_PACKAGE) is None:
            pytest.skip("the extra hptransfer[wiki] is not installed")
        documents = load_documents("wiki")
        assert len(documents) == len(set(documents)) == 10_033
        assert sum(len(document.encode()) for document in documents) == 4_885_535
        assert any(d.startswith("2001: A Space Odyssey is a 1968 epic") for d in documents)

    def test_absent_it_says_how_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert refusal("wiki", tmp_path).endswith("pip install 'hptransfer[wiki]'")

    def test_another_version_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = importlib.machinery.ModuleSpec("wiki", None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path)]
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        assert "cannot be read" in refusal("wiki", tmp_path)
        (tmp_path / "data").mkdir()
        (tmp_path / text_module.WIKI_FILE).write_text("{}")
        assert "expected sha256 05ed445d…, found 44136fa3…" in refusal("wiki", tmp_path)


class TestSplit:
    @settings(max_examples=100, deadline=None)
    @given(
        documents=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)).filter(
            lambda documents: len(set(documents)) > 1
        ),
        val_fraction=st.floats(0.01, 0.99),
        random=st.randoms(use_true_random=False),
    )
    def test_every_document_lands_on_one_side_whatever_the_order(
        self, documents: list[str], val_fraction: float, random: Random
    ) -> None:
        split = split_documents(documents, val_fraction=val_fraction)
        assert sorted(split.train + split.val) == sorted(documents)
        assert not set(split.train) & set(split.val)
        assert split.train
        assert split.val
        random.shuffle(documents)
        assert split_documents(documents, val_fraction=val_fraction) == split

    def test_validation_takes_its_share_of_the_bytes(self) -> None:
        documents = [f"{number} " * (1 + number % 40) for number in range(2000)]
        total = sum(map(len, documents))
        for val_fraction in (0.02, 0.05, 0.5):
            split = split_documents(documents, val_fraction=val_fraction)
            share = sum(map(len, split.val)) / total
            assert val_fraction - 0.002 < share <= val_fraction

    def test_a_giant_document_goes_to_training(self) -> None:
        split = split_documents(["small", "x" * 10_000], val_fraction=0.05)
        assert split.val == ["small"]

    def test_the_order_is_shuffled(self) -> None:
        documents = [f"{number:04d}" for number in range(1000)]
        train = split_documents(documents, val_fraction=0.05).train
        inversions = sum(a > b for a, b in pairwise(train))
        assert 400 < inversions < 550

    def test_the_hash_counts_copies(self) -> None:
        once, twice = (
            split_documents(documents, val_fraction=0.5)
            for documents in (["a", "b"], ["a", "b", "b"])
        )
        assert once.content_hash != twice.content_hash

    @pytest.mark.parametrize("documents", [[], ["same", "same"]])
    def test_one_document_cannot_be_split(self, documents: list[str]) -> None:
        with pytest.raises(DataError, match=r"at least 2 different documents.*found [01]"):
            split_documents(documents, val_fraction=0.05)
