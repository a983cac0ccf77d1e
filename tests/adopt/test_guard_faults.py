"""Planted faults that the guard must find, and correct setups in which it must stay silent."""

import copy
import gc
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

from adopt.models import MLP
from hptransfer.adopt import guard, infer_roles, param_groups
from hptransfer.adopt._optimizers import find_decay_meaning
from hptransfer.errors import ConfigError

LR, DECAY, STEPS = 0.01, 0.1, 20
TABLE = infer_roles(MLP, base_width=16, width=64)


class Relative(torch.optim.AdamW):
    """Shrinks by lr / initial lr · weight_decay, as some trainers' AdamW does."""

    def step(self, closure=None):
        for group in self.param_groups:
            ratio = group["lr"] / group.setdefault("initial_lr", group["lr"])
            for parameter in group["params"]:
                parameter.data.mul_(1 - ratio * group["weight_decay"])


class Independent(torch.optim.AdamW):
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(1 - group["weight_decay"])


class Subclass(torch.optim.AdamW):
    pass


def make(kind=torch.optim.AdamW, **options):
    torch.manual_seed(0)
    model = MLP(64)
    settings = {"parameterization": "mup", "lr": LR, "weight_decay": DECAY} | options
    groups = param_groups(model, roles=TABLE, **settings)
    return model, kind(groups, lr=LR)


def make_two(**options):
    model = MLP(64)
    groups = param_groups(
        model, roles=TABLE, parameterization="mup", lr=LR, optimizer="muon", muon_lr=0.02, **options
    )
    muon = torch.optim.Muon([g for g in groups if g["optimizer"] == "muon"], lr=0.02)
    adamw = torch.optim.AdamW([g for g in groups if g["optimizer"] == "adamw"], lr=LR)
    return model, muon, adamw


def train(model, optimizers, schedulers=(), steps=STEPS):
    for _ in range(steps):
        model(torch.ones(2, 5)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for scheduler in schedulers:
            scheduler.step()


def run_schedule(make_schedule, *, first=True):
    model, optimizer = make()
    scheduler = make_schedule(optimizer) if first else None
    guard(optimizer, model=model)
    scheduler = scheduler or make_schedule(optimizer)
    train(model, [optimizer], [scheduler])


def write(key, value):
    """Return a fault: a schedule that writes one number into all groups."""

    def fault():
        model, optimizer = make()
        guard(optimizer)
        train(model, [optimizer], steps=3)
        for group in optimizer.param_groups:
            group[key] = value
        train(model, [optimizer], steps=1)

    return fault


def two_with_one_schedule(k):
    model, *optimizers = make_two()
    guard(optimizers, model=model)
    linear = schedules.LinearLR(optimizers[k], 0.1, total_iters=5)
    train(model, optimizers, [linear])


def two_with_other_schedules():
    model, muon, adamw = make_two()
    guard([muon, adamw])
    both = [schedules.ExponentialLR(muon, 0.9), schedules.ExponentialLR(adamw, 0.8)]
    train(model, [muon, adamw], both)


def resume(*, after, lr=LR / 2, rule="mup"):
    model, old = make()
    train(model, [old], steps=1)
    saved = copy.deepcopy(old.state_dict())
    model, new = make(lr=lr, parameterization=rule)
    if after:
        watch = guard(new)
        new.load_state_dict(saved)
        watch.check()
    else:
        new.load_state_dict(saved)
        guard(new)


def engine_of_its_own():
    model, optimizer = make()
    guard(optimizer, model=model)
    own = torch.optim.AdamW(model.parameters(), lr=LR)
    train(model, [own], steps=1)


def engine_without_rules():
    _, optimizer = make()
    guard(torch.optim.AdamW([p for g in optimizer.param_groups for p in g["params"]], lr=LR))


def late_group():
    model, optimizer = make()
    guard(optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))], "lr": 1e-3})
    train(model, [optimizer], steps=1)


def forgotten_parameter():
    model, optimizer = make()
    optimizer.param_groups.pop()
    guard(optimizer, model=model)


def one_of_two():
    model, muon, _ = make_two()
    guard(muon, model=model)


def of_class(kind, **options):
    return lambda: guard(make(kind, **options)[1])


