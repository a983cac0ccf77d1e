"""The findings' own arithmetic, by hand, and the page: the same bytes each time."""

import math
import re
from pathlib import Path

import decay
import findings
import numpy as np
import pytest
from measured import Basin, Fit, Range, mean_range, pairs_of_switch

from hptransfer.scaling import LATTICE, parse_parameterization

STUDIES = Path(__file__).parents[2] / "studies"


def estimate(value, half=0.0):
    return {"value": value, "low": value - half, "high": value + half, "status": "identified"}


def make_fit(losses, *, bracketed=True):
    """A fit with best losses by width, ln lr* = -3 and curvature 0.2 at each."""
    rate = math.exp(-3)
    return Fit(
        {
            "basins": [
                {
                    "width": width,
                    "lr": {**estimate(rate), "low": rate / 1.1, "high": rate * 1.1},
                    "loss": estimate(loss, 0.01),
                    "curvature": estimate(0.2, 0.01),
                    "bracketed": bracketed,
                }
                for width, loss in losses.items()
            ]
        }
    )


class FakeTable:
    """A table of models whose FLOPs per token are the square of the width."""

    equal_width = findings.Table.equal_width
    price_as_compute = findings.Table.price_as_compute

    def flops_per_token(self, width):
        return width**2


def test_an_equal_width_lies_between_neighbours_on_a_log_scale():
    table, fit = FakeTable(), make_fit({64: 5.0, 128: 4.5, 256: 4.2})
    assert table.equal_width(fit, 4.75) == pytest.approx(64 * math.sqrt(2))
    assert table.equal_width(fit, 4.3) == pytest.approx(128 * 2 ** (2 / 3))
    assert table.equal_width(fit, 5.1) is None
    assert table.equal_width(fit, 4.1) is None


def test_compute_is_priced_by_the_width_that_is_as_good():
    table = FakeTable()
    better, worse = make_fit({64: 5.0, 128: 4.5, 256: 4.2}), make_fit({64: 5.2, 128: 4.8, 256: 4.5})
    # 4.5 is the better one's loss at 128: a quarter of the FLOPs of 256.
    assert table.price_as_compute(better, worse, Range(0.3, 0.2, 0.54), 256) == "0.25 [0.13, 0.40]"
    # More than the narrowest width shows: a bound.
    shown = table.price_as_compute(better, worse, Range(0.9, 0.8, 1.0), 256)
    assert shown == "< 0.06 [< 0.06, 0.06]"
    assert table.price_as_compute(better, worse, Range(0.3, 0.2, 0.4), 64) == "–"


def test_a_regret_is_half_the_curvature_times_the_square():
    exact = Range(0.2, 0.2, 0.2)
    basin = Basin(64, Range(-3.0, -3.0, -3.0), Range(4.0, 4.0, 4.0), exact)
    regret = basin.regret(Range(-2.5, -2.5, -2.5), seed=0)
    assert (regret.value, regret.low, regret.high) == pytest.approx((0.025, 0.025, 0.025))
    unsure = basin.regret(Range(-2.5, -2.9, -2.1), seed=0)
    assert unsure.low < 0.025 < unsure.high


def test_a_mean_has_students_interval():
    found = mean_range([1.0, 2.0, 3.0])
    reach = 2.919986 / math.sqrt(3)  # t at 2 degrees of freedom, 95 %
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - reach, 2 + reach))
    assert mean_range([1.0]) is None


@pytest.mark.parametrize("switch", ["embd", "ln", "attn", "last"])
def test_eight_pairs_differ_in_one_switch_alone(switch):
    pairs = pairs_of_switch(switch, [*LATTICE, "u-mup"], parse_parameterization)
    assert len(set(pairs)) == 8
    for off, on in pairs:
        a, b = LATTICE[off], LATTICE[on]
        changed = [role for role in a.roles if a.roles[role] != b.roles[role]]
        expected = {"embd": ["embedding"], "ln": ["norm", "bias"], "last": ["readout"], "attn": []}
        assert changed == expected[switch]
        assert (a.attention != b.attention) == (switch == "attn")


class FakeSquare(findings.Square):
    """Effects and prices as told."""

    def __init__(self, whole, part, dearer):
        self._effects = {"mup": whole, "sp+embd": part}
        self._dearer = dearer

    widest = 512

    def effect(self, off, on, width):
        return self._effects[on]

    def dearer(self):
        return self._dearer


@pytest.mark.parametrize(
    ("whole", "part", "dearer", "verdict"),
    [
        ((0.11, 0.10, 0.12), (0.17, 0.16, 0.18), (0.0, -0.004, 0.004), "holds"),
        ((0.11, 0.10, 0.12), (0.02, 0.01, 0.03), (0.0, -0.004, 0.004), "fails"),
        ((0.11, 0.10, 0.12), (0.08, 0.06, 0.10), (0.0, -0.004, 0.004), "undecided"),
        ((0.11, 0.10, 0.12), (0.17, 0.16, 0.18), (0.05, 0.04, 0.06), "fails"),  # it transfers worse
        ((0.11, 0.10, 0.12), (0.17, 0.16, 0.18), (0.0, -0.05, 0.05), "undecided"),
        ((0.01, -0.02, 0.04), (0.17, 0.16, 0.18), (0.0, -0.004, 0.004), "undecided"),
    ],
)
def test_c1_is_judged_by_share_and_price(whole, part, dearer, verdict):
    square = FakeSquare(Range(*whole), Range(*part), Range(*dearer))
    assert square.verdict().split(":")[0] == verdict


