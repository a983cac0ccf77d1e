"""Names of the lattice: canonical spelling, every accepted spelling, and refusals."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hptransfer.errors import ConfigError
from hptransfer.scaling import LATTICE, SWITCHES, parse_parameterization

NAMES = [
    "sp", "sp+embd", "sp+ln", "sp+attn", "sp+last", "sp+embd+ln", "sp+embd+attn", "sp+embd+last",
    "sp+ln+attn", "sp+ln+last", "sp+attn+last", "mup-last", "mup-attn", "mup-ln", "mup-embd", "mup",
]  # fmt: skip

ALL_SWITCHES = ("embd", "ln", "attn", "last")


def test_the_sixteen_names():
    assert list(LATTICE) == NAMES
    assert tuple(SWITCHES) == ALL_SWITCHES
    assert [entry.name for entry in LATTICE.values()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_canonical_names_round_trip(name):
    assert parse_parameterization(name) is LATTICE[name]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("µP", "mup"),  # micro sign
        ("μP", "mup"),  # Greek small letter
        ("ΜP", "mup"),  # its capital, what upper() makes of either
        ("muP", "mup"),
        (" SP ", "sp"),
        ("SP + Embd", "sp+embd"),
        ("sp+ln+embd", "sp+embd+ln"),
        ("sp+embd+ln+attn", "mup-last"),
        ("sp+last+attn+ln+embd", "mup"),
        ("mup-last-attn", "sp+embd+ln"),
        ("mup-ln-attn-last", "sp+embd"),
        ("mup-embd-ln-attn-last", "sp"),
        ("µp-embd", "mup-embd"),
    ],
)
def test_spellings_by_hand(spelling, name):
    assert parse_parameterization(spelling).name == name


def any_case(text):
    return st.tuples(*(st.sampled_from([c, c.upper()]) for c in text)).map("".join)


@st.composite
def spellings(draw):
    """A spelling of a subset of switches, and the subset."""
    space = st.sampled_from(["", " ", "  "])
    order = draw(st.permutations(ALL_SWITCHES))[: draw(st.integers(0, 4))]
    if draw(st.booleans()):
        base, sign, on = "sp", "+", set(order)
    else:
        base = draw(st.sampled_from(["mup", "µp", "μp"]))
        sign, on = "-", set(ALL_SWITCHES) - set(order)
    parts = [draw(space) + draw(any_case(part)) + draw(space) for part in [base, *order]]
    return sign.join(parts), frozenset(on)


def canonical(on):
    """Write the name by the rule in words: one or two with sp+, three as mup-x."""
    if len(on) == 4:
        return "mup"
    if len(on) == 3:
        return "mup-" + next(s for s in ALL_SWITCHES if s not in on)
    return "+".join(["sp", *(s for s in ALL_SWITCHES if s in on)])


@given(spellings())
@settings(deadline=None)
def test_any_order_and_case(spelling_and_switches):
    spelling, on = spelling_and_switches
    assert parse_parameterization(spelling).name == canonical(on)


@given(spellings(), st.data())
@settings(deadline=None, max_examples=30)
def test_a_repeated_switch_is_refused(spelling_and_switches, data):
    spelling, _ = spelling_and_switches
    sign = "-" if "-" in spelling else "+"
    parts = spelling.split(sign)
    if len(parts) == 1:
        return
    again = data.draw(st.sampled_from(parts[1:]))
    with pytest.raises(ConfigError, match="more than once"):
        parse_parameterization(sign.join([*parts, again]))


@given(st.text(max_size=12).filter(lambda text: text.strip().lower() not in NAMES))
@settings(deadline=None, max_examples=20)
def test_anything_else_is_one_line(text):
    with pytest.raises(ConfigError, match="did you mean") as caught:
        parse_parameterization(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("sp+emb", "sp+embd"),
        ("sp+ln+emb", "sp+embd+ln"),
        ("mup-lst", "mup-last"),
        ("mup+embd", "mup-embd"),
        ("sp+embd+embd", "sp+embd"),
        ("mu-p", "mup"),
        ("sp+", "sp"),
        ("sp+embd-ln", "sp+embd+ln"),
    ],
)
def test_nearest_known_name(wrong, nearest):
    with pytest.raises(ConfigError, match="parameterization: ") as caught:
        parse_parameterization(wrong)
    assert f"did you mean {nearest!r}?" in str(caught.value)
    assert repr(wrong) in str(caught.value)
