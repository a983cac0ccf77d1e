"""Turn a rate on a study's axis into the rates that an optimizer takes, role by role."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hptransfer.errors import ConfigError
from hptransfer.scaling import build_rule, resolve
from hptransfer.stats.loss_table import LossTable


@dataclass(frozen=True, kw_only=True)
class RoleRates:
    """A study's way from a rate on its axis to rates per role.

    Attributes
    ----------
    axis : str
        What the study's rates mean: ``hidden-aligned`` or ``global``.
    base_width : int
        Width at which all rules agree.
    optimizer : str
        One of ``scaling.OPTIMIZERS``.
    num_layers : int
        Blocks of the model, for rules that scale depth.
    rules : mapping of str to mapping
        Tables of the study's own rules, by name.

    Examples
    --------
    >>> rates = RoleRates(axis="hidden-aligned", base_width=32)
    >>> rates({"parameterization": "sp+embd"}, 512, 0.04)["hidden"]
    0.0025
    """

    axis: str
    base_width: int
    optimizer: str = "adamw"
    num_layers: int = 1
    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __call__(
        self, group: Mapping[str, object], width: float, lr: float
    ) -> dict[str, float] | None:
        """Return the learning rate of each role at a width.

        Returns
        -------
        dict of str to float or None
            None where the group names no rule that is known, or the rule says nothing for the
            optimizer.
        """
        name = str(group.get("parameterization", ""))
        try:
            own = self.rules.get(name)
            found = resolve(
                name if own is None else build_rule({**own, "name": name}, source=name),
                width=round(width),
                base_width=self.base_width,
                base_lr=lr,
                axis=self.axis,
                optimizer=self.optimizer,
                num_layers=self.num_layers,
                head_size=1,
            )
        except ConfigError:
            return None
        return {role: numbers.lr for role, numbers in found.roles.items()}


def attach_rates(table: LossTable, settings: Mapping[str, Any]) -> LossTable:
    """Return a study's loss table with its way from rates on the axis to rates per role.

    Parameters
    ----------
    table : LossTable
        The study's losses.
    settings : mapping
        Contents of its ``study.json``.

    Returns
    -------
    LossTable
        The table as it is where the settings name no axis and base width.
    """
    config = settings.get("config", {})
    base_width = config.get("sweep", {}).get("base_width")
    axis = settings.get("axis")
    if not (isinstance(axis, str) and isinstance(base_width, int)):
        return table
    rates = RoleRates(
        axis=axis,
        base_width=base_width,
        optimizer=str(config.get("train", {}).get("optimizer", "adamw")),
        num_layers=int(config.get("model", {}).get("num_layers") or 1),
        rules=config.get("rules", {}),
    )
    return replace(table, rates=rates, base_width=float(base_width))
