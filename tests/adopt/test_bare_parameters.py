"""Parameters that no module tells of: what is asked, what is proposed, and rates by hand."""

import pytest
import torch
from torch import nn

from adopt.test_model_kinds import LR, VOCAB, WIDTH, M, by_hand, check, find_roles
from hptransfer.adopt import UnclearRolesError, audit, infer_roles, param_groups


class Raw(nn.Module):
    """A model of bare parameters: a table, matrices for x @ W, and a readout with a bias."""

    def __init__(self, width):
        super().__init__()
        self.E = nn.Parameter(torch.randn(VOCAB, width) * 0.02)
        self.prefix = nn.Parameter(torch.randn(1, width) * 0.02)
        self.W1 = nn.Parameter(torch.randn(width, 4 * width) * width**-0.5)
        self.W2 = nn.Parameter(torch.randn(4 * width, width) * (4 * width) ** -0.5)
        self.U = nn.Parameter(torch.randn(width, VOCAB) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(VOCAB))


def test_a_model_of_bare_parameters():
    table, told, lrs, _ = find_roles(Raw)
    transposed = "hidden:transposed"
    assert told == {
        "E": "embedding", "prefix": "other", "W1": transposed, "W2": transposed, "U": "readout",
    }  # fmt: skip
    assert by_hand(lrs, "W1", "W2", "U")
    assert table["W2"].fan_in == 4 * WIDTH


