"""Tokens per second of a sweep of one's own model: trials stacked, against one after the other.

    python benchmarks/own_models.py                       # a Llama on this machine
    python benchmarks/own_models.py --model mamba --widths 64 128 --stack 4 --rounds 5
    python benchmarks/own_models.py --device cuda --widths 64 256 --stack 16 --precision bf16

All sides train the same trials by the same ensemble, forward, backward and the optimizer's step,
in turns within one process (A B A B ...); medians over the rounds and their ratio are printed as
they come, and written to a dated file with -o. On a GPU the stacked step is also captured as a
CUDA graph, and compiled and captured: compiling comes last, once every width has its other rows,
and what is not done when --limit seconds are over is left out.
"""

import argparse
import signal
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch

from dated import describe_making, write_document
from hptransfer.adopt import RuleOptions, infer_roles, init_, resolve_tensors
from hptransfer.train._device import free_memory, set_determinism
from hptransfer.train._module_ensemble import ModuleEnsemble, ModuleRun
from hptransfer.train._modules import TOKENS, language_model_loss, why_not_stacked
from hptransfer.train._program import describe_problem

ONE_BY_ONE = "one by one"
VOCAB, HEAD, LAYERS, CONTEXT, BATCH = 4096, 32, 3, 128, 32
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_llama(width):
    """Return a small Llama with grouped queries and SwiGLU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=width, intermediate_size=4 * width,
            num_hidden_layers=LAYERS, num_attention_heads=width // HEAD,
            num_key_value_heads=max(1, width // HEAD // 2), max_position_embeddings=CONTEXT,
            tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def make_gpt2(width):
    """Return a small GPT-2 without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_embd=width, n_layer=LAYERS, n_head=width // HEAD,
            n_positions=CONTEXT, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def make_mamba(width):
    """Return a small Mamba."""
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(
        MambaConfig(
            vocab_size=VOCAB, hidden_size=width, state_size=8, num_hidden_layers=LAYERS,
            tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


MODELS = {"llama": make_llama, "gpt2": make_gpt2, "mamba": make_mamba}


def make_ensemble(make, width, args, mode):
    """Return an ensemble of equal trials under SP, their steps taken as a mode says."""
    roles = infer_roles(make, base_width=args.widths[0] // 2, width=width)
    options = RuleOptions(parameterization="sp", lr=2.0**-9, num_layers=LAYERS)
    numbers = {each.entry.name: each for each in resolve_tensors(roles, options)}
    first = make(width)
    init_(first, roles=roles, parameterization="sp", verbose=False, num_layers=LAYERS)
    runs = [ModuleRun(seed=k, model=first, numbers=numbers) for k in range(args.stack)]
    one_by_one = mode == ONE_BY_ONE
    return ModuleEnsemble(
        runs, language_model_loss, device=args.device, compute_dtype=DTYPES[args.precision],
        one_by_one=one_by_one, mode="eager" if one_by_one else mode,
    )  # fmt: skip


def time_steps(ensemble, batch, steps):
    """Return the seconds of a step, from several."""
    start = time.perf_counter()
    for _ in range(steps):
        losses = ensemble.step(batch, factor=1.0, beta1=0.9, beta2=0.95)
    losses.cpu()  # waits for the device
    return (time.perf_counter() - start) / steps


def measure(make, width, args, modes):
    """Return a row for each mode that can be had: the sides in turns, medians, ratios to the first.

    The first of the modes is the one that the others are compared with.
    """
    batch = {TOKENS: torch.randint(VOCAB, (args.stack, args.batch, CONTEXT + 1)).to(args.device)}
    sides, times, row = {}, {}, {}
    for mode in modes:
        start = time.perf_counter()
        side = make_ensemble(make, width, args, mode)
        try:
            time_steps(side, batch, 2)
            problem = side.problem
        except Exception as error:
            if mode == modes[0]:
                raise
            problem = describe_problem(error)
        print(f"  {mode}: first steps {time.perf_counter() - start:.1f} s", file=sys.stderr)
        if problem:
            print(f"{width}: {mode}: {problem}", flush=True)
            row[mode] = {"problem": problem}
        else:
            sides[mode], times[mode] = side, []
    for _ in range(args.rounds):
        for mode, side in sides.items():
            times[mode].append(time_steps(side, batch, args.steps))
    seen = args.stack * args.batch * CONTEXT
    for mode, found in times.items():
        ratios = [one / own for one, own in zip(times[modes[0]], found, strict=True)]
        row[mode] = {
            "tokens_per_second": round(seen / statistics.median(found)),
            "seconds_per_step": [round(each, 5) for each in found],
            "ratio": round(statistics.median(ratios), 2),
        }
    del sides
    free_memory()
    return row


class OutOfTime(BaseException):  # no Exception, which what is on the way could take for a failure
    """The limit is over."""


def stop(signum, frame):
    """Leave what is under way."""
    raise OutOfTime


def main():
    """Measure each width, print it, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="llama")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--stack", type=int, default=8)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compile on a CPU too")
    parser.add_argument("--limit", type=int, default=0, help="seconds in all; 0 for no limit")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, args.limit, 2.0 if args.limit else 0.0)
    set_determinism(threads=args.threads)
    rows = {width: {"width": width, "stacked_trials": args.stack} for width in args.widths}
    make = MODELS[args.model]

    def add(width, found):
        rows[width] |= found
        for mode, side in found.items():
            if isinstance(side, dict) and "ratio" in side:
                print(f"{args.model} width {width}, K = {args.stack}: {mode} "
                      f"{side['tokens_per_second']:,} tokens/s, ratio {side['ratio']}",
                      flush=True)  # fmt: skip
        if args.output:
            settings = {key: value for key, value in vars(args).items() if key != "output"}
            write_document(
                args.output,
                {**describe_making(), "settings": settings, "rows": list(rows.values())},
            )

    modes = [ONE_BY_ONE, "eager"] + ["captured"] * (args.device == "cuda")
    compiled = {"cuda": "compiled+captured", "cpu": "compiled" if args.compile else None}
    try:
        for width in args.widths:
            add(width, measure(make, width, args, modes))
        if fastest := compiled[args.device]:
            for width in args.widths:
                found = measure(make, width, args, [ONE_BY_ONE, fastest])
                add(width, {fastest: found[fastest]})
        for width in args.widths:
            few = {TOKENS: torch.randint(VOCAB, (2, 4, CONTEXT + 1)).to(args.device)}
            models = [make(width) for _ in range(2)]
            why = why_not_stacked(
                models, language_model_loss, few, device=args.device,
                compute_dtype=DTYPES[args.precision],
            )  # fmt: skip
            print(f"{args.model} width {width}: {why or 'stacked equals one by one'}", flush=True)
            add(width, {"why_not_stacked": why})
    except OutOfTime:
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(f"stopped after {args.limit} s; what is above is whole", flush=True)


if __name__ == "__main__":
    main()
