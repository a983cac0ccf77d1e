"""Planted faults that the audit must find, and correct setups of which it must not warn."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from adopt.models import Transformer
from hptransfer.adopt import audit, infer_roles, init_, param_groups
from hptransfer.cli.main import main
from hptransfer.errors import ConfigError

BASE, WIDTH, M = 32, 256, 8
LR = 1e-3


class Net(nn.Module):
    """Three tables and three hidden matrices, drawn as µP says."""

    def __init__(self, width, heads=None, tied=False, **stds):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(100, width), nn.Embedding(32, width)
        self.types = nn.Embedding(8, width)
        self.a, self.b, self.c = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 100, bias=False)
        own = {"head": BASE**0.5 / width} | stds
        for name, std in own.items():
            nn.init.normal_(getattr(self, name).weight, std=std)
        if heads:
            self.num_heads = heads
            self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in "qkvo")
        if tied:
            self.head.weight = self.tokens.weight


def group(model, *names, **numbers):
    parameters = dict(model.named_parameters())
    return {"params": [parameters[f"{name}.weight"] for name in names], **numbers}


HIDDEN = ("a", "b", "c", "head")
TABLES = ("tokens", "positions", "types")


def make_adamw(width, model, *, moved=(), to=LR, decay=0.0, kind=torch.optim.AdamW, eta=LR):
    """µP's groups, those of ``moved`` at another learning rate."""
    names = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    falling = [n for n in (*HIDDEN, "q", "k", "v", "o") if n in names and n not in moved]
    rest = [
        p for n, p in model.named_parameters() if n.rpartition(".")[0] not in (*falling, *moved)
    ]
    groups = [
        group(model, *falling, lr=eta * BASE / width, weight_decay=decay * width / BASE),
        {"params": rest, "lr": eta, "weight_decay": 0.0},
    ]
    if moved:
        groups.append(group(model, *moved, lr=to, weight_decay=0.0))
    return kind(groups, lr=eta)


def moved(*names, power=0.0):
    """Return a fault: tensors whose learning rate goes as m^power."""
    return lambda w, m: make_adamw(w, m, moved=names, to=LR * (w / BASE) ** power)


class Relative(torch.optim.AdamW):
    def step(self, closure=None):
        for g in self.param_groups:
            ratio = g["lr"] / g.setdefault("initial_lr", g["lr"])
            for p in g["params"]:
                p.data.mul_(1 - ratio * g["weight_decay"])


def one_lr(model, **options):
    return torch.optim.AdamW(model.parameters(), lr=LR, **{"weight_decay": 0.0} | options)


def muon_and_adamw(width, model, *, power=0.0, reverse=False):
    hidden = [p for n, p in model.named_parameters() if n[0] in "abc" and p.dim() == 2]
    rest = [p for p in model.parameters() if all(p is not h for h in hidden)]
    head = [model.head.weight]
    rest = [p for p in rest if p is not model.head.weight]
    scale = (width / BASE) ** power
    adamw = torch.optim.AdamW(
        [{"params": rest, "lr": LR * scale}, {"params": head, "lr": LR * BASE / width}],
        weight_decay=0.0,
    )
    both = [adamw, torch.optim.Muon(hidden, lr=0.02, weight_decay=0.0)]
    return both[::-1] if reverse else both


def frozen(width):
    model = Net(width)
    model.norm.weight.requires_grad_(False)
    return model


def growing_vocabulary(width):
    model = Net(width)
    model.tokens, model.head = (
        nn.Embedding(2 * width, width),
        nn.Linear(width, 2 * width, bias=False),
    )
    nn.init.normal_(model.head.weight, std=BASE**0.5 / width)
    return model


def trained(model_of=Net, optimizer=make_adamw, **options):
    return partial(audit, model_of, base_width=BASE, width=WIDTH, optimizer=optimizer, **options)


def two_inputs(width):
    return nn.ModuleDict({
        "one": nn.Linear(3, width, bias=False), "two": nn.Linear(5, width, bias=False),
        "mid": nn.Linear(width, width, bias=False), "head": nn.Linear(width, 2, bias=False),
    })  # fmt: skip


