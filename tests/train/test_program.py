"""Compiled steps against eager ones, on the CPU's compiler; captured ones where there is a GPU."""

import functools
import math

import numpy as np
import pytest
import torch

from hptransfer.model import GPTShape, _kernels
from hptransfer.scaling import resolve
from hptransfer.train import _program
from hptransfer.train._batches import Batches, validation_windows
from hptransfer.train._device import set_determinism
from hptransfer.train._ensemble import Ensemble, Run, TrainSettings
from hptransfer.train._program import MODES, Program
from hptransfer.train._trainer import Training
from reference.tokens import noisy_cycle
from train.compilers import FailingBackward, refuse_captures

# PyTorch's compiler uses what PyTorch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SHAPE = GPTShape(width=16, num_layers=1, head_size=8, context=8, vocab_size=20)
LARGER = GPTShape(width=32, num_layers=1, head_size=16, context=8, vocab_size=20)
#: On a GPU runs resume with its own kernels, which serve bf16.
OF_KERNELS = {"shape": LARGER, "compute_dtype": torch.bfloat16} if torch.cuda.is_available() else {}
STEPS = 20
SETTINGS = TrainSettings(batch=4, steps=STEPS, warmup=0.2, decay=0.2, beta1=0.9, beta2=0.95)
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
NO_GPU = "captured steps need a GPU"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
#: What compiles takes a while: one shape and three runs serve every test.
COMPILED = [pytest.param("compiled", marks=pytest.mark.slow)] + [
    pytest.param(mode, marks=needs_gpu) for mode in ("captured", "compiled+captured")
]


@pytest.fixture(autouse=True)
def _deterministic():
    set_determinism(threads=torch.get_num_threads())
    yield
    torch.use_deterministic_algorithms(False)


def device_of(mode):
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_ensemble(lrs=(2.0**-6, 2.0**-5, 2.0**-7), device="cpu", shape=SHAPE, **options):
    runs = [
        Run(
            seed=i % 2,
            resolved=resolve(
                name, width=shape.width, base_width=8, base_lr=lr, weight_decay=0.1,
                head_size=shape.head_size,
                base_head_size=1, num_layers=1,
            ),
        )
        for i, (lr, name) in enumerate(zip(lrs, ["sp", "mup", "sp+embd"], strict=True))
    ]  # fmt: skip
    return Ensemble(shape, runs, device=device, **options)


def take(ensemble, mode, blocks=(7, 1, 12), factor=lambda step: min(1.0, (step + 1) / 4)):
    batches = Batches(noisy_cycle(), context=8)
    run = functools.partial(ensemble.take_steps, batches, SETTINGS)
    if mode != "eager" or ensemble.device.type != "cpu":
        run = Program(ensemble, batches, SETTINGS, mode=mode).run
    losses, step = [], 0
    for count in blocks:
        found = run(step, [factor(s) for s in range(step, step + count)])
        losses.append(found.cpu().clone())
        step += count
    return torch.cat(losses)


@pytest.mark.parametrize("mode", COMPILED)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)
def test_every_mode_trains_as_eager_steps_do(mode, dtype, tolerance):
    device = device_of(mode)
    eager, other = (make_ensemble(device=device, dtype=dtype) for _ in range(2))
    expected, found = take(eager, "eager"), take(other, mode)
    assert (expected[-1] - expected[0]).abs().min() > 0.01
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    for name, tensor in other.state().items():
        torch.testing.assert_close(
            tensor, eager.state()[name], rtol=1e3 * tolerance, atol=1e2 * tolerance, msg=name
        )


