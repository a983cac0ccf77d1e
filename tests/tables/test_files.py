import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hptransfer.cli._arguments import parse_columns, parse_where
from hptransfer.errors import ConfigError, DataError
from hptransfer.report.words import describe_note
from hptransfer.tables import read_source, read_table

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
    assert (study.damaged, study.settings) == ((), {})
    assert [(note.kind, note.values["count"]) for note in study.notes] == [("blank", 1)]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
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


def test_json_lists_runs_and_a_key_names_one(tmp_path: Path) -> None:
    runs = [
        {"config": {"width": 8, "lr": 0.5}, "summary": {"loss": 1.5}},
        {"config": {"width": 16, "lr": 0.25}, "summary": {"loss": math.nan}},
    ]
    columns = {"width": "config.width", "lr": "config.lr", "loss": "summary.loss"}
    for document in (runs, {"a": runs[0], "b": runs[1]}):
        path = write(tmp_path, json.dumps(document), "t.json")
        table = read_table(path, columns=columns)
        assert table.width.tolist() == [8, 16]
        assert table.loss[0] == 1.5
        assert math.isnan(table.loss[1])
    one = read_table(path, columns=columns, where={"run": "a"})
    assert one.width.tolist() == [8]


def test_a_document_is_no_lines_whose_first_ends_with_a_brace(tmp_path: Path) -> None:
    text = '{"about": {"by": "me"}\n,"runs": [{"width": 8, "lr": 0.5, "loss": 1.5}]}\n'
    assert read_table(write(tmp_path, text, "t.json")).width.tolist() == [8]
    lines = '{"n": {"width": 8}, "lr": 0.5, "loss": 1.5}\n' * 2
    table = read_table(write(tmp_path, lines, "t.json"), columns={"width": "n.width"})
    assert table.width.tolist() == [8]


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
        ("width,lr,my/loss\n1,1,1\n", "no column 'loss'; did you mean 'my/loss'"),
        ("widht,lr,loss\n1,1,1\n", "no column 'width'; did you mean 'widht'"),
        ("width,rate,loss\n1,1,1\n", r"no column 'lr' \(or base_lr, log2_lr, log10_lr or ln_lr"),
        ("width,lr,loss,lr\n1,1,1,1\n", r"column 'lr' stands 2 times \(columns 2, 4\)"),
        (HEADER + "8,0.5\n", r"row 1 \(line 2\): expected 3 cells as in the header, found 2"),
        (HEADER + "8,0.5,1,2\n", r"row 1 .*found 4"),
        (HEADER + "8,0.5,1\n\n8,0,1\n", r"row 2 \(line 4\): column 'lr': expected a positive"),
        (HEADER + "8,-1,1\n", "column 'lr': expected a positive number, found '-1'"),
        (
            HEADER + "8,-3,1\n",
            r"'-3'; .* --columns log2_lr=lr \(0\.125 to 0\.125\) or --columns log10_lr",
        ),
        (HEADER + "8,fast,1\n", "column 'lr': expected a positive number, found 'fast'"),
        (HEADER + "8,1_0,1\n", "column 'lr'"),
        (HEADER + "8,1e300,1\n", "column 'lr': expected a positive number, found '1e300'"),
        (HEADER + f"8,1,=1+{'1' * 99}\n", "column 'loss': expected a number, found '=1.*…"),
        ("width;lr;loss\n8;0,5;1\n", "found '0,5'; write decimals with a point"),
        ("64,0.5,2\n64,0.25,2\n", "header: expected names of columns .* found numbers"),
        (
            "width,log2_lr,loss\n8,-3000,1\n",
            "found '-3000'; as a logarithm to base 2 it is no learning rate",
        ),
        ("width,Lr,LR,loss\n8,1,1,1\n", "no column 'lr'"),
        (HEADER + "8,1,\x00\n", "column 'loss'"),
        ("width,lr,loss,state\n8,1,1,\u2028x\n", "found '.u2028x'"),
        (HEADER + "0,1,1\n", "column 'width': expected a positive"),
        (HEADER + "inf,1,1\n", "column 'width': expected a positive"),
        (HEADER + ",1,1\n", "column 'width': expected a positive number, found an empty cell"),
        ('"wid\nth",lr,loss\n8,1,1\n', "no column 'width'; did you mean 'wid th'"),
        (HEADER + "8,1,low\n", "column 'loss': expected a number, found 'low'"),
        ("width,lr,loss,seed\n8,1,1,0.5\n", "column 'seed': expected a whole number"),
        ("width,lr,loss,seed\n8,1,1,0\n8,2,1,O\n", "row 2 .* 'seed': expected a whole .*'O'"),
        ("width,lr,loss,seed\n8,1,1,0\n8,2,1,\n", "row 2 .* 'seed': .*found an empty cell"),
        ("width,lr,loss,seed\n8,1,1,inf\n", "column 'seed': expected a whole number"),
        ("width,lr,loss,weight_decay\n8,1,1,-1\n", "column 'weight_decay': expected a number of 0"),
        ("width,lr,loss,state\n8,1,1,compleded\n", "expected a state .*did you mean 'completed'"),
        ("width,lr,loss,state\n8,1,1,failed\n", "no finished trial; 1 failed trial"),
        (
            "width,lr,loss,state\n8,1,1,failed\n8,2,1,killed\n8,3,1,running\n",
            "out; if they diverged, --diverged failed,killed$",
        ),
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
    with pytest.raises(DataError, match="expected UTF-8 text, found byte 0xff"):
        read_table(binary)
    damaged = tmp_path / "t.parquet"
    damaged.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="damaged Parquet file"):
        read_table(damaged)
    empty = tmp_path / "e.parquet"
    pq.write_table(pa.table({"width": pa.array([], pa.int64())}), empty)
    with pytest.raises(DataError, match="empty table"):
        read_table(empty)
    late = tmp_path / "late.csv"
    late.write_bytes(b"x" * (1 << 20) + b"\xc3\x28")
    with pytest.raises(DataError, match="found byte 0xc3 at offset 1048576"):
        read_table(late)
    short = tmp_path / "short.csv"
    short.write_bytes("width".encode("utf-16")[:-1])
    with pytest.raises(DataError, match="found text that ends too early"):
        read_table(short)
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
    assert [describe_note(note) for note in study.notes] == [
        f"1 {state} trial(s) left out, all above the best learning rate of their width{more}"
        for state, more in (
            ("failed", "; if they diverged, --diverged failed"),
            ("pending", ""),
            ("crashed", "; if they diverged, --diverged crashed"),
        )
    ]


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
    with pytest.raises(DataError, match=r"expected each trial once; of retries, --keep last$"):
        read_table(unlike)


