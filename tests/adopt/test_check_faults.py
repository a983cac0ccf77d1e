"""Planted faults that the coordinate check must find, and correct setups that must pass it."""

from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hptransfer.adopt import coordinate_check, make_token_batches, rule_optimizer

BASE, WIDTHS, VOCAB, LR = 32, (32, 64, 128, 256), 64, 2**-8


class Attention(nn.Module):
    """Attention whose head size may grow, its logits scaled with this power of the head size."""

    def __init__(self, d, heads, power, written_out):
        super().__init__()
        self.num_heads = heads or d // 16
        self.head_dim = d // self.num_heads
        self.base_dim = BASE // self.num_heads if heads else 16
        self.power, self.written_out = power, written_out
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in "qkvo")

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = (p(x).view(B, T, self.num_heads, -1).transpose(1, 2)
                   for p in (self.q, self.k, self.v))  # fmt: skip
        scale = self.base_dim**-0.5 * (self.head_dim / self.base_dim) ** self.power
        if self.written_out:
            mask = torch.ones(T, T, dtype=torch.bool).triu(1)
            logits = (scale * q @ k.transpose(-2, -1)).masked_fill(mask, -torch.inf)
            y = logits.softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return self.o(y.transpose(1, 2).reshape(B, T, D))


class Experts(nn.Module):
    def __init__(self, d, n=4):
        super().__init__()
        self.router = nn.Linear(d, n, bias=False)
        self.up = nn.Parameter(torch.randn(n, 2 * d, d) * d**-0.5)
        self.down = nn.Parameter(torch.randn(n, d, 2 * d) * (2 * d) ** -0.5)

    def forward(self, x):
        weights = self.router(x).softmax(-1)
        hidden = torch.einsum("btd,nfd->btnf", x, self.up).relu()
        return torch.einsum("btnf,ndf,btn->btd", hidden, self.down, weights)


class Net(nn.Module):
    def __init__(
        self, d, *, heads=None, power=-0.5, written_out=False, experts=False, embedding_power=0.0,
        branch_power=0.0, readout_power=0.0, frozen=False,
    ):  # fmt: skip
        super().__init__()
        m = d / BASE
        self.multipliers = m**embedding_power, m**branch_power, m**readout_power
        self.table, self.positions = nn.Embedding(VOCAB, d), nn.Embedding(16, d)
        if frozen:
            self.positions.weight.requires_grad_(False)
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = Attention(d, heads, power, written_out)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.moe = Experts(d) if experts else None
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, VOCAB, bias=False)

    def forward(self, tokens):
        embedding, branch, readout = self.multipliers
        x = embedding * self.table(tokens) + self.positions.weight[: tokens.shape[1]]
        x = x + branch * self.attention(self.n1(x))
        h = self.n2(x)
        x = x + branch * (self.moe(h) if self.moe else self.down(F.gelu(self.up(h))))
        return readout * self.head(self.norm(x))


class Torchs(nn.Module):
    """torch's own encoder layer."""

    def __init__(self, d):
        super().__init__()
        self.table = nn.Embedding(VOCAB, d)
        self.layer = nn.TransformerEncoderLayer(
            d, d // 16, 4 * d, dropout=0.0, batch_first=True, norm_first=True
        )
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, VOCAB, bias=False)

    def forward(self, tokens):
        return self.head(self.norm(self.layer(self.table(tokens))))


class Tied(nn.Module):
    """A tied table, whose logits are multiplied by 1/m behind it, as Granite's and Cohere's are."""

    WAYS: ClassVar = {
        "divided": lambda logits, m: logits / m,
        "multiplied": lambda logits, m: (1 / m) * logits.float(),
        "in place": lambda logits, m: logits.div_(m),
        "by a tensor": lambda logits, m: logits[:, :] * torch.tensor(1 / m),
        "then capped": lambda logits, m: 30 * torch.tanh(logits / m / 30),
    }

    def __init__(self, d, way="divided", power=1.0):
        super().__init__()
        self.way, self.m = self.WAYS[way], (d / BASE) ** power
        self.table, self.up = nn.Embedding(VOCAB, d), nn.Linear(d, d)
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, VOCAB, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        x = self.table(tokens)
        return self.way(self.head(self.norm(x + self.up(x).relu())), self.m)


ROUTER = {"moe.router.weight": "readout"}


def run(
    factory=Net, rule="mup", *, optimizer=None, roles=None, lr=LR, steps=4, warmup=0, **options
):
    batches, loss = make_token_batches(factory, BASE)
    if optimizer is None:
        optimizer = rule_optimizer(
            factory, base_width=BASE, parameterization=rule, lr=lr, roles=roles, **options
        )
    return coordinate_check(
        factory, WIDTHS, optimizer=optimizer, batches=batches, loss=loss, steps=steps,
        warmup=warmup, seeds=(0, 1), name=rule,
    )  # fmt: skip


