#!/usr/bin/env bash
# What a GPU gives, in one command:  benchmarks/gpu.sh check | full   [folder to write to]
#
# check (4 minutes): the tests of compiled and captured steps on the card, shapes compiled side by
#   side, seconds, memory and kernels of a step in each mode.
# Expected on one H100 (3 layers, batch 32 x 128, vocabulary 4096, bf16), compiled and captured:
#   about 20 M tokens/s at 64:32, 8 M at 256:32, 1.4 M at 1024:8; equal digests across modes of one
#   compiled shape, and across processes; no test fails.
# Every part writes as it goes, and one that fails stops no other.
set -u
cd "$(dirname "$0")/.."
what=${1:-check}
into=${2:-${OUT:-benchmarks/results/gpu}}
mkdir -p "$into"
python=${PYTHON:-python3}
export PYTHONPATH="$PWD/src:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HPTRANSFER_CACHE=${HPTRANSFER_CACHE:-/tmp/hptransfer-cache}
start=$SECONDS
say() { echo "[$((SECONDS - start)) s] $*"; }
left() { echo $((limit - (SECONDS - start))); }
step() { timeout "$(left)" "$python" benchmarks/gpu_step.py "$@" -o "$into/steps.jsonl"; }

check() {
    limit=${LIMIT:-255}
    say "tests and compiling side by side"
    timeout 150 "$python" -m pytest -q -W default -p no:cacheprovider tests/train/test_program.py \
        >"$into/tests.txt" 2>&1 &
    local tests=$!
    for shape in 64:32 256:32 1024:8; do
        step "$shape" --modes compiled --compile-only &
    done
    wait $(jobs -p | grep -v "^$tests\$")
    say "compiled"
    step 256:32 --modes compiled+captured --profile
    step 64:32 --modes compiled+captured --profile
    wait $tests
    say "tests: $(tail -1 "$into/tests.txt")"
    step 1024:8 --modes compiled+captured --profile
    step 64:32 --modes compiled
    step 1024:8 256:32 --modes "plain compiled"
    step 256:32 --modes eager captured
    step 1024:16 64:64 --modes compiled+captured
    TORCHINDUCTOR_CACHE_DIR=/tmp/anew step 64:32 --modes compiled --compile-only
    step 64:32 --modes "plain compiled" eager
    step 1024:8 --modes compiled eager
    say "done"
}

case $what in
    check) check ;;
    *) echo "check or full?" >&2; exit 2 ;;
esac
