"""A plain training script: it knows nothing of hptransfer, which runs it by its command line.

A two-layer network learns to add noisy sines; wider is better, and the best learning rate falls.
"""

import argparse
import json
import math

import torch
from torch import nn


def make_data(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points in 16 dimensions and the sum of their sines."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 16, generator=generator)
    return x, torch.sin(2 * x).sum(dim=1, keepdim=True)


def train(width: int, lr: float, seed: int, steps: int) -> float:
    """Train for some steps and return the loss on held-out data."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = nn.Sequential(
        nn.Linear(16, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    inputs, targets = make_data(8192, seed=1234)
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(inputs), (128,), generator=order)
        loss = nn.functional.mse_loss(model(inputs[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    inputs, targets = make_data(4096, seed=5678)
    with torch.no_grad():
        return nn.functional.mse_loss(model(inputs), targets).item()


def main() -> None:
    """Train as the command line says, and print the loss as a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    loss = train(args.width, args.lr, args.seed, args.steps)
    print(json.dumps({"step": args.steps, "loss": loss if math.isfinite(loss) else None}))


if __name__ == "__main__":
    main()
