"""The coordinate check on real models: the GPT of the source, and models that break a rule."""

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adopt.models import MLP
from hptransfer.adopt import coordinate_check, rule_optimizer
from hptransfer.errors import ConfigError
from reference.gpt import ReferenceGPT

VOCAB, CONTEXT, HEAD = 64, 16, 32
WIDTHS = (64, 128, 256, 512, 1024)
TABLES = ("token", "position")


def make_gpt(width):
    return ReferenceGPT(
        width=width,
        num_layers=1,
        head_size=HEAD,
        context=CONTEXT,
        vocab_size=VOCAB,
        attention_scale=HEAD**-0.5,
    )


@functools.cache
def check_gpt(rule):
    generator = torch.Generator().manual_seed(0)
    return coordinate_check(
        make_gpt,
        WIDTHS,
        optimizer=rule_optimizer(
            make_gpt,
            base_width=64,
            parameterization=rule,
            lr=2.0**-8,
            num_layers=1,
            roles={f"blocks.*.{name}.weight": "hidden_residual" for name in ("proj", "down")},
        ),
        batches=torch.randint(VOCAB, (3, 2, CONTEXT + 1), generator=generator),
        loss=lambda model, batch: model.loss(batch),
        name=rule,
    )


def test_under_mup_every_module_of_the_gpt_changes_alike_at_every_width():
    result = check_gpt("mup")
    slopes = {module.name: module.change_slope.value for module in result.modules}
    assert len(slopes) == 11  # ten modules, and the attention logits
    assert max(map(abs, slopes.values())) < 0.25
    assert result.median_slope <= 0.1
    assert result.passed
    assert result["readout"].init_slope.value == pytest.approx(-0.5, abs=0.05)
    others = [m.init_slope.value for m in result.modules if m.name != "readout"]
    assert np.abs(others).max() < 0.05


def test_under_sp_the_embedding_update_of_the_gpt_shrinks_with_width():
    sp, mup = check_gpt("sp"), check_gpt("mup")
    for name in TABLES:
        assert sp[name].change_slope.value == pytest.approx(-1.0, abs=0.2)
        assert sp[name].change_slope.value <= mup[name].change_slope.value - 0.8
        assert sp.against(mup)[name].value <= -0.8
    assert not sp.passed
    said = next(line for line in sp.verdict.splitlines() if "embedding update" in line)
    value = f"{sp['token'].change_slope.value:.2f}".replace("-", "−")
    assert f"token as width^{value}" in said
    assert "position as width^−1.0" in said
    assert "smaller at width 1024 than at 64" in said
    assert "token: the update of sp shrinks as width^−1.0" in sp.say_against(mup)


class Table(nn.Module):
    """One row of a table; the loss is its sum, so that Adam moves each entry by the lr."""

    def __init__(self, width):
        super().__init__()
        self.table = nn.Embedding(1, width)
        self.fixed = nn.Identity()

    def forward(self, tokens):
        return self.table(tokens).sum() + self.fixed(torch.ones(2)).sum()


def check_table(**options):
    defaults = {
        "optimizer": lambda width, model: torch.optim.AdamW(
            model.parameters(), lr=8 / width, weight_decay=0.0
        ),
        "batches": [torch.zeros(1, dtype=torch.long)],
        "loss": lambda model, batch: model(batch),
    }
    return coordinate_check(Table, [8, 16, 64], **(defaults | options))


def test_the_change_is_what_the_steps_moved():
    result = check_table(steps=3, seeds=[0, 5], name="table")
    table = result["table"]
    assert (table.kind, result.name, result.steps) == ("Embedding", "table", 3)
    steps, widths = np.arange(1, 4)[:, None, None], np.array([8, 16, 64])[None, :, None]
    np.testing.assert_allclose(table.change, 8 / widths * steps * np.ones((1, 1, 2)), rtol=1e-5)
    torch.manual_seed(5)
    np.testing.assert_allclose(
        table.activation[0, 2, 1], Table(64).table.weight.square().mean().sqrt().item(), rtol=1e-6
    )
    assert table.change_slope.value == pytest.approx(-1.0, abs=1e-4)
    assert result.constant == ("fixed",)


def test_the_callers_random_state_stays():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check_table()
    assert torch.equal(torch.rand(1), expected)


def test_a_frozen_table_fails():
    def optimizer(width, model):
        return torch.optim.AdamW([nn.Parameter(torch.zeros(1))])

    result = check_table(optimizer=optimizer)
    assert result["table"].reason == "output never changed at width 8"


def test_a_model_that_blows_up_fails():
    result = check_table(loss=lambda model, batch: model(batch) * math.inf)
    assert result["table"].reason == "output not finite at width 8 after step 1"


