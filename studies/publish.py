"""Make a published table, studies/tables/NAME.parquet, of a study directory or of a plain table.

    python studies/publish.py DIR|NAME.tar.gz|TABLE.csv [--name NAME] [--column NAME=VALUE]

A study's table holds one row per finished trial with every column of its results files, loss curves
and provenance among them, in an order that does not depend on how it ran. What the study directory
says of itself (settings, text, versions, the plan's machines and groups) lies in the file's
metadata under the key `hptransfer`, by which `hptransfer verify` trains a trial as it was trained.
"""

import argparse
import json
import tarfile
import tempfile
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from hptransfer.study._plan import Plan
from hptransfer.study.store import ARROW_SCHEMA, read_trials

TABLES = Path(__file__).parent / "tables"
ORDER = ("width", "parameterization", "weight_decay", "base_lr", "seed")


def read_study(directory: Path) -> pa.Table:
    """Return all rows of a study directory, with what it says of itself as metadata."""
    found = read_trials(directory)
    for path, reason in (*found.damaged, *found.foreign):
        raise SystemExit(f"{path}: expected results of this study as they were written: {reason}")
    if found.num_unchecked:
        print(f"{directory}: {found.num_unchecked} results files of an older version are unchecked")
    rows = found.rows
    rounds = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((directory / "plan").glob("round-*.json"))
    ]
    planned = Plan.read(directory).by_name
    stored = {path.stem for path in (directory / "groups").glob("*.parquet")}
    about = {
        "study": json.loads((directory / "study.json").read_text(encoding="utf-8")),
        "machines": [each["machine"] for each in rounds],
        "groups": [asdict(group) for name, group in planned.items() if name in stored],
    }
    return rows.replace_schema_metadata({"hptransfer": json.dumps(about, sort_keys=True)})


def read_source(source: Path) -> pa.Table:
    """Return the rows of a study directory, a packed one, or a CSV file."""
    if source.is_dir():
        return read_study(source)
    if source.name.endswith(".tar.gz"):
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(source) as packed:
                packed.extractall(folder, filter="data")
            (study,) = Path(folder).iterdir()
            return read_study(study)
    return pyarrow.csv.read_csv(source)


def publish(source: Path, name: str, extra: dict[str, str]) -> Path:
    """Write a table, with `extra` columns of one value each, and return where it is."""
    rows = read_source(source)
    for column, value in extra.items():
        rows = rows.append_column(column, pa.array([value] * len(rows)))
    for place, field in enumerate(rows.schema):
        if field.name in ARROW_SCHEMA.names:  # a plain table knows no types
            typed = ARROW_SCHEMA.field(field.name)
            rows = rows.set_column(place, typed, rows.column(place).cast(typed.type))
    rows = rows.sort_by([(column, "ascending") for column in ORDER])
    path = TABLES / f"{name}.parquet"
    TABLES.mkdir(exist_ok=True)
    pq.write_table(rows, path, compression="zstd", compression_level=19)
    print(f"{path}: {len(rows)} trials, {path.stat().st_size} bytes")
    return path


def main() -> None:
    """Publish what is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--name", help="the table's (default: the source's)")
    parser.add_argument("--column", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    extra = dict(pair.split("=", 1) for pair in args.column)
    publish(args.source, args.name or args.source.name.split(".")[0], extra)


if __name__ == "__main__":
    main()
