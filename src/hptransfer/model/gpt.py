"""The GPT of Kalra & Barkeshli 2026, K trials in one program.

Every weight has a leading K and every product is batched over it, so a trial's numbers never
depend on its neighbours'. The model takes numbers; no rule's name reaches it.

Shape letters: K trials, B batch, T time, D width, N heads, H head size, F feed-forward,
V vocabulary; R rows (batch x time); in lower case a part.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hptransfer.model import _kernels
from hptransfer.model._gpt_shape import GPTShape

_NORM_EPS = 1e-5
#: Logits held at once, in elements; 2^20 in fp32 is 4 MiB: enough rows for fast products, few
#: enough that a pass finds in the cache what the one before it left.
_CHUNK_ELEMENTS_CPU = 2**20
_CHUNK_ELEMENTS_GPU = 2**26
#: Below it a probability's own digits are lost.
_SMALLEST_PROBABILITY = 1e-30
#: Gradients of logits held at once on a CPU, in elements, for one product into the weights.
_GRAD_ELEMENTS_CPU = 2**22

Tap = Callable[[str, Tensor], None]
"""What looks at the outputs of the model's modules on their way."""


def _normalise(x_KxRxD: Tensor, gain_KxD: Tensor, dtype: torch.dtype) -> Tensor:
    """LayerNorm with a gain per trial and no bias, in `dtype`."""
    size = x_KxRxD.shape[-1:]
    if x_KxRxD.device.type == "cpu" and not torch.compiler.is_compiling():
        # Trial by trial the kernel takes the gain along: fewer passes over memory.
        trials = zip(x_KxRxD.unbind(0), gain_KxD.unbind(0), strict=True)
        return torch.stack([F.layer_norm(x, size, g, eps=_NORM_EPS).to(dtype) for x, g in trials])
    return (F.layer_norm(x_KxRxD, size, eps=_NORM_EPS) * gain_KxD.unsqueeze(1)).to(dtype)


