"""The study file: its grid of trials, how its sections go together, and the study's identity."""

import hashlib
import math
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from hptransfer._documents import canonical_json, read_toml
from hptransfer._sections import (
    Count,
    Grid,
    NonNegative,
    Positive,
    Section,
    as_grid,
    check_distinct,
    check_name,
    fault,
    refuse,
)
from hptransfer.errors import ConfigError
from hptransfer.scaling import (
    DEFAULT_AXIS,
    DEFAULT_WEIGHT_DECAY_MODE,
    Axis,
    Parameterization,
    WeightDecayMode,
    build_rule,
    parse_rule,
)
from hptransfer.search import SearchRule
from hptransfer.study._training_config import (
    DEFAULT_MOMENTUM,
    DataConfig,
    ModelConfig,
    ProbesConfig,
    TrainConfig,
)

GRIDS = ("parameterization", "width", "base_lr", "weight_decay", "seed")
"""The sweep's keys that span trials; a study keeps its identity when they grow."""

ADAPTIVE = "adaptive"
"""Value of ``sweep.base_lr`` in a study whose learning rates a search places in rounds."""

_MAX_TRIALS = 1_000_000


def _canonical_rule(name: str, info: ValidationInfo) -> str:
    if name in (info.context or {}):  # one of the study's own
        return name
    try:
        return parse_rule(name).name
    except ConfigError as error:
        expected = "a parameterization"
        raise fault(expected, name, note=str(error).removeprefix("parameterization: ")) from None


_Rules = Grid[Annotated[str, AfterValidator(_canonical_rule)]]
_Widths = Grid[Annotated[int, Field(gt=0, le=1_000_000)]]
_Seeds = Grid[Annotated[int, Field(ge=0, lt=2**31)]]


_LR_KEYS = ("base_lr", "lr", "log2_lr")
"""Under which a section's learning rates may stand."""


def _take_rates(cls: type[Section], section: Mapping[Any, Any], name: str) -> dict[Any, Any]:
    """Return a section with its ``log2_lr`` turned into ``base_lr``."""
    filled = dict(section)
    given = [key for key in _LR_KEYS if key in filled]
    if len(given) > 1:
        raise fault(f"one of {given[0]} and {given[1]}", "both", key=f"{name}.{given[0]}")
    key = given[0] if given else "base_lr"
    if filled.get(key) in ([], ()):
        raise fault("at least one value", [], key=f"{name}.{key}")
    if key == "log2_lr":
        grid = as_grid(filled.pop(key))
        for log2_lr in grid:
            if isinstance(log2_lr, bool) or not isinstance(log2_lr, int | float):
                raise fault("a number", log2_lr, key=f"{name}.{key}")
            if not -500 <= log2_lr <= 500:
                raise fault("a number from -500 to 500", log2_lr, key=f"{name}.{key}")
        filled["base_lr"] = tuple(2.0**log2_lr for log2_lr in grid)
    elif not given and set(filled) <= {*cls.model_fields}:
        # Said only when nothing else is amiss: a misspelled key explains it better.
        raise fault(f"this or {name}.log2_lr", None, key=f"{name}.base_lr")
    return filled


