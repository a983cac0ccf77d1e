import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hptransfer.errors import ConfigError, DataError
from hptransfer.tables import parse_columns, read_source, read_table

HEADER = "width,lr,loss\n"


def write(tmp_path: Path, text: str, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_reads_every_column(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "\ufeffparameterization,width,lr,weight_decay,seed,params,tokens,state,loss\n"
        "mup,64,0.125,0.1,0,1000,20000,completed,3.5\n"
        "\n"
        "sp,128,0.25,0,1,2000,40000,diverged,9.0\n"
        "sp,128,0.5,0,1,2000,7,completed,\n",
    )
    study = read_source(path)
    table = study.table
    assert table.width.tolist() == [64, 128, 128]
    assert table.lr.tolist() == [0.125, 0.25, 0.5]
    assert table.loss[0] == 3.5
    assert np.isnan(table.loss[1:]).all()
    assert table.seed.tolist() == [0, 1, 1]
    assert table.groups["parameterization"].tolist() == ["mup", "sp", "sp"]
    assert table.groups["weight_decay"].tolist() == [0.1, 0.0, 0.0]
    assert table.axis == "as given"
    assert table.source == str(path)
    assert (study.damaged, study.settings, study.notes) == ((), {}, ())


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_separators(tmp_path: Path, mark: str) -> None:
    text = "width,lr,loss\n8,0.5,1.5\n".replace(",", mark)
    assert read_table(write(tmp_path, text)).loss.tolist() == [1.5]


def test_parquet_equals_csv(tmp_path: Path) -> None:
    columns = {"width": [8, 16], "lr": [0.5, 0.25], "loss": [1.5, None], "seed": [0, 1]}
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path)
    csv = write(tmp_path, "width,lr,loss,seed\n8,0.5,1.5,0\n16,0.25,,1\n")
    one, other = read_table(path), read_table(csv)
    for name in ("width", "lr", "loss", "seed"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "inf", "-inf", "None", "NA", "null"])
def test_a_loss_that_is_no_number_is_a_diverged_trial(tmp_path: Path, cell: str) -> None:
    table = read_table(write(tmp_path, f"{HEADER}8,0.5,{cell}\n8,0.25,2\n"))
    assert math.isnan(table.loss[0])
    assert table.loss[1] == 2


def test_log2_lr_and_base_lr_stand_in_for_lr(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "width,log2_lr,loss\n8,-3,1\n8,-2.5,1\n"))
    np.testing.assert_allclose(table.lr, [0.125, 2**-2.5])
    both = read_table(write(tmp_path, "width,log2_lr,base_lr,loss\n8,-3,0.75,1\n"))
    assert both.lr.tolist() == [0.75]


