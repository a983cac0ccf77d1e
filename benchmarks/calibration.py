"""How good are the estimates, and do their intervals mean what they say?

Fits synthetic studies of known truth and prints two tables: root mean square errors against the
Cramér-Rao bound on well-specified studies, with how often κ is called identified, and the
coverage of the intervals over studies that mix all that makes sweeps hard. Everything is seeded.

    python benchmarks/calibration.py [--studies 200] [--mixed 1000] [--json]
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hptransfer.stats._advice import advise
from hptransfer.stats._group_fit import (
    DEFAULT_RESAMPLES,
    GroupData,
    GroupFit,
    fit_groups,
    gather_groups,
)
from hptransfer.stats._power_laws import Laws
from hptransfer.stats.estimate import Status, interval
from hptransfer.stats.joint_model import ALPHA, EXCESS, LIMIT, Information
from hptransfer.stats.loss_table import Floats, LossTable
from hptransfer.stats.results import TransferModel

#: The target is this many times the widest width.
REACH = 4.0
#: A 99 % interval of a normal over its 90 % interval.
WIDER = 2.576 / 1.645
#: Below which bound κ should be called identified, and above which not.
KAPPA_SEEN, KAPPA_LOST = 0.15, 1.0
#: Standard errors up to which an estimate is useful: the 90 % half-width of the design's
#: thresholds over 1.645.
USEFUL = {
    "x* at 4x": 0.5 * np.log(2.0) / 1.645,
    "loss at 4x": 0.1 / 1.645,
    "alpha": 0.2 / 1.645,
    "gamma": 0.2 / 1.645,
    "kappa": 0.5 / 1.645,
    "loss_inf": 0.1 / 1.645,
}
GETTERS: dict[str, Callable[[Laws], Floats]] = {
    "alpha": lambda laws: laws.best.exponent,
    "gamma": lambda laws: laws.gamma,
    "kappa": lambda laws: laws.kappa,
    "loss_inf": lambda laws: laws.best.limit,
}


def _fit(data: GroupData, scatter: float | None = None) -> GroupFit:
    [fit] = fit_groups([data], scatter=scatter)
    return fit


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table with the truth behind it.

    Attributes
    ----------
    table : LossTable
        One group.
    model : TransferModel
        The truth.
    widths, x : ndarray, shape (W,) and (L,)
        The grid.
    noise : float
        Standard deviation of one trial in nats.
    num_seeds : int
        Trials per point.
    """

    table: LossTable
    model: TransferModel
    widths: Floats
    x: Floats
    noise: float
    num_seeds: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One estimated quantity of one study: truth, value, status, and its intervals."""

    name: str
    truth: float
    value: float
    status: Status
    inside90: bool
    inside99: bool


def make_model(
    base: float,
    *,
    loss_inf: float = 2.0,
    excess: float = 0.7,
    alpha: float = 0.5,
    curvature: float = 0.05,
    gamma: float = 0.1,
    drift: float = 0.5,
    beta: float = 0.7,
    skew: float = 0.0,
) -> TransferModel:
    """Build a truth from values at the narrowest width `base`: excess loss, curvature, drift."""
    return TransferModel(
        form="converging",
        loss_inf=loss_inf,
        A=excess * base**alpha,
        alpha=alpha,
        C0=curvature * base**-gamma,
        gamma=gamma,
        x_inf=-5.0,
        B=drift * base**beta,
        beta=beta,
        skew=skew,
    )


def sample_study(
    rng: np.random.Generator,
    model: TransferModel,
    widths: Floats,
    x: Floats,
    *,
    noise: float,
    num_seeds: int,
    edge: float = np.inf,
    missing: float = 0.0,
) -> Study:
    """Draw the losses of a study.

    Trials diverge above `edge`, in ln(lr) from the optimum of their width, give or take a tenth;
    a share `missing` of the trials was never run.
    """
    width, place, seed = (
        part.reshape(-1) for part in np.meshgrid(widths, x, np.arange(num_seeds), indexing="ij")
    )
    u = place - model.optimum(width)
    loss = model.best_loss(width) + 0.5 * model.curvature(width) * u**2 * (1.0 + model.skew * u)
    loss = loss + noise * rng.standard_normal(len(loss))
    loss[u + 0.1 * rng.standard_normal(len(loss)) > edge] = np.nan
    keep = rng.random(len(loss)) >= missing
    table = LossTable(width=width[keep], lr=np.exp(place[keep]), loss=loss[keep], seed=seed[keep])
    return Study(table=table, model=model, widths=widths, x=x, noise=noise, num_seeds=num_seeds)


def mixed_study(rng: np.random.Generator) -> Study:
    """Draw a study that mixes what real sweeps mix."""
    base = float(rng.choice([32.0, 64.0, 128.0]))
    widths = base * 2.0 ** np.arange(int(rng.integers(4, 9)))
    drift = float(rng.uniform(0.3, 1.2))
    model = make_model(
        base,
        loss_inf=float(rng.uniform(1.5, 3.0)),
        excess=float(rng.uniform(0.4, 1.0)),
        alpha=float(rng.uniform(0.3, 0.8)),
        curvature=float(rng.uniform(0.03, 0.1)),
        gamma=float(rng.uniform(-0.1, 0.3)),
        drift=drift,
        beta=float(rng.uniform(0.4, 1.0)),
        skew=float(rng.uniform(-0.15, 0.15)) if rng.random() < 0.5 else 0.0,
    )
    num = int(rng.integers(7, 10))
    middle = model.x_inf + 0.5 * drift + np.log(2.0) * float(rng.uniform(-0.5, 0.5))
    x = middle + np.log(2.0) * (np.arange(num) - (num - 1) / 2)
    return sample_study(
        rng,
        model,
        widths,
        x,
        noise=float(np.exp(rng.uniform(np.log(0.001), np.log(0.01)))),
        num_seeds=int(rng.choice([1, 3])),
        edge=float(rng.uniform(1.2, 2.5)) if rng.random() < 1 / 3 else np.inf,
        missing=float(rng.uniform(0.03, 0.15)) if rng.random() < 1 / 3 else 0.0,
    )


def answer(
    study: Study, *, num_resamples: int = DEFAULT_RESAMPLES, scatter: float | None = 0.0
) -> list[Answer]:
    """Fit a study and compare each estimate with the truth; empty where there are no laws.

    With a scatter of 0 the laws that the studies are drawn from are held exactly.
    """
    (data,) = gather_groups(study.table, num_resamples=num_resamples)
    fit = _fit(data, scatter)
    out = []

    def add(name: str, truth: float, value: float, samples: Floats | None, status: Status) -> None:
        inside = [False, False]
        if samples is not None and np.isfinite(samples).any():
            for k, level in enumerate((0.90, 0.99)):
                low, high = interval(samples, level)
                inside[k] = bool(min(low, value) <= truth <= max(high, value))
        out.append(
            Answer(
                name=name,
                truth=truth,
                value=value,
                status=status,
                inside90=inside[0],
                inside99=inside[1],
            )
        )

    model = study.model
    for place, basin in enumerate(fit.result.basins):
        truth = float(model.optimum(np.array([basin.width]))[0])
        samples = None if fit.draws is None else fit.draws.x[:, place]
        add("x*(n)", truth, basin.coefficients[0], samples, basin.lr.status)
    laws = fit.laws
    if laws is None or not laws.drawn:
        return out
    target = REACH * float(study.widths.max())
    advice = advise(fit, target, study.table, form="converging", scatter=scatter, priors=None)
    lr = advice.lr
    if lr.value is not None and lr.low is not None and lr.high is not None:
        truth, x = float(model.optimum(np.array([target]))[0]), float(np.log(lr.value))
        half = 0.5 * float(np.log(lr.high / lr.low))
        out.append(
            Answer(
                name="x* at 4x",
                truth=truth,
                value=x,
                status=lr.status,
                inside90=abs(truth - x) <= half,
                inside99=abs(truth - x) <= half * WIDER,
            )
        )
    rows = laws.best_loss(target)
    truth = float(model.best_loss(np.array([target]))[0])
    add("loss at 4x", truth, float(rows[0]), rows[1:], advice.loss.status)
    truths = {
        "alpha": model.alpha,
        "gamma": model.gamma,
        "kappa": model.alpha - 2.0 * model.beta + model.gamma,
        "loss_inf": model.loss_inf,
    }
    found = {**fit.result.exponents, **fit.result.metrics}
    for name, get in GETTERS.items():
        rows = get(laws)
        add(name, truths[name], float(rows[0]), rows[1:], found[name].status)
    return out


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the well-specified settings of the efficiency table, by name."""
    short, long = 64.0 * 2.0 ** np.arange(4), 32.0 * 2.0 ** np.arange(7)
    six = 64.0 * 2.0 ** np.arange(6)
    for name, widths, noise, seeds in (
        ("64-512, 0.002 nats, 3 seeds", short, 0.002, 3),
        ("32-2048, 0.002 nats, 3 seeds", long, 0.002, 3),
        ("64-512, 0.01 nats, 3 seeds", short, 0.01, 3),
        ("64-512, 0.0012 nats, 1 seed", short, 0.0012, 1),
        ("64-2048, 0.005 nats, 3 seeds", six, 0.005, 3),
        ("64-2048, 0.005 nats, 1 seed", six, 0.005, 1),
        ("64-512, 0.016 nats, 3 seeds", short, 0.016, 3),
        ("64-512, 0.01 nats, 1 seed", short, 0.01, 1),
    ):
        yield name, {"widths": widths, "noise": noise, "num_seeds": seeds}


