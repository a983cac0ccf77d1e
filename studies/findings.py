"""Write studies/FINDINGS.md and its figures from the published tables alone (`make findings`)."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from decay import MATTERS, describe_decay
from dynamics import describe_dynamics
from measured import (
    NAMES,
    Fit,
    Range,
    Table,
    load_tables,
    mean_range,
    pairs_of_switch,
    show,
    table_of,
)
from svg import Line, Panel, draw

from hptransfer.scaling import parse_parameterization

HERE = Path(__file__).parent
FIGURES = HERE / "figures"
#: What each switch multiplies E by in the source's published numbers (median of matched pairs).
SOURCE_E = {"embd": 0.149, "attn": 0.641, "last": 0.841, "ln": 4.81}
#: Least share of µP's advantage that `embd` alone must keep for C1 to hold, and with which, at
#: most, it fails.
C1_HOLDS, C1_FAILS = 0.8, 0.5
SQUARE = tuple(NAMES)
#: Matched pairs whose mean is told.
LEAST_PAIRS = 3


def describe_tables(tables: dict[str, Table]) -> Iterator[str]:
    """Yield what was run."""
    rows = []
    for table in tables.values():
        diverged = table.column("state").count("diverged")
        vocab, layers = table.setting("vocab_size"), table.setting("num_layers")
        rows.append(
            [
                f"`{table.name}`",
                f"{len(table.rows)}" + (f" ({diverged} diverged)" if diverged else ""),
                f"{len(table.values('parameterization'))}",
                ", ".join(map(str, table.values("width"))),
                f"{len(table.values('base_lr'))}",
                ", ".join(f"{decay:g}" for decay in table.values("weight_decay")),
                f"{len(table.values('seed'))}",
                f"{layers} layers, vocabulary {vocab}",
                ", ".join(str(v) for v in table.values("device")),
            ]
        )
    head = ("table", "trials", "rules", "widths", "rates", "λ", "seeds", "model", "device")
    yield from table_of(head, rows)


def describe_brackets(tables: dict[str, Table]) -> Iterator[str]:
    """Yield how many optima are bracketed, and which are not."""
    total, missing = 0, []
    for table in tables.values():
        for (rule, decay), fit in table.fits().items():
            total += len(fit.document["basins"])
            missing += [
                f"`{table.name}` {rule}, λ = {decay:g}, width {width}" for width in fit.unbracketed
            ]
    share = 100 * (total - len(missing)) / total
    yield f"{total - len(missing)} of {total} optima are bracketed ({share:.1f} %)." + (
        f" Not bracketed: {'; '.join(missing)}." if missing else ""
    )
    yield ""


class Square:
    """SP and µP, each with and without `embd`, at one weight decay of a table."""

    def __init__(self, table: Table, decay: float) -> None:
        self.table, self.decay = table, decay
        self.fit = {rule: table.fits("sp")[rule, decay] for rule in SQUARE}
        self.widths = sorted(set.union(*(set(fit.basins) for fit in self.fit.values())))

    def effect(self, off: str, on: str, width: int) -> Range | None:
        """Return L*(off) − L*(on) in nats, paired by seed."""
        gap = self.table.fits(off)[on, self.decay].gaps.get(width)
        return None if gap is None else -gap

    def priced(self, off: str, on: str, width: int) -> str:
        """Return the share of `off`'s compute with which `on` is as good."""
        gap = self.effect(off, on, width)
        if gap is None or gap.value <= 0 or width not in self.fit[on].basins:
            return "–"
        return self.table.price_as_compute(self.fit[on], self.fit[off], gap, width)

    @property
    def widest(self) -> int:
        """The widest width at which all four have a minimum."""
        return max(set.intersection(*(set(fit.basins) for fit in self.fit.values())))

    def kept(self) -> Range:
        """Return the share of µP's advantage over SP that SP+Embd has, at that width."""
        whole, part = (self.effect("sp", on, self.widest) for on in ("mup", "sp+embd"))
        assert whole is not None
        assert part is not None
        ratio = part.draws(1) / whole.draws(2)
        return Range.of_draws(part.value / whole.value, ratio)

    def dearer(self) -> Range | None:
        """Return by how much SP+Embd's price of transfer lies above µP's, at that width."""
        ours, theirs = (self.fit[rule].prices.get(self.widest) for rule in ("sp+embd", "mup"))
        return None if ours is None or theirs is None else ours - theirs

    def verdict(self) -> str:
        """Judge C1 by the share that `embd` keeps, and by the price of transfer."""
        kept, whole = self.kept(), self.effect("sp", "mup", self.widest)
        dearer = self.dearer()
        assert whole is not None
        if whole.low <= 0:
            return "undecided: µP has no advantage over SP here that stands out"
        if kept.high <= C1_FAILS or (dearer is not None and dearer.low > MATTERS):
            return "fails"
        if kept.low >= C1_HOLDS and dearer is not None and dearer.high < MATTERS:
            return "holds"
        return "undecided"


