"""A user's modules stacked, against our GPT's program and against torch's optimizers."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from hptransfer.adopt import RuleOptions, TensorNumbers, infer_roles, param_groups, resolve_tensors
from hptransfer.errors import ConfigError
from hptransfer.model import GPTShape
from hptransfer.scaling import resolve
from hptransfer.train._ensemble import Ensemble, Run
from hptransfer.train._module_ensemble import ModuleEnsemble, ModuleRun
from hptransfer.train._modules import ModuleError, language_model_loss
from reference.gpt import ReferenceGPT
from train.compilers import FailingBackward, refuse_captures

V, T, H, B, LAYERS, BASE = 40, 12, 8, 4, 2, 16
LRS = (2.0**-9, 2.0**-7, 2.0**-6)


def make(width, attention_scale=H**-0.5):
    return ReferenceGPT(
        width=width, num_layers=LAYERS, head_size=H, context=T, vocab_size=V,
        attention_scale=attention_scale,
    )  # fmt: skip


def infer(width):
    return infer_roles(
        make, base_width=BASE, width=width,
        roles=dict.fromkeys(("blocks.*.proj.weight", "blocks.*.down.weight"), "hidden_residual"),
    )  # fmt: skip


def numbers_of(rule, width, lr, optimizer="adamw", decay=0.1):
    options = RuleOptions(
        parameterization=rule, lr=lr, weight_decay=decay, optimizer=optimizer,
        applied=("attention_scale",), num_layers=LAYERS,
    )  # fmt: skip
    return {each.entry.name: each for each in resolve_tensors(infer(width), options)}


def batches(num_steps, k=3):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(V, (num_steps, k, B, T + 1), generator=generator)


@pytest.mark.parametrize("rule", ["sp", "sp+embd", "mup"])
def test_our_gpt_as_a_plain_module_has_the_losses_of_the_built_in(rule):
    width = 2 * BASE
    resolved = [
        resolve(rule, width=width, base_width=BASE, base_lr=lr, weight_decay=0.1, head_size=H,
                num_layers=LAYERS)
        for lr in LRS
    ]  # fmt: skip
    shape = GPTShape(width=width, num_layers=LAYERS, head_size=H, context=T, vocab_size=V)
    built_in = Ensemble(shape, [Run(seed=k, resolved=each) for k, each in enumerate(resolved)])
    runs = []
    for k, each in enumerate(resolved):
        model = make(width, each.attention_scale)
        with torch.no_grad():
            for name, (parameter, transposed) in model.names().items():
                value = built_in.parameters[name].value[k]
                parameter.copy_(value.T if transposed else value)
        numbers = numbers_of(rule, width, LRS[k])
        runs.append(ModuleRun(seed=k, model=model, numbers=numbers))
    own = ModuleEnsemble(runs, language_model_loss)
    for step, tokens in enumerate(batches(10)):
        factor = (step + 1) / 10
        expected = built_in.step(tokens, factor=factor, beta1=0.9, beta2=0.95)
        found = own.step(tokens.numpy(), factor=factor, beta1=0.9, beta2=0.95)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    windows = batches(1)[0, 0].numpy()
    torch.testing.assert_close(
        own.evaluate(windows, batch=3), built_in.evaluate(windows, batch=3), rtol=1e-5, atol=0
    )


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al. 2302.06675, line by line."""

    def __init__(self, groups, lr):
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                c = torch.sign(0.9 * m + 0.1 * p.grad)
                p -= group["lr"] * (c + group["weight_decay"] * p)
                m.mul_(0.99).add_(p.grad, alpha=0.01)


def reference_optimizers(name, groups, lr):
    if name == "adamw":
        return [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))]
    if name == "sgd":
        return [torch.optim.SGD(groups, lr=lr, momentum=0.9)]
    if name == "lion":
        return [Lion(groups, lr)]
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon is there since PyTorch 2.9")
    plain = [{k: v for k, v in g.items() if k not in ("optimizer", "eps")} for g in groups]
    by_muon = [p for p, g in zip(plain, groups, strict=True) if g["optimizer"] == "muon"]
    rest = [g for g in groups if g["optimizer"] != "muon"]
    return [
        torch.optim.Muon(by_muon, lr=lr, momentum=0.95),
        torch.optim.AdamW(rest, lr=lr, betas=(0.95, 0.95)),
    ]


