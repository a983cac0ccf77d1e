"""Groups that ran out of memory: each is split in halves, once, in a file of the plan.

``plan/split-NAME.json`` holds the halves of the group NAME. It is created before they start and
never changes, so that every process and every later run trains the same halves.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from hptransfer._atomic import atomic_write
from hptransfer.errors import StoreError
from hptransfer.study.plan import PLAN_SCHEMA, Group, name_group, parse_group
from hptransfer.study.store import PLAN_FOLDER, group_path

Splits = Mapping[str, tuple[Group, ...]]
"""The halves of every group that was split, by its name."""


def split_path(directory: Path, name: str) -> Path:
    """Return where a group's split is or will be."""
    return directory / PLAN_FOLDER / f"split-{name}.json"


def halve_group(group: Group) -> tuple[Group, Group]:
    """Return two groups that train what one of at least two runs trains, the larger one first."""
    assert len(group.runs) > 1
    middle = (len(group.runs) + 1) // 2
    first, second = (
        replace(
            group,
            name=name_group(group.width, runs),
            runs=runs,
            seconds=group.seconds * len(runs) / len(group.runs),
        )
        for runs in (group.runs[:middle], group.runs[middle:])
    )
    return first, second


def write_split(directory: Path, group: Group) -> None:
    """Split a group in the plan, unless another process has split it already."""
    document = {
        "schema": PLAN_SCHEMA,
        "group": group.name,
        "groups": [asdict(half) for half in halve_group(group)],
    }
    try:
        with atomic_write(split_path(directory, group.name), replace=False) as tmp:
            tmp.write_text(json.dumps(document, indent=1), encoding="utf-8")
    except FileExistsError:
        return


def read_splits(directory: Path) -> Splits:
    """Return all splits of a study's plan.

    Raises
    ------
    StoreError
        If a split's file cannot be read.
    """
    splits: dict[str, tuple[Group, ...]] = {}
    for path in sorted((directory / PLAN_FOLDER).glob("split-*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            splits[document["group"]] = tuple(map(parse_group, document["groups"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: expected a plan's split, found damage ({error})") from None
    return splits


def list_parts(group: Group, splits: Splits) -> tuple[Group, ...]:
    """Return what is trained in place of a group: itself, or its halves, or theirs."""
    halves = splits.get(group.name)
    if halves is None:
        return (group,)
    return tuple(part for half in halves for part in list_parts(half, splits))


def find_stored(directory: Path, name: str, splits: Splits) -> str | None:
    """Return the group whose results file covers the group called `name`: its own, or a whole's.

    A whole that another process had in training when it was split may be stored all the same.
    """
    if group_path(directory, name).exists():
        return name
    for whole, halves in splits.items():
        if any(half.name == name for half in halves):
            return find_stored(directory, whole, splits)
    return None
