"""The study file as a whole: what is trained, on which grid, and nothing about scheduling.

Legend: D width, T context, V vocabulary.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError, model_validator

from hptransfer._sections import Section, fault, refuse
from hptransfer.scaling.toml import read_toml
from hptransfer.search.search_file import AdaptiveConfig
from hptransfer.study.sections import (
    ADAPTIVE,
    DataConfig,
    ModelConfig,
    SweepConfig,
    TrainConfig,
)

GRIDS = ("parameterization", "width", "lr", "weight_decay", "seed")
"""The sweep's keys that span trials; a study keeps its identity when they grow."""


def _check_name(name: str) -> str:
    if not name.strip() or not name.isprintable() or "/" in name:
        raise fault("a name in printable letters without '/'", name)
    return name


class StudyConfig(Section):
    """A whole study file. Get one from ``load_study`` or ``parse_study``."""

    name: Annotated[str, Field(max_length=100), AfterValidator(_check_name)]
    """What the study is called, in messages and in the report."""

    data: DataConfig
    model: ModelConfig
    sweep: SweepConfig
    adaptive: AdaptiveConfig = AdaptiveConfig()
    train: TrainConfig

    _root: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _check_together(self) -> "StudyConfig":
        model, sweep, train = self.model, self.sweep, self.train
        name = "head_size" if model.head_size is not None else "num_heads"
        divisor = getattr(model, name)
        for width in sweep.width:
            if width % divisor:
                expected = f"a multiple of model.{name} = {divisor}"
                raise fault(expected, width, key="sweep.width")
        if model.num_heads and not model.base_head_size and sweep.base_width % divisor:
            expected = f"a multiple of model.num_heads = {divisor}"
            raise fault(expected, sweep.base_width, key="sweep.base_width")
        if train.eval_tokens < model.context:
            expected = f"a sequence of model.context = {model.context} tokens or more"
            raise fault(expected, train.eval_tokens, key="train.eval_tokens")
        if "adaptive" in self.model_fields_set and not sweep.is_adaptive:
            raise fault('sweep.lr = "adaptive" beside it', list(sweep.lr), key="adaptive")
        return self

    @property
    def root(self) -> Path:
        """The folder that ``data.text`` globs start from; no part of what the study is."""
        return self._root

    def __eq__(self, other: object) -> bool:
        """Compare what is studied, wherever the file lies."""
        return isinstance(other, StudyConfig) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.identity())

    def to_dict(self) -> dict[str, Any]:
        """Return the canonical form, ready for JSON; ``parse_study`` reads it back as equal."""
        document: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        if self.sweep.is_adaptive:
            document["sweep"]["lr"] = ADAPTIVE
        else:
            del document["adaptive"]
        return document

    def settings(self) -> dict[str, Any]:
        """Return what the identity covers: everything but the grids, with defaults spelled out.

        How learning rates are placed is no part of it: a search may go on with another target.

        A field added in a later version must be left out at its default, or every older study
        directory would become another study's.
        """
        document = self.to_dict()
        document.pop("adaptive", None)
        for grid in GRIDS:
            del document["sweep"][grid]
        default = self.model.head_size_at(self.sweep.base_width)
        document["model"]["base_head_size"] = self.model.base_head_size or default
        return document

    def identity(self) -> str:
        """Return the sha256 (hex) of ``settings``: a study directory belongs to one."""
        return hashlib.sha256(canonical_json(self.settings()).encode()).hexdigest()


def canonical_json(value: object) -> str:
    """Return the one JSON text of a value, for hashing: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


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
    """
    try:
        config = StudyConfig.model_validate(dict(document))
    except ValidationError as error:
        refuse(error, model=StudyConfig, source=source)
    config._root = root if root is not None else Path()
    return config


def load_study(path: Path | str) -> StudyConfig:
    """Return the config of a study file (TOML, UTF-8); its folder becomes ``root``.

    Raises
    ------
    ConfigError
        As ``parse_study``, and if the file is missing, not UTF-8 or not TOML (with the line).
    """
    path = Path(path)
    return parse_study(read_toml(path, what="a study file"), source=str(path), root=path.parent)


def num_params(config: StudyConfig, width: int) -> int:
    """Return the parameters of the GPT at a width: (V+T)·D + layers·(12·D² + 2·D) + D + V·D.

    Token and position tables, per block four attention and two feed-forward matrices and two
    norm gains, the last norm's gain, and the untied readout.
    """
    D, T_, V = width, config.model.context, config.data.vocab_size
    return (V + T_) * D + config.model.num_layers * (12 * D**2 + 2 * D) + D + V * D


def num_steps(config: StudyConfig, width: int) -> int:
    """Return the optimizer steps of a trial at a width, rounded up to a whole step."""
    if config.train.steps is not None:
        return config.train.steps
    assert config.train.tokens_per_param is not None, "one of the two is checked"
    tokens = config.train.tokens_per_param * num_params(config, width)
    return math.ceil(tokens / (config.train.batch * config.model.context))


def num_tokens(config: StudyConfig, width: int) -> int:
    """Return the training tokens of a trial at a width: steps · B · T."""
    return num_steps(config, width) * config.train.batch * config.model.context