@pytest.mark.parametrize(
    ("name", "betas", "lr"),
    [
        ("adamw", (0.9, 0.95), 2.0**-7),
        ("lion", (0.9, 0.99), 2.0**-10),
        ("sgd", (0.9, 0.0), 2.0**-4),
        ("muon", (0.95, 0.95), 2.0**-6),
    ],
)
@pytest.mark.parametrize("rule", ["sp", "mup"])
def test_each_optimizer_stacked_is_the_real_one_over_twenty_steps(name, betas, lr, rule):
    """In fp64, K trials against each model under torch's own optimizer with adopt's groups."""
    width, lrs = 2 * BASE, (lr, lr / 4)
    models = []
    for k in range(len(lrs)):
        torch.manual_seed(k)
        models.append(make(width).double())
    own = ModuleEnsemble(
        [
            ModuleRun(seed=k, model=model, numbers=numbers_of(rule, width, lrs[k], name))
            for k, model in enumerate(models)
        ],
        language_model_loss,
    )
    tokens = batches(20, len(lrs))
    found = [
        own.step(each.numpy(), factor=(step + 1) / 20, beta1=betas[0], beta2=betas[1])
        for step, each in enumerate(tokens)
    ]
    for k, model in enumerate(models):
        groups = param_groups(
            model, roles=infer(width), parameterization=rule, lr=lrs[k], weight_decay=0.1,
            optimizer=name, applied=("attention_scale",), num_layers=LAYERS,
        )  # fmt: skip
        optimizers = reference_optimizers(name, groups, lrs[k])
        peaks = [[g["lr"] for g in each.param_groups] for each in optimizers]
        for step in range(len(tokens)):
            loss = language_model_loss(model, {"tokens": tokens[step, k]})
            assert found[step][k].item() == pytest.approx(loss.item(), rel=1e-10)
            model.zero_grad()
            loss.backward()
            for optimizer, own_peaks in zip(optimizers, peaks, strict=True):
                for group, peak in zip(optimizer.param_groups, own_peaks, strict=True):
                    group["lr"] = peak * (step + 1) / 20
                optimizer.step()


class Phases(nn.Module):
    """A model with complex weights."""

    def __init__(self, width):
        super().__init__()
        self.table, self.head = nn.Embedding(V, width), nn.Linear(width, V)
        self.mix = nn.Parameter(torch.randn(width, width, dtype=torch.cdouble) * width**-0.5)

    def forward(self, tokens):
        return self.head((self.table(tokens).to(self.mix.dtype) @ self.mix).abs())


def test_complex_weights_train_as_under_torchs_adamw():
    table = infer_roles(Phases, base_width=8, width=16, roles={"mix": "hidden"})
    rule = {"parameterization": "mup", "lr": 2**-6, "weight_decay": 0.1}
    model = Phases(16).double()
    numbers = {n.entry.name: n for n in resolve_tensors(table, RuleOptions(**rule))}
    own = ModuleEnsemble([ModuleRun(seed=0, model=model, numbers=numbers)], language_model_loss)
    groups = param_groups(model, roles=table, **rule)
    optimizer = torch.optim.AdamW(groups, lr=2**-6, betas=(0.9, 0.95))
    for tokens in batches(5, 1):
        (found,) = own.step(tokens.numpy(), factor=1.0, beta1=0.9, beta2=0.95)
        loss = language_model_loss(model, {"tokens": tokens[0]})
        assert found.item() == pytest.approx(loss.item(), rel=1e-10)
        model.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_complex_weight_under_muon_is_refused_by_name():
    table = infer_roles(Phases, base_width=8, width=16, roles={"mix": "hidden"})
    rule = {"parameterization": "mup", "lr": 2**-6, "optimizer": "muon"}
    model = Phases(16)
    numbers = {n.entry.name: n for n in resolve_tensors(table, RuleOptions(**rule))}
    with pytest.raises(ModuleError, match=r"'mix' is complex, .* train it with adamw$"):
        ModuleEnsemble([ModuleRun(seed=0, model=model, numbers=numbers)], language_model_loss)
    with pytest.raises(ConfigError, match=r"'mix' is complex, .* such as adamw$"):
        param_groups(model, roles=table, **rule)


