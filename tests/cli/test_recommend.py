import json
import math
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hptransfer.cli.main import main
from hptransfer.cli.recommend import _write_next, _write_toml
from hptransfer.errors import ConfigError
from hptransfer.stats import fit_table
from hptransfer.study._trial import list_trials
from hptransfer.study.config import load_study
from hptransfer.tables import read_source, read_table


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    rows = ["width,lr,seed,loss"]
    for width in (32, 64, 128, 256):
        for log2_lr in range(-9, -2):
            for seed in (0, 1):
                u = (log2_lr + 6) * np.log(2)
                loss = 3 + 8 / width**0.5 + 0.06 * u**2 + rng.normal(0, 0.002)
                rows.append(f"{width},{2.0**log2_lr},{seed},{loss:.6f}")
    path = tmp_path / "t.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_json_is_the_documented_document(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", str(table), "--width", "1024", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    assert document["schema"] == 1
    (item,) = document["recommendations"]
    assert item["group"] == {}
    assert item["width"] == 1024
    assert item["lr"]["low"] <= 2.0**-6 <= item["lr"]["high"]
    assert item["loss"]["low"] <= 3.25 <= item["loss"]["high"]
    assert list(item["regret"]) == ["recommended", "same_lr", "inverse_width"]
    assert item["verdict"] in ("usable", "risky", "unusable")
    assert item["because"]
    proposal = item["next"]
    assert proposal["missing"] == []
    assert [list(step) for step in proposal["steps"]] == [
        ["width", "new", "lrs", "trials", "cost", "half_width", "gain"]
    ] * len(proposal["steps"])
    halves = [proposal["half_width"], *(step["half_width"] for step in proposal["steps"])]
    assert halves == sorted(halves, reverse=True)


def test_further_risky_groups_are_said_to_be_where_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses that fall to the grid's edge in both groups: neither answer is usable."""
    rows = [f"{rule},{width},{2.0**k},{3 - 0.1 * k}" for rule in ("sp", "mup")
            for width in (32, 64, 128) for k in range(-8, -3)]  # fmt: skip
    path = tmp_path / "edge.csv"
    path.write_text("\n".join(["parameterization,width,lr,loss", *rows]) + "\n")
    command = ["recommend", str(path), "--width", "256"]
    for more, said in (([], "(1 more: --verbose)"), (["--verbose"], "(1 more: below)")):
        assert main([*command, *more]) == 0
        assert said in " ".join(capsys.readouterr().out.split())


def test_a_scatter_held_is_held_for_the_losses_laws_too(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recommend", str(table), "--width", "1024", "--scatter", "0", "--json"]) == 0
    (item,) = json.loads(capsys.readouterr().out)["recommendations"]
    read = read_table(table)
    (held,) = fit_table(read, scatter=0.0).recommend(width=1024, scatter=0.0)
    (found,) = fit_table(read).recommend(width=1024)
    assert item["loss"] == held.loss.to_dict() != found.loss.to_dict()


def test_the_answer_in_words(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", str(table), "--width", "512", "--verbose"]) == 0
    out, _ = capsys.readouterr()
    for expected in ("width 512", "all trials: usable", "learning rate", "0.01", "because",
                     "lr* is open to a factor of", "forms that carry it"):  # fmt: skip
        assert expected in out, expected
    assert max(map(len, out.splitlines())) <= 80
    assert main(["recommend", str(table), "--width", "512"]) == 0
    brief, _ = capsys.readouterr()
    assert out.startswith(brief)
    assert len(brief.splitlines()) <= 10


def test_a_multiple_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{n},{2.0**k}x,{3 + 8 / n + 0.06 * k**2}" for n in (32, 64) for k in range(-3, 4)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["width,lr,loss", *rows]) + "\n")
    assert main(["recommend", str(path), "--width", "128", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert "\nmultiple of the learning rate: " in out
    assert "\nlearning rate: " not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "0"], "--width: expected a number above 0, found '0'"),
        (["--width", "nan"], "--width: expected a number above 0, found 'nan'"),
        (["--width", "512", "--tokens", "1e9"], "no column .tokens. to be an axis"),
        (
            ["--width", "512", "--tokens", "1e9", "--write-next", "next.toml"],
            "--write-next: expected it left out with --tokens: further trials are proposed for",
        ),
        (
            ["--width", "512", "--pool", "weight_decay,parameterization", "--write-next", "n.toml"],
            "--write-next: expected it left out with --pool weight_decay",
        ),
    ],
)
def test_wrong_options(
    table: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["recommend", str(table), *arguments]) == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert re.search(message, err)