FAULTS = {
    "one cycle with one max_lr": (
        lambda: run_schedule(lambda o: schedules.OneCycleLR(o, max_lr=LR, total_steps=99)),
        "overwritten",
    ),
    "one cycle made after the guard": (
        lambda: run_schedule(
            lambda o: schedules.OneCycleLR(o, max_lr=LR, total_steps=99), first=False
        ),
        "overwritten",
    ),
    "cosine to a floor": (
        lambda: run_schedule(lambda o: schedules.CosineAnnealingLR(o, 20, eta_min=1e-3)),
        "eta_min = 0",
    ),
    "cyclic": (
        lambda: run_schedule(lambda o: schedules.CyclicLR(o, 1e-4, LR, cycle_momentum=False)),
        "overwritten",
    ),
    "plateau with a floor": (
        lambda: run_schedule(
            lambda o: Told(schedules.ReduceLROnPlateau(o, factor=0.5, patience=0, min_lr=1e-3))
        ),
        "overwritten",
    ),
    "warmup that writes one number": (write("lr", 1e-3), "'embedding' and .* have lr 0.001"),
    "decay schedule that writes one number": (write("weight_decay", 0.06), "does not decay it"),
    "one group's lr": (lambda: edit(0, "lr", 0.5), "overwritten"),
    "one group's decay": (lambda: edit(0, "weight_decay", 0.5), "'embedding' and .* weight decay"),
    "decay of a bias": (lambda: edit(1, "weight_decay", 0.1), "'bias' has weight decay 0.1"),
    "Muon scheduled alone": (lambda: two_with_one_schedule(0), "Muon at 0.1"),
    "AdamW scheduled alone": (lambda: two_with_one_schedule(1), "AdamW at 0.1"),
    "two schedules that differ": (two_with_other_schedules, "schedule both alike"),
    "resume of another lr": (lambda: resume(after=True), "a checkpoint of another run"),
    "resume of another rule": (
        lambda: resume(after=True, lr=LR, rule="everett-none"),
        "a checkpoint of another run",
    ),
    "resume before the guard": (lambda: resume(after=False), "param_groups gave 0.005"),
    "engine with its own optimizer": (engine_of_its_own, "another optimizer .AdamW, lr 0.01."),
    "engine's optimizer without rules": (engine_without_rules, "has no 'rule_lr'"),
    "late group": (late_group, "group 3 was added after the guard"),
    "forgotten parameter": (forgotten_parameter, "is trained and in no group"),
    "Muon without its AdamW": (one_of_two, r"guard\(\[muon, adamw\], model=model\)"),
    "SGD with AdamW's numbers": (of_class(torch.optim.SGD), "for 'adamw' and the optimizer is SGD"),
    "RMSprop with AdamW's numbers": (
        of_class(torch.optim.RMSprop, weight_decay=0.0),
        "the optimizer is RMSprop",
    ),
    "Adam with AdamW's decay": (of_class(torch.optim.Adam), "shrinks a tensor by nothing"),
    "relative decay": (of_class(Relative), 'decay_semantics="relative"'),
    "independent decay": (of_class(Independent), 'decay_semantics="independent"'),
}


class Told:
    """A plateau scheduler that is told the same loss at each step."""

    def __init__(self, scheduler):
        self.scheduler = scheduler

    def step(self):
        self.scheduler.step(1.0)


def edit(index, key, value):
    _, optimizer = make()
    watch = guard(optimizer)
    optimizer.param_groups[index][key] = value
    watch.check()


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name):
    fault, message = FAULTS[name]
    with pytest.raises(ConfigError, match=message) as caught:
        fault()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("every", "most", "taken"), [(4, 4, "1 step"), (3, 6, "2 steps"), (100, 6, "no steps")]
)
def test_an_optimizer_that_steps_less_often_is_named(every, most, taken, monkeypatch):
    monkeypatch.setattr("hptransfer.adopt._lr_guard._MAX_BEHIND", most)
    model, muon, adamw = make_two()
    guard([muon, adamw], model=model)
    both = [[muon, adamw] if step % every == every - 1 else [muon] for step in range(50)]

    def run():
        for optimizers in both:
            train(model, optimizers, steps=1)

    with pytest.raises(ConfigError, match=f"AdamW has taken {taken} and is more than") as caught:
        run()
    assert "behind the others: they are compared with one another no longer" in str(caught.value)