def make_runs():
    runs = []
    for k, lr in enumerate(LRS):
        torch.manual_seed(k)
        runs.append(ModuleRun(seed=k, model=make(BASE), numbers=numbers_of("sp", BASE, lr)))
    return runs


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_planted_nan_leaves_neighbours_bit_identical(one_by_one):
    def train(planted):
        own = ModuleEnsemble(make_runs(), language_model_loss, one_by_one=one_by_one)
        if planted:
            with torch.no_grad():
                own.parameters["readout.weight"].value[1, 0, 0] = torch.nan
        losses = []
        for step, tokens in enumerate(batches(6)):
            losses.append(own.step(tokens.numpy(), factor=1.0, beta1=0.9, beta2=0.95))
            if planted and step == 2:
                own.retire(1)
        return torch.stack(losses)

    clean, planted = train(False), train(True)
    assert torch.equal(clean[:, [0, 2]], planted[:, [0, 2]])
    assert planted[:3, 1].isnan().all()
    assert planted[3:, 1].isfinite().all()


# Compiling warns of what PyTorch itself still uses.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_state_that_is_loaded_goes_on_with_the_same_bits(compiled):
    tokens = batches(6).numpy()

    def start():
        return ModuleEnsemble(
            make_runs(), language_model_loss, mode="compiled" if compiled else "eager"
        )

    def advance(own, steps):
        return [own.step(tokens[step], factor=1.0, beta1=0.9, beta2=0.95) for step in steps]

    whole = start()
    expected = advance(whole, range(6))[3:]
    first, second = start(), start()
    advance(first, range(3))
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    second.check_state(state, num_runs=len(LRS))
    second.load_state(state, num_steps=3)
    for one, other in zip(expected, advance(second, range(3, 6)), strict=True):
        assert torch.equal(one, other)


def test_dropout_depends_on_the_seed_and_the_step_alone():
    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Embedding(V, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, V)
        )

    def run(seeds):
        numbers = {
            name: TensorNumbers(
                entry=None, optimizer="adamw", lr=1e-3, weight_decay=0, eps=1e-8, init_std=0
            )
            for name, _ in model().named_parameters()
        }
        runs = [ModuleRun(seed=seed, model=model(), numbers=numbers) for seed in seeds]
        own = ModuleEnsemble(runs, language_model_loss, one_by_one=True)
        tokens = np.repeat(batches(3, 1).numpy(), len(seeds), axis=1)
        return [own.step(each, factor=1.0, beta1=0.9, beta2=0.95) for each in tokens]

    pair, alone = run([4, 9]), run([9])
    for both, single in zip(pair, alone, strict=True):
        assert torch.equal(both[1:], single)
        assert both[0] != both[1]


def noisy_loss(model, batch):
    logits = model(batch["tokens"][..., :-1])
    logits = logits + torch.randn_like(logits)
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, -2), batch["tokens"][..., 1:].flatten()
    )


@pytest.mark.parametrize("one_by_one", [False, True])
def test_what_a_loss_draws_is_the_same_after_a_restart(one_by_one):
    tokens = batches(6).numpy()

    def start(around):
        own = ModuleEnsemble(make_runs(), noisy_loss, one_by_one=one_by_one)
        torch.manual_seed(around)  # what other code has drawn
        return own

    def advance(own, steps):
        return [own.step(tokens[step], factor=1.0, beta1=0.9, beta2=0.95) for step in steps]

    whole, first = start(0), start(1)
    expected = advance(whole, range(6))[3:]
    advance(first, range(3))
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    second = start(2)
    second.load_state(state, num_steps=3)
    assert torch.equal(torch.stack(advance(second, range(3, 6))), torch.stack(expected))
    held_out = [own.evaluate(tokens[0, 0], batch=2) for own in (whole, second, second)]
    assert torch.equal(held_out[0], held_out[1])
    assert torch.equal(held_out[1], held_out[2])


