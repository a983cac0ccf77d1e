"""Mistakes of a first hour: each is answered by one line that says what to type next."""

import os
from pathlib import Path

import pytest

from hptransfer.cli.main import main
from study.small import TEXT

TABLE = "width,lr,loss\n" + "\n".join(
    f"{n},{2.0**k},{3 + 1 / n + 0.1 * (k + 5) ** 2}" for n in (8, 16, 32) for k in range(-8, -2)
)
STUDY = TEXT.replace('"small"', '"mine"').replace(
    "width = [16, 32]", "width = [16, 32]\nbase_width = 16"
)

SHORT = """\
import torch
class Short(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.tokens = torch.nn.Embedding(64, width)
        self.places = torch.nn.Embedding(3, width)
        self.hidden, self.head = torch.nn.Linear(width, width), torch.nn.Linear(width, 64)
    def forward(self, tokens):
        places = self.places(torch.arange(tokens.shape[1]))
        return self.head(self.hidden(self.tokens(tokens) + places))
class Lacking(Short):
    def forward(self, tokens):
        return self.read(self.hidden(self.tokens(tokens)))
class Keyed(Short):
    def forward(self, tokens):
        return {"logit": self.hidden(self.tokens(tokens))}["logits"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(TABLE + "\n")
    (tmp_path / "mine.toml").write_text(STUDY)
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "words.csv").write_text(TABLE.replace("8,0.00390625,", "8,high,") + "\n")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "short.py").write_text(SHORT)
    (tmp_path / "job.toml").write_text('name = "j"\n[sweep]\nwidth = [8]\n[job]\ncommand = ["a"]\n')
    for name, old, new in (
        ("key", "width =", "widht ="), ("rule", '"sp"', '"ps"'), ("base", "base_width = 16",
        "base_width = 7"), ("type", "steps = 12", 'steps = "many"'), ("text", "text/*", "none/*"),
        ("toml", "[data]", "[data"), ("lrs", "log2_lr = [-7, -5, 6]", "log2_lr = []"),
        ("both", "log2_lr = [-7, -5, 6]", "log2_lr = [-7]\nlr = [0.1]"),
    ):  # fmt: skip
        (tmp_path / f"{name}.toml").write_text(STUDY.replace(old, new))
    return tmp_path


# What was typed, and what the answer names.
#: No file can be called so.
LONG = "x" * 300

MISTAKES = [
    # Commands and options misspelt or forgotten.
    ("fti t.csv", "did you mean 'fit'"),
    ("recomend t.csv", "did you mean 'recommend'"),
    ("train mine.toml", "did you mean 'run'"),
    ("fit", "required: DIR|TABLE"),
    ("fit t.csv --referense sp", "did you mean '--reference'"),
    ("fit t.csv --jsno", "did you mean '--json'"),
    ("recommend t.csv", "required: --width"),
    ("recommend t.csv --widht 64", "did you mean '--width'"),
    ("recommend t.csv --width", "--width: expected one argument"),
    ("recommend t.csv --width ten", "--width: expected a number above 0, found 'ten'"),
    ("recommend t.csv --width 0", "--width: expected a number above 0, found '0'"),
    ("recommend t.csv --width -8", "--width: expected a number above 0, found '-8'"),
    ("recommend t.csv --width 64 --tokens 0", "--tokens: expected a number above 0"),
    ("recommend t.csv --width 64 --tokens 1e9", "no column 'tokens'"),
    ("recommend t.csv --width 64 --form powr", "powr"),
    ("recommend t.csv --width 64 --scatter -1", "scatter: expected 0 or a positive number"),
    ("recommend t.csv --width 64 --priors none.toml", "none.toml"),
    ("recommend t.csv --width 64 --write-next folder", "--write-next: expected a file"),
    ("fit t.csv --form linear", "invalid choice: 'linear'"),
    ("coordinate-check short.py:Short --base-width 16", "--batches MODULE:FUNCTION"),
    ("coordinate-check short.py:Short --tolerance 0.1", "--tolerance is gone; type coord"),
    ("coordinate-check short.py:Short --base-width 16 --width 16,0,32", "found '16,0,32'"),
    ("coordinate-check short.py:Lacking --base-width 16", "raised AttributeError"),
    ("coordinate-check short.py:Keyed --base-width 16", "raised KeyError: 'logits'"),
    ("rules spp --width 8 --base-width 8", "did you mean 'sp'"),
    ("rules sp", "required: --width, --base-width"),
    ("rules sp --width 8 --base-width 0", "base_width"),
    ("rules sp --width 8 --base-width 8 --axis globl", "did you mean 'global'"),
    ("rules sp --width 8 --base-width 8 --optimizer adamm", "did you mean 'adam"),
    ("rules sp --width 8 --base-width 8 --weight-decay-mode x", "expected one of"),
    ("rules sp --width 64.5 --base-width 8", "--width: expected a whole number, found '64.5'"),
    ("rules sp --width 8 --base-width 8 --lr high", "--lr: expected a number, found 'high'"),
    ("rules none.toml --width 8 --base-width 8", "none.toml"),
    # Files that are not there, or are something else.
    ("fit nope.csv", "nope.csv: no such file"),
    ("fit empty.csv", "empty.csv: empty file"),
    ("fit other.csv", "--columns"),
    ("fit words.csv", "column 'lr'"),
    ("fit folder", "folder"),
    (f"fit {LONG}", LONG),
    (f"run {LONG}.toml", LONG),
    (f"report t.csv -o {LONG}", LONG),
    ("fit mine.toml", "hptransfer run mine.toml"),
    ("report mine.toml", "hptransfer run mine.toml"),
    ("fit job.toml", "a search file, of which nothing is trained here yet: hptransfer search job"),
    ("status mine.toml", "hptransfer run mine.toml"),
    ("status folder", "expected a study directory"),
    ("status nope", "expected a study directory"),
    ("run nope.toml", "nope.toml: no such study file"),
    ("run .", "expected a study file such as base.toml, found a folder"),
    ("plan folder/..", "found a folder"),
    ("run /", "/: expected a study file ending in .toml, found a folder"),
    ("search s.toml --parallel 4", "type parallel = N in the search file"),
    ("run mnie.toml", "did you mean 'mine.toml'"),
    ("run folder", "expected a study file such as folder.toml"),
    ("run job.toml", "found a search file; hptransfer search job.toml"),
    ("search mine.toml", "found a study file; hptransfer run mine.toml"),
    ("status t.csv", "found a file; what it holds, hptransfer fit t.csv"),
    ("plan t.csv", "t.csv"),
    ("report", "expected a study or a loss table"),
    ("report t.csv -o folder", "--output: expected a file"),
    ("report t.csv -o gone/r.html", "--output: expected a file"),
    ("report t.csv -o pipe", "--output: expected a file"),
    ("report --coordinates t.csv", "expected a coordinate check"),
    ("factors t.csv", "t.csv"),
    # Columns, filters and groups.
    ("fit t.csv --by dept", "no column 'dept'"),
    ("fit t.csv --columns widht=width", "did you mean"),
    ("fit t.csv --columns width", "expected OURS=THEIRS"),
    ("fit t.csv --columns width=n_embd", "n_embd"),
    ("fit t.csv --where width", "expected COLUMN=VALUE"),
    ("fit t.csv --where width=7", "width"),
    ("fit t.csv --map width", "expected COLUMN:OLD=NEW"),
    ("fit t.csv --reference mup", "no reference mup"),
    ("fit t.csv --unit bit", "bit"),
    ("fit t.csv --diverged exploded", "exploded"),
    ("fit t.csv --diverged failed,exploded", "found 'exploded'"),
    ("fit t.csv --pool weight_decay,depth", "no column 'depth'"),
    # Study files.
    ("plan key.toml --tflops 1", "did you mean 'width'"),
    ("plan rule.toml --tflops 1", "'ps'"),
    ("plan type.toml --tflops 1", "steps"),
    ("plan lrs.toml --tflops 1", "log2_lr"),
    ("plan both.toml --tflops 1", "lr"),
    ("plan toml.toml --tflops 1", "toml.toml"),
    ("run text.toml", "none/*.txt"),
    # Workers, shards, checkpoints.
    ("plan mine.toml --like mine.toml", "hptransfer run mine.toml"),
    ("verify mine.toml t.parquet --seed -1", "--seed: expected 0 or more, found -1"),
    ("verify mnie.toml t.csv", "did you mean 'mine.toml'"),
    ("plan mine.toml --workers 0", "--workers: expected a whole number above 0"),
    ("run mine.toml --workers -1", "--workers: expected a whole number above 0"),
    ("demo --workers 100000", "--workers: expected 1 to"),
    ("run mine.toml --shard 3/2", "--shard: expected I/N"),
    ("run mine.toml --checkpoint -1", "--checkpoint: expected 0 seconds or more"),
    ("run mine.toml --engine rya", "invalid choice: 'rya'"),
    ("run mine.toml -o s3://bucket/x", "--output: expected a folder"),
    ("audit gone.py:make --width 8 --base-width 8", "gone.py"),
    ("audit t.csv --width 8 --base-width 8", "MODULE:FACTORY"),
]


def test_there_are_fifty_mistakes_and_more() -> None:
    assert len({typed for typed, _ in MISTAKES}) == len(MISTAKES) >= 50


@pytest.mark.parametrize(("typed", "answer"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_a_mistake_is_answered_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], typed: str, answer: str
) -> None:
    code = main(typed.split())
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if "note:" not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith("hptransfer")
    assert answer in lines[0], lines[0]


def test_a_file_in_the_place_of_the_demo_s_folder_is_said(folder: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    (folder / "hptransfer-demo").touch()
    assert main(["demo", "--recorded"]) == 2
    assert "hptransfer-demo: expected a folder" in capsys.readouterr().err


def test_an_empty_name_is_no_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A variable of a shell that is not set does not mean all tables of the working directory."""
    for command in (
        ["fit", ""], ["recommend", "--width", "64", ""], ["report", "t.csv", ""], ["status", ""],
        ["plan", "mine.toml", "--like", ""], ["factors", ""], ["report", "t.csv", "-o", ""],
        ["run", "mine", "-o", ""], ["recommend", "--width", "64", "t.csv", "--priors", ""],
    ):  # fmt: skip
        assert main(command) == 2
        assert "found an empty name" in capsys.readouterr().err