def find_squares(tables: dict[str, Table]) -> list[Square]:
    """Return every table's squares with at least two widths in common."""
    found = []
    for table in tables.values():
        if not set(SQUARE) <= set(table.values("parameterization")):
            continue
        for decay in table.values("weight_decay"):
            square = Square(table, decay)
            common = set.intersection(*(set(fit.basins) for fit in square.fit.values()))
            if len(common) >= 2:
                found.append(square)
    return found


def describe_square(square: Square) -> Iterator[str]:
    """Yield the 2 x 2 of `embd` against the rest of µP, width by width."""
    steps = (("sp", "sp+embd"), ("mup-embd", "mup"), ("sp", "mup-embd"), ("sp+embd", "mup"))
    rows = []
    for width in square.widths:
        effects = [show(square.effect(*step, width), "{:+.3f}") for step in steps]
        rows.append(
            [
                f"{width}",
                effects[0],
                square.priced("sp", "sp+embd", width),
                effects[1],
                square.priced("mup-embd", "mup", width),
                *effects[2:],
            ]
        )
    name = f"`{square.table.name}`" + (f", λ = {square.decay:g}" if square.decay else "")
    yield f"### {name}"
    yield ""
    head = (
        "width", "`embd` within SP", "with this share of SP's compute", "`embd` within µP",
        "of µP−Embd's compute", "rest of µP, without `embd`", "rest of µP, with `embd`",
    )  # fmt: skip
    yield from table_of(head, rows)
    whole = square.effect("sp", "mup", square.widest)
    first = square.effect("sp", "sp+embd", square.widest)
    second = square.effect("mup-embd", "mup", square.widest)
    assert first is not None
    assert second is not None
    yield (
        f"At width {square.widest}, the widest where all four have a minimum: µP is better than SP "
        f"by {show(whole)} nats; SP+Embd alone has {show(square.kept(), '{:.2f}')} times that; "
        f"interaction (`embd` within µP less within SP) {show(second - first, '{:+.3f}')}. To keep "
        f"the narrowest width's optimum there costs SP+Embd {show(square.dearer(), '{:+.4f}')} "
        "nats more than µP."
    )
    yield ""
    rows = []
    for rule in SQUARE:
        fit = square.fit[rule]
        top = max(fit.basins)
        rows.append(
            [
                NAMES[rule],
                f"{top}",
                show(fit.number("drift"), "{:+.2f}"),
                show(fit.prices.get(top), "{:.4f}"),
                show(fit.basins[top].loss),
            ]
        )
    yield from table_of(
        (
            "rule",
            "widest",
            "drift of ln(lr*) per ln(width), hidden-aligned axis",
            "price of keeping the narrowest width's optimum there, nats",
            "best loss there",
        ),
        rows,
    )
    yield f"C1 here: **{square.verdict()}**."
    yield ""


def describe_controls(tables: dict[str, Table]) -> Iterator[str]:
    """Yield the effect of `embd` within SP where µP was not run: the control of Adam's ε."""
    rows = []
    for table in tables.values():
        rules = set(table.values("parameterization"))
        if not {"sp", "sp+embd"} <= rules or "mup-embd" in rules:
            continue
        for decay in table.values("weight_decay"):
            gaps = table.fits("sp")["sp+embd", decay].gaps
            rows += [
                [f"`{table.name}`", f"{table.setting('eps') or 1e-8:g}", f"{decay:g}", f"{width}",
                 show(-gap, "{:+.3f}")]
                for width, gap in gaps.items()
                if width != table.setting("base_width")
            ]  # fmt: skip
    if rows:
        yield "### SP+Embd beside SP alone"
        yield ""
        yield from table_of(("table", "Adam's ε", "λ", "width", "`embd` within SP, nats"), rows)


