"""The audit of models and optimizers whose faults are known."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from adopt import mine
from adopt.models import Transformer
from hptransfer.adopt import audit, infer_roles, init_, param_groups, say_factor
from hptransfer.errors import ConfigError

M = 8
WIDTHS = {"base_width": 32, "width": 32 * M}


def run_audit(factory=mine.make, **options):
    return audit(factory, **(WIDTHS | options))


def kinds(result):
    return [warning.kind for warning in result.warnings]


def message(result, kind):
    return next(warning.message for warning in result.warnings if warning.kind == kind)


def test_one_learning_rate_holds_the_embedding_back_by_the_width_ratio():
    result = run_audit(optimizer=mine.one_lr)
    assert result.embedding.held_back
    assert result.embedding.factor == pytest.approx(M)
    assert "held back by a factor of 8" in result.embedding.verdict
    assert "goes ×1 from width 32 to 256, ×8 under µP" in result.embedding.verdict
    assert "'positions', 'tokens.weight' a group of their own with lr=0.008" in result.embedding.fix
    assert (result.nearest.lr, result.nearest.init, result.nearest.axis) == ("sp", "sp", "global")
    roles = result.roles
    assert {role: each.rule_lr_factor for role, each in roles.items()} == pytest.approx(
        {"embedding": M, "norm": M, "bias": M, "hidden": 1, "readout": 1}
    )
    assert all(each.lr_factor == pytest.approx(1) for each in roles.values())
    assert roles["hidden"].init_factor == pytest.approx(M**-0.5, rel=0.05)
    assert roles["readout"].rule_init_factor == pytest.approx(1 / M)
    assert roles["hidden"].shrink == pytest.approx(mine.LR * mine.DECAY)
    assert "weight_decay" not in kinds(result)
    assert "norm and bias" in message(result, "decayed")


def test_mups_learning_rates_hold_nothing_back_but_their_decay_changes():
    result = run_audit(optimizer=mine.as_mup)
    assert not result.embedding.held_back
    assert result.embedding.factor == pytest.approx(1)
    assert result.embedding.fix == ""
    assert result.nearest.axis == "hidden-aligned"
    assert "hidden (0.0001 at width 32, 1.25e-05 at 256)" in message(result, "weight_decay")
    assert "base_width" not in kinds(result)


def test_a_warmup_that_has_begun_does_not_hide_the_learning_rates():
    assert run_audit(optimizer=mine.as_mup_warmed).roles == run_audit(optimizer=mine.as_mup).roles


@pytest.mark.parametrize("rule", ["sp", "sp+embd", "mup", "everett-none", "hayou-liu"])
def test_our_own_groups_and_init_are_the_rule_that_made_them(rule):
    def table(width):
        return infer_roles(mine.make, base_width=32, width=width)

    def factory(width):
        model = mine.make(width)
        if not next(model.parameters()).is_meta:
            init_(model, roles=table(width), parameterization=rule, seed=0, verbose=False)
        return model

    def optimizer(width, model):
        return param_groups(
            model, roles=table(width), parameterization=rule, lr=0.1, weight_decay=0.01
        )

    result = run_audit(factory, optimizer=optimizer, parameterization=rule)
    assert (result.nearest.lr, result.nearest.init, result.nearest.axis) == (
        rule,
        rule,
        "hidden-aligned",
    )
    assert result.warnings == ()
    for each in result.roles.values():
        assert each.lr_factor == pytest.approx(each.rule_lr_factor)
        if each.rule_init_factor is not None:
            assert each.init_factor == pytest.approx(each.rule_init_factor, rel=0.1)
    assert result.embedding.factor == pytest.approx(
        {"sp": M, "hayou-liu": M**0.5, "everett-none": M**0.5}.get(rule, 1)
    )


def test_groups_of_another_base_width_are_named_with_the_one_they_agree_at():
    result = run_audit(optimizer=mine.of_another_base)
    assert "at the base width 32 the learning rates of embedding and hidden differ" in message(
        result, "base_width"
    )
    assert message(result, "base_width").endswith("they agree at width 128")
    assert not result.embedding.held_back


def test_an_init_that_ignores_the_width_is_named():
    result = run_audit(mine.make_constant_init)
    assert "init std of hidden goes ×1" in message(result, "init")
    assert "÷2.83" in message(result, "init")
    assert result.nearest.init is None


def test_tied_tables_are_refused_by_a_rule_that_says_nothing_for_them():
    result = run_audit(mine.make_tied, parameterization="sp+embd")
    assert "sp+embd says nothing" in message(result, "tied")
    assert "tied" in result.roles
    assert "'tokens.weight'" in result.embedding.fix
    assert "tied" not in kinds(run_audit(mine.make_tied))


class FixedTable(nn.Module):
    """A tied table of one size at every width, as ALBERT's."""

    def __init__(self, width):
        super().__init__()
        self.table, self.up = nn.Embedding(64, 8), nn.Linear(8, width)
        self.hidden, self.down = nn.Linear(width, width), nn.Linear(width, 8)
        self.head = nn.Linear(8, 64)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(self.down(self.hidden(self.up(self.table(tokens)).relu()).relu()))


