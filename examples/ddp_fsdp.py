"""One table of roles for every wrapper: torch.compile, DDP, FSDP2, a distributed checkpoint.

Trains the same model alone, compiled, under DDP, under FSDP2, and under FSDP2 from a checkpoint
that was saved half way, and prints the losses and the groups of each as JSON. They are equal.

    torchrun --nproc-per-node 2 examples/ddp_fsdp.py FOLDER
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from small_gpt import RESIDUAL, SmallGPT, make_batches, make_optimizer, set_weights
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from hptransfer.adopt import guard, infer_roles

WIDTH, BASE_WIDTH, STEPS = 64, 32, 4


def build(wrap: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, AdamW]:
    """Return a wrapped model with the rule's initial weights, and its optimizer."""
    base = infer_roles(SmallGPT, base_width=BASE_WIDTH, width=WIDTH, roles=RESIDUAL)
    torch.manual_seed(dist.get_rank())  # ranks would differ but for init_
    model = SmallGPT(WIDTH).double()
    if wrap is not shard:
        set_weights(model, base)
    model = wrap(model)
    if wrap is shard:  # as where the whole model fits no single rank
        set_weights(model, base)
    return model, make_optimizer(model, base)


def compile_(model: nn.Module) -> nn.Module:
    """Return the model compiled; ``aot_eager`` traces all and spares the C++ compiler."""
    return torch.compile(model, backend="aot_eager")


def shard(model: nn.Module) -> nn.Module:
    """Return the model sharded with FSDP2, block by block."""
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def train(model: nn.Module, optimizer: AdamW, steps: range, *, split: bool) -> list[float]:
    """Train on whole batches, or on this rank's share of each; return the whole batch's losses."""
    losses = []
    for batch in make_batches(STEPS)[steps.start : steps.stop]:
        part = batch.chunk(dist.get_world_size())[dist.get_rank()] if split else batch
        loss = model(part)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        if split:
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        losses.append(mean.item())
    return losses


def describe(optimizer: AdamW) -> list[list[object]]:
    """Return each group's name, learning rate, weight decay and number of tensors."""
    return sorted(
        [group["name"], group["lr"], group["weight_decay"], group["rule_lr"], len(group["params"])]
        for group in optimizer.param_groups
    )


def main(folder: Path) -> None:
    """Run every way of training and print them."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=os.environ.get("INIT_METHOD", "env://"),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    results = {}
    whole, half = range(STEPS), STEPS // 2
    for name, wrap, split in (
        ("alone", lambda model: model, False),
        ("compile", compile_, False),
        ("ddp", DistributedDataParallel, True),
        ("fsdp", shard, True),
    ):
        model, optimizer = build(wrap)
        losses = train(model, optimizer, whole, split=split)
        results[name] = {"losses": losses, "groups": describe(optimizer)}

    model, optimizer = build(shard)
    losses = train(model, optimizer, range(half), split=True)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / "checkpoint")
    model, optimizer = build(shard)
    weights, state = get_state_dict(model, optimizer)
    document = {"model": weights, "optimizer": state}
    dcp.load(document, checkpoint_id=folder / "checkpoint")
    set_state_dict(
        model,
        optimizer,
        model_state_dict=document["model"],
        optim_state_dict=document["optimizer"],
    )
    guard(optimizer)
    losses += train(model, optimizer, range(half, STEPS), split=True)
    results["checkpoint"] = {"losses": losses, "groups": describe(optimizer)}
    if dist.get_rank() == 0:
        print(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
