"""Hand-made results: groups whose drift, price and losses a test chooses."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from hptransfer.report import ReportSource
from hptransfer.stats import BasinFit, Estimate, LossTable, Reason, Recommendation, TransferFit

WIDTHS = (32.0, 64.0, 128.0)
NONE = Estimate(value=None, status="not identified", reasons=(Reason("text", text="no reason"),))


def about(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half)


def factor(value: float, ratio: float = 1.05) -> Estimate:
    return Estimate(value=value, low=value / ratio, high=value * ratio)


def make_fit(
    parameterization: str = "mup",
    *,
    lrs: Sequence[float] = (0.01, 0.01, 0.01),
    losses: Sequence[float] = (5.0, 4.5, 4.0),
    price: Estimate | None = None,
    vague: float = 1.05,
    spread: float = 0.01,
    outside: Sequence[float] = (),
    reference: str = "",
    gaps: Mapping[float, Estimate] | None = None,
    weight_decay: float = 0.0,
) -> TransferFit:
    basins = []
    for width, lr, loss in zip(WIDTHS, lrs, losses, strict=True):
        inside = width not in outside
        basins.append(
            BasinFit(
                width=width,
                lr=factor(lr, vague),
                loss=about(loss, spread),
                curvature=about(0.1),
                bracketed=inside,
                num_points=5,
                flags=() if inside else (Reason("not_bracketed"),),
                x_low=math.log(lr) - 1.5,
                x_high=math.log(lr) + 1.5,
                coefficients=(math.log(lr), loss, 0.1, 0.0),
            )
        )
    usable = [basin.width for basin in basins if basin.bracketed]
    cost = about(0.001, 0.0005) if price is None else price
    return TransferFit(
        group={"parameterization": parameterization, "weight_decay": weight_decay},
        axis="hidden-aligned",
        form="converging",
        basins=tuple(basins),
        exponents={name: about(0.5, 0.1) for name in ("alpha", "beta", "gamma", "loss_inf")},
        metrics={"E": about(4e-6, 1e-6), "E_out": NONE, "kappa": about(-0.4), "R_inf": about(0.1)},
        noise_floor=1e-6,
        gaps=gaps or {},
        notes=("a note",),
        reference=reference,
        regrets={width: cost for width in usable},
    )


def make_table(fits: Sequence[TransferFit], *, diverged: bool = True) -> LossTable:
    rows = []
    for fit in fits:
        for basin in fit.basins:
            for step in range(-4, 5):
                lr = basin.lr.value * 2.0**step
                loss = float(basin.curve(np.array([math.log(lr)]))[0])
                if step == 4 and diverged:
                    loss = math.nan
                if step == 3 and basin.width == 128:
                    loss = 1e6
                rows += [(basin.width, lr, loss + 1e-3 * seed, seed, fit.group) for seed in (0, 1)]
    width, lr, loss, seed, groups = zip(*rows, strict=True)
    return LossTable(
        width=np.array(width),
        lr=np.array(lr),
        loss=np.array(loss),
        seed=np.array(seed),
        groups={
            name: np.array([group[name] for group in groups], dtype=object)
            for name in fits[0].group
        },
        axis="hidden-aligned",
        source="t.csv",
    )


def make_source(fits: Sequence[TransferFit], **more: object) -> ReportSource:
    recommendations = [
        Recommendation(
            group=fit.group,
            width=512,
            lr=about(0.01, 0.001),
            loss=about(3.5),
            regret={"recommended": about(0.01), "same_lr": about(0.02), "inverse_width": NONE},
            verdict="risky",
            because="it is far",
        )
        for fit in fits
    ]
    details = {"title": "tiny", "recommendations": recommendations, **more}
    return ReportSource(table=make_table(fits), fits=fits, **details)


@pytest.fixture
def fit() -> Callable[..., TransferFit]:
    return make_fit


@pytest.fixture
def source() -> Callable[..., ReportSource]:
    return make_source


@pytest.fixture
def table() -> Callable[..., LossTable]:
    return make_table


@pytest.fixture
def settings() -> dict[str, object]:
    return {
        "name": "tiny",
        "axis": "hidden-aligned",
        "config": {"sweep": {"width": [32, 64], "log2_lr": [-8.0, -7.5]}, "rounds": [{"n": 1}]},
        "data": {"text": "wiki", "unigram_entropy": 6.5, "bigram_entropy": 4.2},
        "versions": {"torch": "2.13.0"},
        "precision": "fp32",
    }
