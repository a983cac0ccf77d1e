"""Check and time the kernels of a compiled step on a GPU, each against PyTorch's own.

    python benchmarks/gpu_kernels.py -o kernels.json

At the sizes of sweeps (widths 64, 256 and 1024): how far results and gradients lie from fp32
products' and from PyTorch's bf16, microseconds of both, and of other numbers of warps. The last
line names the kernels that hold; one that does not is told on stderr.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from hptransfer.model import _kernels, _triton

#: (K x B, T, N, H) of attention, and (K, R, V) of the readout, at widths 64, 256 and 1024.
ATTENTION = [(1024, 128, 1, 64), (1024, 128, 4, 64), (256, 128, 16, 64), (1024, 100, 4, 32)]
READOUT = [(32, 4096, 4096), (8, 4096, 4096), (4, 1000, 5000)]
#: (K, R, D) of the residual stream.
STREAM = [(32, 4096, 64), (32, 4096, 256), (8, 4096, 1024), (3, 1000, 100)]
#: Relative distance from fp32 that bf16 results may have, in norm: PyTorch's own plus a tenth.
SLACK = 1.1


def microseconds(call: Callable[[], Any]) -> float:
    """Return the median time of a call on the device."""
    from triton.testing import do_bench

    return round(1e3 * do_bench(call, warmup=10, rep=40, return_mode="median"), 1)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative distance in norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def check_attention(S: int, T: int, N: int, H: int) -> dict[str, Any]:
    """Return how attention compares at one size."""
    D = N * H
    qkv = torch.randn(S, T, 3 * D, device="cuda").bfloat16()
    qkv[..., :D] *= H**-0.5
    grad = torch.randn(S, T, D, device="cuda").bfloat16()

    def plain(x: torch.Tensor) -> torch.Tensor:
        q, k, v = x.view(S, T, 3, N, H).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        return out.transpose(1, 2).reshape(S, T, D)

    wide, own = qkv.float().requires_grad_(), qkv.clone().requires_grad_()
    expected = plain(wide)
    (expected_grad,) = torch.autograd.grad(expected, wide, grad.float())
    theirs = plain(own)
    (their_grad,) = torch.autograd.grad(theirs, own, grad)
    found = _kernels.attend(own, N)
    (found_grad,) = torch.autograd.grad(found, own, grad)
    (again,) = torch.autograd.grad(_kernels.attend(own, N), own, grad)
    distances = {
        "ours": [distance(found, expected), distance(found_grad, expected_grad)],
        "pytorch": [distance(theirs, expected), distance(their_grad, expected_grad)],
    }
    out, into, time = torch.empty_like(grad), torch.empty_like(qkv), _kernels._block(T)
    theirs = plain(own)
    return {
        "kernel": "attention", "size": [S, T, N, H], "distances": distances,
        "same_bits": bool(torch.equal(again, found_grad)),
        "holds": all(a <= SLACK * b + 1e-3 for a, b in zip(*distances.values(), strict=True)),
        "forward": {
            "pytorch": microseconds(lambda: plain(qkv)),
            **{
                f"{warps} warps": microseconds(
                    lambda w=warps: _triton.attend[(S * N,)](
                        qkv, out, T, N, TIME=time, HEAD=H, num_warps=w
                    )
                )
                for warps in (4, 8)
            },
        },
        "backward": {
            "pytorch": microseconds(
                lambda: torch.autograd.grad(theirs, own, grad, retain_graph=True)
            ),
            **{
                f"{warps} warps": microseconds(
                    lambda w=warps: _triton.attend_backward[(S * N,)](
                        qkv, grad, into, T, N, TIME=time, HEAD=H, num_warps=w
                    )
                )
                for warps in (4, 8)
            },
        },
    }  # fmt: skip


def check_loss(K: int, R: int, V: int) -> dict[str, Any]:
    """Return how cross-entropy compares at one size."""
    logits = (2 * torch.randn(K, R, V, device="cuda")).bfloat16()
    targets = torch.randint(V, (K, R), device="cuda")
    losses, grad = _kernels.cross_entropy(logits, targets)
    _, again = _kernels.cross_entropy(logits, targets)
    wide = logits[:2].float().requires_grad_()
    expected = F.cross_entropy(wide.view(-1, V), targets[:2].view(-1), reduction="none").view(2, R)
    (expected_grad,) = torch.autograd.grad(expected.mean(1).sum(), wide)
    distances = {
        "losses": distance(losses[:2], expected), "gradient": distance(grad[:2], expected_grad)
    }  # fmt: skip
    out = torch.empty_like(logits)
    return {
        "kernel": "loss", "size": [K, R, V], "distances": distances,
        "same_bits": bool(torch.equal(again, grad)),
        "holds": distances["losses"] < 1e-5 and distances["gradient"] < 4e-3,
        "microseconds": {
            "a copy": microseconds(lambda: out.copy_(logits)),
            **{
                f"{warps} warps": microseconds(
                    lambda w=warps: _triton.cross_entropy[(K * R,)](
                        logits, targets, losses, out, V, 1 / R, BLOCK=_kernels._block(V),
                        num_warps=w,
                    )
                )
                for warps in (2, 4, 8, 16)
            },
        },
    }  # fmt: skip


def check_norm(K: int, R: int, D: int) -> dict[str, Any]:
    """Return how an added branch with its LayerNorm compares at one size."""
    x, up = (torch.randn(K, R, D, device="cuda") for _ in range(2))
    branch, by_out = (torch.randn(K, R, D, device="cuda").bfloat16() for _ in range(2))
    gain = 1 + 0.1 * torch.randn(K, D, device="cuda")
    leaves = [each.requires_grad_() for each in (x, branch, gain)]
    wide = [each.detach().double().requires_grad_() for each in leaves]
    total = wide[0] + wide[1]
    expected = F.layer_norm(total, (D,), eps=1e-5) * wide[2].unsqueeze(1)
    aim = (total * up.double()).sum() + (expected * by_out.double()).sum()
    expected_grads = torch.autograd.grad(aim, wide)
    found = _kernels.add_norm(*leaves, 1e-5)
    grads, again = (
        torch.autograd.grad(found, leaves, (up, by_out), retain_graph=True) for _ in range(2)
    )
    distances = {
        "sum": distance(found[0], total), "normed": distance(found[1], expected),
        **{
            name: distance(a, b)
            for name, a, b in zip(("x", "branch", "gain"), grads, expected_grads, strict=True)
        },
    }  # fmt: skip
    with torch.no_grad():
        times = {
            "forward": microseconds(lambda: _kernels.add_norm(*leaves, 1e-5)),
            "backward": microseconds(
                lambda: torch.autograd.grad(found, leaves, (up, by_out), retain_graph=True)
            ),
        }
    return {
        "kernel": "norm", "size": [K, R, D], "distances": distances,
        "same_bits": all(torch.equal(a, b) for a, b in zip(grads, again, strict=True)),
        "holds": all(
            value < (4e-3 if name in ("normed", "branch") else 1e-5)
            for name, value in distances.items()
        ),
        "microseconds": times,
    }  # fmt: skip


def main() -> None:
    """Check every size; print the kernels that hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    jobs = [(check_attention, size) for size in ATTENTION] + [
        (check_loss, size) for size in READOUT
    ]
    jobs += [(check_norm, size) for size in STREAM]
    bad = set()
    for check, size in jobs:
        try:
            row = check(*size)
        except Exception as error:
            name = check.__name__.removeprefix("check_")
            row = {"kernel": name, "size": size, "holds": False, "error": str(error)[:2000]}
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if not (row["holds"] and row.get("same_bits")):
            bad.add(row["kernel"])
        if args.output:
            args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(" ".join(sorted(_kernels.ENABLED - bad)) or "none")


if __name__ == "__main__":
    main()
