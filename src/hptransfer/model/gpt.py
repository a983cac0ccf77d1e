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

from hptransfer.model import _kernels
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


def _add_and_normalise(
    x_KxRxD: Tensor, branch_KxRxD: Tensor, gain_KxD: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the residual stream with a branch added, and its LayerNorm."""
    if _kernels.serves_norm(branch_KxRxD):
        return _kernels.add_norm(x_KxRxD, branch_KxRxD, gain_KxD, NORM_EPS)
    x_KxRxD = x_KxRxD + branch_KxRxD
    return x_KxRxD, _normalise(x_KxRxD, gain_KxD, dtype)


def _attend(qkv_KxRx3D: Tensor, shape: GPTShape, num_sequences: int) -> Tensor:
    """Causal multi-head attention of queries that are scaled already; returns (K, R, D)."""
    K, R, _ = qkv_KxRx3D.shape
    B, T, N, H = num_sequences, R // num_sequences, shape.num_heads, shape.head_size
    if _kernels.serves_attention(qkv_KxRx3D, time=T, head_size=H):
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


def scale_of_weights(name: str, attention_scale: Tensor, shape: GPTShape) -> Tensor | None:
    """Return what a product's weights are multiplied by first, broadcasting; None for nothing.

    The attention kernels' own scale is one number for all trials; each trial's goes into the
    weights of its queries, which are fewer than the queries.

    Examples
    --------
    >>> from hptransfer.model import GPTShape
    >>> shape = GPTShape(width=16, num_layers=1, head_size=8, context=4, vocab_size=10)
    >>> scale = scale_of_weights("layers.0.attention.qkv", torch.tensor([0.25]), shape)
    >>> scale.shape, scale[0, 0, 0].item(), scale[0, 0, -1].item()  # of queries and of values
    (torch.Size([1, 1, 48]), 0.25, 1.0)
    """
    if not name.endswith("attention.qkv"):
        return None
    queries_KxD = attention_scale.unsqueeze(1).expand(-1, shape.width)
    others_Kx2D = torch.ones_like(attention_scale).unsqueeze(1).expand(-1, 2 * shape.width)
    return torch.cat([queries_KxD, others_Kx2D], dim=1).unsqueeze(1)


def is_product(name: str) -> bool:
    """Return whether a parameter is a factor of a matrix product, not a table or a gain.

    Examples
    --------
    >>> is_product("layers.0.attention.qkv"), is_product("layers.0.attention_norm")
    (True, False)
    """
    return name == "readout" or ".attention." in name or ".feed_forward." in name


def cast_weights(
    parameters: Mapping[str, Tensor],
    *,
    attention_scale: Tensor,
    shape: GPTShape,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Return parameters with those of products as they are taken: scaled, and in `dtype`.

    Examples
    --------
    >>> from hptransfer.model import GPTShape, list_parameters
    >>> shape = GPTShape(width=16, num_layers=1, head_size=8, context=4, vocab_size=10)
    >>> weights = {each.name: torch.zeros(2, *each.shape) for each in list_parameters(shape)}
    >>> scale = torch.tensor([0.25, 0.125])
    >>> cast = cast_weights(weights, attention_scale=scale, shape=shape, dtype=torch.bfloat16)
    >>> cast["readout"].dtype, cast["final_norm"].dtype
    (torch.bfloat16, torch.float32)
    """
    cast = dict(parameters)
    for name, value in parameters.items():
        if is_product(name):
            scale = scale_of_weights(name, attention_scale, shape)
            cast[name] = (value if scale is None else value * scale).to(dtype)
    return cast


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

    if attention_scale is not None:
        parameters = cast_weights(
            parameters, attention_scale=attention_scale, shape=shape, dtype=dtype
        )
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
        Factor on each trial's attention logits; None where `parameters` come from `cast_weights`.
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
    dtype = dtype or parameters["token_embedding"].dtype
    if attention_scale is not None:
        parameters = cast_weights(
            parameters, attention_scale=attention_scale, shape=shape, dtype=dtype
        )
    hidden = compute_hidden(
        parameters, tokens_KxBxT1[..., :-1], attention_scale=None, shape=shape, dtype=dtype
    )
    targets_KxR = tokens_KxBxT1[..., 1:].flatten(1)
    return readout_cross_entropy(hidden, parameters["readout"], targets_KxR)
