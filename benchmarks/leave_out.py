"""Leave out the widest size of real tables, predict it, and print prediction, truth and regret.

    python benchmarks/leave_out.py --data DIR [--study DIR]

For each group of each table: the fit sees every size but the widest, `recommend` predicts the
optimal learning rate and the loss at the one left out, and the truth is the basin fitted to the
losses measured there. Regret is the measured loss at a chosen learning rate above that basin's
minimum: on the basin's curve within the points it was fitted to, interpolated between measured
losses beyond them. It is given for the prediction, for the widest remaining size's optimum kept
(`same`), and for that optimum times the ratio of the two model widths (`1/width`).

DIR holds the four files of sweeps described in docs/real-tables.md; a file that is absent is
named and skipped. A study directory of ours can be added.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hptransfer.errors import HptransferError
from hptransfer.stats import (
    BasinFit,
    Estimate,
    Recommendation,
    TokenAdvice,
    fit_basin,
    fit_table,
    fit_tokens,
)
from sweeps import LOADERS, TOKEN_LOADERS, Group, load_study, read_rows, select

HEAD = (
    "table",
    "group",
    "held out",
    "predicted log2 lr [90 %]",
    "true log2 lr [90 %]",
    "inside?",
    "predicted loss [90 %]",
    "true loss [90 %]",
    "inside?",
    "regret (bound)",
    "regret of same lr",
    "regret of 1/width",
    "verdict",
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one left-out size showed: `inside` holds the word, and whether it was identified."""

    cells: tuple[str, ...]
    inside: dict[str, tuple[str, bool]]
    regrets: tuple[float, float, float]
    bound: float | None


def price(group: Group, size: float, basin: BasinFit, x: float) -> float:
    """Loss above the basin's minimum at x = ln(lr) in nats; inf where trials diverge, or nan.

    Where the minimum is not bracketed, the lowest measured loss stands in for it, which makes
    the price a lower bound.
    """
    if not math.isfinite(x):
        return math.nan
    whole = basin.bracketed and basin.has_curve
    if whole and basin.x_low <= x <= basin.x_high:
        return float(basin.curve(np.array([x]))[0]) - basin.coefficients[1]
    at = group.losses.width == size
    measured = np.log(group.losses.lr[at])
    order = np.unique(measured)
    # A learning rate at which any seed diverged has no mean.
    mean = np.array([np.mean(group.losses.loss[at][measured == v]) for v in order])
    if not order[0] <= x <= order[-1]:
        return math.inf if x > order[-1] and np.isnan(mean[-1]) else math.nan
    best = basin.coefficients[1] if whole else float(np.nanmin(mean))
    value = float(np.interp(x, order, mean)) - best
    return math.inf if math.isnan(value) else value


def inside(found: Estimate, truth: Estimate, *, bracketed: bool) -> str:
    """Whether the true value lies in the predicted interval; "overlap" if only its own does."""
    if found.low is None or found.high is None or truth.value is None or not bracketed:
        return "-"
    if found.low <= truth.value <= found.high:
        return "yes"
    if truth.low is None or truth.high is None:
        return "no"
    return "overlap" if truth.low <= found.high and found.low <= truth.high else "no"


def mark(e: Estimate) -> str:
    """Mark an estimate that is only weakly identified, or not."""
    return {"identified": "", "weakly identified": " ~"}.get(e.status, " ?")


def show_lr(e: Estimate, *, bracketed: bool = True) -> str:
    """Print a learning rate as log2 with its interval and mark."""
    if not bracketed:
        return "not bracketed"
    if e.value is None:
        return "none"
    if e.low is None or e.high is None:
        return f"{math.log2(e.value):.2f}{mark(e)}"
    ends = f"[{math.log2(e.low):.2f}, {math.log2(e.high):.2f}]"
    return f"{math.log2(e.value):.2f} {ends}{mark(e)}"


def show_loss(e: Estimate) -> str:
    """Print a loss in nats with its interval and mark."""
    if e.value is None:
        return "none"
    ends = "" if e.low is None else f" [{e.low:.4f}, {e.high:.4f}]"
    return f"{e.value:.4f}{ends}{mark(e)}"