def test_mapped_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "n_embd,learning_rate,val/loss,loss\n8,0.5,1.5,77\n")
    columns = parse_columns(["width=n_embd,lr=learning_rate", "loss=val/loss"])
    assert read_table(path, columns=columns).loss.tolist() == [1.5]
    with pytest.raises(DataError, match=r"row 1 .line 2.: column 'learning_rate': expected a pos"):
        read_table(write(tmp_path, "n_embd,learning_rate,val/loss\n8,-1,1.5\n"), columns=columns)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["width"], "expected OURS=THEIRS"),
        (["width="], "expected OURS=THEIRS"),
        (["wdth=n"], "did you mean 'width'"),
        (["width=a", "width=b"], "given twice"),
    ],
)
def test_wrong_mappings(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_columns(texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file"),
        ("\n\n", "empty file"),
        (HEADER, "empty table"),
        ("width,lr,val/loss\n1,1,1\n", "no column 'loss'; did you mean 'val/loss'"),
        ("widht,lr,loss\n1,1,1\n", "no column 'width'; did you mean 'widht'"),
        ("width,learning_rate,loss\n1,1,1\n", r"no column 'lr' \(or base_lr or log2_lr\)"),
        ("width,lr,loss,lr\n1,1,1,1\n", r"column 'lr' stands 2 times \(columns 2, 4\)"),
        (HEADER + "8,0.5\n", r"row 1 \(line 2\): expected 3 cells as in the header, found 2"),
        (HEADER + "8,0.5,1,2\n", r"row 1 .*found 4"),
        (HEADER + "8,0.5,1\n\n8,0,1\n", r"row 2 \(line 4\): column 'lr': expected a positive"),
        (HEADER + "8,-1,1\n", "column 'lr': expected a positive number, found '-1'"),
        (HEADER + "8,fast,1\n", "column 'lr': expected a positive number, found 'fast'"),
        (HEADER + "8,1_0,1\n", "column 'lr'"),
        (HEADER + "0,1,1\n", "column 'width': expected a positive"),
        (HEADER + "inf,1,1\n", "column 'width': expected a positive"),
        (HEADER + ",1,1\n", "column 'width': expected a positive number, found an empty cell"),
        (HEADER + "8,1,low\n", "column 'loss': expected a number, found 'low'"),
        ("width,lr,loss,seed\n8,1,1,0.5\n", "column 'seed': expected a whole number"),
        ("width,lr,loss,seed\n8,1,1,inf\n", "column 'seed': expected a whole number"),
        ("width,lr,loss,weight_decay\n8,1,1,-1\n", "column 'weight_decay': expected a number of 0"),
        ("width,lr,loss,state\n8,1,1,compleded\n", "expected a state .*did you mean 'completed'"),
        ("width,lr,loss,state\n8,1,1,failed\n", "no finished trial; 1 failed trial"),
        ('width,lr,loss\n8,1,"x' + "y" * 140_000 + '"\n', "not readable as CSV"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=message) as caught:
        read_table(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "gone.csv")
    binary = tmp_path / "t.csv"
    binary.write_bytes(b"width\xff")
    with pytest.raises(DataError, match="expected UTF-8 text or Parquet, found byte 0xff"):
        read_table(binary)
    damaged = tmp_path / "t.parquet"
    damaged.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="damaged Parquet file"):
        read_table(damaged)
    empty = tmp_path / "e.parquet"
    pq.write_table(pa.table({"width": pa.array([], pa.int64())}), empty)
    with pytest.raises(DataError, match="empty table"):
        read_table(empty)
    flags = tmp_path / "b.parquet"
    pq.write_table(pa.table({"width": [True], "lr": [1.0], "loss": [1.0]}), flags)
    with pytest.raises(DataError, match="row 1: column 'width': expected a positive number"):
        read_table(flags)


def test_unfinished_rows_are_left_out_with_a_note(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "width,lr,loss,state\n8,1,1,finished\n8,2,,failed\n8,4,,running\n8,8,,crashed\n8,16,2,\n",
    )
    study = read_source(path)
    assert study.table.lr.tolist() == [1, 16]
    assert study.notes == ("2 failed trial(s) left out", "1 pending trial(s) left out")


def test_conflicting_rows_are_refused(tmp_path: Path) -> None:
    seedless = write(tmp_path, HEADER + "8,1,2\n8,1,3\n")
    with pytest.raises(DataError, match=r"row 1 \(line 2\) and row 2 .*losses 2 and 3.*seed=NAME"):
        read_table(seedless)
    other = write(
        tmp_path,
        "id,width,lr,loss,seed,optimizer\n"
        + "".join(f"{k},8,{1 + k % 3},{k},0,{'ab'[k // 3]}\n" for k in range(6)),
    )
    with pytest.raises(DataError, match="they differ in 'optimizer': group with --by optimizer"):
        read_table(other)
    table = read_table(other, by=["optimizer"])
    assert table.groups["optimizer"].tolist() == list("aaabbb")
    unlike = write(tmp_path, "id,width,lr,loss,seed\n1,8,1,2,0\n2,8,1,3,0\n")
    with pytest.raises(DataError, match=r"expected each trial once$"):
        read_table(unlike)


def test_equal_rows_count_once(tmp_path: Path) -> None:
    study = read_source(write(tmp_path, HEADER + "8,1,2\n8,1,2\n8,2,\n8,2,nan\n"))
    assert len(study.table) == 2
    assert study.notes == ("2 repeated row(s) left out",)


def test_group_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "width,lr,loss,depth,kind\n8,1,1,2,a\n8,2,1,4.5, b \n")
    table = read_table(path, by=["depth", "kind"])
    assert table.groups["depth"].tolist() == [2, 4.5]
    assert table.groups["kind"].tolist() == ["a", "b"]
    with pytest.raises(ConfigError, match="--by: no column 'dept' to group by; did you mean 'dep"):
        read_table(path, by=["dept"])
    parquet = tmp_path / "g.parquet"
    pq.write_table(
        pa.table({"width": [8, 8], "lr": [1.0, 2.0], "loss": [1.0, 1.0], "kind": ["a", None]}),
        parquet,
    )
    assert read_table(parquet, by=["kind"]).groups["kind"].tolist() == ["a", ""]


def test_token_budgets(tmp_path: Path) -> None:
    mixed = write(tmp_path, "width,lr,loss,tokens\n8,1,1,1e6\n8,2,1,2e6\n")
    with pytest.raises(DataError, match=r"expected one token budget .*1e\+06 at row 1 .*split"):
        read_table(mixed)
    ratio = "width,lr,loss,tokens,params\n8,1,1,1e6,5e4\n16,2,1,2e6,1e5\n"
    assert len(read_table(write(tmp_path, ratio))) == 2
    with pytest.raises(DataError, match="one number of tokens per parameter"):
        read_table(write(tmp_path, ratio + "16,4,1,4e6,1e5\n"))
    # A diverged trial stopped early: its tokens are no budget.
    assert len(read_table(write(tmp_path, ratio + "16,4,,3,1e5\n"))) == 3
    assert len(read_table(write(tmp_path, "width,lr,loss,tokens\n8,1,,1e6\n"))) == 1


@given(
    rows=st.lists(
        st.tuples(
            st.integers(1, 4096),
            st.floats(1e-9, 1e3),
            st.one_of(st.none(), st.floats(0, 100)),
        ),
        min_size=1,
        max_size=12,
        unique_by=lambda row: row[:2],
    )
)
def test_any_table_survives_the_way_through_a_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, float, float | None]]
) -> None:
    lines = [f"{n},{lr!r},{'' if loss is None else repr(loss)}\n" for n, lr, loss in rows]
    table = read_table(write(tmp_path_factory.mktemp("t"), HEADER + "".join(lines)))
    expected = [math.nan if loss is None else loss for _, _, loss in rows]
    np.testing.assert_array_equal(table.loss, expected)
    assert table.lr.tolist() == [lr for _, lr, _ in rows]
    assert table.width.tolist() == [n for n, _, _ in rows]