def measure_efficiency(num: int, seed: int, num_resamples: int) -> list[dict[str, Any]]:
    """Compare root mean square errors with the bound, one row per setting and quantity."""
    rows = []
    x = -4.75 + np.log(2.0) * (np.arange(7) - 3.0)
    for k, (name, grid) in enumerate(settings()):
        model = make_model(float(grid["widths"][0]))
        rng = np.random.default_rng([seed, 1, k])
        found: dict[str, list[Answer]] = {}
        for _ in range(num):
            study = sample_study(rng, model, x=x, **grid)
            for a in answer(study, num_resamples=num_resamples):
                found.setdefault(a.name, []).append(a)
        sigma = grid["noise"] / np.sqrt(grid["num_seeds"])
        bound = Information(model, width=grid["widths"][:, None], x=x, sigma=sigma)
        t = float(np.log(REACH * grid["widths"][-1])) - bound.centre
        decay = float(np.exp(-bound.theta[0, ALPHA] * t))
        tilt = float(-bound.theta[0, EXCESS] * t)
        bounds = {
            "x* at 4x": bound.optimum(REACH * float(grid["widths"][-1])),
            "loss at 4x": bound.propagate({LIMIT: 1.0, EXCESS: decay, ALPHA: tilt * decay}),
            **{key: bound.error(key) for key in GETTERS},
        }
        for key, limit in bounds.items():
            answers = found.get(key, [])
            miss = np.array([a.value - a.truth for a in answers])
            rmse = float(np.sqrt(np.mean(miss**2))) if len(miss) else float("nan")
            statuses = [a.status for a in answers]
            rows.append(
                {
                    "setting": name,
                    "quantity": key,
                    "studies": len(answers),
                    "bound": limit,
                    "rmse": rmse,
                    "ratio": rmse / limit,
                    "useful": bool(limit <= USEFUL[key]),
                    "inside90": float(np.mean([a.inside90 for a in answers])),
                    "identified": statuses.count("identified") / num,
                    "not_identified": statuses.count("not identified") / num,
                }
            )
    return rows