def say_eps(tables: dict[str, Table]) -> str:
    """Say what a smaller ε of Adam's changes, between tables that differ in nothing else."""
    settings = (
        "base_width",
        "num_layers",
        "vocab_size",
        "batch",
        "steps",
        "data_hash",
        "precision",
    )

    def design(table: Table) -> list[Any]:
        return [table.setting(name) for name in settings] + table.values("seed")

    said = []
    for small in tables.values():
        for plain in tables.values():
            eps = [table.setting("eps") or 1e-8 for table in (small, plain)]
            if design(small) != design(plain) or eps[0] >= eps[1]:
                continue
            fits = [table.fits("sp").get(("sp+embd", 0.0)) for table in (small, plain)]
            if fits[0] is None or fits[1] is None:
                continue
            gaps = [fit.gaps for fit in fits if fit is not None]
            changes = [
                f"{show(-gaps[0][width], '{:+.3f}')} at width {width}, where it is "
                f"{show(-gaps[1][width], '{:+.3f}')} at {eps[1]:g}"
                for width in sorted(set(gaps[0]) & set(gaps[1]))
                if width != small.setting("base_width")
            ]
            said.append(f"with ε = {eps[0]:g} `embd` is worth {'; '.join(changes)}")
    return f"Here {'; '.join(said)} (`embd` within SP, nats)." if said else "It was not run yet."


def find_multipliers(table: Table) -> dict[str, tuple[float, float]]:
    """Return (c, e) of a table's rules with embedding rate (η/m)·c·m^e; {} unless c or e varies."""
    rules = [
        rule
        for rule in table.values("parameterization")
        if set(rule) & set("^*") or rule in ("sp", "sp+embd")
    ]
    if not any(set(rule) & set("^*") for rule in rules):
        return {}
    numbers = {rule: parse_parameterization(rule).roles["embedding"] for rule in rules}
    return {rule: (each.lr_factor, each.lr + 1) for rule, each in numbers.items()}


def describe_multiplier(tables: dict[str, Table]) -> Iterator[str]:
    """Yield what the size of the embedding's rate and its growth with width are worth."""
    for table in tables.values():
        if not (numbers := find_multipliers(table)):
            continue
        rules = {number: rule for rule, number in numbers.items()}
        powers = sorted({e for _, e in rules})
        fits = table.fits("sp")
        yield f"### `{table.name}`: embedding rate (η/m)·c·m^e, nats below SP"
        yield ""
        rows = []
        for width in table.values("width"):
            for factor in sorted({c for c, _ in rules}):
                gaps = [fits[rules[factor, e], 0.0].gaps.get(width) for e in powers]
                cells = [show(None if gap is None else -gap, "{:+.3f}") for gap in gaps]
                rows.append([f"{width}", f"{factor:g}", *cells])
        yield from table_of(("width", "c", *(f"e = {power:g}" for power in powers)), rows)


def say_size(tables: dict[str, Table]) -> str:
    """Say how large an embedding's rate was best, at the widest width of each table of sizes."""
    said = []
    for table in tables.values():
        if not (numbers := find_multipliers(table)):
            continue
        fits = table.fits("sp")
        width = max(w for rule in numbers for w in fits[rule, 0.0].gaps)
        m = width / table.setting("base_width")
        gaps = {rule: -fits[rule, 0.0].gaps[width] for rule in numbers}
        best = max(gaps, key=lambda rule: gaps[rule].value)
        c, e = numbers[best]
        said.append(
            f"At width {width} of `{table.name}` (m = {m:g}) {c * m**e:g} times the hidden rate "
            f"was best of those tried: {show(gaps[best])} nats, SP+Embd's {m:g} times "
            f"{show(gaps['sp+embd'])}."
        )
    return " ".join(said)


