"""A plain, unstacked GPT written from its description in the paper, with torch.nn modules only.

It shares no code with the package: it is what the stacked program is compared against.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, head_size, scale):
        super().__init__()
        self.num_heads, self.scale = width // head_size, scale
        self.ln1 = nn.LayerNorm(width, eps=1e-5, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.ln2 = nn.LayerNorm(width, eps=1e-5, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = (
            part.view(B, T, self.num_heads, -1).transpose(1, 2)
            for part in self.qkv(self.ln1(x)).split(D, dim=-1)
        )
        logits = q @ k.transpose(-1, -2) * self.scale
        causal = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
        attention = logits.masked_fill(~causal, -math.inf).softmax(-1)
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class ReferenceGPT(nn.Module):
    def __init__(self, *, width, num_layers, head_size, context, vocab_size, attention_scale):
        super().__init__()
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(
            Block(width, head_size, attention_scale) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width, eps=1e-5, bias=False)
        self.readout = nn.Linear(width, vocab_size, bias=False)

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = (self.token(tokens) + self.position(positions)) / math.sqrt(2)
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x))

    def loss(self, tokens):
        logits = self(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def names(self):
        """Map our parameter names to (module parameter, whether it is transposed here)."""
        names = {
            "token_embedding": (self.token.weight, False),
            "position_embedding": (self.position.weight, False),
            "final_norm": (self.norm.weight, False),
            "readout": (self.readout.weight, True),
        }
        for i, block in enumerate(self.blocks):
            names |= {
                f"layers.{i}.attention_norm": (block.ln1.weight, False),
                f"layers.{i}.attention.qkv": (block.qkv.weight, True),
                f"layers.{i}.attention.out": (block.proj.weight, True),
                f"layers.{i}.feed_forward_norm": (block.ln2.weight, False),
                f"layers.{i}.feed_forward.up": (block.up.weight, True),
                f"layers.{i}.feed_forward.down": (block.down.weight, True),
            }
        return names
