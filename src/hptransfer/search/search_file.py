"""Read the settings of a search for learning rates from a study file or a search file."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from hptransfer._sections import Octaves, Positive, Section, fault
from hptransfer.search.search_rule import SearchRule


class AdaptiveConfig(Section):
    """``[adaptive]``: how ``sweep.base_lr = "adaptive"`` places learning rates; log2 in octaves."""

    log2_lr: tuple[Octaves, Octaves] = SearchRule.log2_lr
    """Where the narrowest width is searched first; the search goes beyond where it must."""

    limits: tuple[Octaves, Octaves] = SearchRule.limits
    """log2(lr) that the search never goes beyond."""

    step: Annotated[float, Field(ge=0.01, le=2)] = SearchRule.step
    """All learning rates are 2 to whole multiples of this."""

    error: Positive = SearchRule.error
    """Standard error of log2(lr*) at which the widest width is done; narrower, cheaper widths are
    measured better, down to half of it."""

    max_points: Annotated[int, Field(ge=4, le=1000)] = int(SearchRule.max_points)
    """The budget: a search costs no more than a grid of this many learning rates at each width.
    Narrower, cheaper widths take more of them, wider ones fewer, at least four."""

    @field_validator("log2_lr", "limits", mode="before")
    @classmethod
    def _as_pair(cls, value: object) -> object:
        pair = tuple(value) if isinstance(value, list) else value
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise fault("two numbers, lowest first", value)
        return pair

    @model_validator(mode="after")
    def _check_ends(self) -> "AdaptiveConfig":
        for key, (low, high) in (("log2_lr", self.log2_lr), ("limits", self.limits)):
            if not low < high:
                raise fault("two numbers, lowest first", [low, high], key=f"adaptive.{key}")
        (low, high), (lowest, highest) = self.log2_lr, self.limits
        if not lowest <= low < high <= highest:
            expected = f"numbers inside adaptive.limits = [{lowest:g}, {highest:g}]"
            raise fault(expected, [low, high], key="adaptive.log2_lr")
        return self

    def rule(self) -> SearchRule:
        """Return the rule that the search follows."""
        return SearchRule(**self.model_dump())