def broken(*names, power, factory=Net, roles=None):
    """Return a fault: under µP, the lr of these parameters goes with a further power of m."""

    def check():
        rule = rule_optimizer(factory, base_width=BASE, parameterization="mup", lr=LR, roles=roles)

        def optimizer(width, model):
            made = rule(width, model)
            groups = []
            by_id = {id(p): n for n, p in model.named_parameters()}
            for group in made.param_groups:
                for p in group["params"]:
                    hit = any(by_id[id(p)].startswith(name) for name in names)
                    factor = (width / BASE) ** power if hit else 1.0
                    groups.append({"params": [p], "lr": factor * group["lr"]})
            return torch.optim.AdamW(groups, lr=LR, weight_decay=0.0)

        return run(factory, optimizer=optimizer)

    return check


def own_init(name, std):
    """Return a fault: under µP, a tensor's init std is that function of the width."""

    def check():
        rule = rule_optimizer(Net, base_width=BASE, parameterization="mup", lr=LR)

        def optimizer(width, model):
            made = rule(width, model)
            nn.init.normal_(model.get_parameter(name), std=std(width))
            return made

        return run(optimizer=optimizer)

    return check


def forgetting(name):
    def optimizer(width, model):
        rule = rule_optimizer(Net, base_width=BASE, parameterization="mup", lr=LR)(width, model)
        lost = model.get_parameter(name)
        groups = [g | {"params": [p for p in g["params"] if p is not lost]}
                  for g in rule.param_groups]  # fmt: skip
        return torch.optim.AdamW(groups, lr=LR)

    return partial(run, optimizer=optimizer)


APPLIED = {"applied": {"attention_scale"}}
LOGITS = {"applied": {"readout_multiplier"}}

#: By name: the check, and a module that must be among the failing ones.
FAULTS = {
    "sp": (partial(run, rule="sp"), "table"),
    "sp's positions": (partial(run, rule="sp"), "n1"),
    "µP less embd": (partial(run, rule="mup-embd"), "table"),
    "the table's lr falls": (broken("table", power=-1), "table"),
    "the table's lr falls half as fast": (broken("table", power=-0.5), "table"),
    "the table's lr grows": (broken("table", power=1), "table"),
    "hidden lr not divided": (
        broken("attention", "up", "down", power=1), "up"),
    "queries' lr not divided": (broken("attention.q", power=1), "attention.q"),
    "values' lr not divided": (broken("attention.v", power=1), "attention.v"),
    "up's lr not divided": (broken("up.weight", power=1), "up"),
    "down's lr not divided": (broken("down.weight", power=1), "down"),
    "readout's lr not divided": (broken("head", power=1), "head"),
    "readout's lr divided twice": (broken("head", power=-1), "head"),
    "all divided twice": (broken("", power=-1), "table"),
    "torch's in_proj not divided": (
        broken("layer.self_attn.in_proj", power=1, factory=Torchs), "layer.self_attn"),
    "experts' lr not divided": (
        broken("moe.up", "moe.down", power=1, factory=partial(Net, experts=True), roles=ROUTER),
        "moe"),
    "1/√H where 1/H is said to be applied": (
        partial(run, partial(Net, heads=2), **APPLIED), "attention [attention logits]"),
    "no scale at all": (
        partial(run, partial(Net, heads=2, power=0.0), **APPLIED), "attention [attention logits]"),
    "no scale at all, written out": (
        partial(run, partial(Net, heads=2, power=0.0, written_out=True), **APPLIED),
        "attention [attention logits]"),
    "a table multiplied by √width": (partial(run, partial(Net, embedding_power=0.5)), "n1"),
    "an init of down that ignores width": (own_init("down.weight", lambda w: 0.1), "down"),
    "an init of the readout that ignores width": (own_init("head.weight", lambda w: 0.2), "head"),
    "a table that no optimizer holds": (forgetting("table.weight"), "table"),
    "tied logits said to be scaled that are not": (
        partial(run, partial(Tied, power=0.0), **LOGITS), "head"),
    "tied logits scaled twice": (partial(run, partial(Tied, power=2.0), **LOGITS), "head"),
    "a readout whose rate falls and whose logits are divided too": (
        partial(run, partial(Net, readout_power=-1.0)), "head"),
    "a rate at which it blows up": (partial(run, lr=2.0**4, rule="sp"), None),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name):
    check, module = FAULTS[name]
    result = check()
    assert not result.passed
    failed = [each.name for each in result.modules if not each.passed]
    if module == "n1":  # what is multiplied in forward() shows where it is normed, or next
        assert failed
    elif module is not None:
        assert module in failed, result.verdict


