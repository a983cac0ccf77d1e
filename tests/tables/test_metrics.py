"""Tables of metrics: the ways to say which switches are on, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hptransfer.errors import ConfigError, DataError, HptransferError
from hptransfer.scaling import LATTICE
from hptransfer.tables.metrics import read_metrics

PUBLISHED = Path(__file__).parents[2] / "studies/published/kalra_barkeshli_2026_metrics.csv"
NAMES = "parameterization,weight_decay,E\n"


def write(tmp_path: Path, text: str, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def read(tmp_path: Path, text: str, **options):
    return read_metrics(write(tmp_path, text), **options)


def on(table, row: int) -> str:
    return "+".join(name for name, column in table.switches.items() if column[row])


def test_published_table() -> None:
    table, notes = read_metrics(PUBLISHED)
    assert len(table) == 124
    assert list(table.switches) == ["embd", "ln", "attn", "last"]
    assert list(table.setting) == ["weight_decay"]
    assert len(set(table.setting["weight_decay"])) == 8
    assert table.effects == {"E": "ratio", "R_inf": "difference", "kappa": "difference"}
    assert table.metrics["E"][0] == 0.048623
    assert notes == ()


def test_published_copy_is_the_shared_file() -> None:
    shared = Path(__file__).parents[3] / "shared/data" / PUBLISHED.name
    if not shared.exists():
        pytest.skip(f"no {shared.name} beside the project to compare the copy with")
    assert PUBLISHED.read_bytes() == shared.read_bytes()


def test_every_name_of_the_lattice_says_its_switches(tmp_path: Path) -> None:
    rows = [f"{name},0,{k + 1}" for k, name in enumerate(LATTICE)]
    table, _ = read(tmp_path, NAMES + "\n".join(rows))
    assert len({tuple(bits) for bits in zip(*table.switches.values(), strict=True)}) == 16
    assert [on(table, row) for row in (0, 15)] == ["", "embd+ln+attn+last"]


def test_any_spelling_and_any_column_name(tmp_path: Path) -> None:
    text = "rule;wd;fit error;note\nSP+Attn+Embd;1e-4;0.5;a\nµP - LN;0.0001;2;b\nMUP;nan;1;\n"
    columns = {"parameterization": "rule", "E": "fit error", "weight_decay": "wd"}
    table, _ = read(tmp_path, text, columns=columns, by=["note"])
    assert [on(table, row) for row in range(3)] == [
        "embd+attn", "embd+attn+last", "embd+ln+attn+last"
    ]  # fmt: skip
    assert table.setting["weight_decay"].tolist() == [1e-4, 1e-4, "nan"]
    assert table.setting["note"].tolist() == ["a", "b", ""]


def test_each_cell_of_a_setting_that_is_a_number_is_one(tmp_path: Path) -> None:
    text = "sp,1e-4,1\nsp+embd,0.0001,2\nsp,default,3\nsp+embd,default,4\n"
    table, _ = read(tmp_path, NAMES + text)
    assert table.setting["weight_decay"].tolist() == [1e-4, 1e-4, "default", "default"]


def test_a_column_is_named_as_the_file_writes_it(tmp_path: Path) -> None:
    text = '"parameterization","fit\terror "\nsp,0.5\nmup,2\n'
    table, _ = read(tmp_path, text, columns={"E": "fit\terror "})
    assert table.metrics["E"].tolist() == [0.5, 2]


def test_what_is_a_setting(tmp_path: Path) -> None:
    text = ",parameterization,weight_decay,depth,alpha,kappa,E,id\n0,sp,0,2,0.5,1,1,7\n"
    table, _ = read(tmp_path, text)
    assert list(table.setting) == ["weight_decay", "depth", "id"]
    assert list(table.metrics) == ["E", "kappa"]
    table, _ = read(tmp_path, text, by=["depth"], metrics={"alpha": "difference"})
    assert list(table.setting) == ["weight_decay", "depth"]
    assert list(table.metrics) == ["alpha"]
    with pytest.raises(ConfigError, match=r"no column 'dept' .*did you mean 'depth'"):
        read(tmp_path, text, by=["dept"])


def test_where_picks_rows(tmp_path: Path) -> None:
    text = "parameterization,steps,E\nsp,100,1\nmup,100,2\nsp,200,3\n"
    table, _ = read(tmp_path, text, where={"steps": "100"})
    assert table.metrics["E"].tolist() == [1, 2]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    columns = {"parameterization": ["SP+Embd+Attn", "sp+last"], "attn": [1.0, 0.0]}
    pq.write_table(pa.table({**columns, "E": [0.5, 1.0], "kappa": [None, 1.0]}), path)
    table, notes = read_metrics(path)
    assert [on(table, row) for row in range(2)] == ["embd+attn", "last"]
    assert np.isnan(table.metrics["kappa"][0])
    assert notes == ("kappa: 1 of 2 rows have no value that is identified",)


def test_some_switch_columns_beside_names_are_no_setting(tmp_path: Path) -> None:
    table, notes = read(tmp_path, "parameterization,last,E\nsp+embd,0.3,1\n")
    assert on(table, 0) == "embd"
    assert table.setting == {}
    assert notes == ()


def test_repeated_rows_count_once(tmp_path: Path) -> None:
    table, notes = read(tmp_path, NAMES + "sp,0,1\nsp,0.0,1\nSP,0,1\nmup,0,\nmup,0,\n")
    assert len(table) == 2
    assert notes[-1] == "3 repeated row(s) left out"


def test_fit_json(tmp_path: Path) -> None:
    def fit(name: str, decay: float, **metrics):
        estimates = {
            key: {"value": value, "low": None, "high": None, "status": status, "reason": ""}
            for key, (value, status) in metrics.items()
        }
        group = {"parameterization": name, "weight_decay": decay}
        return {"group": group, "metrics": estimates, "basins": []}

    fits = [
        fit("sp", 0.0, E=(0.5, "identified"), kappa=(3.0, "not identified")),
        fit("sp+embd", 0.0, E=(0.25, "weakly identified")),
    ]
    path = write(tmp_path, json.dumps({"schema": 1, "fits": fits}), "fits.json")
    table, notes = read_metrics(path)
    assert [on(table, row) for row in range(2)] == ["", "embd"]
    assert table.metrics["E"].tolist() == [0.5, 0.25]
    assert table.setting["weight_decay"].tolist() == [0.0, 0.0]
    assert notes == ("kappa: 2 of 2 rows have no value that is identified",)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fits": 3}', '{"fits": [{}]}', "[" * 100_000])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text, "fits.json")
    with pytest.raises(DataError, match="expected what hptransfer fit --json prints"):
        read_metrics(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            NAMES + "sp,0,1\nspp,0,1\n",
            r"row 2 \(line 3\): .*expected a name of the.*'spp'; did you mean 'sp'",
        ),
        (
            "rule,E\nsp,1\n",
            "no column 'parameterization'.*found rule, E; name it with --columns par",
        ),
        ("parameterization,e_fit\nsp,1\n", "no column 'E'.*found parameterization, e_fit; name it"),
        (NAMES + "sp,0,low\n", r"row 1 \(line 2\): column 'E': expected a number, found 'low'"),
        (NAMES + "sp,0,0\n", r"column 'E': expected a positive number.* ratio, found '0'"),
        (NAMES + "sp,0,1\nsp,0,2\n", r"row 1 .* and row 2 .* \(weight_decay\) but E 1 and 2"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, text)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_places(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found a directory; hptransfer fit"):
        read_metrics(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        read_metrics(tmp_path / "gone.json")
    with pytest.raises(ConfigError, match=r"--columns E=fit: no column 'fit'"):
        read(tmp_path, NAMES + "sp,0,1\n", columns={"E": "fit"})
    path = write(tmp_path, '{"fits": []}', "fits.json")
    with pytest.raises(DataError, match="empty table"):
        read_metrics(path)


CELLS = st.one_of(
    st.sampled_from(["sp", "mup", "sp+embd", "0", "1", "", "nan", "inf", "-1", "1e999", "=A1"]),
    st.text(max_size=6),
)


@settings(max_examples=60, deadline=None)
@given(
    header=st.lists(
        st.sampled_from(["parameterization", "embd", "ln", "attn", "last", "E", "kappa", "x"]),
        min_size=1, max_size=7,
    ),
    rows=st.lists(st.lists(CELLS, min_size=7, max_size=7), max_size=5),
)  # fmt: skip
def test_damaged_tables_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, header: list[str], rows: list[list[str]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "t.csv"
    lines = [header, *(row[: len(header)] for row in rows)]
    path.write_bytes("\n".join(",".join(line) for line in lines).encode("utf-8", "replace"))
    message = "no error"
    try:
        table, _ = read_metrics(path)
        assert len(table) > 0
    except HptransferError as error:
        message = str(error)
    assert len(message.splitlines()) == 1
