"""K copies of any torch module as one program, or one after the other where that cannot be.

Shape letters: K trials, B batch, T time, V vocabulary.
"""

import contextlib
import copy
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.overrides import TorchFunctionMode

from hptransfer.errors import HptransferError

Batch = Mapping[str, Tensor]
"""Arrays of one step by name; stacked ones have a leading K."""

Loss = Callable[[nn.Module, Batch], Tensor]
"""What a model's mean loss on a batch is, a scalar in nats."""

#: The array that holds token ids, (B, T + 1), where a model is a causal language model.
TOKENS = "tokens"


#: Largest difference that is still rounding, of a loss relative to it and of a gradient relative
#: to its largest entry: in fp32, and of losses in a lower precision.
_RTOL, _LOW_RTOL = 1e-4, 0.02


class ModuleError(HptransferError):
    """A model is not what a study can train; the message says what was expected and found."""

    exit_code = 2


def language_model_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return a causal language model's mean cross-entropy on token ids, in nats.

    Parameters
    ----------
    model : Module
        Takes ids of shape (B, T); returns logits of shape (B, T, V), or an object that has them
        as ``logits``.
    batch : mapping
        ``tokens``: ids of shape (B, T + 1).

    Raises
    ------
    ModuleError
        If the model returns anything else.
    """
    tokens = batch[TOKENS]
    inputs, targets = tokens[..., :-1], tokens[..., 1:]
    found = model(inputs)
    logits = getattr(found, "logits", found)
    if not isinstance(logits, Tensor) or logits.shape[:-1] != inputs.shape:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModuleError(
            f"the model returns {shape}; expected logits of shape (batch, time, vocabulary) = "
            f"({', '.join(map(str, inputs.shape))}, V), a tensor or an object with .logits; "
            "give [model] loss for another kind of model"
        )
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


class _WithLoss(nn.Module):
    """A model and its loss as one module, so that ``functional_call`` reaches the weights."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(self.model, batch)