@pytest.mark.parametrize("passes", ["forward", "backward"])
def test_a_step_that_cannot_be_compiled_goes_on_with_the_bits_of_an_eager_one(monkeypatch, passes):
    def compile_badly(function, **options):
        def program(*args):
            torch.rand(3)  # a compiler may draw
            if passes == "forward":
                raise RuntimeError("no compiler here")
            return FailingBackward.apply(function(*args))

        return program

    monkeypatch.setattr(torch, "compile", compile_badly)

    def train(mode):
        own = ModuleEnsemble(make_runs(), noisy_loss, mode=mode)
        steps = batches(3).numpy()
        return own, [own.step(each, factor=1.0, beta1=0.9, beta2=0.95) for each in steps]

    own, found = train("compiled")
    assert own.mode == "eager"
    assert own.problem == "the step cannot be compiled (RuntimeError: no compiler here)"
    assert torch.equal(torch.stack(found), torch.stack(train("eager")[1]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_captured_step_goes_on_with_the_same_bits(dropout):
    def model():
        torch.manual_seed(0)
        table, linear = torch.nn.Embedding(V, 32), torch.nn.Linear(32, V)
        return torch.nn.Sequential(table, torch.nn.Dropout(dropout), linear)

    def start(mode, lr=1e-2):
        numbers = {
            name: TensorNumbers(
                entry=None, optimizer="adamw", lr=lr, weight_decay=0.1, eps=1e-8, init_std=0
            )
            for name, _ in model().named_parameters()
        }
        runs = [ModuleRun(seed=seed, model=model(), numbers=numbers) for seed in (3, 4)]
        return ModuleEnsemble(runs, language_model_loss, device="cuda", mode=mode)

    tokens = batches(6, 2).numpy()

    def advance(own, steps):
        return [own.step(tokens[s], factor=1.0, beta1=0.9, beta2=0.95).cpu() for s in steps]

    whole, again, launched = start("captured"), start("captured"), start("eager")
    losses = advance(whole, range(6))
    assert whole.mode == "captured"
    assert not whole.problem
    if not dropout:
        assert torch.equal(torch.stack(losses), torch.stack(advance(launched, range(6))))
    advance(again, range(3))
    kept = {name: tensor.clone() for name, tensor in again.state().items()}
    other = start("captured")
    other.load_state(kept, num_steps=3)
    assert torch.equal(torch.stack(losses[3:]), torch.stack(advance(other, range(3, 6))))
    still = start("captured", lr=0.0)  # weights stay: what differs is what dropout draws
    same = [still.step(tokens[0], factor=1.0, beta1=0.9, beta2=0.95).cpu() for _ in range(2)]
    assert torch.equal(*same) == (not dropout)


@pytest.mark.parametrize(
    "draw", [None, random.random, np.random.rand], ids=["nothing", "python", "numpy"]
)
def test_a_step_that_draws_on_the_host_is_not_captured(monkeypatch, draw):
    """A graph would repeat the draw of its capture; a GPU's steps are taken here on the CPU."""
    refuse_captures(monkeypatch)

    def loss(model, batch):
        return language_model_loss(model, batch) * (1.0 if draw is None else 1 + draw())

    def train(mode):
        torch.manual_seed(0)
        runs = [ModuleRun(seed=0, model=make(BASE), numbers=numbers_of("sp", BASE, LRS[0]))]
        own = ModuleEnsemble(runs, loss)
        own.mode = mode
        steps = batches(3, 1)
        return own, [own.step(each.numpy(), factor=1.0, beta1=0.9, beta2=0.95) for each in steps]

    own, found = train("captured")
    assert own.mode == "eager"
    why = "RuntimeError: here" if draw is None else "it draws from NumPy's or Python's random"
    assert own.problem == f"the step cannot be captured ({why})"
    assert torch.equal(torch.stack(found), torch.stack(train("eager")[1]))
