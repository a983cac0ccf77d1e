"""Small models of one's own, as a user of PyTorch writes them."""

import torch
from torch import nn
from torch.nn import functional as F

VOCAB, CONTEXT, HEAD = 11, 6, 8


class Attention(nn.Module):
    """Causal attention; ``num_heads`` fixed lets the head size grow, else it is ``HEAD``."""

    def __init__(self, width, *, num_heads=None, kv_heads=None, scale=None):
        super().__init__()
        self.num_heads = num_heads or width // HEAD
        self.head_dim = width // self.num_heads
        self.kv_heads = kv_heads or self.num_heads
        self.scale = scale
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x):
        B, T, D = x.shape
        q = self.q_proj(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = (
            p(x)
            .view(B, T, self.kv_heads, self.head_dim)
            .transpose(1, 2)
            .repeat_interleave(self.num_heads // self.kv_heads, dim=1)
            for p in (self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.out(y.transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    def __init__(self, width, **options):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, **options)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x, multiplier=1.0):
        x = x + multiplier * self.attention(self.norm1(x))
        return x + multiplier * self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A decoder with a learned position table and an untied (or tied) readout.

    The multipliers are those on residual branches, embeddings and logits.
    """

    def __init__(
        self,
        width,
        *,
        num_layers=2,
        tied=False,
        multiplier=1.0,
        embedding_multiplier=1.0,
        readout_multiplier=1.0,
        **options,
    ):
        super().__init__()
        self.multiplier = multiplier
        self.embedding_multiplier = embedding_multiplier
        self.readout_multiplier = readout_multiplier
        self.tokens = nn.Embedding(VOCAB, width)
        self.positions = nn.Parameter(torch.zeros(1, CONTEXT, width))
        self.layers = nn.ModuleList(Block(width, **options) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCAB, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions[:, : tokens.shape[1]]
        x = self.embedding_multiplier * x
        for layer in self.layers:
            x = layer(x, self.multiplier)
        return self.readout_multiplier * self.head(self.norm(x))


class MLP(nn.Module):
    """Three matrices with biases, from 5 inputs to 3 outputs."""

    def __init__(self, width, hidden=None):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.middle = nn.Linear(width, hidden or width)
        self.last = nn.Linear(hidden or width, 3)

    def forward(self, x):
        return self.last(torch.relu(self.middle(torch.relu(self.first(x)))))


def train(model, optimizer, *, steps, seed=0):
    """Train on sequences in which each token is twice the last plus 1; return the losses."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        rows = [torch.randint(VOCAB, (4,), generator=generator)]
        while len(rows) <= CONTEXT:
            rows.append((2 * rows[-1] + 1) % VOCAB)
        tokens = torch.stack(rows, dim=1)
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)