def measure_coverage(
    num: int, seed: int, num_resamples: int, scatter: float | None = 0.0
) -> list[dict[str, Any]]:
    """Count how often intervals of identified quantities hold the truth, in mixed studies."""
    rng = np.random.default_rng([seed, 2])
    found: dict[str, list[Answer]] = {}
    for _ in range(num):
        for a in answer(mixed_study(rng), num_resamples=num_resamples, scatter=scatter):
            found.setdefault(a.name, []).append(a)
    rows = []
    for name, answers in found.items():
        called = [a for a in answers if a.status == "identified"]
        rows.append(
            {
                "quantity": name,
                "asked": len(answers),
                "identified": len(called),
                "inside90": float(np.mean([a.inside90 for a in called])) if called else None,
                "outside99": float(np.mean([not a.inside99 for a in called])) if called else None,
            }
        )
    return rows


#: Truths of the optimum beyond the model: x* − x*(narrowest) at t = ln(n / narrowest).
LAWS: dict[str, Callable[[Floats, np.random.Generator], Floats]] = {
    "converging": lambda t, rng: 0.5 * np.exp(-0.7 * t) - 0.5,
    "power": lambda t, rng: -float(rng.uniform(0.0, 0.8)) * t,
    "power, scatter 0.1": lambda t, rng: (
        -float(rng.uniform(0.0, 0.8)) * t + 0.1 * rng.standard_normal(len(t))
    ),
    "slow rise and fall": lambda t, rng: 0.4 * np.sin(np.pi * t / t[-1]),
}


