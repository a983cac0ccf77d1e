"""Adaptive studies: the next round's points as a pure function of what is finished."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hptransfer.search import WidthSearch, search_optima
from hptransfer.stats.loss_table import LossTable
from hptransfer.study._trial import Point, num_flops
from hptransfer.study.config import StudyConfig
from hptransfer.study.store import ReadTrials


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the search of one parameterization and weight decay has come, by width."""

    parameterization: str
    weight_decay: float
    widths: tuple[WidthSearch, ...]

    @property
    def points(self) -> tuple[Point, ...]:
        """What is to be trained next."""
        return tuple(
            Point(
                parameterization=self.parameterization,
                width=int(each.width),
                weight_decay=self.weight_decay,
                base_lr=2.0**place,
            )
            for each in self.widths
            for place in each.points
        )

    def describe(self, each: WidthSearch) -> str:
        """Return one width's state in words."""
        decay = f", weight decay {self.weight_decay:g}" if self.weight_decay else ""
        return f"{self.parameterization}{decay}, {each.describe()}"


def search_study(config: StudyConfig, stored: ReadTrials | None) -> tuple[Progress, ...]:
    """Return how far each parameterization and weight decay is, and its next points.

    Parameters
    ----------
    config : StudyConfig
        An adaptive study.
    stored : ReadTrials or None
        All finished trials of it; other seeds and widths than the study's are left out.
    """
    rule = config.adaptive
    costs = {float(width): float(num_flops(config, width)) for width in config.sweep.width}
    tables = _split(config, stored)
    return tuple(
        Progress(
            parameterization=name,
            weight_decay=decay,
            widths=search_optima(tables.get((name, decay)), costs, rule),
        )
        for name in config.sweep.parameterization
        for decay in config.sweep.weight_decay
    )


@dataclass(frozen=True, kw_only=True)
class SearchBound:
    """The most that an adaptive study can take, each trial counted as a run of its own.

    Attributes
    ----------
    most_trials, most_flops : int
        Trials, and their training FLOPs.
    """

    most_trials: int
    most_flops: int

    @classmethod
    def find(cls, config: StudyConfig) -> "SearchBound":
        """Return the bound of a study, as far as it wants trials at each width.

        A width that wants fewer leaves its share of the budget to wider ones, where it buys fewer.
        """
        rule, sweep = config.adaptive, config.sweep
        costs = [float(num_flops(config, width)) for width in sorted(sweep.width)]
        trials = len(sweep.parameterization) * len(sweep.weight_decay) * len(sweep.seed)
        spent, most = 0.0, 0
        for done, cost in enumerate(costs):
            points = rule.points_for_width(costs, spent=spent, done=done)
            spent += points * cost
            most += points * trials
        flops = sum(num_flops(config, width) for width in sweep.width)
        return cls(most_trials=most, most_flops=int(rule.max_points * trials) * flops)


def _split(config: StudyConfig, stored: ReadTrials | None) -> Mapping[tuple[str, float], LossTable]:
    """Return a loss table for each parameterization and weight decay that has finished trials."""
    if stored is None:
        return {}
    found = stored.arrays
    wanted = np.isin(found["width"], config.sweep.width) & np.isin(found["seed"], config.sweep.seed)
    # Files come in no order; the fits' digits must not depend on it.
    order = np.lexsort((found["seed"], found["base_lr"], found["width"]))
    order = order[wanted[order]]
    names, decays = found["parameterization"][order], found["weight_decay"][order]
    return {
        (name, decay): replace(
            stored.to_loss_table(order[(names == name) & (decays == decay)], by=()),
            axis="as given",  # no prior of an axis: a search knows that of a token budget alone
            source=f"finished trials of {name}",
        )
        for name, decay in set(zip(names, decays, strict=True))
    }
