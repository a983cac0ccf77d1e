"""A plain training script: it knows nothing of hptransfer, which runs it by its command line.

A two-layer network learns by Adam to name which of eight kinds a point is; NumPy alone, so that a
trial takes a second. Wider is better, and the best learning rate falls as the width grows.
"""

import argparse
import json

import numpy as np

INPUTS, KINDS, BATCH = 16, 8, 64


def make_data(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points and their kinds, which a fixed random network draws."""
    fixed, rng = np.random.default_rng(7), np.random.default_rng(seed)
    hidden, out = fixed.standard_normal((INPUTS, 64)), fixed.standard_normal((64, KINDS))
    x = rng.standard_normal((count, INPUTS))
    logits = np.tanh(x @ hidden) @ out / 3 + rng.gumbel(size=(count, KINDS))
    return x, logits.argmax(axis=1)


def forward(weights: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> tuple[float, list]:
    """Return the loss in nats and its gradients."""
    h = np.maximum(x @ weights[0], 0)
    logits = h @ weights[1]
    logits -= logits.max(axis=1, keepdims=True)
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y] + 1e-30).mean()
    p[np.arange(len(y)), y] -= 1
    back = (p @ weights[1].T) * (h > 0)
    return float(loss), [x.T @ back / len(y), h.T @ p / len(y)]


def main() -> None:
    """Train as the command line says, and print the loss as lines of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    shapes = [(INPUTS, args.width), (args.width, KINDS)]
    weights = [rng.standard_normal(shape) / shape[0] ** 0.5 for shape in shapes]
    means, squares = [np.zeros(s) for s in shapes], [np.zeros(s) for s in shapes]
    x, y = make_data(20_000, seed=1)
    held_out = make_data(4_000, seed=2)
    for step in range(1, args.steps + 1):
        rows = rng.integers(len(x), size=BATCH)
        _, gradients = forward(weights, x[rows], y[rows])
        lr = args.lr * min(1, step / 40, 2 * (1 - step / (args.steps + 1)))
        for w, m, v, g in zip(weights, means, squares, gradients, strict=True):
            m += 0.1 * (g - m)
            v += 0.05 * (g * g - v)
            w -= lr * m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
        if step % 100 == 0:
            loss, _ = forward(weights, *held_out)
            print(json.dumps({"step": step, "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