def measure_laws(num: int, seed: int) -> list[dict[str, Any]]:
    """Count how often the averaged law holds x* and the regret at 4x, by the truth's own law."""
    rows = []
    for k, (name, law) in enumerate(LAWS.items()):
        rng = np.random.default_rng([seed, 3, k])
        held, bounded, errors = [], [], []
        for _ in range(num):
            widths = 64.0 * 2.0 ** np.arange(int(rng.integers(4, 7)))
            every = np.append(widths, REACH * widths[-1])
            optimum = -6.0 + law(np.log(every / 64.0), rng)
            grid = np.log(2.0) * np.arange(-15, -3, 0.5)
            width, x = (part.reshape(-1) for part in np.meshgrid(widths, grid, indexing="ij"))
            z = x - np.repeat(optimum[:-1], len(grid))
            loss = 2.0 + 0.7 * (width / 64.0) ** -0.5 + 0.05 * z**2
            loss += 0.003 * rng.standard_normal(len(loss))
            zeros = np.zeros(len(loss), dtype=np.int64)
            table = LossTable(width=width, lr=np.exp(x), loss=loss, seed=zeros)
            [data] = gather_groups(table, num_resamples=2)
            advice = advise(_fit(data), float(every[-1]), table)
            lr, most = advice.lr, advice.regret["recommended"].high
            if lr.value is None or lr.low is None or lr.high is None or most is None:
                continue
            error = float(np.log(lr.value)) - float(optimum[-1])
            errors.append(error)
            held.append(np.log(lr.low) <= optimum[-1] <= np.log(lr.high))
            bounded.append(0.05 * error**2 <= most)
        rows.append(
            {
                "law": name,
                "studies": len(held),
                "inside90": float(np.mean(held)),
                "bounded": float(np.mean(bounded)),
                "rms": float(np.sqrt(np.mean(np.square(errors)))) / float(np.log(2.0)),
            }
        )
    return rows


def print_laws(rows: list[dict[str, Any]]) -> None:
    """Print the table of `measure_laws`."""
    print(
        f"{'truth':20} {'studies':>8} {'holds x* at 4x':>15} {'regret bounded':>15} {'rms oct.':>9}"
    )
    for row in rows:
        print(
            f"{row['law']:20} {row['studies']:15d} {100 * row['inside90']:13.1f} % "
            f"{100 * row['bounded']:13.1f} % {row['rms']:15.2f}"
        )


def print_tables(efficiency: list[dict[str, Any]], coverage: list[dict[str, Any]]) -> None:
    """Print both tables; an asterisk marks bounds that make no useful estimate."""
    if efficiency:
        print(
            f"{'setting':30} {'quantity':10} {'bound':>8} {'rmse':>8} {'ratio':>6} {'90 %':>6} "
            f"{'ident.':>7} {'not id.':>7}"
        )
    for row in efficiency:
        mark = " " if row["useful"] else "*"
        print(
            f"{row['setting']:30} {row['quantity']:10} {row['bound']:8.4f} {row['rmse']:8.4f} "
            f"{row['ratio']:5.2f}{mark} {100 * row['inside90']:5.1f}% "
            f"{100 * row['identified']:6.1f}% {100 * row['not_identified']:6.1f}%"
        )
    for row in efficiency:
        if row["quantity"] == "kappa" and row["bound"] <= KAPPA_SEEN:
            print(
                f"kappa, bound {row['bound']:.3f}: called identified in "
                f"{100 * row['identified']:.1f} % of studies (target 90)"
            )
        if row["quantity"] == "kappa" and row["bound"] >= KAPPA_LOST:
            print(
                f"kappa, bound {row['bound']:.3f}: called not identified in "
                f"{100 * row['not_identified']:.1f} % of studies (target 90)"
            )
    if efficiency and coverage:
        print()
    if coverage:
        print(
            f"{'quantity':10} {'asked':>6} {'identified':>11} {'90 % holds truth':>17} "
            f"{'outside 99 %':>13}"
        )
    for row in coverage:
        inside = "-" if row["inside90"] is None else f"{100 * row['inside90']:.1f} %"
        outside = "-" if row["outside99"] is None else f"{100 * row['outside99']:.1f} %"
        print(
            f"{row['quantity']:10} {row['asked']:6d} {row['identified']:11d} {inside:>17} "
            f"{outside:>13}"
        )


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=200, help="per well-specified setting")
    parser.add_argument("--mixed", type=int, default=1000, help="studies of the coverage table")
    parser.add_argument(
        "--found", action="store_true", help="coverage with the scatter that `fit` finds, not 0"
    )
    parser.add_argument("--laws", type=int, default=100, help="studies for each law of x*")
    parser.add_argument("--resamples", type=int, default=DEFAULT_RESAMPLES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    efficiency = measure_efficiency(args.studies, args.seed, args.resamples) if args.studies else []
    scatter = None if args.found else 0.0
    coverage = (
        measure_coverage(args.mixed, args.seed, args.resamples, scatter) if args.mixed else []
    )
    laws = measure_laws(args.laws, args.seed) if args.laws else []
    if args.json:
        document = {"schema": 1, "efficiency": efficiency, "coverage": coverage, "laws": laws}
        json.dump(document, sys.stdout)
        print()
    else:
        print_tables(efficiency, coverage)
        if laws:
            print_laws(laws)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
