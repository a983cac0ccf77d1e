"""Names of the lattice: canonical spelling, every accepted spelling, and refusals."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hptransfer.errors import ConfigError
from hptransfer.scaling import LATTICE, SWITCHES, parse_parameterization, resolve
from hptransfer.scaling._named_rules import scale_embedding

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


# Width 256, base width 64 (m = 4), η = 1: the embedding's learning rate is c·4^(e-1).
SCALED = {
    "sp+embd^0*1": ("sp", 2**-2),
    "sp+embd^1*1": ("sp+embd", 1),
    "sp+embd^0.5": ("sp+embd^0.5", 2**-1),
    "sp+embd^1/2*1": ("sp+embd^0.5", 2**-1),
    "SP + Embd ^ .5 * 4": ("sp+embd^0.5*4", 2),
    "sp+embd^0*4": ("sp+embd^0*4", 1),
    "sp+embd*4": ("sp+embd*4", 4),
    "sp+embd^1*16": ("sp+embd*16", 16),
    "sp+embd^0.5*16": ("sp+embd^0.5*16", 8),
    "sp+embd^-1*0.5": ("sp+embd^-1*0.5", 2**-5),
    "sp+ln+embd^0*4": ("sp+embd^0*4+ln", 1),
    "sp+last+ln+attn+embd*2": ("sp+embd*2+ln+attn+last", 2),
}


@pytest.mark.parametrize("spelling", SCALED)
def test_a_scaled_embedding_by_hand(spelling):
    name, lr = SCALED[spelling]
    rule = parse_parameterization(spelling)
    assert rule.name == name
    assert parse_parameterization(name) == rule
    resolved = resolve(spelling, width=256, base_width=64, head_size=16, weight_decay=2**-4)
    assert resolved.roles["embedding"].lr == pytest.approx(lr, rel=1e-14)
    # The shrink per step, lr · weight_decay, is η·λ for every role that decays.
    assert resolved.roles["embedding"].weight_decay == pytest.approx(2**-4 / lr, rel=1e-14)
    others = "mup" if "attn" in name else "sp+embd+ln" if "ln" in name else "sp"
    like = resolve(others, width=256, base_width=64, head_size=16, weight_decay=2**-4)
    for role in set(like.roles) - {"embedding"}:
        assert resolved.roles[role] == like.roles[role]
    assert resolved.attention_scale == like.attention_scale


def test_at_the_base_width_only_the_factor_counts():
    def embedding(name):
        return resolve(name, width=64, base_width=64).roles["embedding"]

    assert embedding("sp+embd^0.5") == embedding("sp")
    assert embedding("sp+embd^0*4") == embedding("sp+embd*4")
    assert embedding("sp+embd*4").lr == 4


def test_plain_sp_stays_one_rate_on_the_global_axis():
    resolved = resolve("sp+embd^0*4", width=256, base_width=64, axis="global", base_lr=0.5)
    assert resolved.roles["hidden"].lr == 0.5
    assert resolved.roles["embedding"].lr == 2.0


@pytest.mark.parametrize("base", LATTICE)
def test_scaling_leaves_a_lattice_entry_where_it_is_one(base):
    off = set(ALL_SWITCHES) - switches(base) | {"embd"}
    assert scale_embedding(LATTICE[base], power=1, factor=1).name == canonical(
        set(ALL_SWITCHES) - (off - {"embd"})
    )
    assert scale_embedding(LATTICE[base], power=0, factor=1).name == canonical(
        set(ALL_SWITCHES) - off
    )


def switches(name):
    first, *rest = name.replace("-", "+").split("+")
    return set(rest) if first == "sp" else set(ALL_SWITCHES) - set(rest)


@pytest.mark.parametrize("wrong", ["^x", "^9", "*0", "*-1", "*1e7", "^1/0", "^nan", "*inf"])
def test_a_scale_out_of_range_is_one_line(wrong):
    with pytest.raises(ConfigError, match="expected a number from") as caught:
        parse_parameterization(f"sp+embd{wrong}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", ["sp+embd^", "sp+ln^2", "mup-embd^2", "sp+embd*2+embd", "sp+embd^2*"]
)
def test_a_scale_elsewhere_is_no_name(wrong):
    with pytest.raises(ConfigError, match="did you mean"):
        parse_parameterization(wrong)
