"""Where tensors are, without a GPU: on a device of shapes alone (PyTorch's ``meta``).

As on a GPU, no operation takes tensors of the host and of the device, copies are counted, and what
the host reads makes it wait.
"""

import contextlib
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hptransfer.model import GPTShape, _kernels, list_parameters
from hptransfer.scaling import resolve
from hptransfer.train import _ensemble
from hptransfer.train._batches import Batches, validation_windows
from hptransfer.train._ensemble import Ensemble, Run, TrainSettings
from hptransfer.train._module_ensemble import ModuleEnsemble, ModuleRun
from hptransfer.train._modules import language_model_loss
from hptransfer.train._probes import Probes
from hptransfer.train._program import Program
from hptransfer.train._trainer import Training
from reference.tokens import noisy_cycle
from train.test_module_ensemble import batches as stacked_tokens
from train.test_module_ensemble import make, numbers_of

SHAPE = GPTShape(width=32, num_layers=2, head_size=16, context=8, vocab_size=20)
SETTINGS = TrainSettings(batch=4, steps=10, warmup=0.2, decay=0.2, beta1=0.9, beta2=0.95)
BATCHES = Batches(noisy_cycle(), context=8)
WINDOWS = validation_windows(noisy_cycle()[:900], 8, 200)
aten = torch.ops.aten


class FakeDevice(TorchDispatchMode):
    """Refuses operations that mix places; counts copies and operations; reads zeros."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        places = {each.device.type for each in tensors}
        if function is aten.copy_.default and len(places) == 2:
            return self._copy(args[0])
        device = kwargs.get("device")
        if function is aten._to_copy.default and device and places != {device.type}:
            dtype = kwargs.get("dtype") or args[0].dtype
            return self._copy(torch.zeros(args[0].shape, dtype=dtype, device=device))
        if function is aten._local_scalar_dense.default and places == {"meta"}:
            self.counts["read"] += 1
            return 0
        assert len(places) <= 1, f"{function} takes tensors of {sorted(places)}"
        found = function(*args, **kwargs)
        for each in [*tensors, *tree_leaves(found)]:
            if isinstance(each, torch.Tensor):
                self.counts[each.device.type] += 1
        return found

    def _copy(self, into):
        if into.device.type == "cpu":
            self.counts["read"] += 1
            return into.zero_()
        self.counts["sent"] += 1
        return into


def make_ensemble(device="meta", **options):
    runs = [
        Run(
            seed=k % 2,
            resolved=resolve("mup", width=32, base_width=8, base_lr=2.0**-6, weight_decay=0.1,
                             head_size=16, base_head_size=1, num_layers=2),
        )
        for k in range(3)
    ]  # fmt: skip
    return Ensemble(SHAPE, runs, device=device, **options)


@pytest.fixture(params=["launched", "compiled"])
def compiled(request, monkeypatch):
    """Whether the code is what a compiler sees, with a GPU's operators."""
    if request.param == "compiled":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        monkeypatch.setattr(_kernels, "DEVICES", ("meta",))
    return request.param == "compiled"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_step_touches_nothing_of_the_host(dtype, compiled):
    """Which it must not, to be captured; a whole block then sends twice and reads nothing."""
    program = Program(make_ensemble(compute_dtype=dtype), BATCHES, SETTINGS)
    program._fill(0, [1.0, 0.5])
    program._fill_copies()
    with FakeDevice() as device:
        program._take()
    assert set(device.counts) == {"meta"}
    assert device.counts["meta"] > 300
    with FakeDevice() as device:
        losses = program.run(0, [1.0, 0.5, 0.25])
    assert (device.counts["sent"], device.counts["read"]) == (2, 0)
    assert (losses.shape, losses.device.type, losses.dtype) == ((3, 3), "meta", torch.float32)


