#!/usr/bin/env bash
# Time two trees by turns, before and after a change, on a machine with nothing else running.
#
#     benchmarks/compare.sh BEFORE AFTER OUT [TURNS]
#
# BEFORE and AFTER are checkouts; the Python is AFTER's .venv, or $PYTHON. Each turn runs, in both
# trees: fits (fit_speed), 100,000 trials (scale), hostile tables with one of 10^6 rows, and
# training at width 64 (throughput). SMALL=1 runs tiny sizes, to see that all of it runs.
set -euo pipefail
before=$(cd "$1" && pwd) after=$(cd "$2" && pwd)
mkdir -p "$3" && out=$(cd "$3" && pwd)
python=${PYTHON:-$after/.venv/bin/python}
if [ "${SMALL:-}" ]; then
    fit="--resamples 50 --repeats 1" scale="--decays 1 --repeats 1" tables="--count 20 --rows 0"
    throughput="--rounds 1 --seconds 0.5"
else
    fit="--repeats 3" scale="--decays 10 --repeats 3" tables="--count 200 --rows 1000000"
    throughput="--rounds 3"
fi

time_one() { # TREE NAME BENCHMARK ARGUMENTS...
    local tree=$1 name=$2 benchmark=$3 start=$SECONDS code=0
    shift 3
    (cd "$tree" && PYTHONPATH=src "$python" "benchmarks/$benchmark.py" "$@") \
        > "$out/$name.txt" 2> "$out/$name.err" || code=$?
    echo "$name: exit $code, $((SECONDS - start)) s"
}

for turn in $(seq "${4:-2}"); do
    for side in before after; do
        tree=${!side} name=$side-$turn
        export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
        time_one "$tree" "fit_speed-$name" fit_speed $fit
        time_one "$tree" "scale-$name" scale --directory "$out/scale-$side" --fit-repeats 0 $scale
        time_one "$tree" "hostile_tables-$name" hostile_tables $tables
        unset OMP_NUM_THREADS OPENBLAS_NUM_THREADS
        time_one "$tree" "throughput-$name" throughput --widths 64 $throughput -o "$out/throughput-$name.json"
    done
done
grep -H '"median"' -A 3 "$out"/fit_speed-*.txt || true
grep -H '"sum_work_seconds"' "$out"/scale-*.txt || true
tail -n 4 "$out"/hostile_tables-*.txt "$out"/throughput-*.txt
