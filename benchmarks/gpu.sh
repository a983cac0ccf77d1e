#!/usr/bin/env bash
# What a GPU gives, in one command:
#   benchmarks/gpu.sh show | check | again | models | throughput | studies | full  [FOLDER]
#
# show (7 minutes, the default): throughput.py, tests of kernels and bits beside it, and
#   embedding-gpu without probes as a whole study, with its times and memory. TEXT=DIR as for studies.
# check (4 minutes): the tests of compiled and captured steps on the card, shapes compiled side by
#   side, seconds, memory and kernels of a step in each mode.
# throughput (2.5 minutes): throughput.py at widths 64, 256 and 1024.
# studies (9 minutes with both): whole studies through gpu_study.py, embedding-gpu and lattice-gpu:
#   start-up, tokenizing, measuring, compiling and training apart, each group's time against its
#   steps alone, its memory against the plan's. TEXT=DIR holds their text (studies/gpu.sh).
# again (3 minutes): tests of the step and its kernels, throughput.py, and memory: what a training
#   reserves at 64 to 1024 against what the plan measures (0.8 to 1.1 wanted), the peaks of its
#   phases, and what lies in graphs' pools and outside.
# models (2 minutes): models of one's own (own_models.py).
# full (9.5 minutes): embedding-gpu, throughput, and lattice-gpu with what is left of LIMIT.
#
# Expected on one H100 (3 layers, batch 32 x 128, vocabulary 4096, head size 64, bf16), compiled and
# captured: 28 M tokens/s at 64, 9.4 M at 256 (MFU 0.30), 1.55 M at 1024 (MFU 0.51 to 0.58); against
# the plain compiled script 34, 11 and 1.7 to 1.8 times; equal digests across processes, and across compiled modes;
# no test fails. Whole study: training at 0.89 of its steps alone or more, 1.5 minutes before it,
# and 0.8 to 1.1 of the plan's memory reserved (not seen yet: `memory_ratio` of each group).
# Every part writes as it goes, and one that fails stops no other.
set -u
cd "$(dirname "$0")/.."
what=${1:-show}
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
left() { local s=$((limit - (SECONDS - start))); echo $((s > 1 ? s : 1)); }
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

beside_tests() { # SECONDS: throughput, and tests of our kernels and of bits while things compile
    timeout 75 "$python" -m pytest -q -W default -p no:cacheprovider tests/model/test_kernels.py \
        tests/train/test_program.py -k "kernels or nan or resumed or bits" \
        >"$into/tests.txt" 2>&1 &
    local tests=$!
    say "throughput"
    throughput "$1"
    wait $tests
    say "tests: $(tail -1 "$into/tests.txt")"
}

again() {
    beside_tests "$(left)"
    say "memory"
    step 64:32 128:32 256:32 1024:8 --threads "$(nproc)" --modes compiled+captured --memory --seconds 0.3 \
        --profile --steps 60
}

show() {
    beside_tests $((limit * 3 / 10))
    say "whole study"
    trap "rm -f studies/whole-gpu.toml" EXIT
    sed -e '/^\[probes\]/,$d' -e 's/^name = .*/name = "whole-gpu"/' studies/embedding-gpu.toml \
        >studies/whole-gpu.toml
    study whole-gpu "$(left)"
}

own_models() {
    timeout "$(left)" "$python" benchmarks/own_models.py --device cuda --widths 64 256 --stack 16 \
        --precision bf16 --rounds 3 --limit ${OWN_LIMIT:-75} -o "$into/own_models.json"
}

case $what in
    show) limit=${LIMIT:-420}; show ;;
    again) limit=${LIMIT:-190}; again ;;
    models) limit=${LIMIT:-110}; own_models ;;
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
    *) echo "show, check, again, models, throughput, studies or full?" >&2; exit 2 ;;
esac
say "done"