class Connections(nn.Module):
    """Matrices and vectors of dynamic hyper-connections, which start at 0, and learned inputs."""

    def __init__(self, width):
        super().__init__()
        self.first, self.middle = nn.Linear(5, width), nn.Linear(width, width)
        self.alpha_fn = nn.Parameter(torch.zeros(width, 3))
        self.beta_fn = nn.Parameter(torch.zeros(width))
        self.bonus = nn.Parameter(torch.zeros(width // 16, 16))
        self.output_query = nn.Parameter(torch.randn(6, width))
        self.last = nn.Linear(width, 3)


def test_matrices_that_start_at_0_and_learned_queries():
    _, told, lrs, _ = find_roles(Connections)
    assert told == {
        "alpha_fn": "readout", "beta_fn": "other", "bonus": "other", "output_query": "embedding",
    }  # fmt: skip
    assert by_hand(lrs, "middle.weight", "alpha_fn", "last.weight")
    told["beta_fn"] = "readout"  # x @ w: a matrix of one output
    table = infer_roles(Connections, base_width=64, width=WIDTH, roles=told)
    groups = param_groups(Connections(WIDTH), roles=table, parameterization="mup", lr=LR)
    (lr,) = (g["lr"] for g, n in zip(groups, groups.names, strict=True) if "beta_fn" in n)
    assert lr == LR / M
    assert (table["beta_fn"].fan_in, table["beta_fn"].fan_out) == (WIDTH, 1)


class GraphAttention(nn.Module):
    """Vectors that sum over each of four heads' entries, which grow."""

    def __init__(self, width):
        super().__init__()
        self.embed, self.lin = nn.Linear(5, width), nn.Linear(width, width)
        self.att_src = nn.Parameter(torch.randn(1, 4, width // 4) * width**-0.5)
        self.score = nn.Linear(width, 3)


def test_vectors_of_graph_attention_are_asked_about():
    table, told, lrs, _ = find_roles(GraphAttention)
    assert told == {"att_src": "hidden"}
    assert by_hand(lrs, "lin.weight", "att_src", "score.weight")
    assert table["att_src"].fan_in == WIDTH // 4


class Adapter(nn.Module):
    """Low-rank factors in dictionaries by the adapter's name, as the library peft has them."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.base_layer = nn.Linear(inputs, outputs)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, outputs, bias=False)})


def test_low_rank_factors_of_adapters_by_name():
    def make(width):
        return nn.ModuleDict(
            {
                "first": nn.Linear(5, width),
                "up": Adapter(width, 2 * width),
                "heads": nn.ModuleDict(
                    {"a": nn.Linear(2 * width, 5), "b": nn.Linear(2 * width, 3)}
                ),
            }
        )

    _, told, lrs, _ = find_roles(make)
    assert told["up.lora_A.default.weight"] == "hidden"
    heads = [f"heads.{key}.weight" for key in "ab"]
    assert [told.get(each, "readout") for each in heads] == ["readout"] * 2
    assert by_hand(lrs, "up.base_layer.weight", "up.lora_A.default.weight", *heads)


def test_a_bare_projection_out_of_a_tower_is_no_tied_table():
    def make(width):
        model = nn.Module()
        model.text, model.mlp = nn.Embedding(VOCAB, width), nn.Linear(width, width)
        model.text_projection = nn.Parameter(torch.randn(width, 16) * width**-0.5)
        return model

    _, told, lrs, _ = find_roles(make)
    assert told == {"text_projection": "readout"}
    assert by_hand(lrs, "mlp.weight", "text_projection")


class SharedHead(nn.Module):
    """One readout that two modules hold, as where further tokens are predicted."""

    def __init__(self, width):
        super().__init__()
        self.table, self.head = nn.Embedding(VOCAB, width), nn.Linear(width, VOCAB, bias=False)
        self.more = nn.ModuleDict({"mix": nn.Linear(width, width), "head": self.head})

    def forward(self, tokens):
        x = self.table(tokens)
        return self.head(x) + self.more["head"](torch.relu(self.more["mix"](x)))


@pytest.mark.parametrize(("rule", "passes"), [("mup", True), ("sp", False)])
def test_a_readout_that_two_modules_hold_is_judged_once(rule, passes):
    result = check(SharedHead, rule)
    assert result.passed == passes
    assert result["head"].own_change is not None


class Factorized(nn.Module):
    """A tied table of fixed size behind two projections, as in ALBERT."""

    def __init__(self, width):
        super().__init__()
        self.table, self.into = nn.Embedding(VOCAB, 8), nn.Linear(8, width)
        self.middle, self.back = nn.Linear(width, width), nn.Linear(width, 8)
        self.decoder = nn.Linear(8, VOCAB, bias=False)
        self.decoder.weight = self.table.weight


@pytest.mark.parametrize("rule", ["sp", "everett-full", "mup"])
def test_a_tied_table_of_fixed_size_is_one_like_any_other(rule):
    table = infer_roles(Factorized, base_width=64, width=WIDTH)
    groups = param_groups(Factorized(WIDTH), roles=table, parameterization=rule, lr=LR)
    (lr,) = (g["lr"] for g, n in zip(groups, groups.names, strict=True) if "table.weight" in n)
    assert lr == LR / (M if rule == "sp" else 1)
    audit(Factorized, base_width=64, width=WIDTH, parameterization=rule)


def test_matrices_of_outputs_in_classes_of_ones_own():
    """A layer's weight and a router's centroids are outputs; a table's weight is none."""

    def hold(rows, width, name="Layer"):
        layer = type(name, (nn.Module,), {})()
        layer.weight = nn.Parameter(torch.randn(rows, width))
        return layer

    def make(width):
        model = nn.Module()
        model.wte, model.lookup = hold(VOCAB, width), hold(9, width, "WordTable")
        model.middle, model.margin = nn.Linear(width, width), hold(8, width, "ArcMargin")
        model.centroids = nn.Parameter(torch.randn(4, width))
        return model

    _, told, lrs, _ = find_roles(make)
    outputs = ("margin.weight", "centroids")
    tables = dict.fromkeys(("wte.weight", "lookup.weight"), "embedding")
    assert told == dict.fromkeys(outputs, "readout") | tables
    assert by_hand(lrs, "middle.weight", *outputs)


@pytest.mark.parametrize("limit", [20_000_000, 0])
def test_biases_and_tables_of_one_letter_names(limit, monkeypatch):
    """W_E[x] and x @ W_U with biases b_Q (heads, size), b_in and b_U, as in TransformerLens."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            heads = width // 16
            self.W_Q = nn.Parameter(torch.randn(heads, width, 16) * width**-0.5)
            self.b_Q = nn.Parameter(torch.zeros(heads, 16))
            self.W_in = nn.Parameter(torch.randn(width, 4 * width) * width**-0.5)
            self.b_in = nn.Parameter(torch.zeros(4 * width))
            self.W_out = nn.Parameter(torch.randn(4 * width, width) * (4 * width) ** -0.5)
            self.beta_scale = nn.Parameter(torch.ones(width))

    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.W_E = nn.Parameter(torch.randn(100, width) * 0.02)
            self.W_pos = nn.Parameter(torch.randn(16, width) * 0.02)
            self.block = Block(width)
            self.W_U = nn.Parameter(torch.randn(width, 100) * width**-0.5)
            self.b_U = nn.Parameter(torch.zeros(100))
            self.w = nn.Parameter(torch.randn(3, width) * width**-0.5)

    # A large model's own initial values are not looked at.
    monkeypatch.setattr("hptransfer.adopt._role_inference._ASK_LIMIT", limit)
    with pytest.raises(UnclearRolesError) as caught:
        infer_roles(Model, base_width=64, width=256)
    assert caught.value.suggestions == {
        "W_E": "embedding", "W_pos": "embedding", "W_U": "readout", "b_U": "bias", "w": "readout",
        "block.W_Q": "hidden", "block.b_Q": "bias", "block.W_in": "hidden:transposed",
        "block.W_out": "hidden:transposed", "block.b_in": "bias", "block.beta_scale": "other",
    }  # fmt: skip


def test_matrices_named_b_and_outputs_named_o():
    """B of two low-rank factors and of a state space, b_proj, and readouts W_o and W_hy."""

    def make(width):
        model, factors, space = nn.Sequential(nn.Linear(5, width)), nn.Module(), nn.Module()
        factors.inner = nn.Linear(width, width)
        factors.A = nn.Parameter(torch.randn(8, width) * width**-0.5)
        factors.B = nn.Parameter(torch.zeros(width, 8))
        space.B = nn.Parameter(torch.zeros(width, 16))
        model.factors, model.space, model.rest = factors, space, nn.Module()
        model.rest.b_proj = nn.Parameter(torch.zeros(width, 7))
        model.rest.W_o = nn.Parameter(torch.randn(10, width) * width**-0.5)
        model.rest.W_hy = nn.Parameter(torch.randn(65, width) * width**-0.5)
        return model

    _, told, lrs, _ = find_roles(make)
    outputs = ("space.B", "rest.b_proj", "rest.W_o", "rest.W_hy")
    factors = dict.fromkeys(("factors.A", "factors.B"), "hidden")
    assert told == dict.fromkeys(outputs, "readout") | factors
    assert by_hand(lrs, "factors.inner.weight", "factors.A", *outputs)
