"""Initial weights: stds by hand, deterministic, idempotent, paired across rules."""

from functools import partial

import pytest
import torch
from torch import nn

from adopt.models import MLP, Transformer
from hptransfer.adopt import infer_roles, init_
from hptransfer.adopt._user_model import seeded
from hptransfer.errors import ConfigError

TABLE = infer_roles(Transformer, base_width=16, width=64)


def state(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def initialised(rule="mup", seed=0, model=None, table=TABLE, **options):
    model = model or Transformer(64)
    init_(model, roles=table, parameterization=rule, seed=seed, **options)
    return state(model)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_twice_gives_the_same_as_once_whatever_was_there():
    model = Transformer(64)
    once = initialised(model=model)
    assert_equal(initialised(model=model), once)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    torch.manual_seed(99)
    assert_equal(initialised(model=model), once)
    assert_equal(initialised(), once)
    assert not torch.equal(initialised(seed=1)["head.weight"], once["head.weight"])


def test_stds_by_hand():
    torch.manual_seed(0)
    expected = {
        "tokens.weight": 1,
        "positions": 1,
        "layers.0.attention.q_proj.weight": 2**-3,
        "layers.0.up.weight": 2**-3,
        "layers.0.down.weight": 2**-4,
        "head.weight": 2**-4,  # 1/(m√base_width) = 1/(4·4)
    }
    weights = initialised(reset="positions")
    for name, std in expected.items():
        assert weights[name].std().item() == pytest.approx(std, rel=0.1), name
        assert abs(weights[name].mean().item()) < 0.1 * std + 0.06
    assert torch.equal(weights["layers.0.norm1.weight"], torch.ones(64))
    assert torch.equal(weights["layers.0.up.bias"], torch.zeros(256))


def test_draws_are_paired_across_rules():
    sp, mup = initialised("sp"), initialised("mup")
    assert torch.equal(sp["tokens.weight"], mup["tokens.weight"])
    torch.testing.assert_close(sp["head.weight"], 2 * mup["head.weight"])


def test_base_stds_by_role_name_and_pattern():
    weights = initialised(base_std=0.02)
    assert weights["tokens.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert weights["layers.0.up.weight"].std().item() == pytest.approx(0.01, rel=0.1)
    assert weights["head.weight"].std().item() == pytest.approx(0.005, rel=0.1)
    assert torch.equal(weights["layers.0.norm1.weight"], torch.ones(64))
    weights = initialised(
        base_std={"hidden": 0.02, "layers.*.up.weight": 0.04, "positions": 0.5}, reset="positions"
    )
    assert weights["layers.0.up.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert weights["layers.0.down.weight"].std().item() == pytest.approx(0.01, rel=0.1)
    assert weights["positions"].std().item() == pytest.approx(0.5, rel=0.15)
    assert weights["tokens.weight"].std().item() == pytest.approx(1, rel=0.1)


def test_a_matrix_from_a_fixed_input_starts_at_its_fan_in():
    table = infer_roles(MLP, base_width=64, width=1024)
    weights = initialised(model=MLP(1024), table=table)
    assert weights["first.weight"].std().item() == pytest.approx(5**-0.5, rel=0.05)


def test_residual_projections_need_the_depth():
    told = {"layers.*.down.weight": "hidden_residual"}
    table = infer_roles(Transformer, base_width=16, width=64, roles=told)
    with pytest.raises(ConfigError, match=r"'layers.0.down.weight' is a projection .*num_layers"):
        initialised(table=table)
    weights = initialised(table=table, num_layers=2)
    assert weights["layers.0.down.weight"].std().item() == pytest.approx(2**-5, rel=0.1)
    weights = initialised(table=table, base_std={"hidden_residual": 0.5})
    assert weights["layers.0.down.weight"].std().item() == pytest.approx(0.25, rel=0.1)


class PlusOneNorm(nn.Module):
    """Multiplies by 1 + weight, so that weight starts at 0."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))


def test_gains_that_add_one_stay_at_zero_and_padding_rows_too():
    def factory(width):
        return nn.Sequential(nn.Embedding(5, width, padding_idx=2), PlusOneNorm(width))

    model = factory(32)
    init_(
        model,
        roles=infer_roles(factory, base_width=16, width=32),
        parameterization="mup",
        seed=0,
    )
    assert not model[1].weight.any()
    assert not model[0].weight[2].any()
    assert model[0].weight[1].all()


def test_draws_are_those_of_float32_in_every_precision():
    single = initialised(model=Transformer(64))
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.bfloat16, 2**-8)):
        other = initialised(model=Transformer(64).to(dtype))
        for name, value in single.items():
            torch.testing.assert_close(
                other[name].float(), value, rtol=tolerance, atol=tolerance * 1e-3
            )


def test_the_seed_that_cuda_is_to_start_with_stays_the_callers():
    """torch keeps the last seed for CUDA until it starts; this reads what it keeps."""
    tracker = getattr(torch.cuda, "_lazy_seed_tracker", None)
    if tracker is None or torch.cuda.is_initialized():
        pytest.skip("CUDA has started, or torch keeps the seed elsewhere")
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        drawn = torch.rand(3)
        torch.manual_seed(7)
        with seeded(3):
            torch.rand(3)
        assert torch.equal(torch.rand(3), drawn)
    [kept] = {cell.cell_contents for cell in tracker.manual_seed_all_cb[0].__closure__}
    assert kept == 7
    assert not torch.cuda.is_initialized()


def test_a_seed_of_cuda_alone_stays_the_callers(monkeypatch):
    """What torch keeps for CUDA is run as if one GPU started."""
    tracker = getattr(torch.cuda, "_lazy_seed_tracker", None)
    if tracker is None or torch.cuda.is_initialized():
        pytest.skip("CUDA has started, or torch keeps the seed elsewhere")
    gpu = torch.Generator()
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        torch.cuda.manual_seed_all(2)
        with seeded(3):
            pass
    monkeypatch.setattr(torch.cuda.random, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "default_generators", (gpu,))
    for call in filter(None, tracker.get_calls()):
        call[0]()
    assert gpu.initial_seed() == 2


def test_precision_and_refusals():
    model = initialised(model=Transformer(64).double())
    assert model["head.weight"].dtype == torch.float64
    assert initialised(model=Transformer(64).bfloat16())["head.weight"].dtype == torch.bfloat16
    with torch.device("meta"):
        empty = Transformer(64)
    with pytest.raises(ConfigError, match=r"'positions' is on the meta device; model.to_empty"):
        initialised(model=empty)
    with pytest.raises(ConfigError, match=r"base_std: 'hiden' names no parameter"):
        initialised(base_std={"hiden": 0.02})
    with pytest.raises(ConfigError, match=r"base_std of hidden: .* found -1"):
        initialised(base_std={"hidden": -1.0})


def test_tied_tables_start_so_that_the_first_loss_is_near_ln_v():
    tied = partial(Transformer, tied=True)
    table = infer_roles(tied, base_width=16, width=64)
    weights = initialised(model=tied(64), table=table, applied={"readout_multiplier"})
    assert weights["tokens.weight"].std().item() == pytest.approx(16**-0.5, rel=0.1)


def test_sharded_parameters_get_the_same_values():
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    whole = initialised()
    model = Transformer(64)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(model)
        init_(model, roles=TABLE, parameterization="mup", seed=0)
        found = {name: p.full_tensor() for name, p in model.named_parameters()}
    finally:
        distributed.destroy_process_group()
    assert_equal(found, whole)


class _Deeper(nn.Module):
    """A model that is as deep as its width says."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(50, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(width // 16))
        self.head = nn.Linear(width, 50, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.emb(tokens)
        for block in self.blocks:
            x = x + torch.relu(block(x)) / len(self.blocks)
        return self.head(x)


@pytest.mark.parametrize("mode", ["draw", "rescale"])
def test_a_rule_of_depth_takes_the_depths_that_roles_found(mode):
    roles = infer_roles(_Deeper, base_width=32, width=64)
    model = _Deeper(64)
    options = {"parameterization": "completep", "applied": {"residual_multiplier"}}
    init_(model, roles=roles, factory=_Deeper, mode=mode, **options)
    assert model.head.weight.std().item() > 0
