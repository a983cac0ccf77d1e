"""The plan: which trials train together and how, fixed before the first step.

A study directory holds its plan in ``plan/round-NNN.json`` files that are created once and never
change; a grid that has grown adds a round, and an adaptive study adds one for every placement of
points. A group that ran out of memory is split into halves, once, by ``plan/split-NAME.json``, so
that every process and every later run trains the same halves. What these files record (stacking,
precision, threads) is what bit equality between a resumed and an undisturbed run rests on.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hptransfer._atomic import atomic_write
from hptransfer._documents import (
    DIGEST_KEY,
    PLACEHOLDER,
    DigestError,
    read_sealed_document,
    seal_file,
)
from hptransfer._messages import describe_error
from hptransfer.errors import ConfigError, StoreError
from hptransfer.study._trial import (
    BYTES_PER_STEP,
    Point,
    estimate_memory,
    num_params,
    num_steps,
)
from hptransfer.study.config import StudyConfig
from hptransfer.study.store import PLAN_FOLDER, group_path
from hptransfer.study.study_settings import read_identity

PLAN_SCHEMA = 3
"""Version of the plan's files; since 2 each carries a digest, since 3 that of its text."""

#: Stacked rows times width that keep one core's products busy; more only costs memory and, when
#: a process is killed, work. Measured on CPUs; GPUs are filled up to their memory.
CPU_TARGET_ELEMENTS = 2**20
CPU_MAX_STACKED = 32
#: Share of the memory that all groups at work may take together: of all of a machine's, and of
#: what is free on a GPU.
MEMORY_SHARE = {"cpu": 0.5, "cuda": 0.8}

DEVICES = ("cpu", "cuda")
ONE_BY_ONE = "one by one"
MODES = ("eager", "captured", "compiled", "compiled+captured", ONE_BY_ONE)
#: Threads of a training process that are believed of a plan.
MAX_THREADS = 4096

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the plan needs to know of the machine; recorded with it.

    Attributes
    ----------
    device : str
        ``cpu`` or ``cuda``.
    name : str
        The processor's or accelerator's name.
    memory : int
        Bytes in all; on GPUs those that are free, for all workers together.
    workers, threads : int
        Groups trained at a time, and threads that each uses.
    devices : tuple of str
        Names of the GPUs that workers share; empty on a CPU.
    """

    device: str
    name: str
    memory: int
    workers: int
    threads: int
    devices: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the name of the device, with their number where there are several.

        Examples
        --------
        >>> two = {"device": "cuda", "name": "H100", "devices": ("H100", "H100")}
        >>> Machine(**two, memory=2**36, workers=2, threads=8).describe()
        '2 x H100'
        """
        counts = Counter(self.devices or (self.name,))
        return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in counts.items())


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How to train a width, as measured on the machine.

    Attributes
    ----------
    precision : str
        Of the matrix products.
    seconds : float
        Per step and stacked run.
    mode : str
        How a step is taken: ``eager``, ``captured``, ``compiled`` or ``compiled+captured``.
    num_stacked : int or None
        K beyond which stacking more does not pay; None where that was not measured.
    run_bytes : int or None
        Memory of one run; None where that was not measured.
    note : str
        What a user should know of the choice, in one line; empty for nothing.
    """

    precision: Precision
    seconds: float
    mode: str = "eager"
    num_stacked: int | None = None
    run_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class StackedGroup:
    """Trials of one shape that train as one program.

    Attributes
    ----------
    name : str
        Also the stem of its results file.
    width : int
        D.
    runs : tuple of tuple of str
        One entry per stacked training run: the ids of the trials that it serves, which are
        those that resolve to equal numbers.
    precision : str
        Of the matrix products.
    device : str
        ``cpu`` or ``cuda``.
    threads : int
        Threads of the training process.
    seconds : float
        Time to expect, from measured speed.
    mode : str
        How a step is taken: ``eager``, ``captured``, ``compiled`` or ``compiled+captured``.
    stacked : int
        K of the program where that is more than the runs: those that are missing are padding,
        so that groups of one shape share what is compiled. 0 for as many as there are runs.
    memory : int
        Bytes to expect; 0 in a plan that does not record it.
    note : str
        What a user should know of the mode, in one line, such as why trials are not stacked.

    Examples
    --------
    >>> group = StackedGroup(
    ...     name="width-64-0a1b2c3d", width=64, runs=(("sp 1", "mup 1"), ("sp 2",)),
    ...     precision="bf16", device="cpu", threads=1, seconds=60.0,
    ... )
    >>> group.trial_ids, group.num_padding
    (('sp 1', 'mup 1', 'sp 2'), 0)
    """

    name: str
    width: int
    runs: tuple[tuple[str, ...], ...]
    precision: Precision
    device: str
    threads: int
    seconds: float
    mode: str = "eager"
    stacked: int = 0
    memory: int = 0
    note: str = ""

    @property
    def num_padding(self) -> int:
        """Stacked runs that serve no trial."""
        return max(0, self.stacked - len(self.runs))

    @property
    def trial_ids(self) -> tuple[str, ...]:
        """Ids of all trials that the group's results cover."""
        return tuple(trial for run in self.runs for trial in run)