def test_a_table_that_cannot_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("width,lr,loss\n8,0.5,1\n8,1,2\n")
    assert main(["recommend", str(path), "--width", "64", "--verbose"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "unusable" in out
    assert "not identified" in out
    assert "next: needed for an answer: a point to the left of 2^-1 at width 8" in out


def test_what_next_is_written_trained_and_asked_for_again(study_file, finished, tmp_path, capsys):
    """The points that a minimum lacks go to the end of the study's own file, and `run` trains them
    into the same directory; a new file holds the whole study."""
    ask = ["recommend", str(finished), "--width", "128", "--write-next"]
    before = study_file.read_text()
    assert main([*ask, str(study_file)]) == 0
    found = capsys.readouterr()
    assert f"next: hptransfer run {study_file} -o {finished}" in found.err
    assert study_file.read_text().startswith(before)
    fresh = tmp_path / "whole.toml"
    assert main([*ask, str(fresh)]) == 0
    grown, whole = load_study(study_file), load_study(fresh)
    assert grown.points
    assert whole == grown
    assert all(width % 8 == 0 for width in grown.widths)
    number = int(re.search(r"(\d+) trials in", found.err)[1])
    assert len(list_trials(grown)) == 24 + number
    # Asked twice, nothing is written twice.
    assert main([*ask, str(study_file)]) == 0
    assert "is left as it is" in capsys.readouterr().err
    assert load_study(study_file) == grown

    command = ["run", str(study_file), "-o", str(finished), "--workers", "1"]
    assert main(command) == 0
    assert f"{24 + number}/{24 + number} trials" in capsys.readouterr().err
    assert main(["status", str(finished), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pending"] == 0
    table = read_table(finished)
    assert set(table.width) == set(grown.widths)


def test_what_next_of_a_plain_table_is_for_a_study_file(table, tmp_path, study_file, capsys):
    """Each trial that is proposed is one that the table lacks."""
    path = tmp_path / "next.toml"
    assert main(["recommend", str(table), "--width", "512", "--write-next", str(path)]) == 0
    document = tomllib.loads(path.read_text())
    there = read_table(table)
    known = {*zip(there.width, np.round(np.log2(there.lr), 3), there.seed, strict=True)}
    proposed = [
        (width, round(math.log2(lr), 3), seed)
        for point in document["points"]
        for width in point["width"]
        for lr in point.get("lr") or [2.0**k for k in point["log2_lr"]]
        for seed in point["seeds"]
    ]
    assert len(proposed) == int(re.search(r"(\d+) trials in", capsys.readouterr().err)[1])
    assert len({*proposed}) == len(proposed)
    assert not known & {*proposed}
    # Pasted into a study file, they are trials of it.
    study_file.write_text(
        study_file.read_text().replace("head_size = 8", "head_size = 1") + path.read_text()
    )
    assert len(list_trials(load_study(study_file))) >= len(proposed)


def test_text_beyond_the_basic_plane_is_toml() -> None:
    document = {"data": {"text": "files:\N{BOOKS}/*.txt", "µ \N{BOOKS}": ["é", 'a"b']}}
    assert tomllib.loads(_write_toml(document)) == document


def test_what_next_keeps_the_points_that_a_study_has(finished, study_file, tmp_path):
    """In a new file they stand as they were, and what is proposed is counted alone."""
    known = [{"width": [64], "log2_lr": [-6.0], "seeds": [7]}]
    loaded = read_source(finished)
    config = {**loaded.settings["config"], "points": known}
    settings = {**loaded.settings, "config": config}
    items = fit_table(loaded.table).recommend(width=128)
    path = tmp_path / "new.toml"
    said = _write_next(path, [str(finished)], loaded.table, settings, items)
    first, *fresh = tomllib.loads(path.read_text())["points"]
    assert first == known[0]
    number = int(re.match(r"(\d+) trials in", said)[1])
    assert len(list_trials(load_study(path))) == 24 + 2 + number  # 2: one of each rule
    assert fresh

    idle = [replace(item, next=None) for item in items]
    nothing = tmp_path / "nothing.toml"
    said = _write_next(nothing, [str(finished)], loaded.table, settings, idle)
    assert said.endswith("nothing is written")
    assert not nothing.exists()


def test_what_next_tells_apart_what_a_study_file_does(table, tmp_path, capsys):
    """Groups by another column: one value is said in the file, several are refused."""
    head, *rows = table.read_text().splitlines()
    deep = tmp_path / "deep.csv"
    lines = [f"{row},{depth}\n" for row in rows for depth in (2, 4)]
    deep.write_text(f"{head},depth\n" + "".join(lines))
    fresh = tmp_path / "next.toml"
    ask = ["recommend", str(deep), "--width", "512", "--by", "depth", "--write-next", str(fresh)]
    assert main(ask) == 2
    assert capsys.readouterr().err.endswith("found 2, 4; write those of one with --where depth=2\n")
    assert not fresh.exists()
    assert main([*ask, "--where", "depth=2"]) == 0
    assert " Of depth 2.\n" in fresh.read_text().partition("[[points]]")[0]
    assert all(set(p) <= {"width", "log2_lr", "lr", "seeds"}
               for p in tomllib.loads(fresh.read_text())["points"])  # fmt: skip


def test_what_next_of_an_adaptive_study_is_its_own(finished, tmp_path):
    loaded = read_source(finished)
    config = loaded.settings["config"]
    adaptive = {**config, "sweep": {**config["sweep"], "base_lr": "adaptive"}}
    settings = {**loaded.settings, "config": adaptive}
    items = fit_table(loaded.table).recommend(width=128)
    with pytest.raises(ConfigError, match=r"a lower regret and more max_points in \[adaptive"):
        _write_next(tmp_path / "new.toml", [str(finished)], loaded.table, settings, items)


def test_what_next_is_of_whole_widths(tmp_path, capsys):
    path = tmp_path / "t.csv"
    grid = [(n, 2.0**k, 3 + 1 / n + 0.1 * (k + 5) ** 2) for n in (8, 12.5) for k in range(-8, -2)]
    path.write_text("width,lr,loss\n" + "".join(f"{n},{lr},{v}\n" for n, lr, v in grid))
    fresh = tmp_path / "next.toml"
    assert main(["recommend", str(path), "--width", "64", "--write-next", str(fresh)]) == 2
    expected = "--write-next: expected whole widths, as a study file has, found 12.5\n"
    assert capsys.readouterr().err.endswith(expected)
    assert not fresh.exists()


def test_what_next_is_not_written_into_another_file(finished, tmp_path, capsys):
    ask = ["recommend", str(finished), "--width", "128", "--write-next"]
    other = tmp_path / "other.toml"
    other.write_text((tmp_path / "small.toml").read_text().replace("batch = 4", "batch = 8"))
    assert main([*ask, str(other)]) == 2
    assert "found another study's" in capsys.readouterr().err
    other.write_text("width,lr,loss\n")
    assert main([*ask, str(other)]) == 2
    assert "--write-next" in capsys.readouterr().err
