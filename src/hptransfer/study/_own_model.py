"""A user's own model in a study: its factory, roles, numbers, batches, and how it is stacked.

Shape letters: K trials, B batch, T time.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hptransfer._messages import describe_error
from hptransfer._user_code import hash_code, load_function
from hptransfer.adopt import (
    RoleTable,
    RuleOptions,
    TensorNumbers,
    UnclearRolesError,
    infer_roles,
    init_,
    resolve_tensors,
)
from hptransfer.adopt._user_model import seeded, unwrap_all
from hptransfer.errors import ConfigError, HptransferError
from hptransfer.study._plan import ONE_BY_ONE, Machine, Precision, Speed
from hptransfer.study._trial import Trial, num_steps
from hptransfer.study.config import StudyConfig
from hptransfer.train._calibrate import DTYPES, time_steps
from hptransfer.train._device import free_memory, is_out_of_memory, temporary_determinism
from hptransfer.train._module_ensemble import ModuleEnsemble, ModuleRun
from hptransfer.train._modules import (
    TOKENS,
    Loss,
    ModuleError,
    StackedModule,
    copy_module,
    language_model_loss,
    why_not_stacked,
)
from hptransfer.train._program import Mode

DEFAULT_EVAL_BATCHES = 8
#: Digits of a number that two rules must share to be one training run, as `Resolved.key`.
_KEY_DIGITS = 12
#: Trials and batches that are compared, stacked and one by one.
_NUM_COMPARED, _NUM_BATCHES = 2, 3
#: Numbers of stacked trials that are timed; stacking more must pay by `_WORTH`.
_STACKS, _WORTH = (2, 4, 8, 16, 32), 1.05

#: Seconds of training, all in all, that a compiler may shorten enough to pay for itself.
_WORTH_COMPILING = 120.0

Batches = Callable[[int, int, str], Mapping[str, NDArray[np.generic]]]


@contextmanager
def naming_user_code(what: str, *, hint: str = "", ours: bool = False) -> Iterator[None]:
    """Let whatever the user's code raises be an error of one line that says what raised it.

    Parameters
    ----------
    what : str
        What raised it.
    hint : str
        What to type next.
    ours : bool
        Whether our own code runs too, whose errors already say where they are from.

    Raises
    ------
    ModuleError
        If it raises anything, but for errors of ours where `ours`.
    """
    try:
        yield
    except Exception as error:
        if ours and isinstance(error, HptransferError):
            raise
        raise ModuleError(f"{what} raised {describe_error(error)}{hint}") from error


class OwnBatches:
    """Batches of a user's own function, as an ensemble takes them.

    Parameters
    ----------
    function : callable
        Returns the arrays of one batch for (seed, step, split).
    """

    def __init__(self, function: Batches) -> None:
        self._function = function

    def batch(self, seed: int, step: int, *, batch: int) -> dict[str, NDArray[np.generic]]:
        """Return a training step's arrays by name."""
        return self._call(seed, step, "train")

    def validation(self, count: int) -> list[dict[str, NDArray[np.generic]]]:
        """Return the held-out batches, which are those of seed 0."""
        return [self._call(0, step, "val") for step in range(count)]

    def _call(self, seed: int, step: int, split: str) -> dict[str, NDArray[np.generic]]:
        with naming_user_code(f"data.batches: ({seed}, {step}, {split!r})"):
            found = self._function(seed, step, split)
        if not isinstance(found, Mapping) or not found:
            raise ModuleError(
                f"data.batches: expected a dict of arrays, found {type(found).__name__}"
            )
        arrays = {str(name): _to_array(str(name), value) for name, value in found.items()}
        sizes = {name: array.shape[:1] for name, array in arrays.items()}
        if len(set(sizes.values())) > 1:
            raise ModuleError(f"data.batches: arrays of different first sizes: {sizes}")
        return arrays

    @cached_property
    def data_hash(self) -> str:
        """Hash of the first batches of each split.

        Raises
        ------
        ModuleError
            If equal arguments give other arrays.
        """
        digest = hashlib.sha256()
        for split, step in product(("train", "val"), range(2)):
            one, other = (self._call(0, step, split) for _ in range(2))
            for name, array in one.items():
                is_float = array.dtype.kind == "f"
                if name not in other or not np.array_equal(array, other[name], equal_nan=is_float):
                    raise ModuleError(
                        f"data.batches: {name!r} differs between two calls with seed 0, step "
                        f"{step}, split {split!r}; equal arguments must give equal arrays"
                    )
                digest.update(f"{split}{step}{name}{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def _to_array(name: str, value: Any) -> NDArray[np.generic]:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        raise ModuleError(
            f"data.batches: {name!r}: expected an array of numbers with a first dimension of the "
            f"batch, found {array.dtype} of shape {array.shape}"
        )
    return cast(NDArray[np.generic], array)


