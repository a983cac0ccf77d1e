"""Kernels of a compiled step on a GPU: short attention, the readout's softmax, add and normalise.

Each reads its input once and writes its result once, where a compiler's own passes over the same
memory are two and more. One program looks at one sequence and head, or at one row of logits, so
that no sum crosses programs: equal input gives equal bits. On a CPU the same operators are written
out in PyTorch, for a compiler to see through the same code.

Shape letters: K trials, B batch, T time, D width, N heads, H head size, R rows, V vocabulary.
"""

import math
from typing import Any

import torch
from torch import Tensor

#: Sizes that one program holds: time, its product with the head size, a row of logits.
MAX_TIME, MAX_TILE, MAX_VOCAB, MAX_WIDTH = 128, 128 * 64, 2**15, 2**13
#: Entries that a program of `add_norm` has in hand, and rows that one of its backward pass sums.
NORM_TILE, NORM_ROWS = 2**11, 64

#: Where they serve, and in which precision: elsewhere a compiler's own passes do.
DEVICES: tuple[str, ...] = ("cuda",)
DTYPES: tuple[torch.dtype, ...] = (torch.bfloat16,)
#: Where operators are written out in PyTorch, for a compiler without Triton.
WRITTEN_OUT: tuple[str, ...] = ("cpu",)
#: What they serve for.
ENABLED = {"attention", "loss", "norm"}


def serves(name: str, tensor: Tensor, *, fits: bool) -> bool:
    """Return whether a kernel serves: compiled, and one program can hold its part (`fits`)."""
    return (
        name in ENABLED
        and torch.compiler.is_compiling()
        and tensor.device.type in DEVICES
        and tensor.dtype in DTYPES
        and fits
    )


def fits_attention(time: int, head_size: int) -> bool:
    """Return whether one program can hold a sequence of a head."""
    fits = head_size in (16, 32, 64, 128) and time <= MAX_TIME
    return fits and _block(time) * head_size <= MAX_TILE


def _block(size: int) -> int:
    """Return the power of two, 16 at least, that holds `size`."""
    return max(16, 1 << (size - 1).bit_length())


def _load() -> Any:
    """Return the kernels; Triton comes with PyTorch where there is a GPU."""
    from hptransfer.model import _triton

    return _triton


