"""Train the trials of a search by commands of one's own: start, watch, end, tell."""

import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hptransfer._atomic import naming
from hptransfer._messages import describe_error, show_value
from hptransfer.errors import ConfigError, DataError, HptransferError
from hptransfer.search._ask_tell import LrSearch
from hptransfer.search._job import STDERR_LOG, STDOUT_LOG, Job, Losses
from hptransfer.search._search_state import JOURNAL_NAME, Journal, SearchState, Trial
from hptransfer.search.search_file import SearchConfig, fill_placeholders

TRIALS_FOLDER = "trials"
#: A runner's lease of a trial, in seconds, renewed four times meanwhile: how long a trial waits
#: whose runner went away with its machine.
LEASE = 600.0
#: A lease of what ``--ask`` has printed: a scheduler's queue is long.
HANDOFF_LEASE = 7 * 24 * 3600.0
#: Seconds between looks at jobs, at their losses, and at a journal that others write or that could
#: not be written.
LOOK, READ, WAIT = 0.05, 5.0, 1.0

Kind = Literal["start", "loss", "completed", "diverged", "again", "failed", "place", "note"]


class SearchError(HptransferError):
    """Trials of a search failed, or their losses could not be kept."""


@dataclass(frozen=True, kw_only=True)
class SearchEvent:
    """Something that happened to a trial, or to the search.

    Attributes
    ----------
    kind : str
        ``start``; ``loss``: of a trial that is running; ``completed``, ``diverged``; ``again``: it
        failed and runs again; ``failed``: it is set aside; ``place``: learning rates to come at a
        width; ``note``: one line; with a trial, of one taken over, waited for, or no longer run.
    trial : Trial or None
        The trial.
    loss : float or None
        Its loss, where there is one.
    step : int or None
        The step of a loss of a trial that is running.
    message : str
        One line.
    """

    kind: Kind
    trial: Trial | None = None
    loss: float | None = None
    step: int | None = None
    message: str = ""


OnEvent = Callable[[SearchEvent], None]


@dataclass
class _Running:
    """A job under way."""

    trial: Trial
    job: Job
    read: float = field(default_factory=time.monotonic)
    step: int | None = None


def open_search(config: SearchConfig, directory: Path, *, lease: float = LEASE) -> LrSearch:
    """Open the search of a search file, whose journal lies in a folder.

    Raises
    ------
    ConfigError
        If the folder holds another search or a study, or is a file.
    """
    if (directory / "study.json").exists() or (directory.exists() and not directory.is_dir()):
        found = "a study's" if directory.is_dir() else "a file"
        raise ConfigError(f"{directory}: expected a search's folder or a new one, found {found}")
    sweep = config.sweep
    costs = dict(zip(map(float, sweep.width), sweep.cost, strict=False))
    job = {"command": list(config.job.command), "result": config.job.result}
    return LrSearch(
        sweep.width,
        seeds=sweep.seed,
        keys=sweep.keys,
        cost=(lambda width: costs[float(width)]) if costs else None,
        journal=directory / JOURNAL_NAME,
        lease=lease,
        about={"name": config.name, **job},
        **config.adaptive.model_dump(exclude_unset=True),
    )


def make_command(config: SearchConfig, directory: Path, trial: Trial) -> list[str]:
    """Return a trial's command, its placeholders filled."""
    values = make_values(directory, trial)
    return [fill_placeholders(part, values) for part in config.job.command]


def make_values(directory: Path, trial: Trial) -> Mapping[str, object]:
    """Return what stands for a trial's own in commands and file names."""
    return {
        **vars(trial),
        "log2_lr": math.log2(trial.lr),
        "trial": trial.id,
        "folder": trial_folder(directory, trial),
        **trial.keys,
    }


def trial_folder(directory: Path, trial: Trial) -> Path:
    """Return the folder of a trial's logs."""
    return (directory / TRIALS_FOLDER / trial.id).absolute()


def find_devices(config: SearchConfig) -> tuple[str, ...]:
    """Return the GPUs that trials share; empty where they ask for none.

    Raises
    ------
    ConfigError
        If there are fewer than one trial asks for.
    """
    job = config.job
    if not job.gpus:
        return ()
    found = [str(each) for each in job.devices]
    if not found and "CUDA_VISIBLE_DEVICES" in os.environ:
        found = [each for each in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if each.strip()]
    elif not found and shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        found = [str(n) for n, line in enumerate(listed.stdout.splitlines()) if "GPU" in line]
    if len(found) < job.gpus:
        raise ConfigError(
            f"job.gpus: expected {job.gpus} GPUs or more, found {len(found)}; "
            "job.devices = [0, 1] names them"
        )
    return tuple(found)


