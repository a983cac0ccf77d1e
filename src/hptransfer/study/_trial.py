"""A trial: one training run, one point of a study's grid."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from json.encoder import encode_basestring_ascii

from hptransfer.scaling import Resolved, resolve
from hptransfer.study.config import PointsConfig, StudyConfig, SweepConfig

#: Hex digits of a trial's id: 64 bits, no clash among any number that one can train.
_ID_DIGITS = 16
#: Resolved settings that a process keeps; trials that differ in their seed alone share one.
_MAX_RESOLVED = 4096


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of the grid of one study.

    Attributes
    ----------
    parameterization : str
        Canonical name.
    width : int
        D.
    base_lr : float
        Learning rate on the study's axis.
    weight_decay : float
        λ.
    seed : int
        Seed of the initial draws and of the data order.
    identity : str
        ``StudyConfig.identity`` of the study.
    """

    parameterization: str
    width: int
    base_lr: float
    weight_decay: float
    seed: int
    identity: str

    @cached_property
    def id(self) -> str:
        """Hash of the content: 16 hex digits of the sha256 of its canonical JSON."""
        # `canonical_json` of the fields, written out: a large study has 100,000 of these.
        content = (
            f'{{"base_lr":{_write_number(self.base_lr)}'
            f',"identity":{encode_basestring_ascii(self.identity)}'
            f',"parameterization":{encode_basestring_ascii(self.parameterization)}'
            f',"seed":{_write_number(self.seed)}'
            f',"weight_decay":{_write_number(self.weight_decay)}'
            f',"width":{_write_number(self.width)}}}'
        )
        return hashlib.sha256(content.encode()).hexdigest()[:_ID_DIGITS]


def _write_number(value: float) -> str:
    """Return a number as JSON writes it."""
    return float.__repr__(value) if isinstance(value, float) else int.__repr__(value)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A trial less its seed: what an adaptive search places."""

    parameterization: str
    width: int
    weight_decay: float
    base_lr: float


def list_trials(config: StudyConfig, points: Iterable[Point] = ()) -> tuple[Trial, ...]:
    """Return the trials of the grid: by width, then parameterization, decay, lr, seed.

    Each grid is taken in the study file's order; those of its ``[[points]]`` that the grid lacks
    follow. In an adaptive study the trials are those of `points`, in the order that they were
    placed in, by seed.
    """
    sweep, identity = config.sweep, config.identity()
    if sweep.is_adaptive:
        return tuple(
            Trial(**asdict(point), seed=seed, identity=identity)
            for point in points
            for seed in sweep.seed
        )
    grids: tuple[SweepConfig | PointsConfig, ...] = (sweep, *config.points)
    trials = tuple(
        Trial(
            parameterization=parameterization,
            width=width,
            base_lr=base_lr,
            weight_decay=weight_decay,
            seed=seed,
            identity=identity,
        )
        for grid in grids
        for width in grid.width
        for parameterization in grid.parameterization or sweep.parameterization
        for weight_decay in grid.weight_decay or sweep.weight_decay
        for base_lr in grid.base_lr
        for seed in grid.seed or sweep.seed
    )
    return tuple(dict.fromkeys(trials)) if config.points else trials


def resolve_trial(config: StudyConfig, trial: Trial) -> Resolved:
    """Return the numbers that a trial of the GPT trains with, found once per process.

    Raises
    ------
    ConfigError
        If a number is no finite float at this width.
    """
    name = trial.parameterization
    is_own = name in (config.rules or ())  # a table, which no cache takes for a key
    return (resolve if is_own else _resolve)(
        config.find_rule(name) if is_own else name,
        width=trial.width,
        base_width=config.sweep.base_width,
        base_lr=trial.base_lr,
        weight_decay=trial.weight_decay,
        weight_decay_mode=config.sweep.weight_decay_mode,
        axis=config.sweep.axis,
        head_size=config.model.head_size,
        num_heads=config.model.num_heads,
        base_head_size=config.model.base_head_size,
        num_layers=config.model.num_layers or 1,
        eps=config.train.eps,
    )


def _numbers_key(config: StudyConfig, trial: Trial) -> tuple[float, ...]:
    """Return all numbers that a trial trains with, rounded: equal ones are one training run."""
    if config.own_model is not None:
        key: tuple[float, ...] = config.own_model.numbers_key(trial)
        return key
    return resolve_trial(config, trial).key()


_resolve = lru_cache(maxsize=_MAX_RESOLVED)(resolve)


def merge_equal(config: StudyConfig, trials: Iterable[Trial]) -> list[tuple[Trial, ...]]:
    """Return the trials in tuples that are one training run each, in order of first sight.

    At m = 1, for one, all rules of the lattice give equal numbers: one run serves them all.
    """
    # Trials that differ in their seed alone have the same numbers, which are costly to find.
    numbers: dict[tuple[float, ...], int] = {}
    known: dict[tuple[str, int, float, float], int] = {}
    runs: dict[tuple[int, int], list[Trial]] = {}
    for trial in trials:
        cell = (trial.parameterization, trial.width, trial.base_lr, trial.weight_decay)
        if cell not in known:
            key = _numbers_key(config, trial)
            known[cell] = numbers.setdefault(key, len(numbers))
        runs.setdefault((known[cell], trial.seed), []).append(trial)
    return [tuple(run) for run in runs.values()]
