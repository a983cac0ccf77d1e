"""The GPT of Kalra & Barkeshli 2026, K trials in one program.

Every weight has a leading K and every product is batched over it, so a trial's numbers never
depend on its neighbours'. The model takes numbers; no rule's name reaches it.

Shape letters: K trials, B batch, T time, D width, N heads, H head size, F feed-forward,
V vocabulary.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from hptransfer.model._gpt_shape import GPTShape
from hptransfer.model.loss import readout_cross_entropy

NORM_EPS = 1e-5

Tap = Callable[[str, Tensor], None]
"""What looks at the outputs of the model's modules on their way."""


def _ignore(name: str, output: Tensor) -> None:
    """Look at nothing."""


def _normalise(x_KxRxD: Tensor, gain_KxD: Tensor, dtype: torch.dtype) -> Tensor:
    """LayerNorm with a gain per trial and no bias, in `dtype`."""
    size = x_KxRxD.shape[-1:]
    if x_KxRxD.device.type == "cpu" and not torch.compiler.is_compiling():
        # Trial by trial the kernel takes the gain along: fewer passes over memory.
        trials = zip(x_KxRxD.unbind(0), gain_KxD.unbind(0), strict=True)
        return torch.stack([F.layer_norm(x, size, g, eps=NORM_EPS).to(dtype) for x, g in trials])
    return (F.layer_norm(x_KxRxD, size, eps=NORM_EPS) * gain_KxD.unsqueeze(1)).to(dtype)


def _attend(qkv_KxRx3D: Tensor, shape: GPTShape, num_sequences: int) -> Tensor:
    """Causal multi-head attention of queries that are scaled already; returns (K, R, D)."""
    K, R, _ = qkv_KxRx3D.shape
    B, T, N, H = num_sequences, R // num_sequences, shape.num_heads, shape.head_size
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


def compute_hidden(
    parameters: Mapping[str, Tensor],
    inputs_KxBxT: Tensor,
    *,
    attention_scale: Tensor,
    shape: GPTShape,
    dtype: torch.dtype | None = None,
    tap: Tap | None = None,
) -> Tensor:
    """Return the normalised final hidden states, shape (K, B·T, D), in `dtype`.

    Parameters are those of `compute_losses`, with inputs alone in place of whole sequences. `tap`
    is called with each module's name and output, (K, B·T, ·); queries are scaled already.
    """
    tap = tap or _ignore
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

    # The kernels' own scale is one number for all trials; each trial's goes into the weights of
    # its queries, which are fewer than the queries.
    ones_KxD = torch.ones(K, D, dtype=attention_scale.dtype, device=attention_scale.device)
    scale_Kx1x3D = torch.cat([attention_scale.unsqueeze(1) * ones_KxD, ones_KxD, ones_KxD], dim=1)
    scale_Kx1x3D = scale_Kx1x3D.unsqueeze(1)

    for layer in range(shape.num_layers):
        p = f"layers.{layer}"
        h = _normalise(x, parameters[f"{p}.attention_norm"], dtype)
        qkv = torch.bmm(h, (parameters[f"{p}.attention.qkv"] * scale_Kx1x3D).to(dtype))
        tap(f"{p}.attention.qkv", qkv)
        attended = _attend(qkv, shape, B)
        branch = torch.bmm(attended, parameters[f"{p}.attention.out"].to(dtype))
        tap(f"{p}.attention.out", branch)
        x = x + branch
        h = _normalise(x, parameters[f"{p}.feed_forward_norm"], dtype)
        h = torch.bmm(h, parameters[f"{p}.feed_forward.up"].to(dtype))
        tap(f"{p}.feed_forward.up", h)
        branch = torch.bmm(F.gelu(h), parameters[f"{p}.feed_forward.down"].to(dtype))
        tap(f"{p}.feed_forward.down", branch)
        x = x + branch

    hidden = _normalise(x, parameters["final_norm"], dtype)
    tap("final_norm", hidden)
    return hidden


def compute_losses(
    parameters: Mapping[str, Tensor],
    tokens_KxBxT1: Tensor,
    *,
    attention_scale: Tensor,
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
    attention_scale : Tensor of shape (K,)
        Factor on each trial's attention logits.
    shape : GPTShape
        Sizes; T may be shorter than the context.
    dtype : torch.dtype, optional
        Precision of the matrix products; the weights' own if not given. The residual stream,
        the norms and the loss stay in the weights' precision.

    Returns
    -------
    Tensor of shape (K,)
    """
    hidden = compute_hidden(
        parameters,
        tokens_KxBxT1[..., :-1],
        attention_scale=attention_scale,
        shape=shape,
        dtype=dtype,
    )
    readout = parameters["readout"].to(hidden.dtype)
    return readout_cross_entropy(hidden, readout, tokens_KxBxT1[..., 1:].flatten(1))