def test_nothing_typed_is_helped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "COMMAND" in capsys.readouterr().out


def test_what_is_meant_is_done(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Columns may be given before the table, by commas or again; the table is not swallowed.
    rows = [f"{line},x,y" for line in TABLE.splitlines()[1:]]
    (folder / "by.csv").write_text("\n".join(["width,lr,loss,a,b", *rows]) + "\n")
    for by in (["--by", "a,b"], ["--by", "a", "--by", "b"], ["--by=a,b"]):
        assert main(["fit", *by, "by.csv", "--json"]) == 0
        assert '"a": "x"' in capsys.readouterr().out
    # A list may be longer than any name of a file.
    words = ",".join(f"{number}={number}" for number in (8, 16, 32)) + ",no=1" * 99
    assert main(["columns", "t.csv"]) == 0
    assert main(["fit", "t.csv", "--map", f"width:{words}"]) == 2  # no cell is called so
    assert "File name" not in capsys.readouterr().err
    for by in (f"a,{'b' * 300}", "a\0b"):
        assert main(["fit", "by.csv", "--by", by]) == 2  # no such column
        assert "--by" in capsys.readouterr().err
    assert main(["report", "t.csv"]) == 0
    assert (folder / "report.html").is_file()
    # A study is named by its file, with or without its ending.
    assert main(["plan", "mine", "--tflops", "1"]) == 0


def test_spellings_of_the_version_before_warn_and_work(folder: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    """`--by A B` could swallow the table; what is no path after it is still read as a list."""
    rows = "".join(f"{row},{depth},{kind}\n" for row in TABLE.splitlines()[1:]
                   for depth in (2, 4) for kind in "ab")  # fmt: skip
    Path("deep.csv").write_text(f"width,lr,loss,depth,kind\n{rows}")
    assert main(["fit", "deep.csv", "--by", "depth,kind", "--json"]) == 0
    expected, quiet = capsys.readouterr()
    for old in (["--by", "depth", "kind", "deep.csv"], ["deep.csv", "--by=depth", "kind"]):
        assert main(["fit", *old, "--json"]) == 0
        out, err = capsys.readouterr()
        assert out == expected
        assert "goes with the next version; type --by depth,kind" in err
        assert "next version" not in quiet
    for widths in (["--widths", "16,a"], ["--widths=16,a"]):
        command = ["coordinate-check", "short.py:Short", "--base-width", "16"]
        assert main([*command, *widths]) == 2
        warning, error = capsys.readouterr().err.splitlines()
        assert warning.endswith("--widths goes with the next version; type --width")
        assert error.endswith("--width: expected whole numbers such as 64,128,256, found '16,a'")
    assert main(["fit", "deep.csv", "--token-axis"]) == 2
    assert "--token-axis is gone; type hptransfer recommend" in capsys.readouterr().err
    assert main(["fit", "deep.csv", "--share", "alpha"]) == 2
    assert "--share is gone; type hptransfer fit TABLE" in capsys.readouterr().err