def test_a_tied_table_of_fixed_size_is_not_why_a_rule_says_nothing():
    def sgd(model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    result = run_audit(FixedTable, optimizer=sgd, parameterization="sp+embd")
    assert result.roles["tied"].num_tensors == 1
    assert "tied" not in kinds(result)
    assert message(result, "rule") == "sp+embd says nothing for sgd; compared with mup here"


def test_a_model_tied_at_one_width_only_has_no_comparison():
    result = run_audit(lambda width: Transformer(width, tied=width > 32))
    assert "differ in tying (False and True)" in message(result, "tied")
    assert result.roles == {}
    assert result.embedding is None


def test_a_vocabulary_that_grows_is_named_and_the_readout_stays_one():
    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.table = nn.Embedding(2 * width, width)
            self.middle = nn.Linear(width, width)
            self.head = nn.Linear(width, 2 * width)

    result = run_audit(Model)
    assert "differ in vocabulary (64 and 512)" in message(result, "vocab_size")
    assert result.roles["readout"].num_tensors == 1


def test_sgd_is_compared_with_what_its_update_implies():
    def sgd(model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    result = run_audit(optimizer=sgd)
    assert result.roles["embedding"].rule_lr_factor == pytest.approx(M)
    assert result.nearest.lr == "sp"
    assert "everett-full says nothing for sgd" in message(
        run_audit(optimizer=sgd, parameterization="everett-full"), "rule"
    )


def test_an_unknown_optimizer_and_frozen_parameters_are_said():
    class Own(torch.optim.SGD):
        pass

    def freeze(width):
        model = mine.make(width)
        model.norm.weight.requires_grad_(False)
        return model

    def own(model):
        return [Own([p for p in model.parameters() if p.requires_grad], lr=0.1)]

    result = run_audit(freeze, optimizer=own)
    assert "no rule speaks of Own" in message(result, "optimizer")
    assert "'norm.weight' (1 in all) is frozen" in message(result, "frozen")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"width": 32}, "width: expected more than base_width 32, found 32"),
        ({"factory": mine.broken}, "factory: at width 32 it raised ValueError: no such width"),
        ({"factory": lambda width: width}, "factory: expected a torch.nn.Module at width 32"),
        ({"optimizer": mine.forgetful}, r"optimizer: 'positions' .* is in none of its groups"),
        ({"optimizer": lambda model: 3}, "optimizer: expected a torch.optim.Optimizer, .* int"),
        ({"optimizer": lambda model: [{"params": []}]}, "optimizer: group 0 has no lr"),
        ({"optimizer": lambda model: 1 / 0}, "optimizer: at width 32 it raised ZeroDivision"),
        (
            {"optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.0)},
            "optimizer: expected lr above 0, found 0 in group 0",
        ),
        (
            {"optimizer": lambda m: [{"params": p, "lr": 1.0} for p in [*m.parameters()] * 2]},
            "optimizer: 'positions' is in two groups",
        ),
        (
            {"optimizer": lambda m: [{"params": torch.ones(3), "lr": 1.0}]},
            r"optimizer: group 0 holds a tensor of shape \(3,\) that is no parameter",
        ),
        ({"factory": partial(nn.Embedding, 3)}, "audit: expected trained matrices"),
        ({"parameterization": "mupp"}, "parameterization: 'mupp' is not known"),
    ],
)
def test_bad_input_is_one_line(options, problem):
    with pytest.raises(ConfigError, match=problem) as error:
        run_audit(**options)
    assert "\n" not in str(error.value)


def test_a_model_too_big_to_build_is_looked_at_at_a_smaller_width(monkeypatch):
    monkeypatch.setattr("hptransfer.adopt._audit_findings.MAX_PARAMETERS", 300_000)
    result = run_audit(optimizer=mine.one_lr)
    assert result.init_width == 64
    assert result.roles["hidden"].init_factor == pytest.approx(2**-0.5, rel=0.05)
    assert result.nearest.init == "sp"


def test_the_document_is_plain_json():
    document = json.loads(json.dumps(run_audit().to_dict(), allow_nan=False))
    assert document["schema"] == 1
    assert document["embedding"]["factor"] == pytest.approx(M)
    assert document["roles"]["hidden"]["num_tensors"] == 12
    assert document["width_mult"] == M


@pytest.mark.parametrize(
    ("factor", "words"), [(16.0, "×16"), (1.0, "×1"), (0.9996, "×1"), (0.25, "÷4"), (None, "")]
)
def test_factors_in_words(factor, words):
    assert say_factor(factor) == words
