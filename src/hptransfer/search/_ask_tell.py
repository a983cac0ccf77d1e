"""Ask which learning rates to train next, and tell the losses, from any training loop."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from hptransfer._messages import did_you_mean, show_value
from hptransfer._sections import refuse
from hptransfer.errors import ConfigError, DataError, FitError
from hptransfer.search._search_rule import SearchRule
from hptransfer.search._search_state import (
    HANDED_OFF,
    RESERVED,
    SCHEMA,
    Group,
    Journal,
    Key,
    Owner,
    SearchState,
    Trial,
    agree,
    has_ended,
)
from hptransfer.search.optimum_search import WidthSearch, search_optima
from hptransfer.stats import LossTable, Recommendation, fit_table

#: How long a trial is its asker's, in seconds.
DEFAULT_LEASE = 24 * 3600.0
DEFAULT_SEEDS = (0, 1)
#: Between looks at a journal whose trials are all with others.
WAIT_SECONDS = 1.0


class LrSearch:
    """Search for the best learning rate at several widths, trained by a loop of one's own.

    The search of ``lr = "adaptive"``, asked and told: a round's learning rates follow from the
    rounds before it, whoever trains them and in which order they end.

    Parameters
    ----------
    widths : sequence of int or float, optional
        Model widths to train. Without them the journal says what is searched.
    seeds : sequence of int
        Each learning rate is trained with each of these.
    keys : mapping of str to sequence, optional
        Settings beside width, learning rate and seed, such as ``{"parameterization": ["sp",
        "mup"]}``: each combination is a search of its own.
    cost : callable, optional
        From a width to what a trial costs there, in any unit; by default width².
    journal : path, optional
        A file of JSON lines that outlives kills. Several processes, on several machines with a
        shared folder, work on one search where they open one journal; each has its own `LrSearch`.
    lease : float
        Seconds after which a trial that was asked for and never told is given to another. On one
        machine the trials of a process that has ended are free at once.
    about : mapping, optional
        Anything to keep beside the settings in the journal.
    **rule
        What `SearchRule` takes: ``log2_lr``, ``limits``, ``step``, ``max_points``, ``stop`` and
        so on.

    Raises
    ------
    ConfigError
        If an argument is wrong, or differs from what the journal is a search of: widths, seeds
        and values of keys may be added, and the rule may change.
    StoreError, DataError
        If the journal cannot be read, or a trial is told twice in it with two losses.

    Examples
    --------
    >>> def train(width, lr, seed):  # your own training
    ...     optimum = 2**-6 * (64 / width) ** 0.3
    ...     return 3.0 + 0.1 * math.log(lr / optimum) ** 2 if lr < 0.1 else None
    >>> search = LrSearch(widths=[64, 128, 256], seeds=[0])
    >>> while trials := search.ask():
    ...     for trial in trials:
    ...         search.tell(trial, train(trial.width, trial.lr, trial.seed))
    >>> [each.state for each in search.optima]
    ['done', 'done', 'done']
    """

    def __init__(
        self,
        widths: Sequence[float] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        keys: Mapping[str, Sequence[Key]] | None = None,
        cost: Callable[[float], float] | None = None,
        journal: Path | str | None = None,
        lease: float = DEFAULT_LEASE,
        about: Mapping[str, Any] | None = None,
        **rule: Any,
    ) -> None:
        if not lease > 0:
            raise ConfigError(f"lease: expected seconds above 0, found {lease}")
        self._lease = lease
        self._owner = Owner()
        self._journal = Journal(None if journal is None else Path(journal))
        self._state = SearchState(self._journal)
        self._found: dict[Group, tuple[object, tuple[WidthSearch, ...]]] = {}
        self._state.read_new()
        given = {"widths": widths, "seeds": seeds, "keys": keys, "about": about}
        asked = {
            name: list(value) if isinstance(value, Iterator) else value
            for name, value in given.items()
            if value is not None
        }
        if not self._says(self._settle(asked, rule, cost)):
            with self._locked():
                if not self._says(wanted := self._settle(asked, rule, cost)):
                    self._write(wanted)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the journal alone, all of it read."""
        with self._journal.lock():
            self._state.read_new()
            yield

    @property
    def widths(self) -> tuple[float, ...]:
        """Model widths that are searched, ascending."""
        return tuple(self._settings["widths"])

    @property
    def rule(self) -> SearchRule:
        """How learning rates are placed."""
        return SearchRule.model_validate(self._settings["rule"])

    @property
    def about(self) -> Mapping[str, Any]:
        """What was kept beside the settings."""
        return dict(self._settings["about"])

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines of the journal that cannot be read, one message each; empty where all can."""
        return tuple(self._state.damaged)

    def ask(
        self, num: int | None = None, *, wait: bool = True, handoff: bool = False
    ) -> list[Trial]:
        """Return the trials to run now: what this object has asked for and not told, and more.

        Parameters
        ----------
        num : int, optional
            Return this many at most; by default all that can be run now.
        wait : bool
            Where all that is left is with other processes, wait until there is something to run
            or the search has ended.
        handoff : bool
            Give the trials away: they stay leased when this process ends, and are not returned
            again.

        Returns
        -------
        list of Trial
            Empty when the search is done; without `wait`, also where others have all that is left.

        Raises
        ------
        OSError
            If the journal cannot be written.
        """
        if num is not None and num < 1:
            raise ConfigError(f"ask: expected a number of trials above 0, found {num}")
        warned = False
        while True:
            trials, others = self._ask(num, handoff)
            if trials or not wait or not others:
                return trials
            if not warned:
                warnings.warn(
                    f"{self._journal}: others have {len(others)} trials, {others[0].id} first; "
                    "waiting for them",
                    stacklevel=2,
                )
                warned = True
            time.sleep(WAIT_SECONDS)

    def tell(self, trial: Trial | str, loss: float | None, *, step: int | None = None) -> None:
        """Tell a trial's loss.

        Parameters
        ----------
        trial : Trial or str
            What `ask` returned, or its id. A trial that was not asked for counts as well.
        loss : float or None
            Final loss in nats; None, NaN or infinite where the trial diverged.
        step : int, optional
            Training step, where the trial is still running: such a loss is kept in
            `partial_table`, and places no learning rate.

        Raises
        ------
        DataError
            If the trial was told before with another loss; the message names both lines.
        ConfigError
            If the trial is none of this search, or the loss no number.
        OSError
            If the journal cannot be written; the search is then as it was.
        """
        try:
            # A job that returns True tells of its success, not of a loss of 1.
            value = math.nan if loss is None else float("" if isinstance(loss, bool) else loss)
        except (TypeError, ValueError, OverflowError) as error:
            expected = "a number, or None where the trial diverged"
            raise ConfigError(f"loss: expected {expected}, found {loss!r}") from error
        value = value if math.isfinite(value) else math.nan
        with self._locked():
            trial = self._find(trial)
            before = self._state.told.get(trial)
            if step is None and before is not None:
                if not agree(before.loss, value):
                    line = self._journal.num_lines + 1
                    raise DataError(self._state.say_disagreement(trial, before, value, line))
                return
            told: dict[str, Any] = {} if step is None else {"step": int(step)}
            told["loss"] = None if math.isnan(value) else value
            self._write({"event": "tell", "trial": trial.id, **vars(trial), **told})

    def fail(self, trial: Trial | str, reason: str) -> None:
        """Set a trial aside that neither gave a loss nor diverged; one that was told stays told.

        The search goes on where it needs no trial that is set aside: with another seed's loss.

        Parameters
        ----------
        trial : Trial or str
            What `ask` returned, or its id.
        reason : str
            Why, in one line.
        """
        with self._locked():
            trial = self._find(trial)
            if trial not in self._state.told:
                self._write({"event": "fail", "trial": trial.id, "reason": reason})

    def release(self, trials: Sequence[Trial]) -> None:
        """Give trials back that were asked for and not run, so that others can have them."""
        with self._locked():
            mine = [each.id for each in trials if self._is_mine(each)]
            if mine:
                self._write({"event": "release", "trials": mine})

    def close(self) -> None:
        """Leave what was asked for and not told to others; nothing is written."""
        self._owner.end()

    def renew(self, trials: Sequence[Trial]) -> None:
        """Start the lease of trials that are still running anew."""
        with self._locked():
            self._write_lease([each for each in trials if each not in self._state.told])

    def claim(self, trial: Trial | str) -> Trial:
        """Take a trial that was asked for, by whomever, and return it.

        Raises
        ------
        ConfigError
            If there is no such trial, or another process is at it.
        """
        with self._locked():
            trial = self._find(trial)
            lease = self._state.leases.get(trial.id)
            if lease is not None and lease.owner != HANDED_OFF and self._has_other(trial):
                raise ConfigError(f"{self._journal}: {trial.id}: {lease.owner} is at this trial")
            if trial not in self._state.told:
                if trial.id in self._state.failed:
                    self._write({"event": "retry", "trial": trial.id})
                self._write_lease([trial])
            return trial

    def is_told(self, trial: Trial | str) -> bool:
        """Whether a trial has its final loss, or has diverged."""
        told = self._state.read_new().told
        return self._find(trial) in told

    def retry(self) -> None:
        """Let the trials that were set aside run again."""
        with self._locked():
            if self._state.failed:
                self._write({"event": "retry"})

    @property
    def table(self) -> LossTable:
        """Final losses so far; no rows where nothing is told."""
        return self._state.read_new().table()

    @property
    def partial_table(self) -> LossTable:
        """Losses told at steps, whose groups are the keys and ``step``."""
        return self._state.read_new().partial_table()

    @property
    def failed(self) -> Mapping[str, str]:
        """Why each trial that is set aside failed, by its id; empty where none is."""
        return dict(self._state.read_new().failed)

    @property
    def optima(self) -> tuple[WidthSearch, ...]:
        """How far each width has come, for each combination of keys."""
        groups = self._state.read_new().groups()
        return tuple(each for group in groups for each in self._search(group))

    @property
    def elsewhere(self) -> list[Trial]:
        """Trials that others have asked for and not told; empty where there are none."""
        groups = self._state.read_new().groups()
        trials = (each for group in groups for each in self._state.outstanding(group))
        return [each for each in trials if self._has_other(each)]

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to run, trials that were set aside apart."""
        groups = self._state.read_new().groups()
        return not any(self._state.outstanding(each) or self._place(each) for each in groups)

    def recommend(self, *, width: float, **keys: Key) -> Recommendation:
        """Recommend the learning rate to use at a width.

        Parameters
        ----------
        width : float
            Target width.
        **keys
            Which search, where there are several: ``parameterization="mup"``.

        Raises
        ------
        FitError
            If no trial of the search has been told yet.
        ConfigError
            If `keys` leaves no search, or more than one.
        """
        known = self._state.read_new().groups()
        groups = [group for group in known if keys.items() <= dict(group).items()]
        if len(groups) != 1:
            names = self._settings["keys"]
            raise ConfigError(
                f"recommend: expected one of the {len(known)} searches, by "
                f"{', '.join(names) or 'no keys'}, found {len(groups)} with {keys or 'none named'}"
            )
        table = self._state.table(groups[0])
        if len(table) == 0:
            raise FitError(f"{self._journal}: expected losses to go by, found none told yet")
        return fit_table(table).recommend(width=width, flops=self._price)[0]

    # What follows runs in a block of the journal's lock, or reads only.

    def _ask(self, num: int | None, handoff: bool) -> tuple[list[Trial], list[Trial]]:
        """Return trials to run, at most so many, and those that others have, of one look."""
        with self._locked():
            found: list[Trial] = []
            for group in self._state.groups():
                if not self._state.outstanding(group):
                    self._write(*self._place(group))
                found += self._state.outstanding(group)
            mine = [] if handoff else [each for each in found if self._is_mine(each)]
            others = [each for each in found if self._has_other(each)]
            free = [each for each in found if not (self._is_mine(each) or each in others)]
            taken = free[: None if num is None else max(0, num - len(mine))]
            self._write_lease(taken, owner=HANDED_OFF if handoff else None)
            return [*mine, *taken][:num], others

    def _place(self, group: Group) -> list[Mapping[str, Any]]:
        """Return the records that ask for the next learning rates of a search; empty at its end."""
        searching = [each for each in self._search(group) if each.state == "search"]
        places = [(_whole(each.width), place) for each in searching for place in each.points]
        if not any(map(self._state.is_open, self._state.trials(group, places))):
            return []
        return [
            {
                "event": "ask",
                "keys": dict(group),
                "width": _whole(each.width),
                "log2_lr": list(each.points),
                "reason": each.reason,
            }
            for each in searching
        ]

    def _search(self, group: Group) -> tuple[WidthSearch, ...]:
        """Return how far a search has come; kept until more is told."""
        table = self._state.table(group)
        count = (len(table), self._state.settings_line)
        if self._found.get(group, (None,))[0] != count:
            costs = dict(zip(self.widths, self._settings["costs"], strict=True))
            found = search_optima(table, costs, self.rule)
            self._found[group] = count, tuple(replace(e, group=dict(group)) for e in found)
        return self._found[group][1]

    def _price(self, widths: Any) -> Any:
        """Return what trials cost at widths that need not be among the searched ones."""
        logs = np.log(self.widths), np.log(self._settings["costs"])
        if len(self.widths) == 1:
            return (np.asarray(widths) / self.widths[0]) ** 2 * self._settings["costs"][0]
        slope = np.polyfit(*logs, 1)
        return np.exp(np.polyval(slope, np.log(widths)))

    @property
    def _settings(self) -> Mapping[str, Any]:
        assert self._state.settings is not None, "written when the search is opened"
        return self._state.settings

    def _is_mine(self, trial: Trial) -> bool:
        lease = self._state.leases.get(trial.id)
        return lease is not None and lease.owner == str(self._owner)

    def _has_other(self, trial: Trial) -> bool:
        """Whether a trial is another's, whose lease has not run out."""
        lease = self._state.leases.get(trial.id)
        if lease is None or self._is_mine(trial):
            return False
        return lease.until > time.time() and not has_ended(lease.owner)

    def _find(self, trial: Trial | str) -> Trial:
        """Return a trial with its keys in the search's order, or say that it is none of it."""
        names, seeds = self._settings["keys"], self._settings["seeds"]
        if isinstance(trial, str):
            known = [e for group in self._state.groups() for e in self._state.asked(group)]
            found = next((each for each in known if each.id == trial), None)
            if found is None:
                hint = did_you_mean(trial, [each.id for each in known])
                hint = hint or "".join(f"; one is {each.id}" for each in known[:1])
                raise ConfigError(f"{self._journal}: expected a trial's id, found {trial!r}{hint}")
            return found
        if trial.width not in self.widths:
            raise ConfigError(f"width: expected one of {list(self.widths)}, found {trial.width}")
        if trial.seed not in seeds:
            raise ConfigError(f"seed: expected one of {list(seeds)}, found {trial.seed}")
        if not (math.isfinite(trial.lr) and trial.lr > 0):
            raise ConfigError(f"lr: expected a number above 0, found {trial.lr}")
        for name in {**names, **trial.keys}:
            values = names.get(name, ())
            if trial.keys.get(name) not in values:
                expected = f"one of {list(values)}" if values else f"no key beside {list(names)}"
                raise ConfigError(f"{name}: expected {expected}, found {trial.keys.get(name)!r}")
        return replace(
            trial, width=_whole(trial.width), keys={name: trial.keys[name] for name in names}
        )

    def _write_lease(self, trials: Sequence[Trial], owner: str | None = None) -> None:
        if trials:
            owner, until = owner or str(self._owner), time.time() + self._lease
            ids = [each.id for each in trials]
            self._write({"event": "lease", "trials": ids, "owner": owner, "until": until})

    def _write(self, *records: Mapping[str, Any]) -> None:
        now = round(time.time(), 3)
        self._journal.append([{**record, "time": now} for record in records])
        self._state.read_new()

    def _says(self, wanted: Mapping[str, Any]) -> bool:
        """Whether the journal's last settings are these."""
        settings = self._state.settings
        return settings is not None and all(settings[key] == each for key, each in wanted.items())

    def _settle(
        self,
        asked: Mapping[str, Any],
        rule: Mapping[str, Any],
        cost: Callable[[float], float] | None,
    ) -> Mapping[str, Any]:
        """Return the settings as the arguments and the journal have them together."""
        before = self._state.settings
        said = before or {"seeds": DEFAULT_SEEDS, "keys": {}, "about": {}, "rule": {}}
        both = {**said, **asked}
        if "widths" not in both:
            raise ConfigError("widths: expected the widths to search, found none, and no journal")
        wanted: dict[str, Any] = {
            "event": "search",
            "schema": SCHEMA,
            "widths": sorted(map(_whole, _list_numbers("widths", both["widths"]))),
            "seeds": _list_numbers("seeds", both["seeds"], whole=True),
            "keys": _check_keys(both["keys"]),
            "rule": _check_rule({**said["rule"], **rule}),
            "about": dict(both["about"]),
        }
        known = dict(zip(said.get("widths", ()), said.get("costs", ()), strict=True))
        wanted["costs"] = [
            known[width] if cost is None and width in known else _price(cost, width)
            for width in wanted["widths"]
        ]
        if before is not None:
            self._require_growth(before, wanted)
        return wanted

    def _require_growth(self, before: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Raise ConfigError where a search is asked to be less than its journal says it is."""
        where = f"{self._journal}: line {self._state.settings_line}: this is a search of"
        had, has = (
            {
                **{name: settings[name] for name in ("widths", "seeds")},
                **{f"key {name}": values for name, values in settings["keys"].items()},
            }
            for settings in (before, wanted)
        )
        for name in {**had, **has}:
            old, new = had.get(name), has.get(name)
            if old is None or new is None or not set(old) <= set(new):
                raise ConfigError(
                    f"{where} {name} {show_value(old)}: expected these and maybe more, found "
                    f"{show_value(new)}; another search needs another journal"
                )


def _whole(width: float) -> int | float:
    return int(width) if float(width).is_integer() else float(width)


def _list_numbers(name: str, values: Any, *, whole: bool = False) -> list[Any]:
    """Return an array, or any iterable but text, as a list, and a number as a list of one."""
    values = _unwrap(values)
    is_listed = isinstance(values, Iterable) and not isinstance(values, str | bytes)
    found = list(map(_unwrap, values)) if is_listed else [values]
    kind, low = (int, -math.inf) if whole else (int | float, 0)
    good = all(isinstance(each, kind) and low < each < math.inf for each in found)
    if not found or not good or len(set(found)) != len(found):
        wanted = f"{'whole' if whole else 'positive'} numbers, each once"
        raise ConfigError(f"{name}: expected {wanted}, found {show_value(found)}")
    return found


def _unwrap(value: Any) -> Any:
    """Return an array as a list, a number of one as Python's, and anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _check_keys(keys: Mapping[str, Sequence[Key]]) -> dict[str, list[Key]]:
    if not isinstance(keys, Mapping):
        raise ConfigError(f"keys: expected a mapping of names to lists, found {show_value(keys)}")
    for name, values in keys.items():
        if name in RESERVED:
            raise ConfigError(f"keys: expected names beside {', '.join(RESERVED)}, found {name!r}")
        listed = isinstance(values, Sequence) and not isinstance(values, str)
        if not listed or not values or not all(isinstance(v, str | int | float) for v in values):
            raise ConfigError(
                f"keys: {name}: expected a list of texts or numbers, found {show_value(values)}"
            )
    return {name: list(values) for name, values in keys.items()}


def _check_rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return SearchRule.model_validate(rule).model_dump(mode="json")
    except ValidationError as error:
        refuse(error, model=SearchRule, source="LrSearch")


def _price(cost: Callable[[float], float] | None, width: float) -> float:
    price = float(width) ** 2 if cost is None else float(cost(width))
    if not (math.isfinite(price) and price > 0):
        raise ConfigError(f"cost: expected a number above 0 at width {width}, found {price}")
    return price
