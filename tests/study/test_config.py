"""The study file: what it may say, and one clear line for everything else."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hptransfer.errors import ConfigError
from hptransfer.study._trial import num_params, num_steps, num_tokens
from hptransfer.study.config import load_study, parse_study

TINY = """\
name = "tiny"

[data]
text = "wiki"                 # or "files:corpus/*.txt"
vocab_size = 4096

[model]
arch = "gpt"
num_layers = 2
head_size = 16
context = 64

[sweep]
parameterization = ["sp", "sp+embd", "mup"]
width = [32, 64, 128]
base_width = 32
log2_lr = [-9, -8, -7, -6, -5, -4, -3]
weight_decay = [0.0]
seed = [0, 1]

[train]
batch = 32
steps = 200
warmup = 0.2
decay = 0.2
"""


@pytest.fixture
def write(tmp_path):
    def write(text=TINY, name="tiny.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refuse(path):
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(f"{path}: ")


def test_the_readmes_example_reads_as_written(write):
    config = load_study(write())
    assert config.sweep.base_lr == tuple(2.0**x for x in range(-9, -2))
    assert config.sweep.parameterization == ("sp", "sp+embd", "mup")
    assert config.train.steps == 200
    assert config.root == write().parent


def test_short_forms_and_defaults(write):
    text = TINY.replace('["sp", "sp+embd", "mup"]', '"µP"').replace("seed = [0, 1]", "seed = 3")
    text = text.replace("base_width = 32\n", "").replace("warmup = 0.2\ndecay = 0.2\n", "")
    text = text.replace("log2_lr = [-9, -8, -7, -6, -5, -4, -3]", "lr = 0.25")
    config = load_study(write(text))
    assert config.sweep.parameterization == ("mup",)
    assert config.sweep.seed == (3,)
    assert config.sweep.base_lr == (0.25,)
    assert config.sweep.base_width == 32
    assert (config.train.warmup, config.train.decay) == (0.2, 0.2)
    assert config.sweep.weight_decay_mode == "constant"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("width = [32", "widht = [32", "unknown key 'sweep.widht'; did you mean 'width'?"),
        ("steps = 200", "stesp = 200", "unknown key 'train.stesp'; did you mean 'steps'?"),
        ("[train]", "[trian]", "unknown section 'trian'; did you mean 'train'?"),
        ("[sweep]", "[sweep]\ncontext = 3", "did you mean 'model.context'?"),
        ('"sp+embd"', '"sp+emdb"', "sweep.parameterization"),
        ('"sp+embd"', '"sp"', "twice"),
        ("width = [32, 64, 128]", "width = [32, 60]", "multiple of model.head_size = 16, found 60"),
        ("width = [32, 64, 128]", "width = []", "sweep.width"),
        ("width = [32, 64, 128]", 'width = ["32"]', "found '32'"),
        ("width = [32, 64, 128]", "width = [true]", "found true"),
        ("log2_lr = [-9", "lr = [0.0", "sweep.lr"),
        ("log2_lr = [-9", "lr = [nan", "sweep.lr"),
        ("log2_lr = [-9", "log2_lr = [-9e9", "sweep.log2_lr"),
        ("log2_lr = [-9, -8, -7, -6, -5, -4, -3]", "log2_lr = []", "sweep.log2_lr"),
        ("log2_lr = [-9", "lr = [0.0", "a value above 0, found 0.0"),
        ("seed = [0, 1]", "seed = [0, -1]", "sweep.seed"),
        ("seed = [0, 1]", "lr = [0.1]", "one of lr and log2_lr"),
        ("steps = 200", "steps = 0", "train.steps"),
        ("steps = 200", "steps = 200\ntokens_per_param = 20", "one of steps and tokens_per_param"),
        ("steps = 200\n", "", "train.steps"),
        ("warmup = 0.2", "warmup = 0.9", "train.decay"),
        ("head_size = 16", "head_size = 16\nnum_heads = 2", "model.head_size"),
        ("head_size = 16\n", "", "num_heads"),
        ('text = "wiki"', 'text = "wikipedia"', "data.text"),
        ('text = "wiki"', 'text = "files:"', "data.text"),
        ("vocab_size = 4096", "vocab_size = 100", "data.vocab_size"),
        ("vocab_size = 4096", "vocab_size = 4096.5", "data.vocab_size"),
        ('arch = "gpt"', 'arch = "gtp"', "model.arch"),
        ('name = "tiny"', 'name = "a/b"', "name"),
        ('name = "tiny"', 'name = ".."', "a name that a folder and a command can have"),
        ('name = "tiny"', 'name = "-o"', "a name that a folder and a command can have"),
        ('name = "tiny"', f'name = "{"x" * 101}"', "expected at most 100 characters"),
        ('name = "tiny"', "", "name"),
        ("[data]", "data = 3\n[dat]", "dat"),
        ("weight_decay = [0.0]", "weight_decay = [-0.1]", "sweep.weight_decay"),
        ("weight_decay = [0.0]", 'weight_decay_mode = "const"', "weight_decay_mode"),
        ("log2_lr = [-9, -8, -7, -6, -5, -4, -3]", 'lr = "adaptvie"', "sweep.lr"),
        ("[train]", "[adaptive]\nstep = 1\n[train]", 'sweep.base_lr = "adaptive" with it'),
        ("steps = 200", "steps = = 200", "line 23"),
        ("[train]", "[model.options]\nfloat = [1]\n[train]", "model.options.float: expected true"),
        ("[train]", "[model.options]\nkeys = [1]\n[train]", "model.options.keys: expected true"),
        ("[train]", "[model.options]\nheads = [1]\n[train]", "model.options.heads: expected true"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(write, old, new, message):
    assert old in TINY
    assert message in refuse(write(TINY.replace(old, new)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("limit = 1", "'adaptive.limit'; did you mean 'limits'?"),
        ("error = 0", "adaptive.error: expected a value above 0"),
        ("max_points = 3", "adaptive.max_points"),
        ("log2_lr = [-3]", "two numbers, lowest first"),
        ("log2_lr = [-3, -5]", "two numbers, lowest first"),
        ("log2_lr = [-3, 20]", "inside adaptive.limits = [-30, 10]"),
    ],
)
def test_what_is_wrong_with_a_search_is_said_in_one_line(write, line, message):
    text = TINY.replace("log2_lr = [-9, -8, -7, -6, -5, -4, -3]", 'lr = "adaptive"')
    assert load_study(write(text)).sweep.is_adaptive
    assert message in refuse(write(f"{text}\n[adaptive]\n{line}\n"))


def test_files_that_are_no_study(write, tmp_path):
    assert "no such file" in refuse(tmp_path / "nothing.toml")
    assert "directory" in refuse(tmp_path)
    path = tmp_path / "latin.toml"
    path.write_bytes('name = "é"'.encode("latin-1"))
    assert "UTF-8" in refuse(path)


def test_the_canonical_form_reads_back_as_equal(write):
    config = load_study(write())
    again = parse_study(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)
    assert again.identity() == config.identity()


def test_grids_may_grow_within_one_identity_and_nothing_else_may_change(write):
    config = load_study(write())
    identity = config.identity()
    for old, new in [
        ("128]", "128, 256]"),
        ("-4, -3]", "-4, -3, -2]"),
        ("[0, 1]", "[0, 1, 2]"),
        ('"mup"]', '"mup", "mup-last"]'),
        ("[0.0]", "[0.0, 0.1]"),
    ]:
        assert load_study(write(TINY.replace(old, new))).identity() == identity
    for old, new in [
        ("steps = 200", "steps = 201"),
        ("context = 64", "context = 65"),
        ("base_width = 32", "base_width = 64"),
        ("seed = [0, 1]", 'seed = [0, 1]\naxis = "global"'),
        ('name = "tiny"', 'name = "tinier"'),
    ]:
        assert load_study(write(TINY.replace(old, new))).identity() != identity


def test_a_default_spelled_out_is_the_same_study(write):
    plain = load_study(write())
    spelled = TINY.replace("decay = 0.2\n", 'decay = 0.2\nbeta1 = 0.9\nprecision = "auto"\n')
    spelled = spelled.replace("head_size = 16", "head_size = 16\nbase_head_size = 16")
    assert load_study(write(spelled)).identity() == plain.identity()


def test_steps_from_tokens_per_param(write):
    text = TINY.replace("steps = 200", "tokens_per_param = 2.5")
    config = load_study(write(text))
    for width in config.sweep.width:
        tokens = 2.5 * num_params(config, width)
        assert tokens <= num_tokens(config, width) < tokens + 32 * 64
        assert num_tokens(config, width) == num_steps(config, width) * 32 * 64


def parse_or_refuse(document):
    """The message of the refusal, or nothing."""
    try:
        parse_study(document)
    except ConfigError as error:
        return str(error)
    return ""


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
))  # fmt: skip
def test_any_value_anywhere_is_read_or_refused_in_one_line(value):
    base = {
        "name": "x",
        "data": {"text": "wiki"},
        "model": {"num_layers": 1, "head_size": 8, "context": 8},
        "sweep": {"parameterization": "sp", "width": 16, "lr": 0.1},
        "train": {"batch": 1, "steps": 1},
    }
    for section, keys in base.items():
        for key in keys if isinstance(keys, dict) else ():
            document = copy.deepcopy(base)
            document[section][key] = value
            assert "\n" not in parse_or_refuse(document)
