"""Whatever a file holds, a command ends with a result or with one line; `hostile` makes files."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hptransfer.errors import DataError
from hptransfer.tables import read_source
from tables.hostile import judge, make_hostile


def test_hostile_tables_end_in_a_result_or_one_line(tmp_path: Path) -> None:
    found = {number: judge(make_hostile(number), tmp_path) for number in range(150)}
    bad = {number: verdict for number, verdict in found.items() if verdict not in KINDS}
    assert not bad
    assert set(found.values()) == KINDS


@pytest.mark.parametrize("number", [2478, 4322, 4666, 6358, 6392, 6521])
def test_tables_that_once_ended_in_a_traceback(tmp_path: Path, number: int) -> None:
    """Texts that are no UTF-8, a blank column that was asked for, losses of 1e-300."""
    assert judge(make_hostile(number), tmp_path) in KINDS


KINDS = {"result", "error"}


def test_a_table_is_made_from_its_number() -> None:
    assert make_hostile(7) == make_hostile(7)
    assert make_hostile(7) != make_hostile(8)


@settings(max_examples=100)
@given(
    suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet", ""]),
    start=st.sampled_from([b"", b"width,lr,loss\n", b'{"width": 8, "lr": 1, "loss": ', b"PAR1"]),
    data=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8")),
)
@example(suffix=".csv", start=b"\xff\xfe", data=b"\x00\xd8")
@example(suffix=".jsonl", start=b"", data=b"[" * 100_000)
def test_any_bytes_are_a_table_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, start: bytes, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"t{suffix}"
    path.write_bytes(start + data)
    message = ""
    try:
        assert len(read_source(path).table) > 0
    except DataError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1
    assert not message or (message.startswith(str(path)) and len(message) < 2000)