CORRECT = {
    "mup": run,
    "mup at another rate": partial(run, lr=2**-10),
    "mup at a larger rate": partial(run, lr=2**-6),
    "mup, 40 steps with a warm-up": partial(run, lr=2**-6, steps=40, warmup=10),
    "mup, 12 steps": partial(run, steps=12),
    "mup, tables at 0.02": partial(run, base_std={"embedding": 0.02}),
    "mup, zero readout": partial(run, base_std={"readout": 0.0}),
    "mup-last": partial(run, rule="mup-last"),
    "sp+embd+ln": partial(run, rule="sp+embd+ln"),
    "u-mup": partial(run, rule="u-mup", lr=2**-3, **APPLIED),
    "hayou-liu": partial(run, rule="hayou-liu"),
    "ε that falls": partial(run, scale_eps=True),
    "decay": partial(run, weight_decay=0.1),
    "heads that grow, scaled": partial(run, partial(Net, heads=2, power=-1.0), **APPLIED),
    "heads that grow, scaled, written out": partial(
        run, partial(Net, heads=2, power=-1.0, written_out=True), **APPLIED),
    "heads that grow, absorbed": partial(run, partial(Net, heads=2), query="*.q.weight"),
    "attention written out": partial(run, partial(Net, written_out=True)),
    "experts": partial(run, partial(Net, experts=True), roles=ROUTER),
    "torch's encoder layer": partial(run, Torchs),
    "frozen positions": partial(run, partial(Net, frozen=True)),
    "mup, rescaled": partial(run, mode="rescale"),
    **{f"tied logits, {way}": partial(run, partial(Tied, way=way), **LOGITS) for way in Tied.WAYS},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CORRECT)
def test_correct_setups_pass(name):
    result = CORRECT[name]()
    assert result.passed, result.verdict


def test_twenty_of_each():
    assert len(FAULTS) >= 20
    assert len(CORRECT) >= 20


def test_what_is_looked_at_and_what_is_not():
    class Free(Torchs):
        def __init__(self, d):
            super().__init__(d)
            self.free = nn.Parameter(torch.zeros(d))

        def forward(self, tokens):
            return self.head(self.norm(self.layer(self.table(tokens)) + self.free))

    result = run(Free, roles={"free": "bias"}, steps=1)
    names = {each.name for each in result.modules}
    assert {"layer.self_attn", "layer.self_attn [attention logits]"} <= names
    assert result.unseen == ("free",)
    assert "parameters of no module looked at: free" in str(result)
    head = result["head"]
    assert head.own_change is not None
    assert head.judged_slope is not head.change_slope
    document = result.to_dict()
    assert document["unseen"] == ["free"]
    assert document["unjudged"] == []


def test_a_compiled_model_is_checked_as_the_model_itself():
    result = run(lambda d: torch.compile(Tied(d), backend="eager"), optimizer=rule_optimizer(
        Tied, base_width=BASE, parameterization="mup", lr=LR, **LOGITS))  # fmt: skip
    plain = run(Tied, **LOGITS)
    assert result.passed
    assert result.unseen == ()
    for ours, theirs in zip(result.modules, plain.modules, strict=True):
        assert ours.name == theirs.name
        assert ours.change == pytest.approx(theirs.change, rel=1e-3)


def test_a_readouts_own_part_is_what_its_update_adds():
    def factory(width):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, width, bias=False), nn.Linear(width, 2, bias=False))

    data = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    kept = {}

    def optimizer(width, model):
        kept[width] = model, model[1].weight.detach().clone()
        return torch.optim.SGD(model.parameters(), lr=0.1)

    result = coordinate_check(
        factory, (8, 16, 32), optimizer=optimizer, batches=[data], seeds=(0,), steps=2,
        loss=lambda model, batch: model(batch).square().mean(),
    )  # fmt: skip
    model, before = kept[16]
    with torch.no_grad():
        expected = (model[0](data) @ (model[1].weight - before).T).square().mean().sqrt()
    assert result["1"].own_change[-1, 1, 0] == pytest.approx(expected.item(), rel=1e-4)
    assert result["0"].own_change is None


def test_a_frozen_readout_is_judged_by_its_change():
    def frozen(width):
        model = Net(width)
        model.head.requires_grad_(False)
        return model

    result = run(frozen)
    assert result["head"].own_change is None
    assert not result["head"].reason.startswith("its own update")
    assert run(Net)["head"].own_change is not None


