"""K stacked trials against K plain single runs, and what a trial may not do to its neighbours."""

import math

import pytest
import torch

from hptransfer.model import GPTShape, list_parameters
from hptransfer.scaling import resolve
from hptransfer.train._ensemble import Ensemble, Run, draw_normal, step_adamw
from hptransfer.train._trainer import schedule_factor
from reference.gpt import ReferenceGPT

SHAPE = GPTShape(width=32, num_layers=2, head_size=8, context=12, vocab_size=50)
STEPS, BATCH = 20, 3
BETAS = {"beta1": 0.9, "beta2": 0.95}


def make_runs(lrs, names=("sp", "sp+embd", "mup-last", "mup"), weight_decay=0.1):
    return [
        Run(
            seed=i % 2,
            resolved=resolve(
                names[i % len(names)],
                width=32,
                base_width=8,
                base_lr=lr,
                weight_decay=weight_decay,
                head_size=8,
                base_head_size=1,
                num_layers=2,
            ),
        )
        for i, lr in enumerate(lrs)
    ]


def draw_tokens(K, steps=STEPS):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, SHAPE.vocab_size, (steps, K, BATCH, 13), generator=generator)


def train_stacked(ensemble, tokens):
    return torch.stack(
        [
            ensemble.step(
                batch,
                factor=schedule_factor(i, steps=len(tokens), warmup=0.2, decay=0.2),
                **BETAS,
            )
            for i, batch in enumerate(tokens)
        ]
    )


def train_reference(ensemble, k, tokens, dtype):
    """Train run `k` alone with plain modules and torch.optim.AdamW from the same weights."""
    numbers = ensemble.runs[k].resolved
    model = ReferenceGPT(
        width=32,
        num_layers=2,
        head_size=8,
        context=12,
        vocab_size=50,
        attention_scale=numbers.attention_scale,
    ).to(dtype)
    groups = []
    names = model.names()
    for spec in list_parameters(SHAPE):
        parameter, transposed = names[spec.name]
        ours = ensemble.parameters[spec.name].value[k].detach()
        parameter.data.copy_(ours.T if transposed else ours)
        role = numbers.roles[spec.role]
        groups.append({"params": [parameter], "lr": role.lr, "weight_decay": role.weight_decay})
    assert len(names) == len(list(model.parameters())) == len(groups)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    peak = [group["lr"] for group in optimizer.param_groups]
    losses = []
    for i, batch in enumerate(tokens[:, k]):
        # The schedule by hand: 20 steps, 4 of warmup, 4 of decay.
        factor = min(1.0, (i + 1) / 4, (20 - i) / 4)
        for group, lr in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = lr * factor
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize(
    ("dtype", "lrs", "tolerance"),
    [
        (torch.float64, [2.0**-9, 2.0**-7, 2.0**-5, 2.0**-4, 2.0**-3], 1e-6),
        (torch.float32, [2.0**-10, 2.0**-9, 2.0**-8, 2.0**-7], 1e-5),
    ],
    ids=["fp64", "fp32"],
)
def test_stacked_equals_plain_single_runs(dtype, lrs, tolerance):
    ensemble = Ensemble(SHAPE, make_runs(lrs), dtype=dtype)
    tokens = draw_tokens(len(lrs))
    expected = torch.stack(
        [train_reference(ensemble, k, tokens, dtype) for k in range(len(lrs))], dim=1
    )
    found = train_stacked(ensemble, tokens)
    assert (found[0] - found[-1]).abs().min() > 1e-3  # they did train
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_planted_nan_leaves_neighbours_bit_identical(compute_dtype):
    tokens = draw_tokens(4, steps=6)
    runs = make_runs([2.0**-7] * 4)
    clean = Ensemble(SHAPE, runs, compute_dtype=compute_dtype)
    poisoned = Ensemble(SHAPE, runs, compute_dtype=compute_dtype)
    retired = Ensemble(SHAPE, runs, compute_dtype=compute_dtype)
    with torch.no_grad():
        poisoned.parameters["layers.0.attention.qkv"].value[1, 0, 0] = math.nan
    expected = train_stacked(clean, tokens)
    found = train_stacked(poisoned, tokens)
    retired.retire(1)
    frozen = train_stacked(retired, tokens)
    others = [0, 2, 3]
    assert found[:, 1].isnan().all()
    assert frozen[:, 1].isfinite().all()
    assert (frozen[:, 1] - math.log(SHAPE.vocab_size)).abs().max() < 1e-5
    for changed, losses in ((poisoned, found), (retired, frozen)):
        assert torch.equal(losses[:, others], expected[:, others])
        for name, parameter in changed.parameters.items():
            assert torch.equal(parameter.value[others], clean.parameters[name].value[others])


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("members", [[0, 2, 3, 4], [1, 4], [3]])
def test_runs_that_are_kept_go_on_bit_for_bit(compute_dtype, members):
    """On a CPU a run's numbers do not depend on how many are stacked, so that some may go."""
    tokens = draw_tokens(5, steps=8)
    runs = make_runs([2.0**-9, 2.0**-7, 2.0**-6, 2.0**-8, 2.0**-5])
    whole = Ensemble(SHAPE, runs, compute_dtype=compute_dtype)
    part = Ensemble(SHAPE, runs, compute_dtype=compute_dtype)
    train_stacked(whole, tokens[:4])
    train_stacked(part, tokens[:4])
    part.keep(members)
    assert part.runs == tuple(runs[k] for k in members)
    expected = train_stacked(whole, tokens[4:])[:, members]
    assert torch.equal(train_stacked(part, tokens[4:][:, members]), expected)
    for name, tensor in part.state().items():
        assert torch.equal(tensor, whole.state()[name][members])
    windows = draw_tokens(7, steps=1)[0, :, 0]
    held_out = whole.evaluate(windows, batch=3)[members]
    assert torch.equal(part.evaluate(windows, batch=3), held_out)


