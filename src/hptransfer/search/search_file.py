"""Read the settings of a search for learning rates from a study file or a search file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from hptransfer._documents import read_toml
from hptransfer._messages import did_you_mean, find_nearest_name
from hptransfer._sections import (
    Grid,
    Positive,
    Section,
    as_grid,
    check_name,
    fault,
    refuse,
)
from hptransfer.search._job import STDOUT, ResultSource
from hptransfer.search._search_rule import SearchRule
from hptransfer.search._search_state import RESERVED

#: What stands for a trial's own in a command, beside the keys of ``[sweep]``.
PLACEHOLDERS = ("width", "lr", "log2_lr", "seed", "trial", "folder")
PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


def _as_command(value: object) -> object:
    if isinstance(value, str):
        raise fault('a list of texts, such as ["python", "train.py", "--lr", "{lr}"]', value)
    return as_grid(value)


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise fault("a regular expression", pattern, note=str(error)) from None
    return pattern


Value = bool | int | float | str


class SearchSweep(Section):
    """``[sweep]``: what is searched at; any key beside these makes one search for each value."""

    width: Grid[Annotated[int, Field(gt=0)] | Positive]
    """Model widths."""

    seed: Grid[Annotated[int, Field(ge=0, lt=2**31)]] = (0, 1)
    """Each learning rate is trained with each of these."""

    base_lr: Literal["adaptive"] = "adaptive"
    """``adaptive``: learning rates are placed in rounds, as ``[adaptive]`` says."""

    cost: Annotated[tuple[Positive, ...], BeforeValidator(as_grid)] = ()
    """What a trial costs at each width, in any unit; by default width²."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Grid[Value]]
    input_keys: ClassVar[tuple[str, ...]] = ("lr",)

    @property
    def keys(self) -> dict[str, tuple[Value, ...]]:
        """The other keys: each combination is a search of its own."""
        return self.__pydantic_extra__

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, section: object) -> object:
        """Check the names of the keys that are no fields."""
        if not isinstance(section, Mapping):
            return section
        for name in [name for name in section if name not in (*cls.model_fields, "lr")]:
            if (near := find_nearest_name(name, cls.model_fields, cutoff=0.8)) is not None:
                raise fault(f"'{near}'", name, key=f"sweep.{name}")
            if name in RESERVED or not name.isidentifier():
                expected = f"a name of letters and digits beside {', '.join(RESERVED)}"
                raise fault(expected, name, key=f"sweep.{name}")
        return {"base_lr" if name == "lr" else name: value for name, value in section.items()}

    @model_validator(mode="after")
    def _check_cost(self) -> "SearchSweep":
        if self.cost and len(self.cost) != len(self.width):
            expected = f"one number for each of {len(self.width)} widths"
            raise fault(expected, list(self.cost), key="sweep.cost")
        return self


class JobConfig(Section):
    """``[job]``: the command that trains one trial, and what is made of how it ends."""

    command: Annotated[tuple[str, ...], BeforeValidator(_as_command), Field(min_length=1)]
    """Program and arguments. ``{width}``, ``{lr}``, ``{log2_lr}``, ``{seed}``, ``{trial}`` (its
    name), ``{folder}`` (its folder) and ``{KEY}`` of ``[sweep]`` stand for the trial's own."""

    result: Annotated[str, Field(min_length=1)] = f"{STDOUT}:loss"
    """Where the loss is read, as ``FILE:KEY``: the last one in a file of JSON lines, a Hugging Face
    ``trainer_state.json``, a Lightning ``metrics.csv``, or JSON lines on ``stdout``."""

    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables beside those that are set."""

    parallel: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Trials at a time; by default one, or as many as ``devices`` has for ``gpus`` each."""

    gpus: Annotated[int, Field(ge=0, le=1024)] = 0
    """GPUs of each trial, by ``CUDA_VISIBLE_DEVICES``; 0 leaves that as it is."""

    devices: Annotated[tuple[int | str, ...], BeforeValidator(as_grid)] = ()
    """Which GPUs; by default those of ``CUDA_VISIBLE_DEVICES``, or all."""

    time_limit: Positive | None = None
    """Seconds after which a trial is ended, and has failed."""

    retries: Annotated[int, Field(ge=0, le=1000)] = 1
    """How often a trial that has failed is run again before it is set aside."""

    grace: Positive = 30.0
    """Seconds from SIGTERM, by which a trial is ended, to SIGKILL."""

    diverged_exit_code: Annotated[
        tuple[Annotated[int, Field(ge=1, le=255)], ...], BeforeValidator(as_grid)
    ] = ()
    """Exit codes that mean that the trial diverged; beside a loss that is no finite number."""

    diverged_pattern: Annotated[str, AfterValidator(_check_pattern)] | None = None
    """A regular expression: where a line of the output matches, the trial diverged."""


class SearchConfig(Section):
    """A whole search file. Get one from `load_search`."""

    name: Annotated[str, Field(max_length=100), AfterValidator(check_name)]
    """What the search is called; its folder too, unless ``-o`` says another."""

    sweep: SearchSweep
    adaptive: SearchRule = SearchRule()
    job: JobConfig

    _root: Path = PrivateAttr(default=Path())

    @property
    def root(self) -> Path:
        """The search file's folder, in which the command runs."""
        return self._root

    @property
    def result(self) -> ResultSource:
        """Where the loss is read."""
        return ResultSource.parse(self.job.result)

    @model_validator(mode="after")
    def _check_placeholders(self) -> "SearchConfig":
        known = (*PLACEHOLDERS, *self.sweep.keys)
        texts = {"job.command": " ".join(self.job.command), "job.result": self.job.result}
        texts |= {f"job.env.{name}": text for name, text in self.job.env.items()}
        found = {place: PLACEHOLDER.findall(text) for place, text in texts.items()}
        for place, names in found.items():
            for name in names:
                if name not in known:
                    hint = did_you_mean(name, known).removeprefix("; ")
                    expected = f"one of {', '.join(f'{{{each}}}' for each in known)}"
                    raise fault(expected, f"{{{name}}}", key=place, note=hint)
        told = {name for place, names in found.items() if place != "job.result" for name in names}
        grids = {"width": self.sweep.width, "seed": self.sweep.seed, **self.sweep.keys}
        needed = [name for name, values in grids.items() if len(values) > 1]
        for name in (*needed, *(() if "log2_lr" in told else ("lr",))):
            if name not in told:
                expected = f"{{{name}}} in it, or all trials train alike"
                raise fault(expected, list(self.job.command), key="job.command")
        return self


def fill_placeholders(text: str, values: Mapping[str, object]) -> str:
    """Return a text with its placeholders filled.

    Examples
    --------
    >>> fill_placeholders("--lr={lr}", {"lr": 0.25})
    '--lr=0.25'
    """
    return PLACEHOLDER.sub(lambda found: say_placeholder(values[found[1]]), text)


def say_placeholder(value: object) -> str:
    """Return a value as it stands in a command; true and false as TOML has them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def load_search(path: Path | str) -> SearchConfig:
    """Return the config of a search file (TOML, UTF-8).

    Raises
    ------
    ConfigError
        If anything in it is wrong: one line that names the key, what was expected and found.
    """
    path = Path(path)
    document = read_toml(path, what="a search file")
    try:
        config = SearchConfig.model_validate(document)
    except ValidationError as error:
        refuse(error, model=SearchConfig, source=str(path))
    config._root = path.parent.absolute()
    return config