def show_regret(value: float, *, bracketed: bool = True) -> str:
    """Print a regret in nats; a lower bound where the true minimum is not bracketed."""
    if math.isnan(value):
        return "?"
    return "diverged" if math.isinf(value) else f"{'' if bracketed else '>='}{value:.4f}"


def predict(group: Group, size: float) -> tuple[Outcome, Recommendation]:
    """Leave out `size` and all beyond it, predict it, and compare with what was measured there."""
    table = group.losses
    known = select(table, table.width < size)
    (answer,) = fit_table(known).recommend(width=size)
    truth = fit_basin(select(table, table.width <= size), width=size)
    proxies = [fit_basin(known, width=w) for w in sorted(set(known.width.tolist()))]
    usable = [b for b in proxies if b.bracketed and b.x_low <= b.coefficients[0] <= b.x_high]
    widest = usable[-1] if usable else None
    same = math.nan if widest is None else widest.coefficients[0]
    ratio = 1.0 if widest is None else group.widths[size] / group.widths[widest.width]
    return compare(group, size, f"{size:,.0f}", answer, truth, same, ratio), answer


def predict_tokens(group: Group, size: float) -> list[tuple[Outcome, TokenAdvice]]:
    """Leave out `size` and all beyond it at every budget, and predict each of its budgets."""
    table = group.losses
    assert table.tokens is not None
    known = fit_tokens(select(table, table.width < size))
    measured = fit_tokens(select(table, table.width <= size))
    # The optimum to keep is that of the widest size at its longest training.
    whole = [b for b in known.basins if b.basin.bracketed and b.basin.has_curve]
    widest = max(whole, key=lambda b: (b.width, b.tokens), default=None)
    same = math.nan if widest is None else widest.basin.coefficients[0]
    ratio = 1.0 if widest is None else group.widths[size] / group.widths[widest.width]
    out = []
    for item in measured.basins:
        if item.width == size:
            answer = known.recommend(width=size, tokens=item.tokens)
            budget = replace(group, losses=select(table, table.tokens == item.tokens))
            label = f"{size:,.0f} at {item.tokens / 1e9:g}e9"
            out.append((compare(budget, size, label, answer, item.basin, same, ratio), answer))
    return out


def compare(
    group: Group,
    size: float,
    label: str,
    answer: Recommendation | TokenAdvice,
    truth: BasinFit,
    same: float,
    ratio: float,
) -> Outcome:
    """Compare an answer with the basin measured; `same` and `ratio` make the naive choices."""
    chosen = math.nan if answer.lr.value is None else math.log(answer.lr.value)
    regrets = (
        price(group, size, truth, chosen),
        price(group, size, truth, same),
        math.nan if ratio == 1.0 else price(group, size, truth, same - math.log(ratio)),
    )
    lr_inside = inside(answer.lr, truth.lr, bracketed=truth.bracketed)
    loss_inside = inside(answer.loss, truth.loss, bracketed=truth.bracketed)
    bound = answer.regret["recommended"].high
    cells = (
        group.table,
        group.name,
        label,
        show_lr(answer.lr),
        show_lr(truth.lr, bracketed=truth.bracketed),
        lr_inside,
        show_loss(answer.loss),
        show_loss(truth.loss),
        loss_inside,
        show_regret(regrets[0], bracketed=truth.bracketed)
        + ("" if bound is None else f" ({bound:.2g})"),
        show_regret(regrets[1], bracketed=truth.bracketed),
        "-" if ratio == 1.0 else show_regret(regrets[2], bracketed=truth.bracketed),
        answer.verdict,
    )
    return Outcome(
        cells=cells,
        inside={
            "log2 lr": (lr_inside, answer.lr.status == "identified"),
            "loss": (loss_inside, answer.loss.status == "identified"),
        },
        regrets=regrets if truth.bracketed else (math.nan, math.nan, math.nan),
        bound=bound,
    )


