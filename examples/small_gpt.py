"""A model of one's own for the other examples: a plain decoder, its rule, optimizer and data."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hptransfer.adopt import RoleTable, guard, init_, param_groups

VOCAB_SIZE, CONTEXT, HEAD_SIZE, NUM_LAYERS = 64, 16, 16, 2
RULE, LR = "mup", 2**-6
RESIDUAL = {"blocks.*.proj.weight": "hidden_residual", "blocks.*.down.weight": "hidden_residual"}


class Block(nn.Module):
    """Attention and feed-forward, pre-norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, -1, HEAD_SIZE).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class SmallGPT(nn.Module):
    """From tokens (B, T + 1) to the mean next-token loss in nats."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB_SIZE, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(NUM_LAYERS))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCAB_SIZE, bias=False)

    def forward(self, batch: Tensor) -> Tensor:
        """Return the loss."""
        inputs, targets = batch[:, :-1], batch[:, 1:]
        x = self.tokens(inputs) + self.positions.weight[: inputs.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def make_batches(num_batches: int, batch: int = 8) -> list[Tensor]:
    """Return token sequences that can be learned: each step adds a constant, modulo the size."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(VOCAB_SIZE, (num_batches, batch, 1), generator=generator)
    step = torch.randint(1, 4, (num_batches, batch, 1), generator=generator)
    return list((start + step * torch.arange(CONTEXT + 1)) % VOCAB_SIZE)


def set_weights(model: nn.Module, base: RoleTable) -> None:
    """Set the rule's initial weights."""
    init_(model, roles=base, parameterization=RULE, seed=0, num_layers=NUM_LAYERS, verbose=False)


def make_optimizer(model: nn.Module, base: RoleTable) -> AdamW:
    """Return AdamW with the rule's groups, guarded against schedulers that break their ratios."""
    groups = param_groups(model, roles=base, parameterization=RULE, lr=LR, weight_decay=0.01)
    optimizer = AdamW(groups, lr=LR, betas=(0.9, 0.95))
    guard(optimizer)
    return optimizer


def make_warmup(optimizer: AdamW) -> LRScheduler:
    """Return a warmup of five steps."""
    return LambdaLR(optimizer, lambda step: min(1, (step + 1) / 5))