class SweepConfig(Section):
    """``[sweep]``: the grid of trials, and the axis that its learning rates are on."""

    input_keys: ClassVar[tuple[str, ...]] = ("lr", "log2_lr")

    _adaptive: bool = PrivateAttr(default=False)

    parameterization: _Rules
    """Names of the rules, such as ``sp+embd``, stored in canonical spelling; of ``[rules]``; or the
    path of a rule file, relative to the study file's folder, which then stands in ``[rules]``."""

    width: _Widths
    """D, model widths."""

    base_width: Count
    """The width at which all rules agree; by default the smallest width."""

    base_lr: Annotated[
        tuple[Positive, ...],
        BeforeValidator(as_grid),
        AfterValidator(check_distinct),
        Field(validation_alias=AliasChoices("base_lr", "lr")),
    ]
    """Learning rates on ``axis``; a file may call them ``lr``, or give ``log2_lr``.

    Empty where the file says ``"adaptive"``: the search places them, as ``[adaptive]`` says. Empty
    too where the file has ``[[points]]`` in place of a grid.
    """

    weight_decay: Grid[NonNegative] = (0.0,)
    """λ of the weight decay."""

    weight_decay_mode: WeightDecayMode = DEFAULT_WEIGHT_DECAY_MODE
    """``constant``, ``coupled`` or ``independent``: how λ becomes a tensor's weight decay."""

    axis: Axis = DEFAULT_AXIS
    """``hidden-aligned`` or ``global``: what ``base_lr`` means."""

    seed: _Seeds = (0, 1)
    """Seeds of the initial draws and of the data order."""

    @property
    def is_adaptive(self) -> bool:
        """Whether learning rates are placed in rounds."""
        return self._adaptive

    @model_validator(mode="wrap")
    @classmethod
    def _complete(cls, section: object, build: ModelWrapValidatorHandler[Self]) -> Self:
        """Turn ``log2_lr`` into ``base_lr``, fill in ``base_width``, and see what is adaptive."""
        if not isinstance(section, Mapping):
            return build(section)
        filled = _take_rates(cls, section, "sweep")
        adaptive = any(filled.get(key) == ADAPTIVE for key in _LR_KEYS)
        for key in _LR_KEYS:
            if key in filled and filled[key] in (ADAPTIVE, None):
                filled[key] = ()
        if "base_width" not in filled and "width" in filled:
            widths = [w for w in as_grid(filled["width"]) if isinstance(w, int)]
            filled["base_width"] = min(widths, default=1)
        sweep = build(filled)
        sweep._adaptive = adaptive
        return sweep


