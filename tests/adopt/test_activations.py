import math

import pytest
import torch
from torch import nn

from hptransfer.adopt._coord_check_result import rms
from hptransfer.adopt._module_outputs import record


def test_every_leaf_is_recorded_and_no_hook_stays():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    outputs = record(model, lambda: model(torch.ones(5, 3)))
    assert list(outputs.tensors) == ["0", "1.0", "1.1"]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_later_in_place_activation_does_not_write_over_an_output():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    outputs = record(model, lambda: model(x))
    assert outputs.tensors["0"][0].min() < 0
    torch.testing.assert_close(
        outputs.tensors["0"][0], nn.functional.linear(x, model[0].weight, model[0].bias)
    )


def test_dropout_is_off_meanwhile_and_each_mode_is_restored():
    model = nn.Sequential(nn.Dropout(0.9), nn.Dropout(0.9))
    model[1].eval()
    x = torch.ones(50)
    assert torch.equal(record(model, lambda: model(x)).tensors["1"][0], x)
    assert [model.training, model[0].training, model[1].training] == [True, True, False]


def test_hooks_go_when_the_model_fails():
    model = nn.Linear(3, 4)
    with pytest.raises(RuntimeError, match="shapes"):
        record(model, lambda: model(torch.ones(2, 7)))
    assert not model._forward_hooks


def test_a_module_that_runs_twice_and_nested_outputs_are_all_kept():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            return {"one": self.inner(x), "rest": [self.inner(2 * x), (torch.tensor(3), None)]}

    model = Twice()
    outputs = record(model, lambda: model(torch.ones(1, 2)), lambda name, module: True)
    assert [len(outputs.tensors[name]) for name in ("", "inner")] == [2, 2]


def test_states_beside_an_output_are_not_looked_at():
    model = nn.Sequential(nn.LSTM(2, 3))
    x = torch.ones(4, 1, 2)
    (kept,) = record(model, lambda: model(x)).tensors["0"]
    torch.testing.assert_close(kept, model(x)[0].detach())
    earlier = {name: torch.zeros_like(p) for name, p in model[0].named_parameters()}
    (own,) = record(model, lambda: model(x), before={"0": earlier}).own["0"]
    torch.testing.assert_close(own, kept)  # of zeros it puts out zeros


def test_rms_is_over_all_entries_of_all_tensors():
    tensors = [torch.tensor([3.0, 3.0]), torch.tensor([[0.0, 4.0]])]
    assert rms(tensors) == pytest.approx(math.sqrt(34 / 4))
    before = [torch.tensor([3.0, 1.0]), torch.tensor([[0.0, 4.0]])]
    assert rms(tensors, before) == pytest.approx(1.0)
    assert math.isnan(rms(tensors, before[:1]))
    assert math.isnan(rms([torch.tensor([math.nan])]))


def test_vectors_of_length_1_are_taken_times_the_root_of_their_size():
    model = nn.Sequential(nn.Identity(), nn.Identity())
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    unit = nn.functional.normalize(x, dim=-1)
    assert record(model, lambda: model(unit)).units["1"] == 8.0
    for other in (0.5 * unit, torch.cat([unit, 2 * unit]), torch.ones(3, 1), torch.tensor(1.0)):
        seen = record(model, lambda other=other: model(other))
        assert not seen.units
        assert torch.equal(seen.tensors["1"][0], other)