def test_layers_that_come_with_width_are_listed_once():
    class Deeper(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.table, self.head = nn.Embedding(VOCAB, d), nn.Linear(d, VOCAB, bias=False)
            self.layers = nn.ModuleList(nn.Linear(d, d) for _ in range(1 + (d > BASE)))

        def forward(self, tokens):
            x = self.table(tokens)
            for layer in self.layers:
                x = x + layer(x)
            return self.head(x)

    result = run(Deeper, steps=1, optimizer=lambda d, m: torch.optim.AdamW(m.parameters(), lr=LR))
    assert dict(result.unjudged) == {"layers.1": "it did not run at every width"}
    assert result.unseen == ()


def test_experts_that_tokens_leave_are_listed():
    class Lists(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.table, self.router = nn.Embedding(VOCAB, d), nn.Linear(d, 12, bias=False)
            self.experts = nn.ModuleList(nn.Linear(d, d) for _ in range(12))
            self.head = nn.Linear(d, VOCAB, bias=False)

        def forward(self, tokens):
            x = self.table(tokens)
            weight, chosen = self.router(x).softmax(-1).max(-1)
            y = torch.zeros_like(x)
            for k, expert in enumerate(self.experts):
                if (chosen == k).any():
                    y[chosen == k] = expert(x[chosen == k])
            return self.head(x + y * weight.unsqueeze(-1))

    result = run(Lists, roles={"router.weight": "readout"}, lr=2**-5)
    listed = dict(result.unjudged)
    assert set(listed.values()) <= {
        "its output changed its shape", "it did not run at every width",
    }  # fmt: skip
    assert any(name.startswith("experts.") for name in listed)
    assert "no verdict, as its output changed its shape: experts.*" in str(result)
    assert {each.name for each in result.modules} >= {"table", "router", "head"}


def test_the_command_checks_draws_and_writes(tmp_path, capsys):
    from hptransfer.cli.main import main

    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def make(w):\n"
        "    return nn.Sequential(nn.Embedding(50, w), nn.Linear(w, w), nn.Linear(w, 50))\n"
    )
    where = f"{tmp_path}/mine.py:make"
    common = ["--base-width", "32", "--width", "32,64,128", "--seeds", "1"]
    plot, file = tmp_path / "check.html", tmp_path / "check.json"
    assert main(["coordinate-check", where, *common, "--plot", str(plot), "-o", str(file)]) == 0
    out = capsys.readouterr().out
    assert "coordinate check of mup: widths 32, 64, 128" in out
    assert "PASS: all 3 modules change alike" in out
    assert "coordinate check" in plot.read_text(encoding="utf-8").lower()
    assert main(["report", "--coordinates", str(file), "-o", str(tmp_path / "r.html")]) == 0
    capsys.readouterr()
    assert main(["coordinate-check", where, *common, "--parameterization", "sp", "--json"]) == 0
    import json

    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is False
    assert document["modules"][0]["reason"].startswith("change shrinks")
    assert main(["coordinate-check", where, *common, "--width", "32,x"]) == 2
    assert "--width: expected whole numbers" in capsys.readouterr().err


class Viewed(nn.Module):
    """Two tables of one weight, of which the first never runs, and labels that are viewed flat."""

    def __init__(self, width):
        super().__init__()
        self.shared, self.tokens = nn.Embedding(VOCAB, width), nn.Embedding(VOCAB, width)
        self.tokens.weight = self.shared.weight
        self.head = nn.Linear(width, VOCAB, bias=False)

    def forward(self, input_ids, labels):
        logits = self.head(self.tokens(input_ids))
        return type("Output", (), {"loss": F.cross_entropy(logits.flatten(0, 1), labels.view(-1))})


def test_batches_are_contiguous_and_a_weight_is_seen_under_each_of_its_names():
    batches, loss = make_token_batches(Viewed, BASE)
    optimizer = rule_optimizer(Viewed, base_width=BASE, parameterization="mup", lr=LR)
    found = coordinate_check(
        Viewed, WIDTHS, optimizer=optimizer, batches=batches, loss=loss, seeds=(0,)
    )
    assert found.passed
    assert not found.unseen


def test_vectors_that_only_start_at_length_1_are_taken_as_they_are():
    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.emb = nn.Embedding(64, width)
            self.head = nn.Linear(width, 64, bias=False)
            with torch.no_grad():
                self.emb.weight.div_(self.emb.weight.norm(dim=-1, keepdim=True))

        def forward(self, tokens):
            return self.head(self.emb(tokens))

    batches, loss = make_token_batches(Model, 64)
    check = coordinate_check(
        Model,
        (64, 128, 256),
        optimizer=lambda width, model: torch.optim.AdamW(model.parameters(), lr=2.0**-5),
        batches=batches,
        loss=loss,
        steps=2,
    )
    (table,) = (module for module in check.modules if module.name == "emb")
    # Adam moves each entry by about the rate in each step.
    assert table.change.max() < 0.1