def test_a_rule_without_its_hidden_lr_grows():
    """An MLP of the user's own, hidden learning rates not divided by the width ratio."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(16, 5, generator=generator), torch.randn(16, 3, generator=generator)
    options = {
        "batches": [data],
        "loss": lambda model, batch: F.mse_loss(model(batch[0]), batch[1]),
        "seeds": [0, 1, 2, 3],
    }
    widths = [32, 128, 512]
    rule = rule_optimizer(MLP, base_width=32, parameterization="mup", lr=1e-3)

    def one_lr(width, model):
        rule(width, model)
        return torch.optim.AdamW(model.parameters(), lr=1e-3)

    assert coordinate_check(MLP, widths, optimizer=rule, **options).passed
    result = coordinate_check(MLP, widths, optimizer=one_lr, **options)
    assert result["middle"].reason.startswith("change grows")
    assert result["last"].reason.startswith("change grows")


def test_modules_are_chosen_by_the_caller():
    result = check_table(modules=lambda name, module: name == "")
    assert [module.name for module in result.modules] == ["(model)"]


class Output(dict):
    loss = property(lambda self: self["loss"])


class Keywords(Table):
    def forward(self, tokens):
        return Output(loss=super().forward(tokens))


def test_batches_of_keywords_need_no_loss():
    result = coordinate_check(
        Keywords,
        [8, 16, 64],
        optimizer=lambda width, model: torch.optim.SGD(model.parameters(), lr=0.1),
        batches=[{"tokens": torch.zeros(1, dtype=torch.long)}],
    )
    assert result["table"].change_slope.value == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": []}, "batches: expected at least one, found none"),
        ({"seeds": []}, "seeds: expected at least one, found none"),
        ({"steps": 0}, "steps: expected a whole number above 0, found 0"),
        ({"tolerance": -1}, "tolerance: expected a finite number above 0, found -1"),
        ({"optimizer": lambda width, model: None}, "optimizer: expected it to return a torch"),
        ({"loss": lambda model, batch: torch.ones(2)}, "loss: expected a tensor of one element"),
        ({"loss": lambda model, batch: 1.0}, "loss: .* found float"),
        ({"loss": None}, "loss: expected a function of .* a batch of type Tensor"),
        ({"modules": lambda name, module: name == "fixed"}, "modules: expected at least one whose"),
    ],
)
def test_bad_input_is_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        check_table(**options)
    assert "\n" not in str(error.value)


def test_widths_and_models_are_checked():
    options = {
        "optimizer": lambda width, model: torch.optim.SGD(model.parameters(), lr=0.1),
        "batches": [torch.zeros(1, dtype=torch.long)],
        "loss": lambda model, batch: model(batch).sum(),
    }
    with pytest.raises(ConfigError, match=r"widths: expected at least 3 different .* \[8, 16, 8\]"):
        coordinate_check(Table, [8, 16, 8], **options)
    with pytest.raises(ConfigError, match=r"factory: expected a torch.nn.Module at width 8"):
        coordinate_check(lambda width: None, [8, 16, 32], **options)

    def deeper(width):
        return nn.Sequential(*[nn.Embedding(1, width) for _ in range(1 if width == 8 else 2)][:1])

    def other(width):
        return nn.Sequential(nn.Embedding(1, width), *[nn.Identity()] * (width > 8))

    assert coordinate_check(deeper, [8, 16, 32], **options)["0"].kind == "Embedding"
    found = coordinate_check(other, [8, 16, 32], **options)
    assert found.unjudged == (("1", "it did not run at every width"),)
    assert "no verdict, as it did not run at every width: 1" in str(found)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
def test_a_wrapped_model_is_checked_as_the_bare_one():
    def check(make):
        rule = rule_optimizer(make, base_width=16, parameterization="mup", lr=2.0**-8)
        generator = torch.Generator().manual_seed(0)
        batch = torch.randn(8, MLP(16).first.in_features, generator=generator)
        return coordinate_check(
            make, [16, 32, 64], optimizer=rule, batches=[batch], seeds=[0],
            loss=lambda model, batch: model(batch).square().mean(),
        )  # fmt: skip

    bare = check(MLP)
    assert bare["last"].own_change is not None
    compiled = lambda model: torch.compile(nn.DataParallel(model), backend="eager")  # noqa: E731
    for wrap in (nn.DataParallel, compiled):
        found = check(lambda width, wrap=wrap: wrap(MLP(width)))
        assert [m.name for m in found.modules] == [m.name for m in bare.modules]
        assert found.unseen == ()
        for mine, other in zip(found.modules, bare.modules, strict=True):
            np.testing.assert_array_equal(mine.change, other.change)
