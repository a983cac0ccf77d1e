"""Run a study: open its directory, fix the plan, train what is missing."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from hptransfer._atomic import require_writable
from hptransfer.errors import HptransferError
from hptransfer.study import DEFAULT_CHECKPOINT_SECONDS, Engine
from hptransfer.study.config import StudyConfig, num_steps
from hptransfer.study.events import Event
from hptransfer.study.local import run_in_process, run_in_workers
from hptransfer.study.machine import Measure, describe_machine, measure_speeds
from hptransfer.study.plan import (
    Group,
    Machine,
    Round,
    join_groups,
    join_points,
    list_missing,
    make_groups,
    read_rounds,
    write_round,
)
from hptransfer.study.ray_engine import run_on_ray
from hptransfer.study.ray_machine import describe_cluster, measure_on_cluster
from hptransfer.study.ray_session import open_ray
from hptransfer.study.result import TABLE_COLUMNS
from hptransfer.study.settings import open_study
from hptransfer.study.split import list_parts, read_splits
from hptransfer.study.store import GROUPS_FOLDER, read_trials, recover_finished, sweep_leftovers
from hptransfer.study.trial import Trial, list_trials
from hptransfer.train.batches import require_batch, validation_windows
from hptransfer.train.tokens import TokenData, prepare_tokens


class RunError(HptransferError):
    """Some groups failed; what the others finished is stored."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Share `index` (1-based) of `count` equal shares of a study's groups."""

    index: int = 1
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run is about to do.

    Attributes
    ----------
    groups : tuple of Group
        Still to train, in this shard, in order.
    num_trials : int
        Trials that they cover.
    num_finished : int
        Trials of the grid that are stored already.
    tokens : TokenData
        The tokenized text.
    damaged : tuple of Path
        Results files that could not be read and were set aside; their trials train again.
    elsewhere : int
        Groups still to train in other shards; an adaptive study goes on when they are done.
    round : int
        Number of the plan's last round.
    notes : tuple of str
        What an adaptive search is about, in words.
    """

    groups: tuple[Group, ...]
    num_trials: int
    num_finished: int
    tokens: TokenData
    damaged: tuple[Path, ...]
    elsewhere: int = 0
    round: int = 0
    notes: tuple[str, ...] = ()


def open_tokens(config: StudyConfig) -> TokenData:
    """Return the study's tokens, once it is sure that a batch can be cut from them.

    Raises
    ------
    DataError
        If the text cannot be read or is too short.
    """
    tokens = prepare_tokens(config.data.text, vocab_size=config.data.vocab_size, root=config.root)
    require_batch(tokens.train, context=config.model.context, batch=config.train.batch)
    validation_windows(tokens.val, config.model.context, config.train.eval_tokens)
    return tokens


def plan_groups(
    config: StudyConfig,
    trials: Sequence[Trial],
    machine: Machine,
    *,
    measure: Measure = measure_speeds,
) -> tuple[Group, ...]:
    """Return the groups that would train `trials` on `machine`; measures each new shape once."""
    widths = sorted({trial.width for trial in trials})
    return make_groups(
        config,
        trials,
        machine=machine,
        speeds=measure(config, widths, machine),
        num_steps={width: num_steps(config, width) for width in widths},
    )


def prepare_run(
    config: StudyConfig,
    directory: Path,
    *,
    workers: int | None = None,
    shard: Shard | None = None,
    engine: Engine = "local",
) -> Work:
    """Open or create the study directory, complete its plan, and list what is missing.

    The plan is for this machine, or with engine ``ray`` for the cluster that is open.

    Raises
    ------
    StoreError
        If the directory belongs to another study, or the text has changed since its first run.
    DataError
        If the text cannot be read or is too short.
    OSError
        If the directory cannot be written and something is to be trained.
    """
    shard = shard or Shard()
    tokens = open_tokens(config)
    open_study(directory, config, data=describe_data(config, tokens))
    on_ray = engine == "ray"
    measure = measure_on_cluster if on_ray else measure_speeds
    machine = (describe_cluster if on_ray else describe_machine)(workers=workers)
    rounds = read_rounds(directory)
    trials = list_trials(config, join_points(rounds))
    while missing := list_missing(trials, join_groups(rounds)):
        groups = plan_groups(config, missing, machine, measure=measure)
        write_round(directory, groups, machine=machine, number=len(rounds))
        rounds = read_rounds(directory)
        trials = list_trials(config, join_points(rounds))
    finished, damaged = recover_finished(directory)
    notes: tuple[str, ...] = ()
    if config.sweep.is_adaptive:
        rounds, notes = _place_round(config, directory, rounds, finished, machine, measure)
        trials = list_trials(config, join_points(rounds))
    splits = read_splits(directory)
    parts = [
        # A shard's share stays what it was when a group is split.
        (position % shard.count == shard.index - 1, part)
        for position, group in enumerate(join_groups(rounds))
        for part in list_parts(group, splits)
    ]
    shares = [(own, part) for own, part in parts if not finished.issuperset(part.trial_ids)]
    waiting = {part.name for _, part in shares}
    sweep_leftovers(directory, {part.name for _, part in parts} - waiting | splits.keys())
    todo = tuple(group for own, group in shares if own)
    if todo:  # or hours of training would end with results that nobody can write
        require_writable(directory / GROUPS_FOLDER)
    return Work(
        groups=todo,
        num_trials=sum(len(group.trial_ids) for group in todo),
        num_finished=sum(trial.id in finished for trial in trials),
        tokens=tokens,
        damaged=damaged,
        elsewhere=len(shares) - len(todo),
        round=max(0, len(rounds) - 1),
        notes=notes,
    )


def _place_round(
    config: StudyConfig,
    directory: Path,
    rounds: tuple[Round, ...],
    finished: frozenset[str],
    machine: Machine,
    measure: Measure,
) -> tuple[tuple[Round, ...], tuple[str, ...]]:
    """Add the round that follows from the finished ones, once they are all finished.

    Returns the rounds, and what the search says: of the round under way, or how it ended.
    """
    # Statistics are imported where they are needed: a grid starts without them.
    from hptransfer.study.adaptive import search_study

    groups = join_groups(rounds)
    if not finished.issuperset(trial for group in groups for trial in group.trial_ids):
        return rounds, rounds[-1].reasons
    found = search_study(config, read_trials(directory, TABLE_COLUMNS).rows if rounds else None)
    points = [point for each in found for point in each.points]
    if not points:
        return rounds, tuple(each.describe(width) for each in found for width in each.widths)
    known = {trial.id for trial in list_trials(config, join_points(rounds))}
    fresh = [trial for trial in list_trials(config, points) if trial.id not in known]
    write_round(
        directory,
        plan_groups(config, fresh, machine, measure=measure),
        machine=machine,
        number=len(rounds),
        points=points,
        reasons=[each.describe(each.widths[-1]) for each in found if each.points],
    )
    rounds = read_rounds(directory)
    return rounds, rounds[-1].reasons


def describe_data(config: StudyConfig, tokens: TokenData) -> dict[str, object]:
    """Return what a study directory records of its text."""
    return {
        "text": config.data.text,
        "data_hash": tokens.data_hash,
        "vocab_size": tokens.vocab_size,
        "num_ids": tokens.num_ids,
        "num_documents": tokens.num_documents,
        "num_train_tokens": len(tokens.train),
        "num_val_tokens": len(tokens.val),
        "unigram_entropy": tokens.unigram_entropy,
        "bigram_entropy": tokens.bigram_entropy,
    }


def open_engine(engine: Engine, *, address: str | None = None) -> AbstractContextManager[object]:
    """Return a context that holds what an engine needs from round to round: Ray's connection.

    Raises
    ------
    ConfigError
        If Ray is not installed, or no cluster answers at the address.
    """
    return open_ray(address) if engine == "ray" else nullcontext()


def run_groups(
    config: StudyConfig,
    directory: Path,
    groups: Sequence[Group],
    *,
    on_event: Callable[[Event], None],
    workers: int | None = None,
    checkpoint_interval: float = DEFAULT_CHECKPOINT_SECONDS,
    engine: Engine = "local",
    address: str | None = None,
) -> None:
    """Train `groups` and store their results, here or as tasks of the Ray cluster at `address`.

    Groups under way are saved every `checkpoint_interval` seconds and when Ctrl-C or SIGTERM
    ends the run; the next run goes on from there with the same bits.

    Raises
    ------
    RunError
        If a group failed; the others are trained and stored first, unless results cannot be
        written at all.
    """
    failures: list[Event] = []

    def watch(event: Event) -> None:
        if event.kind == "failed":
            failures.append(event)
        on_event(event)
        if event.fatal:
            raise RunError(
                f"stopped at group {event.group}: {event.message}; what is stored is kept, "
                "the same command resumes"
            )

    if engine == "ray":
        run_on_ray(
            config,
            directory,
            groups,
            watch,
            address=address,
            workers=workers,
            checkpoint_interval=checkpoint_interval,
        )
    elif (count := describe_machine(workers=workers).workers) == 1:
        run_in_process(config, directory, groups, watch, checkpoint_interval=checkpoint_interval)
    else:
        run_in_workers(
            config,
            directory,
            groups,
            watch,
            workers=count,
            checkpoint_interval=checkpoint_interval,
        )
    if failures:
        first = failures[0]
        raise RunError(
            f"{len(failures)} of {len(groups)} groups failed, {first.group} first: "
            f"{first.message}; the rest is stored, the same command tries again"
        )
