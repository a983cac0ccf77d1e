"""Write the golden documents again: ``python tests/golden/make.py [NAME…]``, from the repository.

A document is what a command's ``--json`` prints. Its floats are kept to ten digits; what reads
tables outside the repository is written only where they are there.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SWEEPS = "../shared/data/sweeps"
PLAIN, DECAY = "studies/recorded/wiki-plain.csv", "studies/recorded/wiki-decay.csv"
METRICS = "studies/published/kalra_barkeshli_2026_metrics.csv"
STEPLAW = (f"{SWEEPS}/steplaw_dense.csv", "--columns", "tokens=tokens_D,params=params_N",
           "--where", "batch=128")  # fmt: skip
MODEL = "tests/adopt/mine.py"
WIDTHS = ("--base-width", "32", "--width", "256")

COMMANDS: dict[str, tuple[str, ...]] = {
    "fit-plain": ("fit", PLAIN),
    "fit-plain-power": ("fit", PLAIN, "--form", "power"),
    "fit-decay": ("fit", DECAY),
    "fit-h100": ("fit", f"{SWEEPS}/h100_embedding.csv"),
    "fit-mlp": ("fit", f"{SWEEPS}/mup_mlp_sgd.csv"),
    "fit-modula": ("fit", f"{SWEEPS}/modula_owt_digitized.csv", "--where", "scaled=width"),
    "fit-nanogpt": ("fit", f"{SWEEPS}/nanogpt_mup_digitized.csv", "--by", "dataset"),
    "recommend-plain": ("recommend", PLAIN, "--width", "512"),
    "recommend-plain-far": ("recommend", PLAIN, "--width", "4096"),
    "recommend-decay": ("recommend", DECAY, "--width", "512"),
    "recommend-h100": ("recommend", f"{SWEEPS}/h100_embedding.csv", "--width", "4096"),
    "recommend-mlp": ("recommend", f"{SWEEPS}/mup_mlp_sgd.csv", "--width", "16384"),
    "recommend-modula": ("recommend", f"{SWEEPS}/modula_owt_digitized.csv", "--where",
                         "scaled=width", "--width", "4096"),
    "recommend-nanogpt": ("recommend", f"{SWEEPS}/nanogpt_mup_digitized.csv", "--width", "4096",
                          "--by", "dataset"),
    "recommend-steplaw": ("recommend", *STEPLAW, "--width", "4096", "--tokens", "1e12"),
    "rules-sp-embd": ("rules", "sp+embd", *WIDTHS, "--lr", "0.01", "--weight-decay", "0.1"),
    "rules-mup": ("rules", "mup", *WIDTHS, "--weight-decay-mode", "coupled", "--num-layers", "4"),
    "rules-completep": ("rules", "completep", *WIDTHS, "--num-layers", "8"),
    "rules-mup-lion": ("rules", "mup", *WIDTHS, "--optimizer", "lion"),
    "audit-one-lr": ("audit", f"{MODEL}:make", *WIDTHS, "--optimizer", f"{MODEL}:one_lr"),
    "audit-default": ("audit", f"{MODEL}:make", *WIDTHS, "--parameterization", "sp+embd"),
    "factors-published": ("factors", METRICS),
    "factors-published-e": ("factors", METRICS, "--metric", "E"),
}  # fmt: skip
#: Commands that take more than a few seconds.
SLOW = ("fit-decay", "fit-nanogpt", "fit-plain-power", "recommend-decay",
        "recommend-nanogpt", "recommend-plain-far", "recommend-mlp", "fit-mlp",
        "recommend-modula", "fit-modula")  # fmt: skip


def missing(name: str) -> str:
    """Say which table of a command is not there; "" if all are."""
    paths = [word for word in COMMANDS[name] if word.endswith(".csv")]
    return next((f"{path} is not here" for path in paths if not (ROOT / path).exists()), "")


def run_command(name: str) -> Any:
    """Run a command from the repository's root and return the document it prints."""
    # The model of `audit` imports from beside it.
    if str(HERE.parent) not in sys.path:
        sys.path.insert(0, str(HERE.parent))
    from hptransfer.cli.main import main

    out = io.StringIO()
    with _at_root(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = main([*COMMANDS[name], "--json"])
    assert code == 0, f"{name}: exit code {code}"
    return json.loads(out.getvalue())


@contextlib.contextmanager
def _at_root() -> Iterator[None]:
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


def _round(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _round(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_round(item) for item in value]
    return float(f"{value:.10g}") if isinstance(value, float) else value


def main(names: list[str]) -> None:
    """Write the documents named, or all."""
    for name in names or COMMANDS:
        if why := missing(name):
            print(f"{name}: left as it is: {why}")
            continue
        text = json.dumps(_round(run_command(name)), ensure_ascii=False, indent=None)
        (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