def test_inputs_that_are_held_back_are_not_called_tables():
    def optimizer(width, model):
        held, rest = [model["one"].weight], [model["two"].weight]
        falling = [*held, model["mid"].weight, model["head"].weight]
        return torch.optim.AdamW([{"params": rest}, {"params": falling, "lr": LR / width}], lr=LR)

    found = audit(two_inputs, base_width=BASE, width=WIDTH, optimizer=optimizer)
    assert found.embedding.held_back
    assert "'one.weight' (1 of 2 inputs) is held back by" in found.embedding.verdict


def skip_frozen(width, model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)


#: By name: the audit, the kind of its finding ("held": the embedding's verdict), and its words.
FAULTS = {
    "one lr for all": (trained(optimizer=lambda m: one_lr(m)), "held", "factor of 8"),
    "the token table alone": (trained(optimizer=moved("tokens", power=-1)), "held",
                              "'tokens.weight' .1 of 3 tables. is held back by a factor of 8"),
    "two of three tables": (trained(optimizer=moved("tokens", "types", power=-1)), "held",
                            "'tokens.weight', 'types.weight' .2 of 3"),
    "a table half way": (trained(optimizer=moved("positions", power=-0.5)), "held", "2.83"),
    "one hidden matrix forgotten": (trained(optimizer=moved("c")), "spread", "c.weight goes ×8"),
    "one hidden matrix too slow": (trained(optimizer=moved("a", power=-2)), "spread",
                                   "a.weight goes ÷8"),
    "one table apart": (trained(optimizer=moved("types", power=-1)), "spread", "types.weight"),
    "heads that grow": (trained(partial(Net, heads=4)), "multiplier", "attention logits"),
    "heads that grow under sp+embd+attn": (
        trained(partial(Net, heads=4), parameterization="sp+embd+attn"), "multiplier", "logits"),
    "tied logits": (trained(partial(Net, tied=True)), "multiplier", "tied table 'tokens.weight'"),
    "tied under a rule without a word": (
        trained(partial(Net, tied=True), parameterization="sp"), "tied", "says nothing"),
    "readout init constant": (trained(partial(Net, head=0.02)), "init",
                              r"readout goes .1(\.0\d)? "),
    "readout init as sp's": (
        trained(lambda w: Net(w, head=w**-0.5)), "init", "readout goes ÷2.* it goes ÷8"),
    "hidden init constant": (trained(partial(Net, a=0.02, b=0.02, c=0.02)), "init",
                             r"hidden goes .1(\.0\d)? .*÷2\.83"),
    "one hidden init constant": (trained(partial(Net, b=0.02)), "init",
                                 r"of b\.weight goes .1(\.0\d)? "),
    "table init that falls": (trained(lambda w: Net(w, tokens=w**-0.5)), "init", "tokens.weight"),
    "decay that goes with width": (
        trained(optimizer=lambda w, m: make_adamw(w, m, decay=0.1 * BASE / w)), "weight_decay",
        "hidden .0.0001 at width 32"),
    "decayed gains": (trained(optimizer=lambda m: one_lr(m, weight_decay=0.1)), "decayed",
                      "norm and bias"),
    "decay relative to the first lr": (
        trained(optimizer=lambda w, m: make_adamw(w, m, decay=0.1, kind=Relative)),
        "decay_semantics", "lr / initial lr"),
    "decay inside Adam's gradient": (
        trained(optimizer=lambda w, m: make_adamw(w, m, decay=0.1, kind=torch.optim.Adam)),
        "decay_semantics", "enters the gradient"),
    "groups of another base width": (
        trained(optimizer=lambda w, m: make_adamw(w * 2, m)), "base_width", "agree at width 16"),
    "one tensor apart at the base": (trained(optimizer=lambda w, m: make_adamw(
        w, m, moved=("b",), to=3 * LR * BASE / w)), "base_width", "of b.weight and hidden"),
    "Muon beside tables that fall": (
        trained(optimizer=partial(muon_and_adamw, power=-0.5)), "held", "factor of 2.83"),
    "Muon first": (trained(optimizer=partial(muon_and_adamw, power=-0.5, reverse=True)), "held",
                   "factor of 2.83"),
    "an optimizer no rule knows": (
        trained(optimizer=lambda w, m: make_adamw(w, m, kind=torch.optim.RAdam)), "optimizer",
        "RAdam"),
    "a frozen gain": (trained(frozen, optimizer=skip_frozen), "frozen", "norm.weight"),
    "a vocabulary that grows": (trained(growing_vocabulary), "vocab_size", "64 and 512"),
    "tied at one width": (trained(lambda w: Net(w, tied=w > BASE), optimizer=lambda m: one_lr(m)),
                          "tied", "False and True"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name):
    run, kind, words = FAULTS[name]
    result = run()
    if kind == "held":
        assert result.embedding.held_back
        messages = [result.embedding.verdict]
    else:
        messages = [each.message for each in result.warnings if each.kind == kind]
    import re

    assert any(re.search(words, message) for message in messages), (kind, result.warnings)


def of_rule(rule, factory=Transformer, **options):
    """Return an audit of our own groups and initial weights."""

    def table(width):
        return infer_roles(factory, base_width=BASE, width=width)

    def make(width):
        model = factory(width)
        if not next(model.parameters()).is_meta:
            init_(model, roles=table(width), parameterization=rule, verbose=False, **options)
        return model

    def optimizer(width, model):
        return param_groups(
            model, roles=table(width), parameterization=rule, lr=0.1, weight_decay=0.01, **options
        )

    applied = options.get("applied", ())
    return trained(make, optimizer, parameterization=rule, applied=applied)


def warmed(width, model):
    optimizer = make_adamw(width, model)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    return optimizer


CORRECT = {
    **{rule: of_rule(rule) for rule in (
        "mup", "sp", "sp+embd", "sp+embd+ln", "mup-last", "mup-attn", "everett-full",
        "everett-none", "hayou-liu")},
    "tied, applied": of_rule("mup", partial(Transformer, tied=True),
                             applied={"readout_multiplier"}),
    "heads that grow, applied": of_rule("mup", partial(Transformer, num_heads=2),
                                        applied={"attention_scale"}),
    "keys and values of one head": of_rule("mup", partial(Transformer, kv_heads=1)),
    "independent decay": of_rule("mup", weight_decay_mode="independent"),
    "ε that falls": of_rule("mup", scale_eps=True),
    "µP by hand": trained(),
    "µP by hand, warmed up": trained(optimizer=warmed),
    "µP by hand, decayed": trained(optimizer=lambda w, m: make_adamw(w, m, decay=0.1)),
    "µP by hand, as groups": trained(optimizer=lambda w, m: make_adamw(w, m).param_groups),
    "µP by hand, at other rates": trained(optimizer=lambda w, m: make_adamw(w, m, eta=0.3)),
    "µP by hand, ahead": trained(optimizer=lambda w, m: make_adamw(w, m, eta=LR * w**-0.3)),
    "µP by hand, as Lightning has it": trained(
        optimizer=lambda w, m: {"optimizer": make_adamw(w, m), "lr_scheduler": None}),
    "Muon and AdamW": trained(optimizer=muon_and_adamw),
    "AdamW and Muon": trained(optimizer=partial(muon_and_adamw, reverse=True)),
    "fixed heads, stated": trained(lambda w: Net(w, heads=w // 16)),
}  # fmt: skip


@pytest.mark.parametrize("name", CORRECT)
def test_correct_setups_raise_nothing(name):
    result = CORRECT[name]()
    assert [(each.kind, each.message) for each in result.warnings] == []
    held_back_by_design = {"sp", "everett-none", "hayou-liu", "everett-full"}
    if name not in held_back_by_design:
        assert not result.embedding.held_back


def test_twenty_of_each():
    assert len(FAULTS) >= 20
    assert len(CORRECT) >= 20


def test_the_order_of_optimizers_changes_nothing():
    one, other = (
        trained(optimizer=partial(muon_and_adamw, power=-0.5, reverse=reverse))().to_dict()
        for reverse in (False, True)
    )
    assert one == other
    assert one["optimizer_class"] == "AdamW, Muon"


def test_the_fix_names_each_table_with_its_own_rate():
    result = trained(optimizer=moved("tokens", power=-1))()
    assert result.embedding.fix == (
        "give 'tokens.weight' a group of their own with lr=0.001 at width 256, 8 times today's"
    )
    tokens = next(each for each in result.tensors if each.name == "tokens.weight")
    assert (tokens.role, tokens.optimizer) == ("embedding", "AdamW")
    assert tokens.lr_factor == pytest.approx(1)
    assert tokens.rule_lr_factor == pytest.approx(M)
    assert result.nearest.lr is None  # no rule has such learning rates


def test_the_shrink_is_the_optimizers_own():
    result = trained(optimizer=lambda w, m: make_adamw(w, m, decay=0.1, kind=Relative))()
    hidden = next(each for each in result.tensors if each.name == "a.weight")
    assert hidden.shrink == pytest.approx(0.1 * M)


def test_no_verdict_on_weights_that_were_not_looked_at(monkeypatch):
    size = sum(p.numel() for p in Net(BASE, head=0.02).parameters())
    monkeypatch.setattr("hptransfer.adopt._audit_findings.MAX_PARAMETERS", size - 1)
    constant = trained(partial(Net, head=0.02, a=0.02, b=0.02, c=0.02))()
    assert (constant.init_base_width, constant.init_width) == (BASE // 4, BASE // 2)
    kinds = [each.kind for each in constant.warnings]
    assert kinds == ["init_unseen", "init"]
    assert "looked at from width 8 to 16, below it" in constant.warnings[0].message

    def odd(width):
        if width < BASE:
            raise ValueError("too narrow")
        return Net(width, head=0.02)

    unseen = trained(odd)()
    assert [each.kind for each in unseen.warnings] == ["init_unseen"]
    assert (unseen.init_width, unseen.nearest.init) == (None, None)
    json.dumps(unseen.to_dict(), allow_nan=False)


def test_memory_that_the_constructor_leaves_unset_says_nothing():
    class Unset(Net):
        def __init__(self, width):
            super().__init__(width)
            self.d = nn.Linear(width, width, bias=False)
            self.d.weight = nn.Parameter(torch.empty(width, width))

    found = trained(Unset, lambda m: one_lr(m))()
    (unset,) = (each for each in found.tensors if each.name == "d.weight")
    assert unset.init_std is unset.init_factor is None
    assert not any("d.weight" in each.message for each in found.warnings if each.kind == "init")
    json.dumps(found.to_dict(), allow_nan=False)


def test_an_optimizer_that_makes_its_own_rate_is_one_line():
    class Own(torch.optim.SGD):
        def __init__(self, params):
            super().__init__(params, lr=0.1)
            for each in self.param_groups:
                each["lr"] = None

    with pytest.raises(ConfigError, match=r"Own has no learning rate in group 0 .lr=None"):
        trained(optimizer=lambda m: Own(m.parameters()))()


def test_commands_say_it_in_their_own_words_and_find_a_files_neighbours(
    tmp_path, capsys, monkeypatch
):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "blocks.py").write_text("from torch import nn\nBlock = nn.Linear\n")
    body = (
        "from torch import nn\nfrom {} import Block\n"
        "def make(w):\n"
        "    return nn.Sequential(nn.Embedding(50, w), Block(w, w), nn.Linear(w, 50))\n"
        "class Unclear(nn.Module):\n"
        "    def __init__(self, w):\n"
        "        super().__init__()\n"
        "        self.net, self.decay = make(w), nn.Parameter(nn.Linear(w, 1).weight[0].clone())\n"
        "        self.scale = nn.Parameter(nn.Linear(1, 1).weight[0, 0].clone())\n"
    )
    (package / "plain.py").write_text(body.format("blocks"))
    (package / "relative.py").write_text(body.format(".blocks"))
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    widths = ["--base-width", "32", "--width", "64"]
    for name in ("plain", "relative"):
        assert main(["audit", f"{package}/{name}.py:make", *widths]) == 0
        assert "held back by a factor of 2" in " ".join(capsys.readouterr().out.split())
    assert main(["audit", f"{package}/plain.py:Unclear", *widths]) == 2
    message = capsys.readouterr().err
    options = ["--role", "decay=other", "--role", "scale_=other"]
    assert "say it: --role 'decay=other'" in message
    assert "roles={" not in message
    del options
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tied.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, w):\n"
        "        super().__init__()\n"
        "        self.t, self.h = nn.Embedding(50, w), nn.Linear(w, 50, bias=False)\n"
        "        self.m = nn.Linear(w, w)\n"
        "        self.h.weight = self.t.weight\n"
    )
    assert main(["audit", "tied.py:Net", *widths]) == 0
    assert "say --applied readout_multiplier" in " ".join(capsys.readouterr().out.split())
    assert main(["audit", "tied.py:Net", *widths, "--applied", "readout_multiplier"]) == 0
    assert "readout_multiplier" not in capsys.readouterr().out