def test_equal_rows_count_once(tmp_path: Path) -> None:
    study = read_source(write(tmp_path, HEADER + "8,1,2\n8,1,2\n8,2,\n8,2,nan\n"))
    assert len(study.table) == 2
    assert [note.kind for note in study.notes] == ["blank", "repeated"]


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
    # One budget at each width needs no parameters, and is said to change with it.
    for rows in (ratio, "width,lr,loss,tokens\n8,1,1,1e6\n8,2,1,1.01e6\n16,2,1,7e6\n"):
        loaded = read_source(write(tmp_path, rows))
        assert loaded.table.budget_growth(np.arange(len(loaded.table))) > 0.9
        told = [each.values["columns"] for each in loaded.notes if each.kind == "with_width"]
        assert told == ["tokens"]
    with pytest.raises(DataError, match="one number of tokens per parameter"):
        read_table(write(tmp_path, ratio + "16,4,1,4e6,1e5\n"))
    # A diverged trial stopped early: its tokens are no budget.
    assert len(read_table(write(tmp_path, ratio + "16,4,,3,1e5\n"))) == 3
    assert len(read_table(write(tmp_path, "width,lr,loss,tokens\n8,1,,1e6\n"))) == 1


@given(
    rows=st.lists(
        st.tuples(
            st.integers(1, 4096),
            st.integers(-120, 40).map(lambda k: 2.0 ** (k / 4)),
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


# --- Other kinds of files -------------------------------------------------------------------


def test_tsv_with_quotes_commas_and_windows_line_ends(tmp_path: Path) -> None:
    text = 'width\tlr\tloss\tkind\r\n8\t0.5\t1.5\t"a, b\tc"\r\n'
    table = read_table(write(tmp_path, text, "t.tsv"), by=["kind"])
    assert table.groups["kind"].tolist() == ["a, b c"]


def test_utf_16_as_spreadsheets_write_it(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("width\tlr\tloss\r\n8\t0.5\t1.5\r\n".encode("utf-16"))
    assert read_table(path).loss.tolist() == [1.5]


def test_a_column_without_a_name_is_nobodys(tmp_path: Path) -> None:
    assert len(read_table(write(tmp_path, ",width,lr,loss,\n0,8,0.5,1.5,\n"))) == 1


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    lines = (
        '\ufeff{"config": {"n": 8}, "lr": 0.5, "loss": 1.5, "seed": 12, "curve": [1, 2]}\n'
        "\n"
        '{"lr": 0.25, "loss": NaN, "config": {"n": 16}, "seed": 12, "tag": "\\ud800é"}\n'
    )
    table = read_table(write(tmp_path, lines, name), columns={"width": "config.n"}, by=["tag"])
    assert table.width.tolist() == [8, 16]
    np.testing.assert_array_equal(table.loss, [1.5, math.nan])
    assert table.groups["tag"].tolist() == ["", "?é"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file; expected a JSON object for each run"),
        ("[1]\n", r"row 1 \(line 1\): expected a JSON object for each run, such as .*found list"),
        ('\n{"width": 8,\n', r"row 1 \(line 2\): expected JSON: "),
        ('{"width": 8, "width": 8}\n', "key 'width' stands twice"),
        ("[" * 100_000, "expected JSON, found deep nesting"),
        ('{"width": ' + "9" * 5000 + "}", "expected JSON: Exceeds the limit"),
        ('{"width": 1' + "0" * 400 + ', "lr": 1, "loss": 1}', "column 'width': expected a pos"),
        ("{" + ", ".join(f'"{k}": 1' for k in range(5000)) + "}", "at most 4096 different keys"),
        ('{"width": true, "lr": 1, "loss": 1}', "column 'width': expected a pos.*found True"),
        ('{"width": 8, "lr": 1, "loss": 1, "state": 3}', "expected a state .*found 3"),
    ],
)
def test_wrong_json_lines(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text, "t.jsonl")
    with pytest.raises(DataError, match=message) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


def test_json_lines_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"width": 8}\n\xff')
    with pytest.raises(DataError, match="expected UTF-8 text, found byte 0xff"):
        read_table(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.json", b"[]", "empty file; expected a JSON object for each run"),
        ("t.json", b"[3]", "row 1: expected a JSON object for each run, such as .*found int"),
        ("t.json", b"{", "expected JSON: "),
        ("t.json", b"[" * 100_000, "expected JSON, found deep nesting"),
        ("t.json", b"[\xff]", "expected UTF-8 text, found byte 0xff at offset 1"),
        ("t.xyz", b"width", "expected CSV .*Parquet .*found a file named .xyz"),
        ("t.xlsx", b"PK\x03\x04", "found a zip archive or a spreadsheet; save the sheet as CSV"),
        ("t.csv.gz", b"\x1f\x8b", "found a gzip file; unpack it first"),
        ("t.csv", b"\x80\x04\x95", "found a pickle, which is never loaded"),
    ],
)
def test_other_files_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_table(path)


def test_parquet_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    columns = {
        "width": pa.array([8, 16], pa.uint8()),
        "lr": pa.array([0.5, 0.25], pa.float32()),
        "loss": pa.array(["1.5", "nan"]).dictionary_encode(),
        "day": pa.array([0, 1], pa.timestamp("ns")),
        "curve": [[1.0], [2.0]],
        "params": pa.nulls(2),
        "": [1, 2],
    }
    pq.write_table(pa.table(columns), path)
    table = read_table(path, by=["day"])
    np.testing.assert_array_equal(table.loss, [1.5, math.nan])
    assert table.groups["day"][0].startswith("1970-01-01 00:00:00")


# --- What columns mean ----------------------------------------------------------------------


def test_an_export_of_a_tracker(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '"Name","State","Created","config.n_embd","config.lr","config.seed","val/loss"\n'
        '"run-1","finished","2026-01-02T03:04:05.000Z","64","0.01","1","3.25"\n'
        '"run-2","finished","2026-01-02T03:04:06.000Z","64","0.1","1","NaN"\n'
        '"run-3","crashed","2026-01-02T03:04:07.000Z","64","1","1","NaN"\n'
        '"run-4","failed","2026-01-02T03:04:08.000Z","64","2","1",""\n'
        '"run-5","killed","2026-01-02T03:04:08.000Z","64","4","1","5"\n'
        '"run-6","running","2026-01-02T03:04:08.000Z","64","8","1","5"\n',
    )
    mapping = "width=config.n_embd,lr=config.lr,seed=config.seed,loss=val/loss"
    study = read_source(path, columns=parse_columns([mapping]))
    np.testing.assert_array_equal(study.table.loss, [3.25, math.nan])
    found = [(note.values["state"], note.values["count"]) for note in study.notes]
    assert found == [("crashed", 1), ("failed", 1), ("killed", 1), ("pending", 1)]


def test_names_in_other_letters_are_ours_where_nothing_else_is(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "Width,LR,Loss,loss,State\n8,1,9,1.5,\n"))
    assert (table.lr.tolist(), table.loss.tolist()) == ([1], [1.5])
    # A learning rate that is there, or named, is the one to use.
    path = write(tmp_path, "width,LR,base_lr,log2_lr,loss\n8,1,2,-3,1.5\n")
    assert read_table(path).lr.tolist() == [2]
    assert read_table(path, columns={"log2_lr": "log2_lr"}).lr.tolist() == [0.125]