def two(schedule):
    model, *optimizers = make_two(weight_decay=DECAY)
    guard(optimizers, model=model)
    train(model, optimizers, [schedule(each) for each in optimizers])


def scheduled_inside_the_step():
    model, muon, adamw = make_two()
    guard([muon, adamw])
    ends = [schedules.ExponentialLR(each, 0.9) for each in (muon, adamw)]
    for _ in range(5):
        model(torch.ones(2, 5)).square().mean().backward()
        for optimizer, schedule in zip((muon, adamw), ends, strict=True):
            optimizer.step()
            schedule.step()


def decays_together():
    model, optimizer = make()
    guard(optimizer)
    for _ in range(3):
        for group in optimizer.param_groups:
            group["weight_decay"] *= 0.9
            group["lr"] *= 0.5
        train(model, [optimizer], steps=1)


def same_run_again(after):
    model, old = make()
    scheduler = schedules.ExponentialLR(old, 0.9)
    train(model, [old], [scheduler], steps=2)
    saved = copy.deepcopy(old.state_dict())
    model, new = make()
    if after:
        guard(new).check()
    new.load_state_dict(saved)
    guard(new, model=model)
    train(model, [new], steps=1)


def another_optimizer_on_the_same_model():
    model, optimizer = make()
    guard(optimizer)
    del optimizer
    gc.collect()
    train(model, [torch.optim.SGD(model.parameters(), lr=0.1)], steps=1)


def another_rule_on_the_same_model():
    model, optimizer = make()
    guard(optimizer)
    groups = param_groups(model, roles=TABLE, parameterization="sp", lr=LR)
    other = torch.optim.AdamW(groups, lr=LR)
    guard(other)
    train(model, [other, optimizer], steps=1)


def late_group_of_the_rule():
    model, optimizer = make()
    guard(optimizer)
    optimizer.add_param_group(param_groups(MLP(64), roles=TABLE, parameterization="mup", lr=LR)[0])
    train(model, [optimizer], steps=1)


def wrapped():
    model, optimizer = make()
    guard(optimizer)

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner, self.param_groups = inner, inner.param_groups

        def step(self):
            self.inner.step()

        def zero_grad(self):
            self.inner.zero_grad()

    train(model, [Wrapper(optimizer)], steps=2)


def removed():
    model, optimizer = make()
    guard(optimizer).remove()
    train(model, [optimizer], [schedules.OneCycleLR(optimizer, max_lr=LR, total_steps=99)])


def frozen():
    model, optimizer = make()
    model.last.weight.requires_grad_(False)
    guard(optimizer, model=model)
    train(model, [optimizer], steps=1)


def skipping_frozen():
    model = MLP(64)
    model.middle.weight.requires_grad_(False)
    groups = param_groups(model, roles=TABLE, parameterization="mup", lr=LR, skip_frozen=True)
    guard(torch.optim.AdamW(groups, lr=LR), model=model)


CORRECT = {
    "lambda": partial(run_schedule, lambda o: schedules.LambdaLR(o, lambda k: 1 / (1 + k))),
    "cosine to 0": partial(run_schedule, lambda o: schedules.CosineAnnealingLR(o, STEPS)),
    "warmup then cosine": partial(
        run_schedule,
        lambda o: schedules.SequentialLR(
            o, [schedules.LinearLR(o, 0.01, 1, 5), schedules.CosineAnnealingLR(o, 15)], [5]
        ),
    ),
    "chained": partial(
        run_schedule,
        lambda o: schedules.ChainedScheduler(
            [schedules.ConstantLR(o, 0.1, 4), schedules.ExponentialLR(o, 0.9)]
        ),
    ),
    "steps": partial(run_schedule, lambda o: schedules.MultiStepLR(o, [3, 6], 0.1)),
    "polynomial": partial(run_schedule, lambda o: schedules.PolynomialLR(o, STEPS)),
    "one cycle with a list": partial(
        run_schedule,
        lambda o: schedules.OneCycleLR(
            o, max_lr=[3 * g["rule_lr"] for g in o.param_groups], total_steps=99
        ),
    ),
    "plateau": partial(
        run_schedule, lambda o: Told(schedules.ReduceLROnPlateau(o, factor=0.5, patience=3))
    ),
    "two optimizers": partial(two, lambda o: schedules.LinearLR(o, 0.1, total_iters=5)),
    "two optimizers from 0": partial(two, lambda o: schedules.LambdaLR(o, lambda k: k / 9)),
    "schedules between two steps": scheduled_inside_the_step,
    "decay and lr together": decays_together,
    "resume after the guard": partial(same_run_again, after=True),
    "resume before the guard": partial(same_run_again, after=False),
    "an optimizer after this one is gone": another_optimizer_on_the_same_model,
    "two rules on one model": another_rule_on_the_same_model,
    "late group of the rule": late_group_of_the_rule,
    "a wrapper": wrapped,
    "removed": removed,
    "frozen later": frozen,
    "frozen and left out": skipping_frozen,
    "a subclass": of_class(Subclass),
    "Adam without decay": of_class(torch.optim.Adam, weight_decay=0.0, optimizer="adam"),
    "NAdam without decay": of_class(torch.optim.NAdam, weight_decay=0.0),
    "relative decay, told": of_class(Relative, decay_semantics="relative"),
    "independent decay, told": of_class(Independent, decay_semantics="independent"),
    "SGD": of_class(torch.optim.SGD, optimizer="sgd"),
}