class PointsConfig(Section):
    """``[[points]]``: trials beside the grid, or in its place; all combinations of its lists."""

    input_keys: ClassVar[tuple[str, ...]] = ("lr", "log2_lr", "seeds")

    parameterization: _Rules | None = None
    """By default those of ``[sweep]``."""

    width: _Widths
    """D, model widths."""

    base_lr: Annotated[Grid[Positive], Field(validation_alias=AliasChoices("base_lr", "lr"))]
    """Learning rates on the sweep's axis; a file may call them ``lr``, or give ``log2_lr``."""

    weight_decay: Grid[NonNegative] | None = None
    """By default those of ``[sweep]``."""

    seed: _Seeds | None = Field(default=None, validation_alias=AliasChoices("seed", "seeds"))
    """By default those of ``[sweep]``; a file may call them ``seeds``."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, section: object) -> object:
        return _take_rates(cls, section, "points") if isinstance(section, Mapping) else section


class StudyConfig(Section):
    """A whole study file. Get one from ``load_study`` or ``parse_study``.

    Examples
    --------
    >>> config = load_study("studies/embedding.toml")
    >>> config.sweep.weight_decay_mode, config.train.beta2
    ('constant', 0.95)
    """

    name: Annotated[str, Field(max_length=100), AfterValidator(check_name)]
    """What the study is called, in messages and in the report."""

    data: DataConfig
    model: ModelConfig
    points: tuple[PointsConfig, ...] = ()
    sweep: SweepConfig
    adaptive: SearchRule = SearchRule()
    train: TrainConfig
    probes: ProbesConfig = ProbesConfig()

    rules: dict[str, dict[str, Any]] | None = None
    """Rules of the study's own by name, as ``[rules.NAME]``, with the keys of a rule file."""

    _root: Path = PrivateAttr(default=Path())
    _rules: Mapping[str, Parameterization] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _read_points(cls, document: object) -> object:
        """Take points for the whole sweep where it has no learning rates of its own."""
        if not isinstance(document, Mapping) or "points" not in document:
            return document
        points, sweep = document["points"], document.get("sweep")
        if not isinstance(points, list | tuple) or not points:
            raise fault("one or more sections [[points]]", points, key="points")
        filled = {**document, "points": tuple(points)}
        if isinstance(sweep, Mapping) and not any(key in sweep for key in _LR_KEYS):
            widths = [
                as_grid(each.get("width", ())) for each in points if isinstance(each, Mapping)
            ]
            found = list(dict.fromkeys(w for each in widths for w in each if isinstance(w, int)))
            given = {"width": found} if found and "width" not in sweep else {}
            filled["sweep"] = {**sweep, **given, "base_lr": None}
        return filled

    @model_validator(mode="after")
    def _check_together(self, info: ValidationInfo) -> "StudyConfig":
        self._rules = info.context or {}
        model, sweep, train = self.model, self.sweep, self.train
        if model.factory is None:
            self._check_gpt()
        elif self.data.text is not None and "context" not in model.model_fields_set:
            raise fault("tokens in a sequence", None, key="model.context")
        elif self.has_probes:
            expected = "no probes of a factory's model, which has modules of its own"
            raise fault(expected, "the section", key="probes")
        if self.data.batches is not None and model.loss is None:
            raise fault("a function, since data.batches are the user's own", None, key="model.loss")
        if train.momentum is not None and train.optimizer not in DEFAULT_MOMENTUM:
            expected = 'optimizer = "sgd" or "muon" beside it'
            raise fault(expected, train.momentum, key="train.momentum")
        if train.eval_tokens < model.context:
            expected = f"a sequence of model.context = {model.context} tokens or more"
            raise fault(expected, train.eval_tokens, key="train.eval_tokens")
        if "adaptive" in self.model_fields_set and not sweep.is_adaptive:
            raise fault('sweep.base_lr = "adaptive" with it', list(sweep.base_lr), key="adaptive")
        if self.points and sweep.is_adaptive:
            expected = "a list of learning rates in sweep.base_lr beside them, or none"
            raise fault(expected, ADAPTIVE, key="points")
        counts = (
            math.prod(len(getattr(each, key) or getattr(sweep, key)) for key in GRIDS)
            for each in (sweep, *self.points)
        )
        if (found := sum(counts)) > _MAX_TRIALS:
            expected = f"at most {_MAX_TRIALS:,} trials over the grid and all [[points]]"
            raise fault(expected, found, key="sweep")
        return self

    def _check_gpt(self) -> None:
        """Check what the built-in GPT asks of the other sections."""
        model, sweep = self.model, self.sweep
        if self.data.batches is not None:
            raise fault("a model.factory beside it", self.data.batches, key="data.batches")
        if self.train.optimizer not in (None, "adamw"):
            raise fault('"adamw" for the built-in GPT', self.train.optimizer, key="train.optimizer")
        for rule in self.parameterizations:
            if any(exponents.multiplier for exponents in self.find_rule(rule).roles.values()):
                expected = "a rule without multipliers, which the built-in GPT has no place for"
                raise fault(expected, rule, key="sweep.parameterization")
        name = "head_size" if model.head_size is not None else "num_heads"
        divisor = getattr(model, name)
        for width in self.widths:
            if width % divisor:
                expected = f"a multiple of model.{name} = {divisor}"
                home = "sweep" if width in sweep.width else "points"
                raise fault(expected, width, key=f"{home}.width")
        if model.num_heads and not model.base_head_size and sweep.base_width % divisor:
            expected = f"a multiple of model.num_heads = {divisor}"
            raise fault(expected, sweep.base_width, key="sweep.base_width")

    @property
    def root(self) -> Path:
        """The folder that ``data.text`` globs start from; no part of what the study is."""
        return self._root

    def find_rule(self, name: str) -> Parameterization:
        """Return the rule of that name: one of the study's own, or one that everybody knows."""
        return self._rules[name] if name in self._rules else parse_rule(name)

    @property
    def widths(self) -> tuple[int, ...]:
        """All widths of the grid and of ``[[points]]``, each once."""
        found = (*self.sweep.width, *(width for each in self.points for width in each.width))
        return tuple(dict.fromkeys(found))

    @property
    def parameterizations(self) -> tuple[str, ...]:
        """All parameterizations of the grid and of ``[[points]]``, each once."""
        more = (name for each in self.points for name in each.parameterization or ())
        return tuple(dict.fromkeys((*self.sweep.parameterization, *more)))

    @property
    def has_probes(self) -> bool:
        """Whether training is probed."""
        return "probes" in self.model_fields_set

    @cached_property
    def own_model(self) -> Any:
        """The user's own model as `hptransfer.study._own_model` knows it; None for the GPT."""
        if self.model.factory is None:
            return None
        # Only a study of a user's own model needs torch to be counted and planned.
        return import_module("hptransfer.study._own_model").OwnModel(self)

    def __eq__(self, other: object) -> bool:
        """Compare what is studied, wherever the file lies."""
        return isinstance(other, StudyConfig) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.identity())

    def to_dict(self) -> dict[str, Any]:
        """Return the canonical form, ready for JSON; ``parse_study`` reads it back as equal."""
        document: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        if self.sweep.is_adaptive:
            document["sweep"]["base_lr"] = ADAPTIVE
        else:
            del document["adaptive"]
        if not self.points:
            del document["points"]
        elif not self.sweep.base_lr:
            del document["sweep"]["base_lr"]
        if not self.has_probes:
            del document["probes"]
        return document

    def settings(self) -> dict[str, Any]:
        """Return what the identity covers: all but grids and points, with defaults spelled out.

        How learning rates are placed is no part of it, since a search may go on with another
        target; nor is what is probed, which changes no result.

        A field added in a later version must be left out at its default, or every older study
        directory would become another study's.
        """
        document = self.to_dict()
        for section in ("adaptive", "probes", "points"):
            document.pop(section, None)
        for grid in GRIDS:
            document["sweep"].pop(grid, None)
        if self.model.factory is None:
            default = self.model.head_size_at(self.sweep.base_width)
            document["model"]["base_head_size"] = self.model.base_head_size or default
        return document

    def identity(self) -> str:
        """Return the sha256 (hex) of ``settings``: a study directory belongs to one."""
        return hashlib.sha256(canonical_json(self.settings()).encode()).hexdigest()


