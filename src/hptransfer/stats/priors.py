"""Priors of the optimum law by kind of sweep: one table, readable and writable as a file.

The kind says how ln lr* moves with ln size on the axis that was swept: `raw` is standard
parameterization in raw learning rates, `aligned` is µP, any rule on an axis that follows it, or
depth, `parameters` is raw rates against parameter counts, `tokens` raw rates against training
tokens at a fixed batch, and `unknown` the mean of `raw` and `aligned`. Sweeps over width or depth
that take their tokens along have both priors, `Prior.with_budget`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hptransfer.errors import FitError
from hptransfer.stats.loss_table import Ints, LossTable

#: Forms of x*(n) that a forecast averages, in the order of every table of them.
FORMS = ("same", "constant", "power", "converging", "drift")


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is known of a kind of sweep before its own minima are seen.

    Attributes
    ----------
    name : str
        The kind.
    slope, spread : float
        Mean and standard deviation, over sweeps, of d ln lr*/d ln n.
    errors : mapping of str to float
        Root mean square error of each form's forecasts, in ln lr.
    scatter : float
        Median of the scatter of x* from size to size, in ln lr.
    trend : float
        What is expected on top of `slope`, of tokens that grow with the size.

    Examples
    --------
    >>> PRIORS["raw"].slope, PRIORS["aligned"].slope  # of SP's rate, and on the hidden-aligned axis
    (-0.5, -0.09)
    """

    name: str
    slope: float
    spread: float
    errors: Mapping[str, float]
    scatter: float
    trend: float = 0.0

    def with_budget(self, tokens: "Prior", growth: float) -> "Prior":
        """Return the prior of sizes n whose training tokens grow as n^`growth`.

        Both move the optimum: a rate that transfers from size to size moves with the tokens.

        Parameters
        ----------
        tokens : Prior
            What is known of sweeps over tokens.
        growth : float
            Up to `LEAST_GROWTH` the tokens stay.

        Examples
        --------
        >>> round(PRIORS["aligned"].with_budget(PRIORS["tokens"], 2.0).trend, 2)
        -0.34
        """
        if abs(growth) < LEAST_GROWTH:
            return self
        errors = {
            form: math.hypot(error, abs(growth) ** 0.5 * tokens.errors[form])
            for form, error in self.errors.items()
        }
        return replace(
            self,
            name=f"{self.name}, tokens ~ size^{growth:.2g}",
            trend=growth * tokens.slope,
            spread=math.hypot(self.spread, growth * tokens.spread),
            errors=errors,
        )


#: Budgets that grow more slowly are one budget, but for whole steps.
LEAST_GROWTH = 0.05


def _prior(name: str, slope: float, spread: float, *errors: float, scatter: float = 0.04) -> Prior:
    each = dict(zip(FORMS, errors, strict=True))
    return Prior(name=name, slope=slope, spread=spread, errors=each, scatter=scatter)


#: From public sweeps of ten families; `benchmarks/priors.py` re-estimates what files at hand hold.
PRIORS: Mapping[str, Prior] = {
    each.name: each
    for each in (
        _prior("raw", -0.50, 0.43, 0.55, 0.70, 0.25, 0.40, 0.33),
        _prior("aligned", -0.09, 0.16, 0.33, 0.42, 0.35, 0.40, 0.35),
        _prior("parameters", -0.51, 0.13, 0.40, 0.55, 0.25, 0.35, 0.15),
        _prior("tokens", -0.17, 0.25, 0.33, 0.40, 0.33, 0.40, 0.33, scatter=0.12),
        _prior("unknown", -0.30, 0.38, 0.44, 0.56, 0.30, 0.40, 0.34),
    )
}
#: With no prior: any slope, and no form before another.
NO_PRIOR = _prior("none", 0.0, 3.0, 0.35, 0.35, 0.35, 0.35, 0.35)

# Names of rules under which the optimal rate hardly moves with width, and of those under which
# a raw rate falls, as tables spell them.
_ALIGNED = ("mup", "µp", "μp", "umup", "completep", "modularnorm", "muonp")
_RAW = ("sp", "standard", "default", "ntk")


def classify(size: str, axis: str, parameterization: str | None) -> str:
    """Return the kind of a sweep.

    Parameters
    ----------
    size : str
        Column that stands for the size, such as ``width``, ``params``, ``tokens`` or ``depth``.
    axis : str
        The table's axis of learning rates; on ``hidden-aligned`` every rule is `aligned`.
    parameterization : str or None
        As the table spells it.
    """
    size = size.casefold()
    if "token" in size:
        return "tokens"
    if "param" in size:
        return "parameters"
    name = "".join(c for c in (parameterization or "").casefold() if c.isalnum() or c in "µμ")
    if axis == "hidden-aligned" or "depth" in size or name.startswith(_ALIGNED):
        return "aligned"
    return "raw" if name.startswith(_RAW) else "unknown"


def find_prior(table: LossTable, rows: Ints, priors: Mapping[str, Prior] | None = PRIORS) -> Prior:
    """Return the prior of some rows of a table, which have one parameterization.

    Parameters
    ----------
    table : LossTable
        Trials.
    rows : ndarray of int
        Those of one group; at least one.
    priors : mapping of str to Prior, or None
        Priors by kind of sweep; None for none.

    Raises
    ------
    FitError
        There is no prior of that kind.
    """
    if priors is None:
        return NO_PRIOR
    names = table.groups.get("parameterization")
    kind = classify(table.size, table.axis, None if names is None else str(names[rows[0]]))
    if kind not in priors:
        known = ", ".join(priors)
        raise FitError(f"priors: expected a prior of kind {kind}, found {known}")
    if kind in ("parameters", "tokens"):  # whose sweeps take their tokens along, or are over them
        return priors[kind]
    tokens = priors.get("tokens", PRIORS["tokens"])
    return priors[kind].with_budget(tokens, table.budget_growth(rows))


def write_priors(priors: Mapping[str, Prior], path: Path) -> None:
    """Write a table of priors as JSON.

    Examples
    --------
    >>> write_priors(PRIORS, Path("priors.json"))
    >>> read_priors(Path("priors.json")) == dict(PRIORS)
    True
    """
    document = {name: asdict(prior) | {"name": name} for name, prior in priors.items()}
    for prior in document.values():
        del prior["trend"]  # which a table's own tokens bring
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def read_priors(path: Path) -> dict[str, Prior]:
    """Read a table of priors that `write_priors` wrote.

    Raises
    ------
    FitError
        The file is missing or no JSON, or a number is missing or out of range; the message names
        it.

    Examples
    --------
    >>> write_priors(PRIORS, Path("priors.json"))
    >>> sorted(read_priors(Path("priors.json"))) == sorted(PRIORS)
    True
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FitError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise FitError(f"{path}: expected JSON, found {error}") from error
    if not isinstance(document, dict) or not document:
        raise FitError(
            f"{path}: expected an object of priors by kind, as benchmarks/priors.py writes"
        )
    out = {}
    for name, found in document.items():
        errors = {form: _number(path, found, name, "errors", form) for form in FORMS}
        out[name] = Prior(
            name=name,
            slope=_number(path, found, name, "slope", positive=False),
            spread=_number(path, found, name, "spread"),
            errors=errors,
            scatter=_number(path, found, name, "scatter"),
        )
    return out


def _number(path: Path, found: Any, name: str, *keys: str, positive: bool = True) -> float:
    value = found
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or (positive and value <= 0):
        kind = "a positive number" if positive else "a number"
        raise FitError(f"{path}: {name}.{'.'.join(keys)}: expected {kind}, found {value!r}")
    return float(value)