def test_a_step_whose_backward_pass_cannot_be_compiled_goes_on_eagerly(monkeypatch):
    def compile_badly(function, **options):
        return lambda *args, **kwargs: FailingBackward.apply(function(*args, **kwargs))

    monkeypatch.setattr(torch, "compile", compile_badly)
    eager, other = (make_ensemble(dtype=torch.float64) for _ in range(2))
    program = Program(other, Batches(noisy_cycle(), context=8), SETTINGS, mode="compiled")
    found = program.run(0, [1.0] * 5)
    assert (program.mode, program.problem) == (
        "eager", "the step cannot be compiled (RuntimeError: no compiler here)"
    )  # fmt: skip
    expected = take(eager, "eager", blocks=(5,), factor=lambda step: 1.0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("mode", "left"), [("captured", "eager"), ("compiled+captured", "compiled")]
)
def test_a_step_that_cannot_be_captured_stays_compiled(monkeypatch, mode, left):
    """A GPU's steps, taken on the CPU: whatever a capture forbids, the compiled program meets."""
    under_way = refuse_captures(monkeypatch, at_end=True)

    def compile_in_vain(function, **options):
        def call(*args, **kwargs):
            if under_way:
                raise RuntimeError("not while a stream is captured")
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "compile", compile_in_vain)
    program = Program(make_ensemble(), Batches(noisy_cycle(), context=8), SETTINGS)
    program.mode = mode
    program.run(0, [1.0] * 5)
    assert program.mode == left
    assert program.problem == "the step cannot be captured (RuntimeError: here)"


def test_a_capture_that_runs_out_of_memory_is_no_reason_to_go_on_without(monkeypatch):
    """The executor halves the group."""
    refuse_captures(monkeypatch, "CUDA out of memory. Tried to allocate 2 GiB")
    program = Program(make_ensemble(), Batches(noisy_cycle(), context=8), SETTINGS)
    program.mode = "captured"
    with pytest.raises(RuntimeError, match="out of memory"):
        program.run(0, [1.0] * 5)
    assert (program.mode, program.problem) == ("captured", "")


@pytest.mark.slow
def test_the_operators_of_a_gpu_train_as_eager_steps_do(monkeypatch):
    """Written out for the CPU's compiler; on a GPU kernels stand behind the same operators."""
    called = []

    def count(name, operator, *args):
        called.append(name)
        return operator(*args)

    for name in ("attend", "read_out", "add_norm"):
        operator = getattr(_kernels, name)
        monkeypatch.setattr(_kernels, name, functools.partial(count, name, operator))
    monkeypatch.setattr(_kernels, "DEVICES", ("cpu",))
    monkeypatch.setattr(_kernels, "DTYPES", (torch.float64,))
    eager, compiled = (make_ensemble(shape=LARGER, dtype=torch.float64) for _ in range(2))
    expected, found = take(eager, "eager"), take(compiled, "compiled")
    assert set(called) == {"attend", "read_out", "add_norm"}
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for name, tensor in compiled.state().items():
        torch.testing.assert_close(tensor, eager.state()[name], rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("mode", COMPILED)
def test_weights_kept_in_the_precision_of_products_change_no_bit(mode, monkeypatch):
    options = {"device": device_of(mode), "compute_dtype": torch.bfloat16}
    kept, cast = (make_ensemble(**options) for _ in range(2))
    found = take(kept, mode)
    monkeypatch.setattr(_program, "KEEP_COPIES", False)
    assert torch.equal(take(cast, mode), found)
    for name, tensor in cast.state().items():
        assert torch.equal(tensor, kept.state()[name]), name


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["eager", *COMPILED])
def test_a_planted_nan_leaves_neighbours_bit_identical(mode, compute_dtype):
    options = {"device": device_of(mode), "compute_dtype": compute_dtype}
    if compute_dtype == torch.bfloat16:  # whose kernels need heads of 16
        options["shape"] = LARGER
    clean, poisoned, retired = (make_ensemble(**options) for _ in range(3))
    with torch.no_grad():
        poisoned.parameters["layers.0.attention.qkv"].value[1, 0, 0] = math.nan
    retired.retire(1)
    expected = take(clean, mode)
    for changed in (poisoned, retired):
        found = take(changed, mode)
        assert torch.equal(found[:, [0, 2]], expected[:, [0, 2]])
        for name, tensor in changed.state().items():
            assert torch.equal(tensor[[0, 2]], clean.state()[name][[0, 2]]), name
    assert found[:, 1].sub(math.log(20)).abs().max() < 1e-5