@pytest.mark.parametrize("name", CORRECT)
def test_correct_setups_raise_nothing(name):
    CORRECT[name]()


def test_twenty_of_each():
    assert len(FAULTS) >= 20
    assert len(CORRECT) >= 20


SGD = partial(torch.optim.SGD, lr=1.0)
MEANINGS = {
    "AdamW": (torch.optim.AdamW, "lr"),
    "AdamW, fused": (partial(torch.optim.AdamW, fused=True), "lr"),
    "Adam": (torch.optim.Adam, "gradient"),
    "Adam, decoupled": (partial(torch.optim.Adam, decoupled_weight_decay=True), "lr"),
    "AMSGrad": (partial(torch.optim.Adam, amsgrad=True), "gradient"),
    "NAdam": (torch.optim.NAdam, "gradient"),
    "NAdam, decoupled": (partial(torch.optim.NAdam, decoupled_weight_decay=True), "lr"),
    "RAdam": (torch.optim.RAdam, "gradient"),
    "RAdam, decoupled": (partial(torch.optim.RAdam, decoupled_weight_decay=True), "lr"),
    "Adagrad": (torch.optim.Adagrad, "gradient"),
    "Adadelta": (torch.optim.Adadelta, "gradient"),
    "Adamax": (torch.optim.Adamax, "gradient"),
    "RMSprop": (torch.optim.RMSprop, "gradient"),
    "Adafactor": (torch.optim.Adafactor, "lr"),
    "Muon": (torch.optim.Muon, "lr"),
    "SGD": (SGD, "lr"),
    "SGD with momentum": (partial(SGD, momentum=0.9, nesterov=True), "lr"),
    "Relative": (Relative, "relative"),
    "Independent": (Independent, "independent"),
    "no step without a closure": (torch.optim.LBFGS, None),
}


@pytest.mark.parametrize("name", MEANINGS)
def test_what_weight_decay_means_is_found_by_trial(name):
    kind, expected = MEANINGS[name]
    parameter = nn.Parameter(torch.ones(3, 3))
    optimizer = kind([parameter])
    assert find_decay_meaning(optimizer) == expected
    assert torch.equal(parameter, torch.ones(3, 3))


def test_what_weight_decay_means_is_found_of_settings_that_scale_with_the_tensor():
    adafactor = pytest.importorskip("transformers.optimization").Adafactor
    parameter = nn.Parameter(torch.ones(3, 3))
    scaled = adafactor([parameter], lr=1e-3, scale_parameter=True, relative_step=False)
    assert find_decay_meaning(scaled) == "lr"
    assert find_decay_meaning(torch.optim.AdamW([parameter], differentiable=True)) == "lr"


def test_warn_says_each_optimizers_break(caplog):
    made = [make()[1] for _ in range(2)]
    watch = guard(made, on_break="warn")
    for optimizer, lr in zip(made, (0.5, 0.7), strict=True):
        optimizer.param_groups[1]["lr"] = lr
    made[0].param_groups[0]["lr"] = 2 * LR
    watch.check()
    said = "\n".join(caplog.messages)
    assert len(caplog.messages) == 3
    assert all(each in said for each in (" 0.5 ", " 0.7,", "schedule both alike"))