def _take_methods(name: str, module: nn.Module) -> None:
    """Take an instance's own methods without ``torch.compile``; refuse those that copies share.

    A copy of the model would call the original's: Python copies bound methods and no functions.
    """
    if isinstance(module, torch.jit.ScriptModule):  # copies its methods itself
        return
    own = vars(module)
    shared = []
    for key, value in list(own.items()):
        if isinstance(value, FunctionType):
            inner = getattr(value, "_torchdynamo_orig_callable", value)
            if not getattr(value, "_torchdynamo_disable", False):
                own[key] = inner
            elif isinstance(inner, MethodType):
                shared.append(key)
    if "forward" in own and not _is_method(own["forward"], module):
        shared.append("forward")
    if shared:
        raise ModuleError(
            f"model.factory: {name or 'the model'} has a {shared[0]}, set on the instance, that is "
            "no method of its own: copies of the model would call the same one; define it in a "
            "class"
        )


def _is_method(value: Any, module: nn.Module) -> bool:
    """Tell whether a callable is a method bound to a module, or a partial of one.

    A function with a closure that is bound to an instance alone may hold anything.
    """
    method = value.func if isinstance(value, partial) else value
    if not isinstance(method, MethodType) or method.__self__ is not module:
        return False
    of_classes = (each for kind in type(module).__mro__ for each in vars(kind).values())
    function = method.__func__
    return not getattr(function, "__closure__", None) or any(
        each is function for each in of_classes
    )


