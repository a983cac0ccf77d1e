"""The result of an audit: what a user does today per role, against the rules, and its words.

Factors are from the base width to the width; learning rates' are relative to the hidden layers',
so that they do not depend on how the one tuned learning rate is written.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RoleAudit:
    """One role's tensors; numbers are medians over them, None where there is none.

    Attributes
    ----------
    num_tensors : int
        Trained tensors of the role.
    lr, base_lr : float
        Learning rate at the width and at the base width.
    lr_factor, rule_lr_factor : float
        How the learning rate over the hidden layers' goes from base width to width; the rule's.
    init_std, base_init_std, init_factor, rule_init_factor : float or None
        The same of the standard deviation of the initial values, at ``Audit.init_width``.
    weight_decay : float
        The optimizer's, at the width.
    shrink, base_shrink : float
        lr · weight_decay, what a step of AdamW shrinks a tensor by.
    """

    num_tensors: int
    lr: float
    base_lr: float
    lr_factor: float
    rule_lr_factor: float
    init_std: float | None
    base_init_std: float | None
    init_factor: float | None
    rule_init_factor: float | None
    weight_decay: float
    shrink: float
    base_shrink: float


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Whether the embedding layer is held back.

    Attributes
    ----------
    held_back : bool
        Whether ``factor`` is clearly above 1.
    factor : float
        The learning rate that µP gives it, over today's, at the width.
    verdict, fix : str
        In words, one line each; no fix where none is needed.
    """

    held_back: bool
    factor: float
    verdict: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One warning: its kind, for programs, and its one line."""

    kind: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The rule that today's numbers are.

    Attributes
    ----------
    lr, init : str or None
        The first rule whose learning rates, and whose init, go with width as today's; None for
        no rule.
    axis : str
        ``hidden-aligned`` where the hidden learning rate falls as the rule's, ``global`` where it
        stays, else ``own``.
    """

    lr: str | None
    init: str | None
    axis: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What ``audit`` returns; ``to_dict`` is the document of ``hptransfer audit --json``.

    Attributes
    ----------
    model, optimizer, optimizer_class : str
        What was looked at.
    width, base_width, init_width : int
        Initial weights are looked at at ``init_width``, which is ``width`` unless that is too big.
    parameterization : str
        The rule compared with.
    roles : mapping of str to RoleAudit
        Empty where the model is another one at the base width.
    nearest : Nearest or None
        The rule that today's numbers are.
    embedding : Embedding or None
        The verdict; None without an embedding.
    warnings : tuple of Finding
        All else that is wrong.
    """

    model: str
    optimizer: str
    optimizer_class: str
    width: int
    base_width: int
    init_width: int
    parameterization: str
    roles: Mapping[str, RoleAudit] = field(default_factory=dict)
    nearest: Nearest | None = None
    embedding: Embedding | None = None
    warnings: tuple[Finding, ...] = ()

    @property
    def width_mult(self) -> float:
        """The width ratio m = width / base_width."""
        return self.width / self.base_width

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, schema 1."""
        return {
            "schema": 1,
            "model": self.model,
            "optimizer": self.optimizer,
            "optimizer_class": self.optimizer_class,
            "width": self.width,
            "base_width": self.base_width,
            "init_width": self.init_width,
            "width_mult": self.width_mult,
            "parameterization": self.parameterization,
            "roles": {role: asdict(each) for role, each in self.roles.items()},
            "nearest": None if self.nearest is None else asdict(self.nearest),
            "embedding": None if self.embedding is None else asdict(self.embedding),
            "warnings": [asdict(each) for each in self.warnings],
        }


def say_factor(factor: float | None) -> str:
    """Return ``×16``, ``÷16`` or ``×1``; "" for None."""
    if factor is None:
        return ""
    times = f"{max(factor, 1 / factor):.3g}"
    return f"÷{times}" if factor < 1 and times != "1" else f"×{times}"