def test_seeds_that_are_words_are_labels(tmp_path: Path) -> None:
    rows = "8,1,1,mean of 3\n8,2,1,b\n8,4,1,mean of 3\n"
    table = read_table(write(tmp_path, "width,lr,loss,seed\n" + rows))
    assert table.seed.tolist() == [0, 1, 0]
    hashes = f"8,1,1,{2**64 - 1}\n8,2,1,{2**64}\n"
    assert read_table(write(tmp_path, "width,lr,loss,seed\n" + hashes)).seed.tolist() == [0, 1]
    numbers = "8,1,1,7\n8,2,1,-1\n8,4,1,7.0\n"
    assert read_table(write(tmp_path, "width,lr,loss,seed\n" + numbers)).seed.tolist() == [7, -1, 7]


def test_an_optional_column_without_an_entry_is_absent(tmp_path: Path) -> None:
    path = write(tmp_path, "width,lr,loss,seed,params,tokens\n8,1,1,,,\n8,2,1,, ,\n")
    assert read_table(path).seed.tolist() == [0, 0]


def test_where_picks_rows(tmp_path: Path) -> None:
    text = "width,lr,loss,batch,opt\n8,1,1,32,Adam(W=1)\n8,1,2,64,Adam(W=1)\n8,1,3,64.0,\n"
    path = write(tmp_path, text)
    where = parse_where(["batch=6.4e1", "opt = Adam(W=1) "])
    assert read_table(path, where=where).loss.tolist() == [2]
    assert read_table(path, where={"opt": ""}).loss.tolist() == [3]
    # By the file's name or by ours, and errors still name the file's row.
    named = {"tokens": "batch"}
    assert read_table(path, columns=named, where={"tokens": "32"}).loss.tolist() == [1]
    assert read_table(path, columns=named, where={"batch": "32"}).loss.tolist() == [1]
    with pytest.raises(DataError, match=r"row 2 \(line 3\) and row 3 \(line 4\)"):
        read_table(path, where={"batch": "64"})
    with pytest.raises(ConfigError, match=r"--where: no cell of 'batch' is '33'.*found 32, 64"):
        read_table(path, where={"batch": "33"})
    with pytest.raises(ConfigError, match="--where: no column 'bach'; did you mean 'batch'"):
        read_table(path, where={"bach": "33"})
    for texts, message in (
        (["batch"], "expected COLUMN=VALUE"),
        (["a=1", "a=2"], "twice, as '1' and '2'"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_where(texts)


def test_budgets_are_looked_at_fit_by_fit(tmp_path: Path) -> None:
    path = write(tmp_path, "width,lr,loss,D\n8,1,1,1e6\n8,2,1,2e6\n8,1,1,2e6\n")
    columns = {"tokens": "D"}
    with pytest.raises(DataError, match=r"column 'D'.* with --by D, or .* --where D=2000"):
        read_table(path, columns=columns)
    # The file's own name of a mapped column groups too.
    assert read_table(path, columns=columns, by=["D"]).groups["tokens"].tolist() == [
        10**6, 2 * 10**6, 2 * 10**6,
    ]  # fmt: skip
    assert len(read_table(path, columns=columns, where={"D": "2e6"})) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "t.md",
            "# my sweep\n\n| width | lr | loss |\n|---|---|---|\n| 64 | 0.1 | 3 |\n| 64 | 0.2 |\n",
            r"row 2 \(line 6\): expected 3 cells as in the header, found 2",
        ),
        ("t.md", "|**width**|`lr`|loss|\n|:--|--|-:|\n|64|1|3|\n\n|64|2|x|\n", r"row 2 \(line 5\)"),
        ("t.txt", "width lr  loss\n64 0.1 3.0\n64  0.2 2.9 1\n", r"row 2 \(line 3\): .* found 4"),
        ("t.csv", '"wi\ndth",lr,loss\n64,0.1,3\n64,a,3\n', r"row 2 \(line 4\): column 'lr'"),
        ("t.csv", "width,lr,loss\n,,\n64,0.1,3\n,,\n64,-1,3\n", r"row 2 \(line 5\): column 'lr'"),
        ("t.csv", "width,lr,loss\r64,0.1,3\r64,zero,3\r", r"row 2 \(line 3\): column 'lr'"),
        ("t.jsonl", '{"n": 1, "lr": 1, "loss": 1}\n\n{"n": 1, "lr": "x"}\n', r"row 2 \(line 3\)"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    """Whatever a text is made into on the way: a row's line is where its file has it."""
    path = tmp_path / name
    path.write_bytes(text.encode())
    first = "n" if name == "t.jsonl" else "wi dth" if "dth" in text and "wi\n" in text else "width"
    with pytest.raises(DataError, match=message):
        read_table(path, columns={"width": first})


def test_a_letter_that_is_no_utf_8_is_shown_in_its_cell(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("width,lr,loss\n64,0.1,3\n64,0.2,3µ\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"found byte 0xb5 at offset 31 \('3µ' as Latin-1\)"):
        read_table(path)


def test_lists_in_lists_do_not_reach_arrow(tmp_path: Path) -> None:
    """Its parser recurses: a line of brackets ends in one line of words, or is no cell."""
    good = '{"width": 64, "lr": 0.1, "loss": 1, "a": ' + "[" * 200 + "]" * 200 + "}\n"
    assert len(read_table(write(tmp_path, good, "t.jsonl"))) == 1
    deep = good.replace("[" * 200, "[" * 50_000).replace("]" * 200, "]" * 50_000)
    with pytest.raises(DataError, match="found deep nesting"):
        read_table(write(tmp_path, deep, "t.jsonl"))