class OwnModel:
    """What a study needs to know of a user's own model.

    Parameters
    ----------
    config : StudyConfig
        A study whose model has a factory.

    Raises
    ------
    ConfigError
        If a function cannot be loaded.
    """

    def __init__(self, config: StudyConfig) -> None:
        model, data = config.model, config.data
        self._config = config
        named = {
            "model.factory": model.factory, "model.loss": model.loss, "data.batches": data.batches
        }  # fmt: skip
        places = {key: self._locate(spec) for key, spec in named.items() if spec is not None}
        found = {key: load_function(key, place) for key, place in places.items()}
        self._factory = partial(found["model.factory"], **(model.options or {}))
        self.loss: Loss = found.get("model.loss", language_model_loss)
        batches = found.get("data.batches")
        self.batches = None if batches is None else OwnBatches(batches)
        #: Digests of the user's source files by path, as they are now.
        self.code = hash_code(places.values())
        self._tables: dict[int, RoleTable] = {}
        self._starts: dict[tuple[int, str, int], nn.Module] = {}

    def _locate(self, spec: str) -> str:
        """Return a function's name with the path of its file from anywhere."""
        where, _, name = spec.rpartition(":")
        if where.endswith(".py"):
            where = str((self._config.root / Path(where)).resolve())
        return f"{where}:{name}"

    def make(self, width: int, *, seed: int = 0) -> nn.Module:
        """Return a fresh model with its own initial weights, which the seed fixes.

        Raises
        ------
        ModuleError
            If the factory fails or returns no module.
        """
        hint = "; arguments beside the width stand in [model.options]"
        what = f"model.factory: {self._config.model.factory}({width})"
        with seeded(seed), naming_user_code(what, hint=hint):
            model = self._factory(width)
        if not isinstance(model, nn.Module):
            raise ModuleError(
                f"model.factory: expected a torch.nn.Module, found {type(model).__name__}"
            )
        # What torch.compile wraps is stacked without it; the plan compiles what pays.
        bare = unwrap_all(model)
        for name, module in bare.named_modules():
            _take_methods(name, module)
        return bare

    def table(self, width: int) -> RoleTable:
        """Return the roles of the model's parameters at a width.

        Raises
        ------
        ConfigError
            If roles are unclear; the message lists them, for ``[model.roles]``.
        """
        if width not in self._tables:
            try:
                self._tables[width] = infer_roles(
                    self.make,
                    base_width=self._config.sweep.base_width,
                    width=width,
                    roles=self._config.model.roles or {},
                )
            except UnclearRolesError as error:
                pairs = ", ".join(f'"{key}" = "{role}"' for key, role in error.suggestions.items())
                raise ConfigError(
                    error.word(f"say it in the study file, under [model]: roles = {{{pairs}}}")
                ) from error
        return self._tables[width]

    def num_params(self, width: int) -> int:
        """Return the number of parameters at a width; a tied one counts once."""
        return sum(int(np.prod(entry.shape)) for entry in self.table(width))

    def flops_per_token(self, width: int) -> int:
        """Return training FLOPs per token: 6 per weight that is multiplied."""
        multiplied = [entry for entry in self.table(width) if not entry.is_table]
        return 6 * sum(int(np.prod(entry.shape)) for entry in multiplied)

    def numbers(self, trial: Trial) -> dict[str, TensorNumbers]:
        """Return what each parameter of a trial is trained with, by name."""
        found = resolve_tensors(self.table(trial.width), self._options(trial))
        return {each.entry.name: each for each in found}

    def _options(self, trial: Trial) -> RuleOptions:
        model, sweep, train = self._config.model, self._config.sweep, self._config.train
        return RuleOptions(
            parameterization=self._config.find_rule(trial.parameterization),
            lr=trial.base_lr,
            weight_decay=trial.weight_decay,
            weight_decay_mode=sweep.weight_decay_mode,
            optimizer=train.optimizer or "adamw",
            eps=train.eps,
            axis=sweep.axis,
            num_layers=model.num_layers,
            base_num_layers=model.num_layers,
            query=model.query or (),
            applied=model.applied or (),
        )

    def numbers_key(self, trial: Trial) -> tuple[float, ...]:
        """Return the numbers that make a training run what it is, rounded."""
        found = self.numbers(trial).values()
        numbers = [n for each in found for n in (each.lr, each.weight_decay, each.eps)]
        numbers += [each.init_std for each in found]
        return (trial.width, *(float(f"{x:.{_KEY_DIGITS - 1}e}") for x in numbers))

    def start(self, trial: Trial) -> nn.Module:
        """Return a trial's model with its initial weights; the learning rate changes none."""
        key = (trial.width, trial.parameterization, trial.seed)
        if key not in self._starts:
            model = self.make(trial.width, seed=trial.seed)
            init_(
                model,
                roles=self.table(trial.width),
                seed=trial.seed,
                mode="rescale" if self._config.model.init == "own" else "draw",
                factory=self.make,
                verbose=False,
                **vars(self._options(trial)),
            )
            self._starts = {key: model}  # trials come by rule: one is kept
        return self._starts[key]

    def make_ensemble(
        self, trials: Sequence[Trial], *, device: str, precision: torch.dtype, mode: str
    ) -> ModuleEnsemble:
        """Return the trials of one width as an ensemble before its first step."""
        runs = [
            ModuleRun(
                seed=trial.seed, model=copy_module(self.start(trial)), numbers=self.numbers(trial)
            )
            for trial in trials
        ]
        return self._assemble(runs, device=device, precision=precision, mode=mode)

    def _assemble(
        self, runs: Sequence[ModuleRun], *, device: str, precision: torch.dtype, mode: str
    ) -> ModuleEnsemble:
        return ModuleEnsemble(
            runs,
            self.loss,
            device=device,
            compute_dtype=precision,
            one_by_one=mode == ONE_BY_ONE,
            mode="eager" if mode == ONE_BY_ONE else cast(Mode, mode),
        )

    def sample(self, step: int, count: int) -> dict[str, Tensor]:
        """Return a stacked batch to try the model on: the user's own, or drawn token ids."""
        config = self._config
        if self.batches is not None:
            found = [self.batches.batch(seed, step, batch=0) for seed in range(count)]
            return {
                name: torch.from_numpy(np.stack([each[name] for each in found]))
                for name in found[0]
            }
        size = (count, config.train.batch, config.model.context + 1)
        generator = torch.Generator().manual_seed(step)
        return {TOKENS: torch.randint(config.data.vocab_size, size, generator=generator)}

    def why_not_stacked(
        self, width: int, *, device: str, precision: torch.dtype = torch.float32
    ) -> str:
        """Return why trials of a width cannot be stacked, in one line; "" where they can."""
        models = [self.make(width, seed=seed) for seed in range(_NUM_COMPARED)]
        self._check_alike(models)
        for step in range(_NUM_BATCHES):
            batch = self.sample(step, _NUM_COMPARED)
            if why := why_not_stacked(
                models, self.loss, batch, device=device, compute_dtype=precision
            ):
                return why
        return ""

    def _check_alike(self, models: Sequence[nn.Module]) -> None:
        shapes = [
            {name: tuple(each.shape) for name, each in model.state_dict().items()}
            for model in models
        ]
        for other in shapes[1:]:
            if other != shapes[0]:
                name = next(n for n in {**shapes[0], **other} if shapes[0].get(n) != other.get(n))
                raise ModuleError(
                    f"model.factory: two calls with one width differ in {name!r}: "
                    f"{shapes[0].get(name)} and {other.get(name)}; a factory must make the same "
                    "model each time"
                )

    def measure(self, width: int, *, num_runs: int, machine: Machine) -> Speed:
        """Measure how the trials of a width train fastest: stacked, or one by one.

        On a GPU a step of stacked trials is captured as a CUDA graph, and compiled where all
        steps of all runs take long enough for that to pay.
        """
        device, wanted = machine.device, self._config.train.precision
        by_default: Precision = "fp32" if device == "cpu" else "bf16"
        precision = by_default if wanted == "auto" else wanted
        time_steps = partial(self._time, width, device=device, precision=precision)
        with temporary_determinism(threads=machine.threads), seeded(0):
            best = time_steps(1, mode=ONE_BY_ONE)
            if why := self.why_not_stacked(width, device=device, precision=DTYPES[precision]):
                return replace(best, num_stacked=min(num_runs, _NUM_COMPARED), note=why)
            best = replace(best, mode="eager")
            for count in (each for each in _STACKS if each <= num_runs):
                found = time_steps(count, mode="eager" if device == "cpu" else "captured")
                if found.seconds * _WORTH > best.seconds:
                    break
                best = found
            seconds = best.seconds * num_runs * num_steps(self._config, width)
            if device != "cpu" and seconds > _WORTH_COMPILING:
                found = time_steps(best.num_stacked or 1, mode="compiled+captured")
                if found.seconds * _WORTH <= best.seconds:
                    return found
                best = replace(best, note=best.note or found.note)
            return best

    def _time(
        self, width: int, count: int, *, device: str, precision: Precision, mode: str
    ) -> Speed:
        """Return what a step takes; infinitely long where memory does not hold it."""
        sweep = self._config.sweep
        trial = Trial(
            parameterization=sweep.parameterization[0], width=width, base_lr=1.0,
            weight_decay=0.0, seed=0, identity="",
        )  # fmt: skip
        numbers = self.numbers(trial)
        runs = [
            ModuleRun(seed=seed, model=self.make(width, seed=seed), numbers=numbers)
            for seed in range(count)
        ]
        beta1, beta2 = self._config.train.betas
        on_gpu = device == "cuda"
        free_memory()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        try:
            ensemble = self._assemble(runs, device=device, precision=DTYPES[precision], mode=mode)
            [seconds] = time_steps([ensemble], self.sample(0, count), beta1=beta1, beta2=beta2)
        except Exception as error:
            if not is_out_of_memory(error) or count == 1:
                raise
            return Speed(precision=precision, seconds=math.inf)
        return Speed(
            precision=precision,
            seconds=seconds / count,
            mode=ensemble.mode if mode != ONE_BY_ONE else mode,
            num_stacked=count,
            run_bytes=torch.cuda.max_memory_reserved() // count if on_gpu else None,
            note=ensemble.problem,
        )

    def measure_memory(self, width: int) -> int:
        """Return the bytes that one trial takes in training: weights, and what backward keeps."""
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        model = self.make(width)
        num_numbers = sum(p.numel() * (1 + p.is_complex()) for p in model.parameters())
        stack = StackedModule([model], self.loss, one_by_one=True)
        with seeded(0), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            stack.compute_losses(self.sample(0, 1))
        return 24 * num_numbers + sum(kept.values())