def _attend_written_out(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    S, T, _ = qkv.shape
    q, k, v = qkv.view(S, T, 3, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    mask = torch.full((T, T), -math.inf, dtype=qkv.dtype, device=qkv.device).triu_(1)
    return (q @ k.transpose(-1, -2) + mask).softmax(dim=-1), q, k, v


@torch.library.custom_op("hptransfer::attend", mutates_args=())
def attend(qkv_SxTx3D: Tensor, num_heads: int) -> Tensor:
    """Return causal attention of S sequences, (S, T, D); queries are scaled already."""
    S, T, width = qkv_SxTx3D.shape
    if qkv_SxTx3D.device.type in WRITTEN_OUT:
        weights, _, _, v = _attend_written_out(qkv_SxTx3D, num_heads)
        return (weights @ v).transpose(1, 2).reshape(S, T, width // 3)
    qkv = qkv_SxTx3D.contiguous()
    out = qkv.new_empty(S, T, width // 3)
    _load().attend[(S * num_heads,)](
        qkv, out, T, num_heads, TIME=_block(T), HEAD=width // 3 // num_heads,
        num_warps=8 if _block(T) * (width // 3 // num_heads) == MAX_TILE else 4,
    )  # fmt: skip
    return out


@attend.register_fake
def _(qkv: Tensor, num_heads: int) -> Tensor:
    return qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)


@torch.library.custom_op("hptransfer::attend_backward", mutates_args=())
def _attend_backward(grad_SxTxD: Tensor, qkv_SxTx3D: Tensor, num_heads: int) -> Tensor:
    S, T, width = qkv_SxTx3D.shape
    if qkv_SxTx3D.device.type in WRITTEN_OUT:
        weights, q, k, v = _attend_written_out(qkv_SxTx3D, num_heads)
        grad = grad_SxTxD.view(S, T, num_heads, -1).transpose(1, 2)
        by_weights = grad @ v.transpose(-1, -2)
        by_logits = weights * (by_weights - (weights * by_weights).sum(-1, keepdim=True))
        grads = by_logits @ k, by_logits.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ grad
        return torch.stack(grads).permute(1, 3, 0, 2, 4).reshape(S, T, width)
    qkv, grad = qkv_SxTx3D.contiguous(), grad_SxTxD.contiguous()
    out = torch.empty_like(qkv)
    _load().attend_backward[(S * num_heads,)](
        qkv, grad, out, T, num_heads,
        TIME=_block(T), HEAD=width // 3 // num_heads, num_warps=4,
    )  # fmt: skip
    return out


@_attend_backward.register_fake
def _(grad: Tensor, qkv: Tensor, num_heads: int) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _keep_qkv(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.num_heads = inputs[1]


def _differentiate_attend(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (qkv,) = ctx.saved_tensors
    return _attend_backward(grad, qkv, ctx.num_heads), None


attend.register_autograd(_differentiate_attend, setup_context=_keep_qkv)


def cross_entropy(logits_KxRxV: Tensor, targets_KxR: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's cross-entropy in fp32 or wider, (K, R), and the logits' gradient over R."""
    K, R, V = logits_KxRxV.shape
    if logits_KxRxV.device.type in WRITTEN_OUT:
        wide = logits_KxRxV.to(torch.promote_types(logits_KxRxV.dtype, torch.float32))
        log_probs, y = wide.log_softmax(-1), targets_KxR.unsqueeze(-1)
        grad = log_probs.exp()
        grad = grad.scatter(-1, y, grad.gather(-1, y) - 1) / R
        return -log_probs.gather(-1, y).squeeze(-1), grad.to(logits_KxRxV.dtype)
    logits, targets = logits_KxRxV.contiguous(), targets_KxR.contiguous()
    losses = torch.empty(K, R, dtype=torch.float32, device=logits.device)
    grad = torch.empty_like(logits)
    block = _block(V)
    _load().cross_entropy[(K * R,)](
        logits, targets, losses, grad, V, 1 / R, BLOCK=block,
        num_warps=max(1, min(16, block // 1024)),
    )  # fmt: skip
    return losses, grad


@torch.library.custom_op("hptransfer::read_out", mutates_args=())
def _read_out(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    losses, grad = cross_entropy(torch.bmm(hidden, weight), targets)
    return losses.mean(dim=1), grad


@_read_out.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    losses = hidden.new_empty(hidden.shape[0], dtype=wide)
    return losses, hidden.new_empty(*hidden.shape[:2], weight.shape[2])


def _keep_grad(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate_read_out(ctx: Any, by_loss: Tensor, _: Any) -> tuple[Tensor, Tensor, None]:
    hidden, weight, grad = ctx.saved_tensors
    scale = by_loss.view(-1, 1, 1)  # into the smaller factors
    by_hidden = torch.bmm(grad, weight.transpose(1, 2)) * scale
    scaled = (hidden * scale).to(hidden.dtype).transpose(1, 2)
    return by_hidden.to(hidden.dtype), torch.bmm(scaled, grad), None


_read_out.register_autograd(_differentiate_read_out, setup_context=_keep_grad)


def read_out(hidden_KxRxD: Tensor, weight_KxDxV: Tensor, targets_KxR: Tensor) -> Tensor:
    """Return each trial's mean cross-entropy, (K,); one pass over logits gives the gradient too."""
    losses: Tensor = _read_out(hidden_KxRxD, weight_KxDxV, targets_KxR)[0]
    return losses


@torch.library.custom_op("hptransfer::add_norm", mutates_args=())
def _add_norm(
    x_KxRxD: Tensor, branch_KxRxD: Tensor, gain_KxD: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    K, R, D = x_KxRxD.shape
    if x_KxRxD.device.type in WRITTEN_OUT:
        total = x_KxRxD + branch_KxRxD
        mean = total.mean(-1)
        centred = total - mean.unsqueeze(-1)
        scale = (centred.square().mean(-1) + eps).rsqrt()
        out = centred * scale.unsqueeze(-1) * gain_KxD.unsqueeze(1)
        return total, out.to(branch_KxRxD.dtype), mean, scale
    x, branch, gain = x_KxRxD.contiguous(), branch_KxRxD.contiguous(), gain_KxD.contiguous()
    total, out = torch.empty_like(x), torch.empty_like(branch)
    mean, scale = x.new_empty(K, R), x.new_empty(K, R)
    block = _block(D)
    rows = max(1, NORM_TILE // block)
    _load().add_norm[(-(-R // rows), K)](
        x, branch, gain, total, out, mean, scale, R, D, eps,
        ROWS=rows, BLOCK=block, num_warps=4 if block <= 2048 else 8,
    )  # fmt: skip
    return total, out, mean, scale


@_add_norm.register_fake
def _(x: Tensor, branch: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape), branch.new_empty(x.shape), x.new_empty(x.shape[:2]),
        x.new_empty(x.shape[:2]),
    )  # fmt: skip


@torch.library.custom_op("hptransfer::add_norm_backward", mutates_args=())
def _add_norm_backward(
    by_total: Tensor | None,
    by_out: Tensor,
    total: Tensor,
    gain: Tensor,
    mean: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    K, R, D = total.shape
    if total.device.type in WRITTEN_OUT:
        normed = (total - mean.unsqueeze(-1)) * scale.unsqueeze(-1)
        h = by_out * gain.unsqueeze(1)
        rest = h - normed * (h * normed).mean(-1, keepdim=True) - h.mean(-1, keepdim=True)
        by_x = rest * scale.unsqueeze(-1)
        if by_total is not None:
            by_x = by_x + by_total
        return by_x, by_x.to(by_out.dtype, copy=True), (by_out * normed).sum(1)
    by_out, total = by_out.contiguous(), total.contiguous()
    by_x, by_branch = torch.empty_like(total), torch.empty_like(by_out)
    block, parts = _block(D), -(-R // NORM_ROWS)
    by_gain = total.new_empty(K, parts, D)
    up = by_x if by_total is None else by_total.contiguous()  # not read where there is none
    _load().add_norm_backward[(parts, K)](
        up, by_out, total, gain.contiguous(), mean, scale, by_x, by_branch, by_gain, R, D,
        HAS_UP=by_total is not None, SIZE=NORM_ROWS,
        ROWS=max(1, min(NORM_ROWS, NORM_TILE // block)), BLOCK=block,
        num_warps=4 if block <= 2048 else 8,
    )  # fmt: skip
    return by_x, by_branch, by_gain.sum(1)


@_add_norm_backward.register_fake
def _(
    by_total: Tensor | None,
    by_out: Tensor,
    total: Tensor,
    gain: Tensor,
    mean: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        total.new_empty(total.shape), by_out.new_empty(total.shape), gain.new_empty(gain.shape)
    )  # fmt: skip


def _keep_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[0], inputs[2], *output[2:])
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _differentiate_add_norm(
    ctx: Any, by_total: Tensor | None, by_out: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, None]:
    return (*_add_norm_backward(by_total, by_out, *ctx.saved_tensors), None)


_add_norm.register_autograd(_differentiate_add_norm, setup_context=_keep_sum)


def add_norm(x: Tensor, branch: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the residual stream with a branch added, and its LayerNorm in the branch's type."""
    total, out, _, _ = _add_norm(x, branch, gain, eps)
    return total, out