def prepare(mode, lrs=(2.0**-6, 2.0**9, 2.0**-5), block=None, **options):
    return Training(
        make_ensemble(lrs, device=device_of(mode), **OF_KERNELS),
        batches=Batches(noisy_cycle(), context=8),
        validation=validation_windows(noisy_cycle()[:900], 8, 200),
        settings=SETTINGS,
        mode=mode,
        block=block,
        **options,
    )  # fmt: skip


def finish(training):
    while not training.done:
        training.advance()
    return training.finish()


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.state, one.loss, one.diverged_step) == (
            other.state,
            other.loss,
            other.diverged_step,
        )
        np.testing.assert_array_equal(one.curve, other.curve)


@pytest.mark.parametrize("mode", ["eager", *COMPILED])
@pytest.mark.parametrize("stop", [1, 6, 13])
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(mode, stop, tmp_path):
    """A run diverges early on; blocks end elsewhere after the resumption."""
    expected = finish(prepare(mode, block=5))
    assert [result.state for result in expected] == ["completed", "diverged", "completed"]
    interrupted = prepare(mode, block=stop)
    interrupted.advance()
    interrupted.snapshot().write(tmp_path / "group.safetensors")
    resumed = prepare(mode, block=4)
    resumed.restore(tmp_path / "group.safetensors")
    assert resumed.step == stop
    assert_same(finish(resumed), expected)


@pytest.mark.parametrize("mode", ["eager", *COMPILED])
def test_blocks_change_no_number(mode):
    expected = finish(prepare(mode, block=1))
    for block in (3, 64):
        assert_same(finish(prepare(mode, block=block)), expected)


def test_tokens_on_the_device_are_those_of_the_batches(monkeypatch):
    """Buffers as on a GPU, on the CPU: from the token array and, where that is too large, sent."""
    tokens = np.random.default_rng(1).integers(0, 2**16, 500).astype(np.uint16)
    for wide in (tokens, tokens.astype(np.uint32)):
        batches = Batches(wide, context=8)
        for sent in (False, True):
            if sent:
                monkeypatch.setattr(_program, "_upload_tokens", lambda *_: None)
            made = Program(make_ensemble(), batches, SETTINGS)
            made._fill(5, [1.0, 0.5])
            for step in (5, 6):
                stacked = made._gather().numpy()
                for k, seed in enumerate((0, 1, 0)):
                    np.testing.assert_array_equal(stacked[k], batches.batch(seed, step, batch=4))
                made._index.add_(1)
        monkeypatch.undo()


class Looking:
    """Probes of every fourth step that note which they have seen."""

    every, values = 4, torch.zeros(1)

    def __init__(self):
        self.seen = []

    def __call__(self, step, ensemble):
        self.seen.append((step, ensemble.num_steps))


def test_probes_see_every_nth_step_and_change_nothing():
    probes = Looking()
    found = finish(prepare("eager", block=3, probes=probes))
    assert probes.seen == [(step, step) for step in (0, 4, 8, 12, 16)]
    assert_same(found, finish(prepare("eager")))


def test_modes_are_named_by_what_they_do():
    assert [(_program.is_compiled(mode), _program.is_captured(mode)) for mode in MODES] == [
        (False, False), (False, True), (True, False), (True, True),
    ]  # fmt: skip


@needs_gpu
@pytest.mark.parametrize("mode", ["captured", "compiled+captured"])
def test_a_captured_step_gives_the_bits_of_the_same_step_launched(mode):
    launched = take(
        make_ensemble(device="cuda"), mode.removesuffix("captured").strip("+") or "eager"
    )
    assert torch.equal(take(make_ensemble(device="cuda"), mode), launched)
