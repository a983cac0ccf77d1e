"""A training job that is a formula, as a script that a search runs."""

import os
import sys
from pathlib import Path

#: Plain Python, which starts fast: noise is a hash of what the trial is.
SCRIPT = """\
import hashlib, json, math, os, sys, time
width, lr, seed, trial = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with open("starts.txt", "a") as file:
    file.write(f"{trial} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
exec(os.environ.get("BEFORE", ""))
u = math.log(lr) - math.log(2) * (-6 - 0.4 * math.log2(width / 32))
draw = hashlib.sha256(f"{width} {lr} {seed}".encode()).digest()
noise = sum(draw[:12]) / 255 / 12 - 0.5
loss = 4 + 4 * width**-0.5 + 0.06 * u * u + 0.02 * noise if u < 2.5 else math.nan
time.sleep(float(os.environ.get("SECONDS", 0)))
print(json.dumps({"step": 100, "loss": loss}))
"""
FILE = """\
name = "jobs"

[sweep]
width = [32, 64]

[job]
command = ["{python}", "-S", "-E", "job.py", "{{width}}", "{{lr}}", "{{seed}}", "{{trial}}"]
"""


def write_job(folder, more="", *, adaptive="", before=""):
    """Write the script and a search file, with more lines in its [job]; return the file."""
    (folder / "job.py").write_text(SCRIPT)
    text = FILE.format(python=sys.executable) + more
    if before:
        text += f"\n[job.env]\nBEFORE = '''{before}'''\n"
    if adaptive:
        text += f"\n[adaptive]\n{adaptive}\n"
    path = folder / "search.toml"
    path.write_text(text)
    return path


def starts(folder):
    """Return the trials that were started, in order."""
    lines = (Path(folder) / "starts.txt").read_text().splitlines()
    return [line.partition(" ")[0] for line in lines]


def environment():
    """Return an environment in which a subprocess finds this package."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