def run_search(
    config: SearchConfig,
    directory: Path,
    *,
    on_event: OnEvent,
    only: str | None = None,
) -> LrSearch:
    """Run what a search asks for until it is done.

    Parameters
    ----------
    config : SearchConfig
        The search file.
    directory : Path
        Holds the journal and a folder for each trial. Several runners may share it.
    on_event : callable
        Is told what happens.
    only : str, optional
        Id of the one trial to run.

    Returns
    -------
    LrSearch
        The search, done.

    Raises
    ------
    ConfigError
        If the file, the folder or `only` is wrong.
    SearchError
        If trials failed and were set aside.
    OSError
        If the journal cannot be written, after what was running has ended.
    """
    return _Runner(config, directory, on_event, only).run()


class _Runner:
    def __init__(
        self,
        config: SearchConfig,
        directory: Path,
        on_event: OnEvent,
        only: str | None,
    ) -> None:
        self._config = config
        self._directory = directory
        self._on_event = on_event
        self._devices = find_devices(config)
        gpus = config.job.gpus
        most = len(self._devices) // gpus if gpus else 1
        self._parallel = config.job.parallel or most
        if gpus and self._parallel > most:
            raise ConfigError(
                f"job.parallel: expected {most} or less, for {len(self._devices)} GPUs by {gpus}, "
                f"found {self._parallel}"
            )
        self._require_program()
        before = _read_about(directory) if directory.is_dir() else {}
        self._search = open_search(config, directory)
        now = self._search.about
        for key in ("command", "result"):
            if before.get(key, now[key]) != now[key]:
                self._say(f"job.{key} is not what earlier trials had: {show_value(before[key])}")
        self._only = only
        self._running: list[_Running] = []
        self._tries: dict[str, int] = {}
        self._renewed = time.monotonic()
        self._asked = -math.inf
        self._blocked: OSError | None = None
        self._unkept: dict[str, str] = {}
        self._placed: set[tuple[object, ...]] = set()
        self._waiting = False

    def run(self) -> LrSearch:
        for note in self._search.notes:
            self._say(note)
        if self._only is None:
            self._search.retry()
        else:
            self._search.claim(self._only)
        try:
            while self._step():
                time.sleep(LOOK)
        except BaseException:
            self._stop()
            raise
        finally:
            # What an error holds on to, such as a notebook's last, must not hold trials.
            self._search.close()
        if self._blocked is not None:
            kept = f"; not kept: {'; '.join(self._unkept.values())}" if self._unkept else ""
            raise OSError(
                self._blocked.errno,
                f"{self._blocked.strerror}{kept}; the same command goes on",
                self._blocked.filename,
            )
        failed = [name for name in self._search.failed if self._only in (None, name)]
        if failed:
            raise SearchError(
                f"{len(failed)} of the search's trials failed and stand aside: "
                f"{', '.join(failed)}; the same command runs them again"
            )
        return self._search

    def _step(self) -> bool:
        """Look at what runs, start what can; return whether there is more to come."""
        before = len(self._running)
        for each in list(self._running):
            self._watch(each)
        if self._blocked is not None:
            return bool(self._running)
        if self._running and time.monotonic() - self._renewed > LEASE / 4:
            self._keep(lambda: self._search.renew([each.trial for each in self._running]))
            self._renewed = time.monotonic()
        due = len(self._running) < before or time.monotonic() - self._asked > WAIT
        if len(self._running) < self._parallel and due:
            self._asked = time.monotonic()
            return self._start_more()
        return True

    def _start_more(self) -> bool:
        """Start trials; return whether any run, or may come."""
        trials: list[Trial] = []
        try:
            if self._only is None:
                trials = self._search.ask(self._parallel, wait=False)
            elif self._only in self._tries or self._search.is_told(self._only):
                trials = [each.trial for each in self._running]
            else:
                trials = [self._search.claim(self._only)]
        except OSError as error:
            self._block(error)
            return bool(self._running)
        self._tell_places()
        known = {each.trial for each in self._running}
        for trial in trials:
            if trial not in known and len(self._running) < self._parallel:
                self._start(trial)
        if self._running or self._blocked is not None:
            return bool(self._running)
        if self._only is not None or self._search.is_done:
            return False
        if not self._waiting and (others := self._search.elsewhere):
            self._say(
                f"{len(others)} to come are with others, {others[0].id} first; waiting for them "
                "(what --ask gave out and nobody runs, --trial ID runs)"
            )
            self._waiting = True
        return True

    def _start(self, trial: Trial) -> None:
        """Start a trial where that can be, or take over what an earlier runner left of it."""
        folder = trial_folder(self._directory, trial)
        job = Job.find(folder)
        if job is not None:
            # A job of another machine cannot be ended from here, only waited for.
            self._say(f"{trial.id}: goes on where an earlier command left it", trial)
            self._running.append(_Running(trial=trial, job=job))
            return
        gpus = self._config.job.gpus
        taken = {device for each in self._running for device in each.job.record.devices}
        devices = tuple(each for each in self._devices if each not in taken)[:gpus]
        if len(devices) < gpus:
            return
        values, own = make_values(self._directory, trial), self._config.job.env
        env = {**os.environ, **{name: fill_placeholders(own[name], values) for name in own}}
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        try:
            with naming(folder):
                job = Job.start(
                    folder,
                    make_command(self._config, self._directory, trial),
                    cwd=self._config.root,
                    env=env,
                    devices=devices,
                )
        except OSError as error:
            self._block(error)
            return
        if job is None:
            self._say(f"{trial.id}: its last job is ending; waiting for it", trial)
            return
        self._tries[trial.id] = self._tries.get(trial.id, 0) + 1
        self._running.append(_Running(trial=trial, job=job))
        self._on_event(SearchEvent(kind="start", trial=trial))

    def _watch(self, each: _Running) -> None:
        """Look at one job: its losses, its time, its end."""
        limit = self._config.job.time_limit
        if each.job.is_running:
            if limit is not None and time.time() - each.job.record.started > limit:
                each.job.stop(self._config.job.grace)
                self._end(each, SearchEvent(kind="failed", message=f"ran longer than {limit:g} s"))
            elif time.monotonic() - each.read > READ:
                each.read = time.monotonic()
                self._tell_progress(each)
            return
        self._end(each, judge_end(self._config, self._directory, each.trial, each.job))

    def _end(self, each: _Running, end: SearchEvent) -> None:
        """Tell how a trial ended; where the journal cannot be written, its folder keeps it."""
        trial = each.trial
        log = trial_folder(self._directory, trial) / STDERR_LOG
        message = f"{trial.id}: {end.message} (log: {log})"
        tries = self._tries.setdefault(trial.id, 1)
        again = end.kind == "failed" and tries <= self._config.job.retries

        def tell() -> None:
            if end.kind != "failed":
                self._search.tell(trial, end.loss)
            elif not again:
                self._search.fail(trial, message)

        try:
            kept = self._keep(tell)
        except DataError as error:
            # Another runner told another loss of it.
            kept, again, message = True, False, f"{trial.id}: {error} (log: {log})"
            end = SearchEvent(kind="failed")
        self._running.remove(each)
        if not kept:
            said = "diverged" if end.kind == "diverged" else f"loss {end.loss}"
            self._unkept[trial.id] = (
                message if end.kind == "failed" else f"{trial.id}: {said} (log: {log})"
            )
            return
        each.job.forget()
        if end.kind != "failed":
            self._on_event(replace(end, trial=trial))
        elif again and self._blocked is None:
            self._on_event(SearchEvent(kind="again", trial=trial, message=message))
            self._start(trial)
        elif trial.id in self._search.failed:
            self._on_event(SearchEvent(kind="failed", trial=trial, message=message))
        else:  # another told its loss meanwhile, or it would run again but for a full disk
            self._say(message, trial)

    def _tell_progress(self, each: _Running) -> None:
        """Keep the last loss of a job that is running, where it has a new step."""
        try:
            losses = read_losses(self._config, self._directory, each.trial, each.job).values
        except (OSError, DataError):
            return  # said at its end
        if not losses:
            return
        step, loss = losses[-1]
        if step is not None and step != each.step:
            each.step = step
            self._keep(lambda: self._search.tell(each.trial, loss, step=step))
        self._on_event(SearchEvent(kind="loss", trial=each.trial, loss=loss, step=step))

    def _tell_places(self) -> None:
        """Say what the search is at, width by width, once each."""
        for each in self._search.optima:
            name = (tuple(each.group.items()), each.width, each.state, each.points)
            if name not in self._placed and each.state != "done":
                self._on_event(SearchEvent(kind="place", message=each.describe()))
            self._placed.add(name)

    def _keep(self, write: Callable[[], None]) -> bool:
        """Write to the journal; return whether that worked."""
        try:
            write()
        except OSError as error:
            self._block(error)
            return False
        return True

    def _block(self, error: OSError) -> None:
        """Start no more, because the disk takes no more; what runs may end."""
        if self._blocked is None and self._running:
            self._say(f"{describe_error(error)}: nothing more is started, what runs may end")
        self._blocked = error

    def _stop(self) -> None:
        """End what runs, politely and all at once, and give it back."""
        deadline = time.monotonic() + self._config.job.grace
        for each in self._running:
            each.job.signal(signal.SIGTERM)
        try:
            for each in self._running:
                each.job.wait_or_kill(deadline)
        except BaseException:  # asked again: at once
            for each in self._running:
                each.job.signal(signal.SIGKILL)
        ended = [each for each in self._running if each.job.is_here]
        for each in ended:
            each.job.forget()
        self._keep(lambda: self._search.release([each.trial for each in ended]))

    def _require_program(self) -> None:
        """Raise ConfigError where the command's program is not to be found."""
        program = self._config.job.command[0]
        if "{" in program:
            return
        path = os.pathsep.join([os.environ.get("PATH", ""), self._config.job.env.get("PATH", "")])
        named = str(self._config.root / program) if os.sep in program else program
        if shutil.which(named, path=path) is None:
            raise ConfigError(f"job.command: expected a program, found {program!r}, which is none")

    def _say(self, text: str, trial: Trial | None = None) -> None:
        self._on_event(SearchEvent(kind="note", trial=trial, message=text))


