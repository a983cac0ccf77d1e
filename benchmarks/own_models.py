"""Tokens per second of a sweep of one's own model: trials stacked, against one after the other.

    python benchmarks/own_models.py                       # a Llama on this machine
    python benchmarks/own_models.py --model mamba --widths 64 128 --stack 4 --rounds 5
    python benchmarks/own_models.py --device cuda --widths 64 256 --stack 16 --precision bf16

Both sides train the same trials by the same ensemble, forward, backward and AdamW's step, in turns
within one process (A B A B …); medians over the rounds and their ratio are printed, and written
to a dated file with -o.
"""

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch

from dated import describe_making, write_document
from hptransfer.adopt import RuleOptions, infer_roles, init_, resolve_tensors
from hptransfer.train.device import free_memory, set_determinism
from hptransfer.train.module_ensemble import ModuleEnsemble, ModuleRun
from hptransfer.train.modules import TOKENS, language_model_loss, why_not_stacked

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


def make_ensemble(make, width, args, *, one_by_one, compiled=False):
    """Return an ensemble of equal trials under SP."""
    roles = infer_roles(make, base_width=args.widths[0] // 2, width=width)
    options = RuleOptions(parameterization="sp", lr=2.0**-9, num_layers=LAYERS)
    numbers = {each.entry.name: each for each in resolve_tensors(roles, options)}
    runs = []
    for k in range(args.stack):
        model = make(width)
        if k == 0:
            init_(model, roles=roles, parameterization="sp", verbose=False, num_layers=LAYERS)
        else:
            model.load_state_dict(runs[0].model.state_dict())
        runs.append(ModuleRun(seed=k, model=model, numbers=numbers))
    return ModuleEnsemble(
        runs, language_model_loss, device=args.device, compute_dtype=DTYPES[args.precision],
        one_by_one=one_by_one, compiled=compiled,
    )  # fmt: skip


def time_steps(ensemble, batch, steps):
    """Return the seconds of a step, from several."""
    start = time.perf_counter()
    for _ in range(steps):
        losses = ensemble.step(batch, factor=1.0, beta1=0.9, beta2=0.95)
    losses.cpu()  # waits for the device
    return (time.perf_counter() - start) / steps


def measure(make, width, args):
    """Return a row: both sides in turns, their medians and ratio."""
    tokens = torch.randint(VOCAB, (args.stack, args.batch, CONTEXT + 1))
    batch = {TOKENS: tokens.to(args.device)}
    few = {TOKENS: tokens[:2, : min(4, args.batch)]}
    why = why_not_stacked([make(width) for _ in range(2)], language_model_loss, few)
    sides = {
        "stacked": make_ensemble(make, width, args, one_by_one=False),
        "one by one": make_ensemble(make, width, args, one_by_one=True),
    }
    if args.compile:
        sides["stacked, compiled"] = make_ensemble(
            make, width, args, one_by_one=False, compiled=True
        )
    times = {name: [] for name in sides}
    for name, ensemble in sides.items():
        start = time.perf_counter()
        time_steps(ensemble, batch, 2)
        print(f"  {name}: first steps {time.perf_counter() - start:.1f} s", file=sys.stderr)
    for _ in range(args.rounds):
        for name, ensemble in sides.items():
            times[name].append(time_steps(ensemble, batch, args.steps))
    seen = args.stack * args.batch * CONTEXT
    row = {"width": width, "stacked_trials": args.stack, "why_not_stacked": why}
    for name, found in times.items():
        row[name] = {
            "tokens_per_second": round(seen / statistics.median(found)),
            "seconds_per_step": [round(each, 5) for each in found],
        }
    ratios = [b / a for a, b in zip(times["stacked"], times["one by one"], strict=True)]
    row["ratio"] = round(statistics.median(ratios), 2)
    if args.compile:
        pairs = zip(times["stacked, compiled"], times["one by one"], strict=True)
        row["ratio_compiled"] = round(statistics.median([b / a for a, b in pairs]), 2)
    free_memory()
    return row


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
    parser.add_argument("--compile", action="store_true", help="compile the stacked program too")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    set_determinism(threads=args.threads)
    rows = []
    for width in args.widths:
        row = measure(MODELS[args.model], width, args)
        rows.append(row)
        shown = "  ".join(
            f"{name} {side['tokens_per_second']:,}"
            for name, side in row.items()
            if isinstance(side, dict)
        )
        more = f", compiled {row['ratio_compiled']}" if args.compile else ""
        print(f"{args.model} width {width}, K = {args.stack}: tokens/s {shown}; "
              f"ratio {row['ratio']}{more}", flush=True)  # fmt: skip
        if args.output:
            settings = {key: value for key, value in vars(args).items() if key != "output"}
            document = {**describe_making(), "settings": settings, "rows": rows}
            write_document(args.output, document)


if __name__ == "__main__":
    main()