def memory_budget(machine: Machine) -> int:
    """Return the bytes that a group may take."""
    return int(MEMORY_SHARE[machine.device] * machine.memory / machine.workers)


def choose_group_size(
    config: StudyConfig, width: int, *, num_runs: int, machine: Machine, speed: Speed | None = None
) -> int:
    """Return K, the number of runs to stack at a width.

    On a CPU as many as keep its products busy, on a GPU as many as fit and pay (`speed`), and
    never so many that a worker would have nothing to do.
    """
    run_bytes = (speed and speed.run_bytes) or estimate_memory(config, width, device=machine.device)
    fitting = max(1, memory_budget(machine) // run_bytes)
    if speed is not None and speed.num_stacked is not None:
        fitting = min(fitting, speed.num_stacked)
    if machine.device == "cpu" and config.own_model is None:
        rows = config.train.batch * config.model.context
        busy = max(1, round(CPU_TARGET_ELEMENTS / (rows * width)))
        fitting = min(fitting, busy, CPU_MAX_STACKED)
    # As many groups as a whole number of turns of all workers, of even size.
    turns = math.ceil(num_runs / (fitting * machine.workers))
    return math.ceil(num_runs / min(num_runs, turns * machine.workers))


def require_memory(config: StudyConfig, widths: Iterable[int], machine: Machine) -> None:
    """Refuse a study of which one run alone takes more memory than a machine has.

    Raises
    ------
    ConfigError
        If one of the widths needs more by `estimate_memory`; a user's own model is measured later.
    """
    if config.own_model is not None:
        return
    for width in sorted(widths):
        need = estimate_memory(config, width, device=machine.device)
        need += BYTES_PER_STEP * num_steps(config, width)
        if need > machine.memory:
            raise ConfigError(
                f"width {width}: expected a run that fits into the {machine.memory / 2**30:,.0f} "
                f"GiB of {machine.name}, found one of {need / 2**30:,.0f} GiB "
                f"({num_params(config, width):.3g} parameters)"
            )


def name_group(width: int, runs: Sequence[Sequence[str]]) -> str:
    """Return a group's name, which depends on what it trains alone."""
    digest = hashlib.sha256(json.dumps(runs).encode()).hexdigest()[:8]
    return f"width-{width}-{digest}"


def make_groups(
    config: StudyConfig,
    runs_by_width: Mapping[int, Sequence[tuple[str, ...]]],
    *,
    machine: Machine,
    speeds: Mapping[int, Speed],
) -> tuple[StackedGroup, ...]:
    """Return groups that cover all runs, longest first, so that workers finish together.

    Parameters
    ----------
    config : StudyConfig
        The study.
    runs_by_width : mapping of int to sequence of tuple of str
        Ids of the trials that are to be trained, as `merge_by_width` gives them.
    machine : Machine
        Where.
    speeds : mapping of int to Speed
        By width.
    """
    groups = []
    for width, runs in runs_by_width.items():
        speed = speeds[width]
        size = choose_group_size(config, width, num_runs=len(runs), machine=machine, speed=speed)
        run_bytes = speed.run_bytes or estimate_memory(config, width, device=machine.device)
        for start in range(0, len(runs), size):
            own = tuple(runs[start : start + size])
            stacked = size if speed.mode.startswith("compiled") else len(own)
            groups.append(
                StackedGroup(
                    name=name_group(width, own),
                    width=width,
                    runs=own,
                    precision=speed.precision,
                    device=machine.device,
                    threads=machine.threads,
                    seconds=speed.seconds * stacked * num_steps(config, width),
                    mode=speed.mode,
                    stacked=stacked if stacked > len(own) else 0,
                    memory=run_bytes * stacked,
                    note=speed.note,
                )
            )
    return tuple(sorted(groups, key=lambda group: -group.seconds))


class _PlanFile(BaseModel):
    """Content of a file of the plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: Literal[1, 2, 3] = Field(alias="schema")
    digest: str = ""


class Round(_PlanFile):
    """One round of the plan.

    Attributes
    ----------
    machine : Machine
        What it was planned for.
    groups : tuple of StackedGroup
        What it trains.
    points : tuple of Point
        Where an adaptive search placed trials in this round; empty for a grid.
    reasons : tuple of str
        Why, in words.
    """

    machine: Machine
    groups: tuple[StackedGroup, ...]
    points: tuple[Point, ...] = ()
    reasons: tuple[str, ...] = ()


class _SplitFile(_PlanFile):
    """The halves of a group."""

    group: str
    groups: tuple[StackedGroup, StackedGroup]


_File = TypeVar("_File", Round, _SplitFile)


def _read_plan_files(
    directory: Path, pattern: str, model: type[_File], what: str
) -> Iterator[tuple[Path, _File]]:
    """Yield files of the plan in order; their digests, types and groups' names are checked."""
    paths = sorted((directory / PLAN_FOLDER).glob(pattern))
    identity = read_identity(directory) if paths else ""
    for path in paths:
        try:
            context = f"{identity}/{path.name}"
            document = read_sealed_document(path, context=context, unsealed=1)
            content = model.model_validate(document)
            reason = _find_fault(content.groups)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
        except (DigestError, OSError) as error:
            reason = describe_error(error)
        if reason:
            raise StoreError(f"{path}: expected {what}, found damage ({reason})")
        yield path, content


def read_groups(documents: object) -> tuple[StackedGroup, ...]:
    """Return groups from what `asdict` made of them.

    Raises
    ------
    ValueError
        If they are none of a plan.
    """
    groups = TypeAdapter(tuple[StackedGroup, ...]).validate_python(documents)
    if reason := _find_fault(groups):
        raise ValueError(reason)
    return groups


def _find_fault(groups: Sequence[StackedGroup]) -> str:
    """Return what no group of a plan can be, or "" where all groups are sound."""
    for group in groups:
        if not group.runs or group.name != name_group(group.width, group.runs):
            return f"group {group.name!r} holds other trials than its name says"
        if group.device not in DEVICES or not 1 <= group.threads <= MAX_THREADS:
            return f"group {group.name}: device {group.device!r}, {group.threads} threads"
        if group.mode not in MODES or min(group.stacked, group.memory) < 0:
            return f"group {group.name}: mode {group.mode!r}, {group.stacked} stacked"
        if not 0 <= group.seconds < math.inf:
            return f"group {group.name}: {group.seconds} seconds"
    return ""


def name_round(number: int) -> str:
    """Return the name of a round's file."""
    return f"round-{number:03d}.json"


def _write_plan_file(path: Path, document: Mapping[str, Any]) -> None:
    """Create a file of the plan, unless there is one already."""
    identity = read_identity(path.parent.parent)
    content = {"schema": PLAN_SCHEMA, **document, DIGEST_KEY: PLACEHOLDER}
    with suppress(FileExistsError), atomic_write(path, replace=False) as tmp:
        tmp.write_text(json.dumps(content, indent=1))
        seal_file(tmp, context=f"{identity}/{path.name}")


def split_path(directory: Path, name: str) -> Path:
    """Return where a group's split is or will be."""
    return directory / PLAN_FOLDER / f"split-{name}.json"


def halve_group(group: StackedGroup) -> tuple[StackedGroup, StackedGroup]:
    """Return two groups that train what one of at least two runs trains, the larger one first."""
    assert len(group.runs) > 1
    middle = (len(group.runs) + 1) // 2
    first, second = (
        replace(
            group,
            name=name_group(group.width, runs),
            runs=runs,
            seconds=group.seconds * len(runs) / len(group.runs),
            stacked=0,
            memory=group.memory * len(runs) // (group.stacked or len(group.runs)),
        )
        for runs in (group.runs[:middle], group.runs[middle:])
    )
    return first, second


def write_split(directory: Path, group: StackedGroup) -> None:
    """Split a group in the plan, unless another process has split it already."""
    halves = [asdict(half) for half in halve_group(group)]
    _write_plan_file(split_path(directory, group.name), {"group": group.name, "groups": halves})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a study directory, as it is when it is read.

    Attributes
    ----------
    directory : Path
        The study's.
    rounds : tuple of Round
        In order; none where there is no plan yet.
    splits : mapping of str to tuple of StackedGroup
        The halves of every group that was split, by its name.
    """

    directory: Path
    rounds: tuple[Round, ...]
    splits: Mapping[str, tuple[StackedGroup, ...]]

    @classmethod
    def read(cls, directory: Path) -> "Plan":
        """Return the plan of a study directory.

        Raises
        ------
        StoreError
            If a file of it is damaged, or a round between others is missing.
        """
        rounds: list[Round] = []
        for path, content in _read_plan_files(directory, "round-*.json", Round, "a plan's round"):
            if path.name != (expected := name_round(len(rounds))):
                raise StoreError(f"{path.parent}: expected {expected}, found {path.name} next")
            rounds.append(content)
        return cls(directory=directory, rounds=tuple(rounds), splits={}).read_splits()

    def read_splits(self) -> "Plan":
        """Return the plan with the groups that are split by now.

        Raises
        ------
        StoreError
            If a split's file cannot be read.
        """
        splits: dict[str, tuple[StackedGroup, ...]] = {}
        what = "a plan's split"
        for path, content in _read_plan_files(self.directory, "split-*.json", _SplitFile, what):
            first, second = content.groups
            name = name_group(first.width, first.runs + second.runs)
            if name != content.group or path != split_path(self.directory, name):
                raise StoreError(
                    f"{path}: expected {what}, found damage (its halves make group {name})"
                )
            splits[name] = content.groups
        return replace(self, splits=splits)

    @cached_property
    def groups(self) -> tuple[StackedGroup, ...]:
        """The groups of all rounds, in order."""
        return tuple(group for each in self.rounds for group in each.groups)

    @cached_property
    def trial_ids(self) -> frozenset[str]:
        """Ids of all trials that the groups cover."""
        return frozenset(trial for group in self.groups for trial in group.trial_ids)

    @cached_property
    def by_name(self) -> dict[str, StackedGroup]:
        """All groups, those that were split and their halves among them."""
        halves = (half for each in self.splits.values() for half in each)
        return {group.name: group for group in (*self.groups, *halves)}

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """The points of all rounds, in the order that they were placed in."""
        return tuple(dict.fromkeys(point for each in self.rounds for point in each.points))

    def list_parts(self, group: StackedGroup) -> tuple[StackedGroup, ...]:
        """Return what is trained in place of a group: itself, or its halves, or theirs."""
        if group.name not in self.splits:
            return (group,)
        return tuple(part for half in self.splits[group.name] for part in self.list_parts(half))

    def find_stored(self, name: str) -> str | None:
        """Return the name of the results file that covers a group; None where there is none.

        It is the group's own, or that of the unsplit parent group: a parent that another process
        had in training when it was split may be stored all the same.
        """
        if group_path(self.directory, name).exists():
            return name
        for whole, halves in self.splits.items():
            if any(half.name == name for half in halves):
                return self.find_stored(whole)
        return None

    def add_round(
        self,
        groups: Iterable[StackedGroup],
        *,
        machine: Machine,
        points: Sequence[Point] = (),
        reasons: Sequence[str] = (),
    ) -> "Plan":
        """Return the plan with one more round, or with that which another process added first.

        The file appears whole or not at all, and never replaces one that is there: a round that
        was made in ignorance of another is not added.
        """
        document: dict[str, Any] = {
            "machine": asdict(machine),
            "groups": [asdict(group) for group in groups],
        }
        if points:
            document |= {"points": [asdict(point) for point in points], "reasons": list(reasons)}
        _write_plan_file(self.directory / PLAN_FOLDER / name_round(len(self.rounds)), document)
        return Plan.read(self.directory)