def _read_about(directory: Path) -> Mapping[str, Any]:
    """Return what an earlier command kept beside a search's settings; empty where none did."""
    # Another runner may have made the journal this moment, and written nothing yet.
    settings = SearchState(Journal(directory / JOURNAL_NAME)).read_new().settings
    return {} if settings is None else settings["about"]


def read_losses(config: SearchConfig, directory: Path, trial: Trial, job: Job) -> Losses:
    """Return the losses that a trial's job has left so far."""
    source = config.result
    file = fill_placeholders(source.file, make_values(directory, trial))
    return source.read(config.root, file, job.folder / STDOUT_LOG, since=job.record.started)


def judge_end(config: SearchConfig, directory: Path, trial: Trial, job: Job) -> SearchEvent:
    """Return whether a job that has ended gave a loss, diverged, or failed."""
    code, settings = job.exit_code, config.job
    pattern = settings.diverged_pattern
    if code in settings.diverged_exit_code or (pattern is not None and _matches(pattern, job)):
        return SearchEvent(kind="diverged")
    try:
        if code != 0:
            raise DataError(_describe_code(code))
        losses = read_losses(config, directory, trial, job)
        if not losses.values:
            raise DataError(f"it left no loss: expected one in {losses.source}")
    except (OSError, DataError) as error:
        return SearchEvent(kind="failed", message=describe_error(error))
    loss = losses.values[-1][1]
    if math.isnan(loss):
        return SearchEvent(kind="diverged")
    return SearchEvent(kind="completed", loss=loss)


def _matches(pattern: str, job: Job) -> bool:
    wanted = re.compile(pattern)
    for name in (STDOUT_LOG, STDERR_LOG):
        with (job.folder / name).open(encoding="utf-8", errors="replace") as log:
            if any(wanted.search(line) for line in log):
                return True
    return False


def _describe_code(code: int | None) -> str:
    if code is None:
        return "it was killed"
    try:
        name = signal.Signals(code - 128).name if code > 128 else ""
    except ValueError:
        name = ""
    hint = ", often for want of memory" if name == "SIGKILL" else ""
    return f"ended by {name}{hint}" if name else f"exit code {code}"


def list_commands(
    config: SearchConfig, directory: Path, trials: Sequence[Trial]
) -> list[dict[str, Any]]:
    """Return trials with their commands, as a document for schedulers."""
    return [
        {"trial": each.id, **vars(each), "command": make_command(config, directory, each)}
        for each in trials
    ]
