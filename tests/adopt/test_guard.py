"""The guard: schedulers that multiply pass, those that overwrite are named before a step."""

import pytest
import torch
from torch.optim import lr_scheduler

from adopt.models import MLP
from hptransfer.adopt import guard, infer_roles, param_groups
from hptransfer.errors import ConfigError

TABLE = infer_roles(MLP, base_width=16, width=64)


def make(**options):
    model = MLP(64)
    groups = param_groups(
        model, roles=TABLE, parameterization="mup", lr=0.01, weight_decay=0.1, **options
    )
    return model, torch.optim.AdamW(groups)


def steps(model, optimizer, scheduler, count):
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.ones(2, 5)).square().mean().backward()
        optimizer.step()
        scheduler.step()


PASSING = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 3)),  # from 0
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=5),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(
        o, max_lr=[2 * g["rule_lr"] for g in o.param_groups], total_steps=9
    ),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)],
        milestones=[2],
    ),
}


@pytest.mark.parametrize("name", PASSING)
def test_schedulers_that_multiply_pass(name):
    model, optimizer = make()
    scheduler = PASSING[name](optimizer)
    guard(optimizer)
    steps(model, optimizer, scheduler, 6)


def test_one_cycle_with_one_max_lr_is_refused_at_once():
    _, optimizer = make()
    lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=9)
    message = (
        r"groups 'embedding' and 'hidden\+readout' have lr 0.0004 and 0.0004, where the rule gave "
        r"0.01 and 0.0025: a scheduler has overwritten"
    )
    with pytest.raises(ConfigError, match=message) as caught:
        guard(optimizer)
    assert "\n" not in str(caught.value)


def test_a_scheduler_made_after_the_guard_is_caught_before_its_step():
    model, optimizer = make()
    guard(optimizer)
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=9)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ConfigError, match="OneCycleLR takes max_lr as a list"):
        steps(model, optimizer, scheduler, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_floor_of_the_cosine_is_caught_after_its_first_step():
    _, optimizer = make()
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=5, eta_min=1e-3)
    watch = guard(optimizer)  # nothing has changed yet
    optimizer.step()
    scheduler.step()
    with pytest.raises(ConfigError, match="eta_min = 0"):
        watch.check()
    with pytest.raises(ConfigError, match=r"'embedding' and 'hidden\+readout' have lr"):
        optimizer.step()


def test_a_group_frozen_by_hand_is_named():
    _, optimizer = make()
    watch = guard(optimizer)
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(ConfigError, match=r"'embedding' and 'bias' have lr 0 and 0\.01"):
        watch.check()


def test_removed_it_watches_no_longer():
    model, optimizer = make()
    watch = guard(optimizer)
    watch.remove()
    steps(model, optimizer, lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=9), 1)


def test_it_holds_after_a_checkpoint():
    _, optimizer = make()
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.step()
    scheduler.step()
    model, other = make()
    other.load_state_dict(optimizer.state_dict())
    assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in optimizer.param_groups]
    guard(other)
    other.param_groups[0]["lr"] *= 2
    with pytest.raises(ConfigError, match="overwritten"):
        steps(model, other, None, 1)


def test_groups_of_others_are_refused():
    optimizer = torch.optim.SGD(MLP(8).parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"group 0 \(no name\) has no 'rule_lr'"):
        guard(optimizer)


def test_an_optimizer_with_missing_parameters_is_refused():
    model = MLP(64)
    groups = param_groups(model, roles=TABLE, parameterization="mup", lr=0.01)
    guard(torch.optim.AdamW(groups), model=model)
    partial = torch.optim.AdamW([g for g in groups if g["name"] != "hidden+readout"])
    with pytest.raises(ConfigError, match=r"'middle.weight' \(2 in all\) is trained and in"):
        guard(partial, model=model)
    model.middle.weight.requires_grad_(False)
    model.last.weight.requires_grad_(False)
    guard(partial, model=model)