def test_optimizers_keep_their_own_rules_where_one_of_them_is_gone(monkeypatch):
    monkeypatch.setattr("hptransfer.adopt._lr_guard._MAX_BEHIND", 3)
    (_, gone), (model, left) = make(weight_decay=0.0), make(lr=2 * LR)
    guard([gone, left])
    del gone
    gc.collect()
    train(model, [left], steps=6)
    left.param_groups[1]["lr"] *= 2
    with pytest.raises(ConfigError, match="where the rule gave"):
        train(model, [left], steps=1)


def test_optimizers_that_are_compared_no_longer_are_not_compared_by_hand(monkeypatch):
    monkeypatch.setattr("hptransfer.adopt._lr_guard._MAX_BEHIND", 3)
    made = [make()[1] for _ in range(2)]
    watch = guard(made)
    for _ in range(3):
        made[0].step()
    with pytest.raises(ConfigError, match="compared with one another no longer"):
        made[0].step()
    for _ in range(4):
        made[1].step()
    for group in made[0].param_groups:
        group["lr"] *= 2
    watch.check()
    made[0].step()


def test_a_broken_optimizer_is_not_said_to_be_behind(caplog, monkeypatch):
    monkeypatch.setattr("hptransfer.adopt._lr_guard._MAX_BEHIND", 3)
    made = [make()[1] for _ in range(2)]
    watch = guard(made, on_break="warn")
    made[0].param_groups[1]["lr"] = 0.5
    for _ in range(6):
        for optimizer in made:
            optimizer.step()
    assert "behind" not in caplog.text
    assert watch is not None


def test_warn_goes_on_and_says_it_once(caplog):
    model, optimizer = make()
    guard(optimizer, on_break="warn")
    scheduler = schedules.CosineAnnealingLR(optimizer, 20, eta_min=1e-3)
    train(model, [optimizer], [scheduler], steps=1)
    assert not caplog.records
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    train(model, [optimizer], steps=3)
    assert len([r for r in caplog.records if "overwritten" in r.message]) == 1
    with pytest.raises(ConfigError, match="on_break: expected one of raise, warn"):
        guard(optimizer, on_break="ignore")


def test_a_default_lr_that_is_not_the_tuned_one_is_said(caplog):
    groups = param_groups(MLP(64), roles=TABLE, parameterization="mup", lr=LR)
    watch = guard(torch.optim.AdamW(groups))
    assert "AdamW's default lr is 0.001 and the tuned one 0.01" in watch.notes[0]
    assert "AdamW(groups, lr=0.01)" in caplog.text
    assert guard(torch.optim.AdamW(groups, lr=LR)).notes == ()


N = 20_000
LATE = {
    "warmup, then a cosine with a floor": (
        lambda o: schedules.SequentialLR(
            o,
            [schedules.LinearLR(o, 0.01, 1.0, 1000), schedules.CosineAnnealingLR(o, N, 1e-4)],
            [1000],
        ),
        1070,
    ),
    "an absolute floor": (
        lambda o: schedules.LambdaLR(
            o, [lambda k, g=g: max(1 - k / N, 1e-4 / g["rule_lr"]) for g in o.param_groups]
        ),
        19201,
    ),
    "a plateau with a floor": (
        lambda o: schedules.ReduceLROnPlateau(o, factor=0.5, patience=1500, min_lr=1e-3),
        3003,
    ),
    "one cycle that ends early": (
        lambda o: schedules.OneCycleLR(o, [g["rule_lr"] for g in o.param_groups], 100),
        99,
    ),
}


@pytest.mark.parametrize("name", LATE)
def test_a_rehearsal_finds_the_step_at_which_training_would_stop(name):
    make_schedule, expected = LATE[name]
    _, optimizer = make()
    watch = guard(optimizer)
    scheduler = make_schedule(optimizer)
    before = [dict(g) for g in optimizer.param_groups], copy.deepcopy(scheduler.state_dict())
    found = watch.rehearse(scheduler, N, quiet=True)
    assert not found
    assert abs(found.step - expected) <= 0.02 * expected
    assert f"breaks in step {found.step} of {N}" in str(found)
    with pytest.raises(ConfigError, match=f"step {found.step} of {N}"):
        watch.rehearse(scheduler, N)
    assert [dict(g) for g in optimizer.param_groups] == before[0]
    after = scheduler.state_dict()
    for key in ("last_epoch", "_last_lr", "num_bad_epochs"):
        assert after.get(key) == before[1].get(key)


