"""The plain way to train one GPT: eager modules in nanoGPT's style, one model, one optimizer.

The same GPT as ours, written as such scripts are: fused attention, full logits, fused AdamW.
Shape letters: B batch, T time, D width, N heads, H head size.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hptransfer.model import GPTShape


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        D = shape.width
        self.num_heads = shape.num_heads
        self.ln1 = nn.LayerNorm(D, eps=1e-5, bias=False)
        self.qkv = nn.Linear(D, 3 * D, bias=False)
        self.out = nn.Linear(D, D, bias=False)
        self.ln2 = nn.LayerNorm(D, eps=1e-5, bias=False)
        self.up = nn.Linear(D, 4 * D, bias=False)
        self.down = nn.Linear(4 * D, D, bias=False)

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        """Return the residual stream after the block."""
        B, T, D = x_BxTxD.shape
        q, k, v = (
            part.view(B, T, self.num_heads, -1).transpose(1, 2)
            for part in self.qkv(self.ln1(x_BxTxD)).split(D, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x_BxTxD + self.out(y.transpose(1, 2).contiguous().view(B, T, D))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class PlainGPT(nn.Module):
    """Tokens and targets in, mean cross-entropy out."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.token = nn.Embedding(shape.vocab_size, shape.width)
        self.position = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.norm = nn.LayerNorm(shape.width, eps=1e-5, bias=False)
        self.readout = nn.Linear(shape.width, shape.vocab_size, bias=False)

    def forward(self, inputs_BxT: Tensor, targets_BxT: Tensor) -> Tensor:
        """Return the mean loss, in nats."""
        positions = torch.arange(inputs_BxT.shape[1], device=inputs_BxT.device)
        x = (self.token(inputs_BxT) + self.position(positions)) * math.sqrt(0.5)
        for block in self.blocks:
            x = block(x)
        logits = self.readout(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), targets_BxT.flatten())

    @torch.no_grad()
    def copy_from(self, weights: dict[str, Tensor]) -> None:
        """Take over one trial's weights, named as in `hptransfer.model.list_parameters`."""
        self.token.weight.copy_(weights["token_embedding"])
        self.position.weight.copy_(weights["position_embedding"])
        self.norm.weight.copy_(weights["final_norm"])
        self.readout.weight.copy_(weights["readout"].T)
        for i, block in enumerate(self.blocks):
            p = f"layers.{i}"
            block.ln1.weight.copy_(weights[f"{p}.attention_norm"])
            block.qkv.weight.copy_(weights[f"{p}.attention.qkv"].T)
            block.out.weight.copy_(weights[f"{p}.attention.out"].T)
            block.ln2.weight.copy_(weights[f"{p}.feed_forward_norm"])
            block.up.weight.copy_(weights[f"{p}.feed_forward.up"].T)
            block.down.weight.copy_(weights[f"{p}.feed_forward.down"].T)


def load_peer(folder: Path, shape: GPTShape) -> nn.Module:
    """Return the model of a nanoGPT checkout: its classes GPT and GPTConfig of model.py."""
    spec = importlib.util.spec_from_file_location("peer_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        block_size=shape.context, vocab_size=shape.vocab_size, n_layer=shape.num_layers,
        n_head=shape.num_heads, n_embd=shape.width, dropout=0.0, bias=False,
    )  # fmt: skip
    model = module.GPT(config)

    class LossOnly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
            return self.model(inputs, targets)[1]

    return LossOnly()


def cut_batches(tokens: np.ndarray, *, batch: int, context: int, device: str) -> Iterator[Tensor]:
    """Yield (B, T + 1) tokens cut at random on the host and sent over, as nanoGPT's loop does."""
    while True:
        starts = torch.randint(len(tokens) - context - 1, (batch,)).tolist()
        windows = [torch.from_numpy(tokens[i : i + context + 1].astype(np.int64)) for i in starts]
        stacked = torch.stack(windows)
        if device == "cuda":
            stacked = stacked.pin_memory()
        yield stacked.to(device, non_blocking=True)


def make_step(
    model: nn.Module, *, lr: float, bf16: bool, device: str, clip: float | None = None
) -> Callable[[Tensor], Tensor]:
    """Return a function that takes one AdamW step on (B, T + 1) tokens and returns the loss.

    With `clip` the norm of all gradients together is at most that.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True
    )

    def step(tokens_BxT1: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            loss = model(tokens_BxT1[:, :-1], tokens_BxT1[:, 1:].contiguous())
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step