def _add_and_normalise(
    x_KxRxD: Tensor, branch_KxRxD: Tensor, gain_KxD: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the residual stream with a branch added, and its LayerNorm."""
    if _kernels.serves("norm", branch_KxRxD, fits=x_KxRxD.shape[-1] <= _kernels.MAX_WIDTH):
        return _kernels.add_norm(x_KxRxD, branch_KxRxD, gain_KxD, _NORM_EPS)
    x_KxRxD = x_KxRxD + branch_KxRxD
    return x_KxRxD, _normalise(x_KxRxD, gain_KxD, dtype)


def _attend(qkv_KxRx3D: Tensor, shape: GPTShape, num_sequences: int) -> Tensor:
    """Causal multi-head attention of queries that are scaled already; returns (K, R, D)."""
    K, R, _ = qkv_KxRx3D.shape
    B, T, N, H = num_sequences, R // num_sequences, shape.num_heads, shape.head_size
    if _kernels.serves("attention", qkv_KxRx3D, fits=_kernels.fits_attention(T, H)):
        attended: Tensor = _kernels.attend(qkv_KxRx3D.view(K * B, T, 3 * N * H), N)
        return attended.view(K, R, N * H)
    q, k, v = qkv_KxRx3D.view(K, B, T, 3, N, H).permute(3, 0, 1, 4, 2, 5).unbind(0)
    if q.device.type == "cpu" and not torch.compiler.is_compiling():
        # Written out: on CPU faster than the fused kernel at the short contexts of sweeps.
        mask = torch.full((T, T), -math.inf, dtype=q.dtype, device=q.device).triu_(1)
        q, k, v = (t.reshape(K * B * N, T, H) for t in (q, k, v))
        weights = torch.baddbmm(mask, q, k.transpose(1, 2)).softmax(dim=-1)
        out = torch.bmm(weights, v)
    else:
        q, k, v = (t.reshape(K * B, N, T, H) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    return out.view(K, B, N, T, H).transpose(2, 3).reshape(K, R, N * H)


def scale_products(
    names: Iterable[str], *, attention_scale: Tensor, shape: GPTShape
) -> dict[str, Tensor | None]:
    """Return the factor on the weights of each matrix product, broadcasting; None for none.

    The attention kernels' own scale is one number for all trials; each trial's goes into the
    weights of its queries, which are fewer than the queries. Tables and gains are left out.
    """
    queries_KxD = attention_scale.unsqueeze(1).expand(-1, shape.width)
    others_Kx2D = torch.ones_like(attention_scale).unsqueeze(1).expand(-1, 2 * shape.width)
    qkv_Kx1x3D = torch.cat([queries_KxD, others_Kx2D], dim=1).unsqueeze(1)
    return {
        name: qkv_Kx1x3D if name.endswith("attention.qkv") else None
        for name in names
        if name == "readout" or ".attention." in name or ".feed_forward." in name
    }


def compute_hidden(
    parameters: Mapping[str, Tensor],
    inputs_KxBxT: Tensor,
    *,
    attention_scale: Tensor | None,
    shape: GPTShape,
    dtype: torch.dtype | None = None,
    tap: Tap | None = None,
) -> Tensor:
    """Return the normalised final hidden states, shape (K, B·T, D), in `dtype`.

    Parameters are those of `compute_losses`, with inputs alone in place of whole sequences. `tap`
    is called with each module's name and output, (K, B·T, ·); queries are scaled already.

    Examples
    --------
    >>> from hptransfer.model import GPTShape, list_parameters
    >>> shape = GPTShape(width=16, num_layers=1, head_size=8, context=4, vocab_size=10)
    >>> weights = {each.name: torch.zeros(2, *each.shape) for each in list_parameters(shape)}
    >>> inputs = torch.zeros(2, 3, 4, dtype=torch.int64)  # two trials, three sequences, four tokens
    >>> compute_hidden(weights, inputs, attention_scale=torch.ones(2), shape=shape).shape
    torch.Size([2, 12, 16])
    """
    tap = tap or (lambda name, output: None)
    K, B, T = inputs_KxBxT.shape
    D, V = shape.width, shape.vocab_size
    table = parameters["token_embedding"]
    dtype = dtype or table.dtype

    # One look-up in the K tables laid end to end.
    first_row = torch.arange(K, device=inputs_KxBxT.device).view(K, 1, 1) * V
    rows_KxBxT, rows_of_all = inputs_KxBxT + first_row, table.view(K * V, D)
    if table.device.type == "cpu" or torch.compiler.is_compiling():
        token = F.embedding(rows_KxBxT, rows_of_all)
    else:  # whose gradient can be captured in a CUDA graph, whatever the number of rows
        token = rows_of_all[rows_KxBxT]
    position = parameters["position_embedding"][:, :T].unsqueeze(1)
    x = ((token + position) * math.sqrt(0.5)).view(K, B * T, D)
    tap("embedding", x)

    if attention_scale is not None:
        scales = scale_products(parameters, attention_scale=attention_scale, shape=shape)
        parameters = dict(parameters)
        for name, scale in scales.items():
            if name != "readout":  # whose product is the loss's
                value = parameters[name]
                parameters[name] = (value if scale is None else value * scale).to(dtype)
    gains = [f"layers.{i}.attention_norm" for i in range(shape.num_layers)] + ["final_norm"]
    h = _normalise(x, parameters[gains[0]], dtype)
    for layer in range(shape.num_layers):
        p = f"layers.{layer}"
        qkv = torch.bmm(h, parameters[f"{p}.attention.qkv"])
        tap(f"{p}.attention.qkv", qkv)
        attended = _attend(qkv, shape, B)
        branch = torch.bmm(attended, parameters[f"{p}.attention.out"])
        tap(f"{p}.attention.out", branch)
        x, h = _add_and_normalise(x, branch, parameters[f"{p}.feed_forward_norm"], dtype)
        h = torch.bmm(h, parameters[f"{p}.feed_forward.up"])
        tap(f"{p}.feed_forward.up", h)
        branch = torch.bmm(F.gelu(h), parameters[f"{p}.feed_forward.down"])
        tap(f"{p}.feed_forward.down", branch)
        x, h = _add_and_normalise(x, branch, parameters[gains[layer + 1]], dtype)

    tap("final_norm", h)
    return h


def compute_losses(
    parameters: Mapping[str, Tensor],
    tokens_KxBxT1: Tensor,
    *,
    attention_scale: Tensor | None,
    shape: GPTShape,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return each trial's mean next-token loss, in nats.

    Parameters
    ----------
    parameters : mapping of str to Tensor
        Every tensor of `list_parameters`, each with a leading K.
    tokens_KxBxT1 : Tensor of int64 of shape (K, B, T + 1)
        Sequences with the token to predict after the last input.
    attention_scale : Tensor of shape (K,), or None
        Factor on each trial's attention logits; None where `parameters` are scaled and cast.
    shape : GPTShape
        Sizes; T may be shorter than the context.
    dtype : torch.dtype, optional
        Precision of the matrix products; the weights' own if not given. The residual stream,
        the norms and the loss stay in the weights' precision.

    Returns
    -------
    Tensor of shape (K,)

    Examples
    --------
    >>> from hptransfer.model import GPTShape, list_parameters
    >>> shape = GPTShape(width=16, num_layers=1, head_size=8, context=4, vocab_size=10)
    >>> weights = {each.name: torch.zeros(2, *each.shape) for each in list_parameters(shape)}
    >>> tokens = torch.zeros(2, 3, 5, dtype=torch.int64)
    >>> losses = compute_losses(weights, tokens, attention_scale=torch.ones(2), shape=shape)
    >>> torch.allclose(losses, torch.log(torch.tensor([10.0, 10.0])))  # ln V for equal logits
    True
    """
    hidden = compute_hidden(
        parameters,
        tokens_KxBxT1[..., :-1],
        attention_scale=attention_scale,
        shape=shape,
        dtype=dtype,
    )
    targets_KxR = tokens_KxBxT1[..., 1:].flatten(1)
    return readout_cross_entropy(hidden, parameters["readout"].to(hidden.dtype), targets_KxR)


def _split(num_trials: int, rows: int, row_elements: int, budget: int) -> list[tuple[slice, slice]]:
    """Split (K, R) into blocks of whole trials, or of rows of one trial, that fit the budget."""
    if rows * row_elements > budget:
        size = max(1, budget // row_elements)
        return [
            (slice(k, k + 1), slice(r, min(r + size, rows)))
            for k in range(num_trials)
            for r in range(0, rows, size)
        ]
    size = max(1, budget // (rows * row_elements))
    starts = range(0, num_trials, size)
    return [(slice(k, min(k + size, num_trials)), slice(0, rows)) for k in starts]


def _take_softmax(
    logits: Tensor, targets: Tensor, hidden: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn logits into probabilities where they are; return the targets' log-probabilities too.

    Parameters
    ----------
    logits : Tensor of shape (k, r, V)
        hidden @ weight; overwritten.
    targets : Tensor of int64 of shape (k, r, 1)
    hidden, weight : Tensor of shape (k, r, D) and (k, D, V)
        What the logits came from.

    Returns
    -------
    tuple of Tensor
        Log-probabilities of shape (k, r), and probabilities in the place of the logits.
    """
    if logits.device.type != "cpu":
        log_probs = logits.log_softmax(dim=-1)
        return log_probs.gather(-1, targets).squeeze(-1), log_probs.exp_()
    probs = torch.softmax(logits, dim=-1, out=logits)
    picked = probs.gather(-1, targets).squeeze(-1)
    log_picked = picked.log()
    # A logarithm loses nothing until the probability itself does: those few are taken anew, each
    # trial's by themselves.
    for k in (~(picked >= _SMALLEST_PROBABILITY)).any(dim=1).nonzero().flatten().tolist():
        rows = (~(picked[k] >= _SMALLEST_PROBABILITY)).nonzero().flatten()
        anew = torch.mm(hidden[k, rows], weight[k]).to(logits.dtype).log_softmax(dim=-1)
        log_picked[k, rows] = anew.gather(-1, targets[k, rows]).squeeze(-1)
    return log_picked, probs


class _ReadoutCrossEntropy(torch.autograd.Function):
    """The gradient is computed in the forward pass, block by block, while the logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        K, R, _ = hidden.shape
        V = weight.shape[-1]
        # With `weight` in low precision the sums over rows still build up in fp32 or better.
        wide = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.zeros(K, dtype=wide, device=hidden.device)
        need_grad = any(ctx.needs_input_grad)
        # How many logits, and how many gradients of logits, are held at once.
        logit_budget = grad_budget = _CHUNK_ELEMENTS_GPU
        if hidden.device.type == "cpu":
            logit_budget, grad_budget = _CHUNK_ELEMENTS_CPU, _GRAD_ELEMENTS_CPU
        if need_grad:
            hidden_grad = torch.empty_like(hidden)
            weight_grad = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        for k, rows in _split(K, R, V, grad_budget if need_grad else logit_budget):
            x_kxrxD, w_kxDxV, y_kxrx1 = hidden[k, rows], weight[k], targets[k, rows].unsqueeze(-1)
            num_trials, num_rows, _ = x_kxrxD.shape
            if need_grad:
                grad_kxrxV = x_kxrxD.new_empty(num_trials, num_rows, V)
            for j, r in _split(num_trials, num_rows, V, logit_budget):
                w, y = w_kxDxV[j], y_kxrx1[j, r]
                # In fp32 logits, probabilities and gradients take each other's place.
                place = grad_kxrxV[j, r] if need_grad and x_kxrxD.dtype == wide else None
                logits = torch.bmm(x_kxrxD[j, r], w, out=place).to(wide)
                log_picked, probs = _take_softmax(logits, y, x_kxrxD[j, r], w)
                losses[k][j] -= log_picked.sum(dim=1) / R
                if need_grad:
                    # Times 1/R, and times the loss's own gradient, in the backward pass.
                    probs.scatter_(-1, y, probs.gather(-1, y) - 1.0)
                    grad = probs if place is not None else grad_kxrxV[j, r].copy_(probs)
                    hidden_grad[k, rows][j, r] = torch.bmm(grad, w.transpose(1, 2))
                del logits, probs  # before the next ones take memory
            if need_grad:
                x_kxDxr = x_kxrxD.transpose(1, 2)
                if weight.dtype == wide:
                    weight_grad[k].baddbmm_(x_kxDxr, grad_kxrxV)
                else:
                    weight_grad[k] += torch.bmm(x_kxDxr, grad_kxrxV)
        if need_grad:
            ctx.save_for_backward(hidden_grad, weight_grad)
            ctx.weight_dtype, ctx.num_rows = weight.dtype, R
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = (grads[0] / ctx.num_rows).view(-1, 1, 1)
        return (
            (hidden_grad * scale).to(hidden_grad.dtype),
            (weight_grad * scale).to(ctx.weight_dtype),
            None,
        )


def _fusible_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Hold all logits in the products' precision; a compiler fuses every pass over them."""
    K, R, _ = hidden.shape
    if _kernels.serves("loss", hidden, fits=weight.shape[-1] <= _kernels.MAX_VOCAB):
        return _kernels.read_out(hidden, weight, targets)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = torch.bmm(hidden, weight).view(K * R, -1).to(wide)
    return F.cross_entropy(logits, targets.reshape(-1), reduction="none").view(K, R).mean(dim=1)


def readout_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return each trial's mean cross-entropy of next tokens, in nats.

    Parameters
    ----------
    hidden : Tensor of shape (K, R, D)
        Final hidden states, in the precision of the products.
    weight : Tensor of shape (K, D, V)
        Readout weights, same precision.
    targets : Tensor of int64 of shape (K, R)
        Next tokens.

    Returns
    -------
    Tensor of shape (K,)
        In fp32, or fp64 where the input is. A trial's value depends on that trial alone.

    Examples
    --------
    >>> hidden, weight = torch.zeros(1, 6, 16), torch.zeros(1, 16, 10)
    >>> loss = readout_cross_entropy(hidden, weight, torch.zeros(1, 6, dtype=torch.int64))
    >>> round(loss.item(), 4)  # ln V for equal logits
    2.3026
    """
    if torch.compiler.is_compiling():
        return _fusible_cross_entropy(hidden, weight, targets)
    if not torch.is_grad_enabled():
        # A Function sees its inputs' flags, not the mode: without this, evaluation would pay
        # for gradients that nobody takes.
        hidden, weight = hidden.detach(), weight.detach()
    result: Tensor = _ReadoutCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return result