def sizes_to_leave(group: Group) -> list[float]:
    """The widest size; and, where its minimum is not bracketed, the widest whose minimum is."""
    out: list[float] = []
    for size in sorted(set(group.losses.width.tolist()), reverse=True):
        out.append(size)
        if fit_basin(group.losses, width=size).bracketed:
            return out if len(out) < 2 else [out[0], out[-1]]
    return out[:1]


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows as an aligned table."""
    wide = [max(len(row[k]) for row in (HEAD, *rows)) for k in range(len(HEAD))]
    for row in (HEAD, tuple("-" * w for w in wide), *rows):
        print("| " + " | ".join(c.ljust(w) for c, w in zip(row, wide, strict=True)) + " |")


def print_summary(outcomes: Sequence[Outcome]) -> None:
    """Print how often truth was inside, and how the regrets compare where all are finite."""
    for what in ("log2 lr", "loss"):
        for kind, only in (("all", False), ("identified", True)):
            found = [o.inside[what] for o in outcomes if o.inside[what][0] != "-"]
            words = [word for word, identified in found if identified or not only]
            print(
                f"{what}, {kind}: {words.count('yes')} of {len(words)} true values inside the "
                f"predicted interval, {words.count('overlap')} more whose own interval overlaps it"
            )
    regrets = np.array([o.regrets for o in outcomes])
    for rule, column in (("same lr", 1), ("1/width", 2)):
        pairs = regrets[:, [0, column]]
        pairs = pairs[~np.isnan(pairs).any(axis=1)]
        if len(pairs):
            ours, theirs = np.median(pairs, axis=0)
            most, worst = pairs.max(axis=0)
            print(
                f"regret against {rule}, {len(pairs)} rows: median {ours:.4f} against "
                f"{theirs:.4f} nats, mean {pairs[:, 0].mean():.4f} against "
                f"{pairs[:, 1].mean():.4f}, largest {show_regret(float(most))} against "
                f"{show_regret(float(worst))}"
            )
    bounds = [(o.regrets[0], o.bound) for o in outcomes if o.bound is not None]
    known = [(found, bound) for found, bound in bounds if not math.isnan(found)]
    print(
        f"regret of the prediction within its 90 % bound in {sum(f <= b for f, b in known)} "
        f"of {len(known)}"
    )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the sweep files")
    parser.add_argument("--study", type=Path, help="a study directory to add")
    args = parser.parse_args()
    groups: list[Group] = []
    with_tokens: list[Group] = []
    for name, load in LOADERS.items() if args.data is not None else ():
        if (args.data / name).exists():
            rows = read_rows(args.data / name)
            groups += load(rows)
            if name in TOKEN_LOADERS:
                with_tokens += TOKEN_LOADERS[name](rows)
        else:
            print(f"{name}: not in {args.data}, skipped", file=sys.stderr)
    if args.study is not None:
        groups += load_study(args.study)
    outcomes: list[Outcome] = []
    because: list[str] = []
    for group in groups:
        for size in sizes_to_leave(group):
            try:
                outcome, answer = predict(group, size)
            except HptransferError as error:
                print(f"{group.table}, {group.name}: {error}", file=sys.stderr)
                continue
            outcomes.append(outcome)
            because.append(
                f"{group.table}, {group.name}, {size:,.0f}: {answer.verdict}: {answer.because}"
            )
    print_table([outcome.cells for outcome in outcomes])
    print()
    print_summary(outcomes)
    print()
    token_outcomes: list[Outcome] = []
    for group in with_tokens:
        for size in sorted(set(group.losses.width.tolist()))[-2:]:
            for found, advice in predict_tokens(group, size):
                token_outcomes.append(found)
                because.append(
                    f"{group.name}, {found.cells[2]}: {advice.verdict}: {advice.because}"
                )
    if token_outcomes:
        print_table([found.cells for found in token_outcomes])
        print()
        print_summary(token_outcomes)
        print()
    print("\n".join(because))
    return 0


if __name__ == "__main__":
    sys.exit(main())