def test_a_compiled_step_takes_the_operators_of_a_gpu(monkeypatch):
    called = []
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(_kernels, "DEVICES", ("meta",))
    for name in ("attend", "read_out", "add_norm"):
        operator = getattr(_kernels, name)
        monkeypatch.setattr(
            _kernels, name, lambda *a, n=name, o=operator: (called.append(n), o(*a))[1]
        )
    Program(make_ensemble(compute_dtype=torch.bfloat16), BATCHES, SETTINGS).run(0, [1.0])
    assert Counter(called) == {"attend": 2, "add_norm": 4, "read_out": 1}


def test_weights_are_drawn_once_a_seed(monkeypatch):
    """On one core large ones take a while; groups to come find them, within a bound."""
    drawn = Counter()

    def draw(spec, seed):
        drawn[spec.name, seed] += 1
        return torch.zeros(spec.shape)

    monkeypatch.setattr(_ensemble, "draw_normal", draw)
    monkeypatch.setattr(_ensemble, "_DRAWN", {})
    for _ in range(2):
        make_ensemble()
    matrices = [each.name for each in list_parameters(SHAPE) if each.role != "norm"]
    assert drawn == {(name, seed): 1 for name in matrices for seed in (0, 1)}
    _ensemble._DRAWN.clear()
    monkeypatch.setattr(_ensemble, "MAX_DRAWN_BYTES", 3 * 4 * 32 * 128)
    for seed in range(3):
        for spec in list_parameters(SHAPE):
            _ensemble._draw_once(spec, seed)
            kept = sum(4 * each.numel() for each in _ensemble._DRAWN.values())
            assert kept <= _ensemble.MAX_DRAWN_BYTES


def test_a_training_goes_through_on_a_device():
    """With probes, a snapshot, diverged runs (those read zeros) and held-out losses."""
    with FakeDevice() as device:
        ensemble = make_ensemble(compute_dtype=torch.bfloat16)
        probes = Probes(ensemble, batches=BATCHES, settings=SETTINGS, every=5)
        training = Training(
            ensemble, batches=BATCHES, validation=WINDOWS, settings=SETTINGS, probes=probes
        )
        while not training.done:
            training.advance()
        snapshot = training.snapshot()
        ensemble.retire(1)
        [*_, last] = training.finish()
    assert {each.device.type for each in snapshot.tensors.values()} == {"cpu"}
    assert (last.state, last.loss, len(last.curve)) == ("completed", 0.0, SETTINGS.steps)
    assert device.counts["meta"] > 10_000


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion", "muon"])
def test_a_user_s_modules_go_through_on_a_device(optimizer, one_by_one, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    numbers = numbers_of("sp", 32, 2.0**-7, optimizer)
    runs = [ModuleRun(seed=k, model=make(32), numbers=numbers) for k in range(3)]
    with FakeDevice() as device:
        ensemble = ModuleEnsemble(runs, language_model_loss, device="meta", one_by_one=one_by_one)
        device.counts.clear()
        tokens = stacked_tokens(1)[0]
        losses = ensemble.step(tokens, factor=1.0, beta1=0.9, beta2=0.95)
        assert (device.counts["sent"], device.counts["read"]) == (2, 0)
        held_out = ensemble.evaluate(tokens[0].numpy(), batch=2)
    assert {losses.device.type, held_out.device.type} == {"meta"}


class Mixing(torch.autograd.Function):
    """What leaves a tensor of its gradient on the host."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(0, torch.arange(3))


def test_what_mixes_places_is_found():
    """In the backward pass too."""
    with FakeDevice() as device:
        there, here = torch.ones(3, device="meta", requires_grad=True), torch.ones(3)
        with pytest.raises(AssertionError, match="takes tensors of"):
            there.index_select(0, here.long())
        found = Mixing.apply(there)
        with pytest.raises(AssertionError, match="takes tensors of"):
            found.sum().backward()
        assert not bool(found.sum())
        assert device.counts["read"] == 1
