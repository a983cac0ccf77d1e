"""What transfer assumes equal between proxy and target, as the user states it for both."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from hptransfer.errors import ConfigError
from hptransfer.scaling.checks import check_count, check_name

_CLOSE = 0.01  # relative; fractions and budgets are rounded to whole steps
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run, as far as it is told.

    Attributes
    ----------
    vocab_size, batch, context, steps, tokens : int or None
        Batch in sequences, context in tokens, steps of the optimizer, tokens in all.
    warmup : float or None
        Steps, or below 1 a fraction of them.
    tied : bool or None
        Whether embedding and readout are one table.
    """

    vocab_size: int | None = None
    batch: int | None = None
    context: int | None = None
    steps: int | None = None
    tokens: int | None = None
    warmup: float | None = None
    tied: bool | None = None

    @property
    def warmup_steps(self) -> float | None:
        """Warmup in steps; None where it is a fraction of an unknown number."""
        if self.warmup is None or self.warmup >= 1:
            return self.warmup
        return None if self.steps is None else self.warmup * self.steps

    @property
    def warmup_fraction(self) -> float | None:
        """Warmup as a fraction of the steps."""
        if self.warmup is None or self.warmup < 1:
            return self.warmup
        return None if self.steps is None else self.warmup / self.steps

    @property
    def all_tokens(self) -> int | None:
        """Tokens in all, told or from batch, context and steps."""
        if self.tokens is not None:
            return self.tokens
        if self.batch is None or self.context is None or self.steps is None:
            return None
        return self.batch * self.context * self.steps


def parse_run(option: str, text: str) -> Run:
    """Return the run that ``batch=32,steps=1000,warmup=0.2`` tells.

    Parameters
    ----------
    option : str
        Named in errors, such as ``--proxy``.
    text : str
        ``KEY=VALUE`` separated by commas; the keys are `Run`'s attributes. A warmup below 1, or
        one that ends in ``%``, is a fraction.

    Raises
    ------
    ConfigError
        If a part is not of that form, or a key or value is wrong.
    """
    known = [each.name for each in fields(Run)]
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (each.strip() for each in part.partition("="))
        if not equals or not value:
            raise ConfigError(f"{option}: expected KEY=VALUE such as batch=32, found {part!r}")
        check_name(f"{option}: key", key, known)
        if key in values:
            raise ConfigError(f"{option}: expected {key} once, found it twice")
        values[key] = _parse(f"{option}: {key}", key, value)
    return Run(**values)


def _parse(what: str, key: str, text: str) -> float | bool:
    if key == "tied":
        if text.lower() not in _BOOLEANS:
            raise ConfigError(f"{what}: expected true or false, found {text!r}")
        return _BOOLEANS[text.lower()]
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ConfigError(f"{what}: expected a number, found {text!r}") from None
    if key == "warmup":
        if not 0 <= number < float("inf"):
            raise ConfigError(f"{what}: expected 0 or more, found {text!r}")
        return number
    return check_count(what, int(number) if number.is_integer() else text)  # type: ignore[arg-type]


def complete(run: Run, found: Mapping[str, Any]) -> Run:
    """Return the run with what the model itself shows, where it is not told otherwise."""
    missing = {key: value for key, value in found.items() if getattr(run, key) is None}
    return replace(run, **missing)


def warn_of_runs(
    proxy: Run, target: Run, *, num_parameters: tuple[int, int]
) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of each run's own fault and of each difference that matters.

    Parameters
    ----------
    proxy, target : Run
        What is not known of both is not compared.
    num_parameters : tuple of int
        Of the two models, for the tokens per parameter.
    """
    for name, run in (("proxy", proxy), ("target", target)):
        warmup, steps = run.warmup_steps, run.steps
        if warmup is not None and steps is not None and warmup >= steps:
            yield (
                "warmup",
                f"the {name}'s warmup of {warmup:g} steps is no shorter than its run of {steps}: "
                "the tuned learning rate is never reached",
            )
    for key, words in (("vocab_size", "vocabulary"), ("batch", "batch"), ("tied", "tying")):
        one, other = getattr(proxy, key), getattr(target, key)
        if None not in (one, other) and one != other:
            yield key, _differ(words, str(one), str(other))
    one, other = proxy.warmup_fraction, target.warmup_fraction
    if one is not None and other is not None and abs(one - other) > _CLOSE * max(one, other):
        yield "warmup_fraction", _differ("warmup fraction", f"{one:.3g}", f"{other:.3g}")
    one, other = (
        None if tokens is None else tokens / number
        for tokens, number in zip(
            (proxy.all_tokens, target.all_tokens), num_parameters, strict=True
        )
    )
    if one is not None and other is not None and abs(one - other) > _CLOSE * max(one, other):
        yield "tokens_per_parameter", _differ("tokens per parameter", f"{one:.3g}", f"{other:.3g}")


def _differ(what: str, one: str, other: str) -> str:
    return (
        f"proxy and target differ in {what} ({one} and {other}), which transfer across width "
        "assumes equal"
    )