def test_a_rehearsal_stops_where_training_does():
    model, optimizer = make()
    watch = guard(optimizer)
    scheduler = schedules.LambdaLR(
        optimizer,
        [lambda k, g=g: max(1 - k / 50, 1e-3 / g["rule_lr"]) for g in optimizer.param_groups],
    )
    step = watch.rehearse(scheduler, 50, quiet=True).step
    train(model, [optimizer], [scheduler], steps=step)
    with pytest.raises(ConfigError, match="overwritten"):
        train(model, [optimizer], steps=1)


def test_rehearsals_that_hold():
    _, optimizer = make()
    watch = guard(optimizer)
    found = watch.rehearse(schedules.LambdaLR(optimizer, lambda k: 0.5**k), 3)
    assert (bool(found), found.low, found.high) == (True, 0.25, 1.0)

    def by_hand(step):
        for group in optimizer.param_groups:
            group["lr"] = group["rule_lr"] * (1 - step / 10)

    assert watch.rehearse(by_hand, 10)
    assert [g["lr"] for g in optimizer.param_groups] == [
        g["rule_lr"] for g in optimizer.param_groups
    ]

    def one_number(step):
        for group in optimizer.param_groups:
            group["lr"] = LR

    assert watch.rehearse(one_number, 10, quiet=True).step == 1
    model, *both = make_two()
    watch = guard(both, model=model)
    assert watch.rehearse([schedules.ExponentialLR(each, 0.9) for each in both], 10)
    assert watch.rehearse(schedules.ExponentialLR(both[0], 0.9), 10, quiet=True).step == 1


def test_rehearsals_of_what_cannot_be_rehearsed():
    _, optimizer = make()
    _, other = make()
    watch = guard(optimizer)
    with pytest.raises(ConfigError, match="ExponentialLR drives another optimizer"):
        watch.rehearse(schedules.ExponentialLR(other, 0.9), 3)
    with pytest.raises(ConfigError, match="expected a scheduler or a function"):
        watch.rehearse(3, 3)

    inner = schedules.ExponentialLR(optimizer, 0.9)

    class Hidden:
        step = staticmethod(lambda: inner.step())

    with pytest.raises(ConfigError, match="cannot be copied"):
        watch.rehearse(Hidden(), 3)
    assert [g["lr"] for g in optimizer.param_groups] == [
        g["rule_lr"] for g in optimizer.param_groups
    ]


def test_a_rehearsal_leaves_learning_rates_that_are_tensors_as_they_were():
    _, optimizer = make(lr=torch.tensor(LR))
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    held = [group["lr"] for group in optimizer.param_groups]
    before = [float(lr) for lr in held]
    watch = guard(optimizer)
    assert watch.rehearse(schedules.ExponentialLR(optimizer, 0.9), 5)
    assert all(g["lr"] is lr for g, lr in zip(optimizer.param_groups, held, strict=True))
    assert [float(lr) for lr in held] == before


def test_a_rehearsed_function_leaves_the_tensors_of_learning_rates_in_their_groups():
    _, optimizer = make()
    held = [torch.tensor(g["lr"], dtype=torch.float64) for g in optimizer.param_groups]
    before = [float(lr) for lr in held]
    for group, lr in zip(optimizer.param_groups, held, strict=True):
        group["lr"] = lr
    watch = guard(optimizer)
    for kind in (float, partial(torch.tensor, dtype=torch.float64)):

        def by_hand(step, kind=kind):
            for group in optimizer.param_groups:
                group["lr"] = kind(group["rule_lr"] * (1 - step / 10))

        assert watch.rehearse(by_hand, 5)
        assert all(g["lr"] is lr for g, lr in zip(optimizer.param_groups, held, strict=True))
        assert [float(lr) for lr in held] == before


def test_a_sparse_adam_may_stand_beside_an_adamw():
    model = MLP(64)
    groups = param_groups(model, roles=TABLE, parameterization="mup", lr=LR)
    both = torch.optim.SparseAdam(groups[:1], lr=LR), torch.optim.AdamW(groups[1:], lr=LR)
    assert guard(both, model=model).check() is None