def draw_square(square: Square, name: str) -> None:
    """Draw the effects by width, and the basins at each width."""
    ticks = [(math.log2(width), str(width)) for width in square.widths]
    lines = []
    for off, on, words in (
        ("sp", "sp+embd", "embd within SP"),
        ("mup-embd", "mup", "embd within µP"),
        ("sp", "mup-embd", "rest of µP, without embd"),
        ("sp+embd", "mup", "rest of µP, with embd"),
    ):
        known = [(w, e) for w in square.widths if (e := square.effect(off, on, w)) is not None]
        lines.append(
            Line(
                name=words,
                x=[math.log2(w) for w, _ in known],
                y=[e.value for _, e in known],
                low=[e.low for _, e in known],
                high=[e.high for _, e in known],
            )
        )
    effects = Panel(
        title="lower best loss, nats", lines=lines, x_label="width", y_label="nats", x_ticks=ticks
    )
    (FIGURES / f"{name}-effects.svg").write_text(draw([effects], columns=1), encoding="utf-8")
    (FIGURES / f"{name}-basins.svg").write_text(
        draw([_draw_basins(square, width) for width in square.widths], columns=3), encoding="utf-8"
    )


def _draw_basins(square: Square, width: int) -> Panel:
    table = square.table
    columns = ("parameterization", "width", "weight_decay", "log2_lr", "loss")
    trials = list(zip(*(table.column(name) for name in columns), strict=True))
    lines = []
    for rule in SQUARE:
        found: dict[float, list[float]] = {}
        for parameterization, at, decay, log2_lr, loss in trials:
            if (parameterization, at, decay) == (rule, width, square.decay) and loss is not None:
                found.setdefault(log2_lr, []).append(loss)
        x = sorted(found)
        lines.append(Line(name=NAMES[rule], x=x, y=[float(np.mean(found[k])) for k in x]))
    best = min(min(line.y, default=math.inf) for line in lines)
    rates = sorted({x for line in lines for x in line.x})
    return Panel(
        title=f"width {width}",
        lines=lines,
        x_label="log2 lr, hidden-aligned axis",
        y_label="held-out loss, nats",
        x_ticks=[(x, f"{x:g}") for x in rates[:: max(1, len(rates) // 4)]],
        y_limits=(best - 0.03, best + 0.6),
    )


def describe_switches(tables: dict[str, Table]) -> Iterator[str]:
    """Yield the four switches' matched-pair effects."""
    lattices = [t for t in tables.values() if _has_pairs(t)]
    if not lattices:
        yield "The lattice has not been run yet."
        yield ""
        return
    for table in lattices:
        for decay in table.values("weight_decay"):
            fits = {rule: fit for (rule, at), fit in table.fits().items() if at == decay}
            top = _widest_of_all(list(fits.values()))
            measures: dict[str, Callable[[Fit], float | None]] = {
                f"best loss at {top}, nats": partial(_best_loss, width=top),
                "drift": lambda fit: _value(fit.number("drift")),
                f"price of transfer to {top}, nats": partial(_price, width=top),
                "ln E": lambda fit: _log(_value(fit.number("metrics", "E"))),
            }
            rows = []
            for switch in ("embd", "ln", "attn", "last"):
                pairs = pairs_of_switch(switch, list(fits), parse_parameterization)
                row = [f"`{switch}`"]
                for name, measure in measures.items():
                    changes = [
                        b - a
                        for off, on in pairs
                        if (a := measure(fits[off])) is not None
                        and (b := measure(fits[on])) is not None
                    ]
                    mean = mean_range(changes) if len(changes) >= LEAST_PAIRS else None
                    if name == "ln E" and mean is not None:
                        mean = Range(*(math.exp(v) for v in (mean.value, mean.low, mean.high)))
                        row.append(f"× {show(mean, '{:.2f}')} ({len(changes)})")
                    else:
                        row.append(f"{show(mean, '{:+.4f}')} ({len(changes)})")
                rows.append([*row, f"× {SOURCE_E[switch]:g}"])
            yield f"### `{table.name}`, λ = {decay:g}"
            yield ""
            head = ("switch on", *(n if n != "ln E" else "E" for n in measures), "E in the source")
            yield from table_of(head, rows)
            yield (
                "Mean over matched pairs (their number in brackets), 90 % interval over pairs. "
                "Pairs share seeds and the runs at the base width: an interval says how an effect "
                "varies from pair to pair, and is too narrow for how sure its mean is, that of E "
                "above all."
            )
            yield ""


def _widest_of_all(fits: list[Fit]) -> int:
    """Return the widest width at which as many fits have a minimum as at any."""
    counts = Counter(width for fit in fits for width in fit.basins)
    return max(width for width, count in counts.items() if count == max(counts.values()))


def _has_pairs(table: Table) -> bool:
    """Return whether a table has pairs that differ in each of the four switches alone."""
    rules = table.values("parameterization")
    return all(pairs_of_switch(switch, rules, parse_parameterization) for switch in SOURCE_E)


def _best_loss(fit: Fit, *, width: int) -> float | None:
    return fit.basins[width].loss.value if width in fit.basins else None


def _price(fit: Fit, *, width: int) -> float | None:
    return _value(fit.prices.get(width)) if width != min(fit.prices, default=width) else None


def _value(found: Range | None) -> float | None:
    return None if found is None else found.value


def _log(value: float | None) -> float | None:
    return math.log(value) if value is not None and value > 0 else None


def summarise_claims(tables: dict[str, Table], squares: list[Square]) -> Iterator[str]:
    """Yield a row for each claim and table that it was tried on."""
    for square in squares:
        where = f"`{square.table.name}`" + (f", λ = {square.decay:g}" if square.decay else "")
        kept = show(square.kept(), "{:.2f}")
        yield (
            f"| C1 | {where}, width {square.widest} | **{square.verdict()}**: SP+Embd has {kept} "
            "times µP's advantage over SP |"
        )
    for claim, pages in (("C2", describe_dynamics(tables)), ("C3", describe_decay(tables))):
        heading = "no table yet"
        for line in pages:
            heading = line.removeprefix("### ") if line.startswith("### ") else heading
            if line.startswith(f"{claim} here"):
                way, answer, rest = line.removeprefix(f"{claim} here").split("**")
                where = heading + way.rstrip(": ")
                yield f"| {claim} | {where} | **{answer}**{rest.rstrip('.')} |"
            elif line.endswith("nothing measured."):
                yield f"| {claim} | {heading} | **undecided**: not measured yet |"


def say_gain(squares: list[Square]) -> str:
    """Say what `embd` is worth within SP at the widest width that was trained."""
    square = max(squares, key=lambda each: max(each.fit["sp"].gaps | each.fit["sp+embd"].gaps))
    width = max(square.fit["sp+embd"].gaps)
    effect = square.effect("sp", "sp+embd", width)
    priced = square.priced("sp", "sp+embd", width)
    m = width / square.table.setting("base_width")
    return (
        f"Expect, at {m:g} times the base width, about {show(effect)} nats (width {width}, "
        f"`{square.table.name}`): SP+Embd is as good with {priced} of the compute."
    )


def say_rest(squares: list[Square]) -> str:
    """Say what the rest of µP adds to SP+Embd."""
    square = max(squares, key=lambda each: each.widest)
    effect = square.effect("sp+embd", "mup", square.widest)
    assert effect is not None
    words = "costs" if effect.high < 0 else "gains" if effect.low > 0 else "changes by"
    size = -effect if effect.high < 0 else effect
    return (
        f"The rest of µP (`ln`, `last`) {words} {show(size)} nats beside SP+Embd at width "
        f"{square.widest} of `{square.table.name}`: it need not come along."
    )


def write_findings(tables: dict[str, Table]) -> str:
    """Return the whole page: the template with its places filled in."""
    squares = find_squares(tables)
    c1: list[str] = []
    for square in squares:
        name = square.table.name + (f"-decay-{square.decay:g}" if square.decay else "")
        draw_square(square, name)
        c1 += [
            *describe_square(square),
            f"![effects by width](figures/{name}-effects.svg)",
            "",
            f"![loss by learning rate](figures/{name}-basins.svg)",
            "",
        ]
    places = {
        "verdicts": summarise_claims(tables, squares),
        "gain": [say_gain(squares)],
        "rest": [say_rest(squares)],
        "size": [say_size(tables)],
        "eps": [say_eps(tables)],
        "run": [*describe_tables(tables), *describe_brackets(tables)],
        "c1": [*c1, *describe_controls(tables), *describe_multiplier(tables)],
        "c2": describe_dynamics(tables),
        "c3": describe_decay(tables),
        "switches": describe_switches(tables),
    }
    page = (HERE / "findings.template.md").read_text(encoding="utf-8")
    for name, lines in places.items():
        page = page.replace("{{" + name + "}}", "\n".join(lines).rstrip())
    return page


def main() -> None:
    """Write the page and its figures."""
    FIGURES.mkdir(exist_ok=True)
    (HERE / "FINDINGS.md").write_text(write_findings(load_tables()), encoding="utf-8")


if __name__ == "__main__":
    main()