def test_order_and_company_do_not_matter_in_fp64():
    runs = make_runs([2.0**-8, 2.0**-7, 2.0**-6])
    tokens = draw_tokens(3, steps=4)
    together = train_stacked(Ensemble(SHAPE, runs, dtype=torch.float64), tokens)
    backwards = train_stacked(
        Ensemble(SHAPE, runs[::-1], dtype=torch.float64), tokens.flip(1)
    ).flip(1)
    torch.testing.assert_close(together, backwards, rtol=1e-12, atol=0)


def test_initial_draws_are_paired_and_have_the_rules_std():
    shape = GPTShape(width=128, num_layers=2, head_size=32, context=64, vocab_size=600)
    runs = [
        Run(
            seed=seed,
            resolved=resolve(name, width=128, base_width=32, head_size=32, num_layers=2),
        )
        for name, seed in [("sp", 0), ("mup", 0), ("sp", 1)]
    ]
    ensemble = Ensemble(shape, runs)
    expected = {  # by hand: D = 128, F = 512, two layers, base width 32
        "token_embedding": 1.0,
        "position_embedding": 1.0,
        "attention.qkv": 128**-0.5,
        "attention.out": (4 * 128) ** -0.5,
        "feed_forward.up": 128**-0.5,
        "feed_forward.down": (4 * 512) ** -0.5,
        "readout": 128**-0.5,
    }
    for spec in list_parameters(shape):
        value = ensemble.parameters[spec.name].value.detach()
        if spec.role == "norm":
            assert (value == 1).all()
            continue
        name = next(key for key in expected if spec.name.endswith(key))
        size = value[0].numel()
        # The sample std of n normals scatters by 1/√(2n) of itself; the mean by std/√n.
        assert value[0].std().item() == pytest.approx(expected[name], rel=4 / math.sqrt(2 * size))
        assert abs(value[0].mean().item()) < 4 * expected[name] / math.sqrt(size)
        ratio = 0.5 if spec.name == "readout" else 1.0  # µP: √32/128 = half of 1/√128
        torch.testing.assert_close(value[1], ratio * value[0], rtol=1e-6, atol=0)
        assert not torch.equal(value[2], value[0])


def test_draws_differ_between_tensors_of_one_shape():
    first, second = (s for s in list_parameters(SHAPE) if s.name.endswith("attention.out"))
    assert not torch.equal(draw_normal(first, 0), draw_normal(second, 0))
    assert torch.equal(draw_normal(first, 3), draw_normal(first, 3))


@pytest.mark.parametrize("mode", ["constant", "coupled", "independent"])
def test_weight_decay_shrinks_a_tensor_without_gradient(mode):
    """With no gradient one step shrinks by lr·wd: η·λ in mode constant, whatever role or width."""
    eta, decay = 2.0**-4, 2.0**-3
    resolved = resolve(
        "sp+embd", width=32, base_width=8, base_lr=eta, weight_decay=decay,
        weight_decay_mode=mode, head_size=8, num_layers=2,
    )  # fmt: skip
    ensemble = Ensemble(SHAPE, [Run(seed=0, resolved=resolved)], dtype=torch.float64)
    before = {n: p.value.detach().clone() for n, p in ensemble.parameters.items()}
    for parameter in ensemble.parameters.values():
        parameter.value.grad = torch.zeros_like(parameter.value)
    step_adamw(list(ensemble.parameters.values()), step=0, factor=1.0, **BETAS)
    # Here m = 4, so the embedding's lr is η and every matrix's is η/4.
    shrink = {
        "constant": {"embedding": eta * decay, "matrix": eta * decay},
        "coupled": {"embedding": eta * decay, "matrix": eta / 4 * decay},
        "independent": {"embedding": decay, "matrix": decay},
    }[mode]
    for spec in list_parameters(SHAPE):
        kind = {"embedding": "embedding", "norm": "norm"}.get(spec.role, "matrix")
        expected = before[spec.name] * (1 - shrink.get(kind, 0.0))
        torch.testing.assert_close(
            ensemble.parameters[spec.name].value.detach(), expected, rtol=1e-12, atol=0
        )


def test_readout_is_untied():
    ensemble = Ensemble(SHAPE, make_runs([2.0**-7]), dtype=torch.float64)
    table = ensemble.parameters["token_embedding"].value
    readout = ensemble.parameters["readout"].value
    assert table.data_ptr() != readout.data_ptr()
    ensemble.compute_losses(draw_tokens(1)[0]).sum().backward()
    assert not torch.allclose(table.grad[0], readout.grad[0].T)


def test_evaluation_is_the_mean_over_sequences_whatever_the_batch():
    ensemble = Ensemble(SHAPE, make_runs([2.0**-7] * 2), dtype=torch.float64)
    windows = draw_tokens(7, steps=1)[0, :, 0]
    whole = ensemble.evaluate(windows, batch=7)
    torch.testing.assert_close(ensemble.evaluate(windows, batch=3), whole)
    singles = torch.stack([ensemble.evaluate(window[None], batch=1) for window in windows])
    torch.testing.assert_close(singles.mean(0), whole)
