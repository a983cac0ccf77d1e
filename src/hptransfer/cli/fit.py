"""Print the transfer metrics of a study or of any loss table, with 90 % intervals.

A table is a CSV, TSV, JSON or Parquet file, several of them, or a directory of a tracker's runs.
Its columns are width, lr and loss and, optionally, parameterization, weight_decay, seed, params,
tokens and state, by these names or by trackers' own; a missing loss is a diverged trial.
"""

import argparse

from hptransfer.cli._answers import describe_fits, describe_results
from hptransfer.cli._arguments import (
    READING,
    REFERENCE,
    SOURCES,
    VERBOSE,
    choose_reading,
    find_results,
)
from hptransfer.cli._print import tell, tell_reading
from hptransfer.report import make_answer
from hptransfer.report.words import describe_missing
from hptransfer.stats import fit_table
from hptransfer.stats._stability import summarise_stability
from hptransfer.tables import read_probes, read_source

OPTIONS = (
    SOURCES, REFERENCE, *READING,
    ("--form", None, ("converging", "power"), "converging",
     "form of the optimum against width (default: %(default)s)"),
    ("--scatter", "S", float, None,
     "standard deviation of ln lr* from width to width about the law; by default found; 0 takes "
     "the laws to hold exactly, and basins to have one shape unless the points contradict it"),
    VERBOSE,
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Fit the source and print what was found; 3 if a file of it was damaged."""
    sources = [find_results(source) for source in args.sources]
    study = read_source(sources, **choose_reading(args))
    tell_reading(study.table.source, study.notes, study.damaged)
    fits = fit_table(
        study.table,
        reference=args.reference,
        form=args.form,
        scatter=args.scatter,
    )
    # How stable training was, the one source of the fits says.
    probes = read_probes(sources[0]) if len(sources) == 1 else ()
    stability = summarise_stability(probes, fits)
    document = fits.to_dict()
    if stability:
        document["stability"] = stability
    if missing := describe_missing(study.table, study.settings):
        document["incomplete"] = missing
    text = describe_fits(fits, make_answer(fits, settings=study.settings))
    if args.verbose:
        text += f"\n{describe_results(fits, stability)}"
    return tell(args, document, text, damaged=bool(study.damaged))