class _AttentionUnderVmap(TorchFunctionMode):
    """Prepare what attention takes for ``vmap``.

    Autocast does not see it whole there: rotary tables in fp32, say, leave queries and keys in fp32
    beside values of a lower precision. And kernels of a GPU refuse a mask that all trials share.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        taken = {**dict(zip(_ATTENTION, args, strict=False)), **(kwargs or {})}
        if self._dtype is not None:
            for name in ("query", "key", "value"):
                taken[name] = taken[name].to(self._dtype)
        if (mask := taken.get("attn_mask")) is not None:
            kind = torch.bool if mask.dtype == torch.bool else taken["query"].dtype
            own = torch.zeros_like(taken["query"][..., :1, :1, :1], dtype=kind)
            taken["attn_mask"] = mask | own if kind == torch.bool else mask.to(kind) + own
        return func(**taken)


_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class StackedModule:
    """K modules of one architecture, their weights stacked to tensors with a leading K.

    Parameters
    ----------
    models : sequence of Module
        Length K, alike but for their weights and buffers.
    loss : callable
        The mean loss of a model on a batch.
    device : torch.device or str
        Where the weights live.
    compute_dtype : torch.dtype
        Precision of the matrix products; below fp32 through ``torch.autocast``.
    one_by_one : bool
        Whether each trial is computed by itself; else all at once through ``vmap``.
    prepare : callable, optional
        Returns the stacked program as it is to be called: compiled, say.

    Attributes
    ----------
    parameters : dict of str to Tensor of shape (K, ...)
        Weights that train, by their names in the model; a tied one stands once.
    constants : dict of str to Tensor of shape (K, ...)
        Frozen weights and buffers. A training pass may change buffers.
    complex_names : list of str
        The parameters that are complex, of which `parameters` has real and imaginary parts.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        loss: Loss = language_model_loss,
        *,
        device: torch.device | str = "cpu",
        compute_dtype: torch.dtype = torch.float32,
        one_by_one: bool = False,
        prepare: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] = lambda program: program,
    ) -> None:
        self.device = torch.device(device)
        self.compute_dtype = compute_dtype
        self._is_low = compute_dtype not in (torch.float32, torch.float64)
        self.one_by_one = one_by_one
        template = copy_module(models[0]).to(self.device)
        _forget_caches(template)
        self._names = _list_names(template)
        self._padding_rows = _take_padding(template)
        self._template = _WithLoss(template, loss)
        trained = {name for name, p in models[0].named_parameters() if p.requires_grad}
        weights, buffers = stack_module_state(list(models))
        # Complex ones are trained as their parts, as torch's optimizers do.
        self.complex_names = [
            n for n, each in weights.items() if n in trained and each.is_complex()
        ]
        self.parameters = {
            name: (
                torch.view_as_real(each) if name in self.complex_names else each
            ).requires_grad_()
            for name, tensor in weights.items()
            if name in trained
            for each in (tensor.detach().to(self.device),)
        }
        self.constants = {
            name: tensor.detach().to(self.device)
            for name, tensor in {**weights, **buffers}.items()
            if name not in trained
        }
        self._seeds: list[int] = []
        self._stacked = vmap(self._single, in_dims=(0, 0, 0), randomness="different")
        self._prepare = prepare

    def seed_draws(self, seeds: Sequence[int]) -> None:
        """Fix what the model and the loss draw in the next pass, by each trial's seed.

        Trials that are computed by themselves each draw from their own; in a stacked program
        all draw from one generator, so that the draws depend on the whole stack.
        """
        self._seeds = list(seeds)
        if not self.one_by_one:
            seed_generators(seeds[0])

    def _single(
        self, weights: Mapping[str, Tensor], constants: Mapping[str, Tensor], batch: Batch
    ) -> Tensor:
        tensors = {**weights, **constants}
        tensors |= {name: torch.view_as_complex(tensors[name]) for name in self.complex_names}
        state = {f"model.{name}": tensors[first] for name, first in self._names.items()}
        for name, row in self._padding_rows.items():
            state[f"model.{name}"] = _detach_row(state[f"model.{name}"], row)
        with contextlib.ExitStack() as stack:
            if not self.one_by_one:
                dtype = self.compute_dtype if self._is_low else None
                stack.enter_context(_AttentionUnderVmap(dtype))
            given = dict(state)
            loss = functional_call(self._template, state, (batch,), tie_weights=False)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ModuleError(
                f"the loss returns {found}; expected the mean loss, a tensor of one real number"
            )
        if self.one_by_one and self._template.training:
            for name in constants:
                _check_kept(name, given[f"model.{name}"], state[f"model.{name}"])
        return loss.reshape(())

    def compute_losses(self, batch: Batch, *, training: bool = True) -> Tensor:
        """Return each trial's mean loss on its own part of a stacked batch, shape (K,), in nats.

        Parameters
        ----------
        batch : mapping of str to Tensor of shape (K, ...)
            Each trial's arrays.
        training : bool
            Whether dropout acts and buffers may change.
        """
        self._template.train(training)
        autocast = torch.autocast(self.device.type, self.compute_dtype, enabled=self._is_low)
        constants = self.constants
        if not training:  # what a pass without training changes is thrown away
            constants = {name: tensor.clone() for name, tensor in constants.items()}
        with autocast:
            if not self.one_by_one:
                with warnings.catch_warnings():
                    # A kernel without a batching rule is called trial by trial: right, if slow.
                    warnings.filterwarnings("ignore", message="There is a performance drop")
                    return self._prepare(self._stacked)(self.parameters, constants, batch)
            K = len(next(iter(self.parameters.values())))
            losses = []
            for k in range(K):
                if self._seeds:
                    seed_generators(self._seeds[k])
                state = _take(self.parameters, k), _take(constants, k)
                losses.append(self._single(*state, _take(batch, k)))
            return torch.stack(losses)


