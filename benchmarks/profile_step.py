"""Profile one training step of ours on a CPU: the share of its time in each kind of operation.

One process with one thread, as a study's worker runs it; shares of the operations' own time in
`--steps` steps after two that are not counted. Starts itself anew per width, so that the
allocator settings of our workers hold.
"""

import argparse
import json
import subprocess
import sys

from torch.profiler import profile

from dated import RESULTS, describe_making, write_document
from hptransfer.study._local_engine import describe_machine
from hptransfer.train._device import worker_environment
from throughput import list_sides, make_config, make_parser, parse_sweep, prepare_ours

#: By the start of an operation's name, without ``aten::``; the first that fits counts.
KINDS = {
    "bmm": "products",
    "baddbmm": "products",
    "_softmax": "softmax",
    "gelu": "GELU",
    "native_layer_norm": "LayerNorm",
    "_fused_adamw": "AdamW",
    "copy_": "copies and casts",
    "cat": "copies and casts",
}


def profile_width(args: argparse.Namespace, width: int) -> dict[str, float]:
    """Return milliseconds per step and run, and the share of each kind of operation."""
    config = make_config(args, width)
    side = list_sides(args, config)["ours"][0]
    step, _ = prepare_ours(side, config)
    step()
    step()
    with profile() as found:
        for _ in range(args.steps):
            step()
    times: dict[str, float] = {}
    for event in found.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((kind for start, kind in KINDS.items() if name.startswith(start)), "the rest")
        times[kind] = times.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(times.values())
    shares = {
        kind: round(times[kind] / total, 3) for kind in sorted(times, key=lambda k: -times[k])
    }
    runs = len(side["trials"])
    return {"stacked": runs, "ms": total / 1e3 / args.steps / runs, **shares}


def main() -> None:
    """Profile the widths asked for, print a line each, and write a dated file."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.set_defaults(peer=None)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parse_sweep(parser)
    if args.one:
        print(json.dumps(profile_width(args, args.widths[0])))
        return
    threads = describe_machine().threads
    widths = {}
    for width in args.widths:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", "--widths", str(width)]
        environment = worker_environment(threads=threads)
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        widths[width] = json.loads(done.stdout.splitlines()[-1])
        print(width, widths[width], flush=True)
    document = {
        **describe_making(),
        "threads": threads,
        "widths": widths,
    }
    output = args.output or RESULTS / f"profile-{document['date']}.json"
    write_document(output, document)
    print(f"written: {output}")


if __name__ == "__main__":
    main()