@pytest.mark.parametrize(
    ("horizon", "change", "verdict"),
    [
        ("fixed tokens per parameter", (0.03, 0.01, 0.05), "holds"),
        ("fixed tokens per parameter", (-0.03, -0.05, -0.01), "fails"),
        ("fixed steps", (-0.03, -0.05, -0.01), "holds"),
        ("fixed steps", (0.03, -0.01, 0.07), "undecided"),
        ("fixed steps", (0.0005, -0.001, 0.0015), "no effect that matters"),
    ],
)
def test_c3_is_judged_by_the_extra_loss(horizon, change, verdict):
    assert decay.judge_decay(horizon, Range(*change)).split(",")[0] == verdict


def test_transfer_goes_on_from_a_quarter_of_the_width():
    fit = make_fit({16: 5.0, 32: 4.8, 64: 4.6, 128: 4.5})
    assert decay.transfer(fit, 32) is None  # nothing as narrow as 8
    one = decay.transfer(fit, 64)
    assert one[0] == "16"
    two = decay.transfer(fit, 128)
    assert two[0] == "16, 32"
    # All optima are equal: what is left is how well they are known, and a line that goes on is
    # known worse than a rate that is kept.
    assert 0 <= one[1].low < one[1].value < one[1].high < two[1].high < 0.02


class ToldTable:
    """A table of fits and settings as told."""

    def __init__(self, name, fits, **settings):
        self.name, self._fits, self._settings = name, fits, settings

    def fits(self, reference="sp"):
        return self._fits

    def values(self, name):
        if name == "weight_decay":
            return sorted({decay for _, decay in self._fits})
        found = self._settings.get(name, [])
        return found if isinstance(found, list) else [found]

    def setting(self, name):
        values = self.values(name)
        return values[0] if len(values) == 1 else None


def shift(fit, width, octaves):
    """Move one width's optimum."""
    basins = [dict(basin) for basin in fit.document["basins"]]
    for basin in basins:
        if basin["width"] == width:
            basin["lr"] = {
                **basin["lr"], **{k: basin["lr"][k] * 2**octaves for k in ("value", "low", "high")}
            }  # fmt: skip
    return Fit({**fit.document, "basins": basins})


def test_c3_is_judged_at_each_weight_decay():
    plain = make_fit({16: 5.0, 32: 4.8, 64: 4.6, 128: 4.5})
    moved = shift(plain, 128, -2)
    fits = {
        (rule, at): moved if at == 0.1 else plain for rule in ("sp", "mup") for at in (0, 0.03, 0.1)
    }
    page = "\n".join(decay.describe_decay({"t": ToldTable("t", fits, steps=500)}))
    kept = dict(re.findall(r"C3 here, λ = (\S+), the widest one's rate kept: \*\*(.*?)\*\*", page))
    # Half the curvature times the square of two octaves, at one of the two widths of each rule.
    size = 0.5 * 0.2 * (2 * math.log(2)) ** 2 / 2
    assert kept["0.03"].startswith("no effect that matters")
    low, high = map(float, re.search(r"\[(.*), (.*)\]", kept["0.1"]).groups())
    assert (low + high) / 2 == pytest.approx(size, abs=0.003)


def test_modes_stand_beside_each_other_at_equal_widths():
    plain = make_fit({16: 5.0, 64: 4.6, 256: 4.4})
    coupled = shift(make_fit({16: 5.0, 64: 4.5}), 64, -1)
    tables = {
        "t": ToldTable("t", {("sp", 0.0): plain, ("sp", 0.1): plain}, steps=500,
                       weight_decay_mode="constant", width=[16, 64, 256]),
        "t-coupled": ToldTable("t-coupled", {("sp", 0.1): coupled}, steps=500,
                               weight_decay_mode="coupled", width=[16, 64]),
    }  # fmt: skip
    page = list(decay.describe_decay(tables))
    start = page.index("### Modes of weight decay, fixed steps")
    rows = [line.split(" | ") for line in page[start:] if line.startswith("| SP")]
    assert [(row[1], row[2], row[3]) for row in rows] == [
        ("none", "0", "16 to 64"), ("constant", "0.1", "16 to 64"), ("coupled", "0.1", "16 to 64"),
    ]  # fmt: skip
    moves = [float(row[4].split()[0]) for row in rows]
    assert moves == pytest.approx([0, 0, -1], abs=0.01)
    assert float(rows[2][5].split()[0]) == pytest.approx(0.1 * math.log(2) ** 2, abs=0.003)


def test_an_eps_is_compared_where_nothing_else_differs():
    def table(name, gap, **settings):
        fit = Fit({"gaps": [{"width": 64, "gap": estimate(-gap, 0.01)}]})
        return ToldTable(name, {("sp+embd", 0.0): fit}, base_width=16, **settings)

    tables = {
        each.name: each
        for each in (
            table("small", 0.05, eps=1e-15, steps=500), table("plain", 0.06, eps=1e-8, steps=500),
            table("longer", 0.07, eps=1e-8, steps=800),
            ToldTable("decayed", {("sp+embd", 0.1): None}, base_width=16, eps=1e-8, steps=500),
        )
    }  # fmt: skip
    said = findings.say_eps(tables)
    assert "ε = 1e-15 `embd` is worth +0.050 [+0.040, +0.060] at width 64" in said
    assert "+0.060 [+0.050, +0.070] at 1e-08" in said
    assert "0.07 " not in said
    assert findings.say_eps({"plain": tables["plain"]}) == "It was not run yet."


@pytest.mark.slow
def test_the_page_is_the_same_each_time_and_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "FIGURES", tmp_path)
    tables = findings.load_tables()
    first = findings.write_findings(tables)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert findings.write_findings(tables) == first
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == drawn
    assert "{{" not in first
    assert "nan" not in first
    for figure in re.findall(r"\(figures/(.*?)\)", first):
        assert figure in drawn
    assert np.all([f"`{name}`" in first for name in tables])
