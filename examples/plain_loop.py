"""µP on one's own PyTorch model: a plain training loop at four times the base width.

Run it with ``python examples/plain_loop.py``. The model is an ordinary ``nn.Module`` that knows
nothing of hptransfer; the text is this file.
"""

import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from hptransfer import adopt

BASE_WIDTH, WIDTH = 16, 64
HEAD_SIZE, CONTEXT, BATCH, STEPS = 8, 32, 8, 60
LR = 2**-7  # tuned at BASE_WIDTH


class CharModel(nn.Module):
    """A small character-level decoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(128, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, width // HEAD_SIZE, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 128, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (B, T) characters to (B, T, 128) logits."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = (self.tokens(tokens) + self.positions(torch.arange(length))) / math.sqrt(2)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.head(self.norm(x))


def main() -> list[float]:
    """Train, print what each group got, and return the losses."""
    residual = {
        "layers.*.self_attn.out_proj.weight": "hidden_residual",
        "layers.*.linear2.weight": "hidden_residual",
    }
    base = adopt.infer_roles(CharModel, base_width=BASE_WIDTH, width=WIDTH, roles=residual)
    rule = {"roles": base, "parameterization": "mup"}

    model = CharModel(WIDTH)
    adopt.init_(model, seed=0, num_layers=2, **rule)
    groups = adopt.param_groups(model, lr=LR, weight_decay=1e-3, **rule)
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 10, (STEPS - step) / 20)
    )
    adopt.guard(optimizer)  # a scheduler that overwrites the groups' ratios is an error
    for group in groups:
        tensors = f"{len(group['params'])} tensors"
        print(f"{group['name']}: lr {group['rule_lr']:g}, wd {group['weight_decay']:g}, {tensors}")

    text = torch.tensor([min(ord(c), 127) for c in Path(__file__).read_text(encoding="utf-8")])
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(STEPS):
        starts = torch.randint(len(text) - CONTEXT - 1, (BATCH, 1), generator=generator)
        batch = text[starts + torch.arange(CONTEXT + 1)]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.2f} to {losses[-1]:.2f} nats in {STEPS} steps")
    return losses


if __name__ == "__main__":
    main()
