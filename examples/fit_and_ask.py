"""Fit a table of losses once, and ask the fit everything else.

    python examples/fit_and_ask.py

The table is a recorded sweep of this repository; any that `read_table` reads will do.
"""

from pathlib import Path

from hptransfer import BasinFit, Recommendation, TableFit, TransferFit, fit_table, read_table
from hptransfer.stats import fit_axes, flops_of
from hptransfer.stats.results import Proposal

RECORDED = Path(__file__).resolve().parents[1] / "studies" / "recorded" / "wiki-plain.csv"
TARGET = 256.0


def show_next(proposal: Proposal) -> None:
    """Print the trials that would narrow a recommendation most."""
    for step in proposal.steps:
        print(f"  next: width {step.width:g}, lr {[f'{lr:.2g}' for lr in step.lrs]}")


def main(path: Path = RECORDED) -> TableFit:
    """Print what the fit answers, group by group; it is made once."""
    table = read_table(path)
    fits = fit_table(table)
    fit: TransferFit
    answer: Recommendation
    for fit, answer in zip(fits, fits.recommend(width=TARGET), strict=True):
        basin: BasinFit = fit.basins[-1]
        print(f"{fit.group}: lr* {basin.lr.value:.2g} at width {basin.width:g}")
        print(f"  at width {TARGET:g}: {answer.lr.value:.2g}, {answer.verdict}: {answer.because}")
        show_next(answer.next)

    # Parameters by width, as a model's own count gives them.
    flops = flops_of([32.0, 64.0, 128.0], [3e5, 7e5, 18e5])
    for regret in fits.regret(width=TARGET, flops=flops):
        print(regret)
    for fast in fits.fast_transfer():
        print(fast)
    for flatness in fits.sensitivity():
        print(f"width {flatness.width:g}: sensitivity {flatness.sensitivity}")

    # Over width, tokens and batch at once, where a table spans them.
    axes = fit_axes(table)
    print(axes.recommend(width=TARGET)[0].verdict)
    return fits


if __name__ == "__main__":
    main()
