"""Priors by kind of sweep: which kind, and as a file."""

from pathlib import Path

import pytest

from hptransfer.errors import FitError
from hptransfer.stats.priors import PRIORS, classify, read_priors, write_priors


@pytest.mark.parametrize(
    ("size", "axis", "name", "kind"),
    [
        ("width", "as given", "SP", "raw"),
        ("width", "global", "sp+embd", "raw"),
        ("width", "hidden-aligned", "sp", "aligned"),
        ("width", "as given", "muP", "aligned"),
        ("width", "as given", "µP-last", "aligned"),
        ("n_layers_depth", "as given", "sp", "aligned"),
        ("params_N", "as given", "sp", "parameters"),
        ("tokens_D", "as given", "mup", "tokens"),
        ("width", "as given", None, "unknown"),
        ("width", "as given", "my rule", "unknown"),
    ],
)
def test_kinds(size: str, axis: str, name: str | None, kind: str) -> None:
    assert classify(size, axis, name) == kind
    assert kind in PRIORS


def test_a_file_holds_the_table(tmp_path: Path) -> None:
    path = tmp_path / "priors.json"
    write_priors(PRIORS, path)
    assert read_priors(path) == PRIORS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected an object of priors by kind"),
        ("{", "expected JSON"),
        ('{"raw": {"slope": -0.5}}', "raw.errors.same: expected a positive number, found None"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "priors.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FitError, match=message):
        read_priors(path)
    with pytest.raises(FitError, match="No such file"):
        read_priors(tmp_path / "none.json")
