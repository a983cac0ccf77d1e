#!/usr/bin/env bash
# What a GPU gives, in one command:  benchmarks/gpu.sh check | first | throughput | studies | full  [FOLDER]
#
# check (4 minutes): the tests of compiled and captured steps on the card, shapes compiled side by
#   side, seconds, memory and kernels of a step in each mode.
# throughput (2.5 minutes): throughput.py at widths 64, 256 and 1024.
# studies (9 minutes with both): whole studies through gpu_study.py, embedding-gpu and lattice-gpu:
#   start-up, tokenizing, measuring, compiling and training apart, each group's time against its
#   steps alone, its memory against the plan's. TEXT=DIR holds their text (studies/gpu.sh).
# first (5.5 minutes): our kernels against PyTorch's, throughput by width, kernels and memory of a
#   step, models of one's own (own_models.py). WHEELS=DIR as for studies.
# full (9.5 minutes): embedding-gpu, throughput, and lattice-gpu with what is left of LIMIT.
#
# Expected on one H100 (3 layers, batch 32 x 128, vocabulary 4096, head size 64, bf16), compiled and
# captured: 20.6 M tokens/s at 64, 8.2 M at 256 (MFU 0.23), 1.39 M at 1024 (MFU 0.46 to 0.48); against
# the plain compiled script 10 times at 256 and 1.4 at 1024; equal digests across modes and processes;
# no test fails. Whole study: training at 0.89 of its steps alone or more, 1.5 minutes before it.
# Every part writes as it goes, and one that fails stops no other.
set -u
cd "$(dirname "$0")/.."
what=${1:-check}
into=$(realpath -m "${2:-${OUT:-benchmarks/results/gpu}}")
mkdir -p "$into"
python=${PYTHON:-python3}
export PYTHONPATH="$PWD/src:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HPTRANSFER_CACHE=${HPTRANSFER_CACHE:-/tmp/hptransfer-cache}
if ! "$python" -c 'import pydantic, platformdirs, tokenizers, pyarrow, rich, safetensors' 2>/dev/null
then # WHEELS=DIR holds wheels of what the machine lacks
    "$python" -m pip install -q --no-index --no-deps --no-compile --target /tmp/hptransfer-site \
        "${WHEELS:?a Python package is missing: set WHEELS to a folder of wheels}"/*.whl || exit 1
    export PYTHONPATH="$PYTHONPATH:/tmp/hptransfer-site"
fi
start=$SECONDS
say() { echo "[$((SECONDS - start)) s] $*"; }
left() { echo $((limit - (SECONDS - start))); }
step() { timeout "$(left)" "$python" benchmarks/gpu_step.py "$@" -o "$into/steps.jsonl"; }

check() {
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
    step 1024:8 256:32 64:32 --modes "plain compiled"
    step 256:32 --modes eager captured
    step 1024:16 64:64 --modes compiled+captured
    TORCHINDUCTOR_CACHE_DIR=/tmp/anew step 64:32 --modes compiled --compile-only
}

throughput() { # SECONDS [NAME]
    # K as plans choose it about, named so that nothing is measured first.
    timeout -s KILL "$1" "$python" benchmarks/throughput.py --widths ${WIDTHS:-256 1024 64} \
        --stacked ${STACKED:-32 8 32} --mode ${MODE:-compiled+captured} --precision bf16 \
        --rounds 3 --seconds 0.7 ${THROUGHPUT_OPTIONS:-} -o "$into/throughput${2:+-$2}.json"
}

study() { # NAME SECONDS
    local run="$python benchmarks/gpu_study.py" options="--timings $into ${STUDY_OPTIONS:-}"
    if ! $run --help >/dev/null; then # better a study without its timings than none
        run="$python -m hptransfer run" options=${STUDY_OPTIONS:-}
    fi
    OUT=$into LIMIT=$2 OPTIONS=$options RUN=$run studies/gpu.sh "$1"
}

first() { # what our kernels give, throughput by width, memory, models of one's own
    say "kernels"
    HPTRANSFER_KERNELS=$(timeout 60 "$python" benchmarks/gpu_kernels.py -o "$into/kernels.json" \
        2>/tmp/kernels.txt | tail -1)
    export HPTRANSFER_KERNELS=${HPTRANSFER_KERNELS:-none}
    say "kernels that hold: $HPTRANSFER_KERNELS; compiling side by side"
    for width in 64:32 256:32 1024:8; do
        timeout 110 "$python" benchmarks/throughput.py --widths ${width%:*} --stacked ${width#*:} \
            --mode compiled+captured --precision bf16 --rounds 1 --seconds 0.1 \
            -o /tmp/warm-$width.json >"/tmp/warm-$width.txt" 2>&1 &
    done
    wait
    cat /tmp/warm-*.txt
    if grep -q "ours failed" /tmp/warm-*.txt; then
        say "compiled without our kernels"
        export HPTRANSFER_KERNELS=none
    fi
    say "width 64"
    WIDTHS=64 STACKED=32 throughput 50 64
    say "step at 1024"
    step 1024:8 --modes compiled+captured --profile --memory --seconds 0.5
    say "width 1024"
    WIDTHS=1024 STACKED=8 throughput 60 1024
    say "steps at 256 and 64"
    step 256:32 64:32 --modes compiled+captured --profile --memory --seconds 0.5
    say "models of one's own"
    own_models
    say "width 256"
    WIDTHS=256 STACKED=32 throughput "$(left)" 256
    say "without parts"
    step 1024:8 --modes compiled+captured --seconds 0.5 --steps 0 --without copies
}

own_models() {
    timeout "$(left)" "$python" benchmarks/own_models.py --device cuda --widths 64 256 --stack 16 \
        --precision bf16 --rounds 3 --limit ${OWN_LIMIT:-75} -o "$into/own_models.json"
}

case $what in
    first) limit=${LIMIT:-330}; first ;;
    check) limit=${LIMIT:-255}; check ;;
    throughput) limit=${LIMIT:-180}; throughput "$limit" ;;
    studies) limit=${LIMIT:-560}; study embedding-gpu $((limit / 2)); study lattice-gpu "$(left)" ;;
    full)
        limit=${LIMIT:-550}
        study embedding-gpu ${EMBEDDING_LIMIT:-280}
        say "throughput"
        throughput ${THROUGHPUT_LIMIT:-150}
        say "lattice"
        study lattice-gpu "$(left)"
        ;;
    *) echo "check, first, throughput, studies or full?" >&2; exit 2 ;;
esac
say "done"
