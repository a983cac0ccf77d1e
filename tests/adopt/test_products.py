"""Products with weights of other modules, and multipliers that are learned."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hptransfer.adopt import coordinate_check, make_token_batches, rule_optimizer
from hptransfer.adopt._module_outputs import record

BASE, WIDTHS, VOCAB, LR = 32, (32, 64, 128, 256), 64, 2**-8

PRODUCTS = {
    "x @ w.T": lambda x, w: x @ w.T,
    "linear": F.linear,
    "linear by keywords": lambda x, w: F.linear(x, weight=w),
    "linear with a bias before its weight": (
        lambda x, w: F.linear(x, bias=torch.arange(float(VOCAB)), weight=w)
    ),
    "matmul by keywords": lambda x, w: torch.matmul(input=x, other=w.t()),
    "einsum": lambda x, w: torch.einsum("btd,vd->btv", x, w),
    "einsum of a list, turned": lambda x, w: torch.einsum("v d, ...d -> ...v", [w, x]),
    "its first rows": lambda x, w: x @ w[: VOCAB - 3].T,
}


class Functional(nn.Module):
    """Logits that are a product with the table, over m."""

    def __init__(self, width, multiply):
        super().__init__()
        self.multiply, self.m = multiply, width / BASE
        self.table, self.up = nn.Embedding(VOCAB, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens):
        x = self.table(tokens)
        return self.multiply(self.norm(x + self.up(x).relu()), self.table.weight) / self.m


class HeadFirst(nn.Module):
    """A readout that is tied to its table, and registered before it."""

    def __init__(self, width):
        super().__init__()
        self.m = width / BASE
        self.head, self.up = nn.Linear(width, VOCAB, bias=False), nn.Linear(width, width)
        self.norm, self.embed = nn.LayerNorm(width), nn.Embedding(VOCAB, width)
        self.embed.weight = self.head.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.head(self.norm(x + self.up(x).relu())) / self.m


class Learned(nn.Module):
    """A second table behind a number that is learned and starts at 0."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Embedding(VOCAB, width), nn.Embedding(VOCAB, width)
        self.scale = nn.Parameter(torch.zeros(1))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCAB, bias=False)

    def forward(self, tokens):
        return self.head(self.norm(self.first(tokens) + self.scale * self.second(tokens)))


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), 2 * x


class Paired(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table, self.pair = nn.Embedding(VOCAB, width), Pair(width, width)
        self.head = nn.Linear(width, VOCAB, bias=False)

    def forward(self, tokens):
        one, two = self.pair(self.table(tokens))
        return self.head(one.relu() + two)


def check(factory, rule="mup", *, penalty=None, **options):
    batches, loss = make_token_batches(factory, BASE)
    return coordinate_check(
        factory,
        WIDTHS,
        optimizer=rule_optimizer(factory, base_width=BASE, parameterization=rule, lr=LR, **options),
        batches=batches,
        loss=loss if penalty is None else lambda m, b: loss(m, b) + penalty(m),
        seeds=(0,),
    )


@pytest.mark.parametrize("way", PRODUCTS)
def test_products_are_seen_however_they_are_written(way):
    torch.manual_seed(0)
    model, tokens = Functional(2 * BASE, PRODUCTS[way]), torch.arange(6).reshape(2, 3)
    earlier = torch.randn_like(model.table.weight)
    outputs = record(model, lambda: model(tokens), before={"table": {"weight": earlier}})
    with torch.no_grad():
        x = model.table(tokens)
        x = model.norm(x + model.up(x).relu())
        one, two = (PRODUCTS[way](x, w) / 2 for w in (model.table.weight, earlier))
    (kept,), (own,) = (each["table [product]"] for each in (outputs.tensors, outputs.own))
    torch.testing.assert_close(kept, one)
    torch.testing.assert_close(own, one - two)


def test_a_tied_tables_product_that_is_not_seen_is_listed():
    told = {"roles": {"table.weight": "tied"}, "applied": "readout_multiplier"}
    by_hand = check(
        partial(Functional, multiply=lambda x, w: (x[..., None, :] * w).sum(-1)), **told
    )
    assert by_hand.unseen == ("table [product]",)
    assert "looked at: table [product]" in str(by_hand)
    seen = check(partial(Functional, multiply=PRODUCTS["einsum"]), **told)
    assert seen.unseen == ()
    assert seen["table [product]"].passed


def test_a_readout_that_is_registered_before_its_table_is_no_product():
    result = check(HeadFirst, applied="readout_multiplier")
    assert result.passed, result.verdict
    assert not any("product" in module.name for module in result.modules)
    assert result.unseen == ()


@pytest.mark.parametrize(
    "gram",
    [
        lambda w: w @ w.T,
        lambda w: F.linear(w.T, weight=w.T),
        lambda w: F.normalize(w) @ w.T,
        lambda w: w @ (w / w.norm(dim=1, keepdim=True)).T,
        lambda w: torch.einsum("ij,kj->ik", w, 2.0 * w),
    ],
)
def test_products_of_two_weights_are_no_activations(gram):
    def penalty(model):
        return 1e-3 * (gram(model.pair.weight) - torch.eye(len(model.pair.weight))).square().mean()

    result = check(Paired, penalty=penalty)
    assert result.passed, result.verdict
    assert not any("product" in module.name for module in result.modules)


def add_in_place(x, into):
    into += x
    return into


def write_into(x, into):
    into[:] = x
    return into


def write_into_a_view(x, into):
    into[0].copy_(x[0])
    return into


@pytest.mark.parametrize(
    "make",
    [
        lambda x, w, tokens: x + w[tokens, :],
        lambda x, w, tokens: w[tokens, :],
        lambda x, w, tokens: add_in_place(x, w[0] * torch.ones_like(w[: len(x)])),
        lambda x, w, tokens: add_in_place(x, 2.0 * w[: len(x)]),
        lambda x, w, tokens: write_into(x, 2.0 * w[: len(x)]),
        lambda x, w, tokens: write_into_a_view(x, 2.0 * w[: len(x)]),
        lambda x, w, tokens: (2.0 * w[: len(x)]).add_(x),
        lambda x, w, tokens: torch.cat([w[:1], x]),
    ],
)
def test_what_holds_an_activation_is_not_made_of_weights_alone(make):
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.up = nn.Embedding(VOCAB, BASE), nn.Linear(4, BASE)

        def forward(self, tokens):
            x = self.up(torch.ones(len(tokens), 4))
            return make(x, self.table.weight, tokens) @ self.table.weight.T

    model, tokens = Rows(), torch.arange(5)
    outputs = record(model, lambda: model(tokens))
    assert [len(each) for each in outputs.tensors["table [product]"]] == [len(model(tokens))]


def test_weights_in_a_list_or_an_index_are_weights():
    model = Paired(BASE)

    def gram():
        weight = model.pair.weight
        return torch.cat([weight, 2.0 * weight]) @ weight[:, torch.arange(BASE)[0] :].T

    assert not any("product" in name for name in record(model, gram).tensors)


def test_a_learned_multiplier_does_not_hide_what_it_multiplies():
    assert not check(Learned, "sp")["second"].passed
    assert check(Learned)["second"].passed


def test_what_stands_beside_an_output_is_listed():
    result = check(Paired)
    assert result.unjudged == (("pair [further outputs]", "its first output alone is judged"),)
    assert "its first output alone is judged: pair" in str(result)