def parse_study(
    document: Mapping[str, Any], *, source: str = "study", root: Path | None = None
) -> StudyConfig:
    """Return the config of a study file's content.

    Parameters
    ----------
    document : mapping
        The file's keys and sections.
    source : str
        What messages call it.
    root : Path, optional
        The folder that ``data.text`` globs start from; by default the current one.

    Raises
    ------
    ConfigError
        If anything is unknown, missing, of another type or out of range: one line that names
        the key, what was expected and what was found.

    Examples
    --------
    >>> config = parse_study({
    ...     "name": "tiny",
    ...     "data": {"text": "wiki", "vocab_size": 4096},
    ...     "model": {"num_layers": 2, "head_size": 16, "context": 64},
    ...     "sweep": {"parameterization": ["sp", "mup"], "width": [32, 64], "log2_lr": [-8, -6]},
    ...     "train": {"batch": 32, "steps": 200},
    ... })
    >>> config.sweep.base_lr
    (0.00390625, 0.015625)
    """
    root = root if root is not None else Path()
    document, rules = _read_rules(document, source=source, root=root)
    try:
        config = StudyConfig.model_validate(document, context=rules)
    except ValidationError as error:
        refuse(error, model=StudyConfig, source=source)
    config._root = root
    return config


def _read_rules(
    document: Mapping[str, Any], *, source: str, root: Path
) -> tuple[dict[str, Any], dict[str, Parameterization]]:
    """Return a study's content with its rule files in ``rules``, and those rules by name."""
    sweep, tables = document.get("sweep"), document.get("rules")
    if not isinstance(sweep, Mapping) or not isinstance(tables, Mapping | None):
        return dict(document), {}  # which is refused as it is
    found, names = dict(tables or {}), list(as_grid(sweep.get("parameterization", ())))
    for place, name in enumerate(names):
        if isinstance(name, str) and name.endswith(".toml"):
            table = read_toml(root / name, what="a rule in TOML")
            names[place] = name = build_rule(table, source=str(root / name)).name
            if found.setdefault(name, table) != table:
                raise ConfigError(f"{source}: rules.{name}: expected one rule of that name")
    rules = {
        name: build_rule({**table, "name": name}, source=f"{source}: rules.{name}")
        for name, table in found.items()
        if isinstance(table, Mapping)
    }
    changed = {"sweep": {**sweep, "parameterization": names}} if names else {}
    return {**document, **changed, **({"rules": found} if found else {})}, rules


def load_study(path: Path | str) -> StudyConfig:
    """Return the config of a study file (TOML, UTF-8); its folder becomes ``root``.

    Raises
    ------
    ConfigError
        As ``parse_study``, and if the file is missing, not UTF-8 or not TOML (with the line).

    Examples
    --------
    >>> config = load_study("studies/embedding.toml")
    >>> config.name, max(config.sweep.width)
    ('embedding', 256)
    """
    path = Path(path)
    return parse_study(read_toml(path, what="a study file"), source=str(path), root=path.parent)