def seed_generators(seed: int) -> None:
    """Seed what a user's code may draw from: PyTorch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the user's code may draw from it
    random.seed(seed)


def _check_kept(name: str, before: Tensor, after: Tensor) -> None:
    """Refuse a buffer that a forward pass has bound to another tensor, with other numbers.

    One with a gradient serves that pass alone, and one of another shape is a table grown anew.
    """
    if after is before or after.requires_grad or after.shape != before.shape:
        return
    if bool((after != before).any()):
        raise ModuleError(
            f"buffer {name!r} is replaced in the forward pass, and would be lost; "
            "change it in place (copy_, mul_, …)"
        )


def _take(tensors: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    return {name: tensor[k] for name, tensor in tensors.items()}


def copy_module(model: nn.Module) -> nn.Module:
    """Copy a model; what it has computed and holds in plain attributes, as weight norm does, too.

    PyTorch copies no tensor that has a gradient's history.
    """
    held = (
        value
        for module in model.modules()
        for attribute in vars(module).values()
        for value in (attribute if isinstance(attribute, list | tuple) else [attribute])
        if isinstance(value, Tensor) and not value.is_leaf
    )
    return copy.deepcopy(model, {id(each): each.detach().clone() for each in held})


def _forget_caches(model: nn.Module) -> None:
    """Switch off caches of keys and values, which Hugging Face's models make even in training.

    And sparse gradients of tables, which do not stack.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            with contextlib.suppress(AttributeError):
                config.use_cache = False


def _list_names(model: nn.Module) -> dict[str, str]:
    """Return every name of a weight or buffer, with the one that stands for it where it is tied."""
    first: dict[int, str] = {}
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _take_padding(model: nn.Module) -> dict[str, int]:
    """Return the padding row of each table that has one, and take it from the table's module.

    Under ``vmap`` K tables are flattened to one, and PyTorch then keeps the gradient out of a row
    of the first alone; `StackedModule` keeps it out of each.
    """
    rows: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            rows[f"{name}.weight" if name else "weight"] = module.padding_idx
            module.padding_idx = None
    return rows


def _detach_row(table: Tensor, row: int) -> Tensor:
    rows = torch.arange(len(table), device=table.device).unsqueeze(-1)
    return torch.where(rows == row, table.detach(), table)


def why_not_stacked(
    models: Sequence[nn.Module],
    loss: Loss,
    batch: Batch,
    *,
    device: torch.device | str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
) -> str:
    """Compare a stacked program's losses and gradients with those of its models one by one.

    They are compared in fp32, and the losses in a lower `compute_dtype` too.

    Parameters
    ----------
    models : sequence of Module
        Two or more, with weights of their own.
    loss : callable
        The mean loss of a model on a batch.
    batch : mapping of str to Tensor of shape (K, ...)
        Each model's arrays.
    device : torch.device or str
        Where to compare.
    compute_dtype : torch.dtype
        Precision that the models are to train in.

    Returns
    -------
    str
        Why the models cannot be stacked, in one line; "" where they can.
    """
    compared = [(torch.float32, _RTOL)]
    if compute_dtype not in (torch.float32, torch.float64):
        compared.append((compute_dtype, _LOW_RTOL))
    for dtype, bound in compared:

        def compute(one_by_one: bool, dtype: torch.dtype = dtype) -> list[tuple[str, Tensor]]:
            stack = StackedModule(
                models, loss, device=device, compute_dtype=dtype, one_by_one=one_by_one
            )
            found = _losses_and_grads(stack, batch)
            return found if dtype == torch.float32 else found[:1]

        single = compute(True)
        try:
            stacked = compute(False)
        except ModuleError:
            raise
        except Exception as error:  # whatever a model does that vmap has no rule for
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            return f"vmap cannot take the model: {type(error).__name__}: {first}"[:300]
        for (name, one), (_, other) in zip(single, stacked, strict=True):
            scale = one.abs().max().clamp(min=torch.finfo(one.dtype).tiny)
            difference = float(((one - other).abs().max() / scale).nan_to_num(torch.inf))
            if difference > bound:
                return f"stacked and single {name} differ by {difference:.1g} of their size"
    return ""


def _losses_and_grads(stack: StackedModule, batch: Batch) -> list[tuple[str, Tensor]]:
    for module in stack._template.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # its draws are meant to differ
    losses = stack.compute_losses({name: each.to(stack.device) for name, each in batch.items()})
    grads = torch.autograd.grad(losses.sum(), list(stack.parameters.values()), allow_unused=True)
    pairs = zip(stack.parameters, grads, strict=True)
    return [
        ("losses", losses.detach()),
        *((f"gradients of {name}", grad) for name, grad in pairs if grad is not None),
    ]
