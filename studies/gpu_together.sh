#!/usr/bin/env bash
# Run planned studies on one GPU side by side, and measure what probes cost while it is still idle.
#
#   studies/gpu_together.sh "NAME..." "NAME..."     such as: "embedding-gpu dynamics-gpu" horizon-gpu-steps
#
# Each argument is a lane: its studies train one after the other, and the lanes at the same time, so
# that one's start, drawing and evaluating fill no time of the card's. Directories under PLANNED, made by
# gpu_plan.py, hold their plans; all steps are compiled first. One file comes of it, studies.tar.gz:
# each study's directory or NAME.tar.gz, timings-*.json, probes.json, verify.txt and logs; packed
# every half minute.
#
#   PLANNED=DIR   the study directories (default: .carry/planned)
#   LIMIT=SECONDS for everything (default: 420)
#   PROBED=NAME   study of which a planned group (PROBED_GROUP=..., default: the last) is trained with and
#                 without probes (default: none)
#   VERIFY=NAME   study whose published table is verified beside the lanes (default: none)
#   OUT, TEXT, WHEELS as for gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || { sed -n '2,20s/^# \{0,1\}//p' "$0"; exit 2; }
limit=${LIMIT:-420} until=$(($(date +%s) + ${LIMIT:-420} - 6)) # what packing takes
planned=$(realpath "${PLANNED:-.carry/planned}")
out=$(realpath -m "${OUT:-studies/gpu-results}")
work=$(mktemp -d)
mkdir -p "$out"
export PYTHONPATH="$PWD/src:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HPTRANSFER_CACHE="${HPTRANSFER_CACHE:-$work/cache}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-16}
pack() {
    (cd "$work" && find . -name '*.parquet' -o -name '*.json' -path '*/plan/*' -o -name study.json \
        -o -name '*.log' -o -name 'timings-*.json' -o -name 'probes.json' -o -name 'verify.txt' -o -name '*.tar.gz') |
        tar czf "$work/packed" -C "$work" -T - 2>/dev/null
    mv "$work/packed" "$out/studies.tar.gz"
}
say() { echo "[$SECONDS s] $*" | tee -a "$work/together.log"; }

if ! python3 -c 'import pydantic, platformdirs, tokenizers, pyarrow, rich, safetensors' 2>/dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$work/site" \
        "${WHEELS:?set WHEELS to a folder of wheels: a Python package is missing}"/*.whl || exit 1
    export PYTHONPATH="$PYTHONPATH:$work/site"
fi
if [ -n "${TEXT:-}" ] && ! [ "$TEXT" -ef studies/text ]; then
    mkdir -p studies/text
    cp "$TEXT"/*.jsonl studies/text/ || exit 1
fi
unset TEXT

say "compiling"
# What lanes begin with first, the rest while they train; probes.py compiles its own.
first=() later=()
for lane in "$@"; do
    read -r -a names <<<"$lane"
    [ "${names[0]}" = "${PROBED:-}" ] || first+=("$planned/${names[0]}")
    for name in "${names[@]:1}"; do later+=("$planned/$name"); done
done
python3 studies/gpu_plan.py compile "${first[@]}" >>"$work/together.log" 2>&1 &
compiling=$!
if [ -n "${PROBED:-}" ]; then
    python3 benchmarks/probes.py "studies/$PROBED.toml" "$planned/$PROBED" ${PROBED_GROUP:-} \
        -o "$work/probes.json" >"$work/probes.log" 2>&1 &
    probing=$!
fi
wait "$compiling"
say "compiled what comes first"
if [ -n "${probing:-}" ]; then # its first training is over: a lane takes as long to start as the second
    while kill -0 "$probing" 2>/dev/null && ! grep -q plain "$work/probes.log"; do sleep 0.2; done
    say "$(cat "$work/probes.log")"
fi
for directory in "${later[@]}"; do
    python3 studies/gpu_plan.py compile "$directory" >>"$work/together.log" 2>&1
done &
lanes=()
for lane in "$@"; do
    here="$work/lane-$((${#lanes[@]} + 1))"
    mkdir -p "$here/running"
    # shellcheck disable=SC2086
    TMPDIR="$here/running" OUT="$here" RESUME=$planned LIMIT=$limit UNTIL=$until \
        RUN="python3 benchmarks/gpu_study.py" OPTIONS="--timings $here" \
        studies/gpu.sh $lane >"$here/lane.log" 2>&1 &
    lanes+=($!)
done
if [ -n "${VERIFY:-}" ]; then # the narrowest width: its trials are one group, trained once
    timeout -s KILL $((until - $(date +%s))) python3 -m hptransfer verify "studies/$VERIFY.toml" \
        "studies/tables/$VERIFY.parquet" --max-width 64 --count 3 >"$work/verify.txt" 2>&1 &
    lanes+=($!)
fi
while sleep 30; do pack; done &
packing=$!
wait "${lanes[@]}"
kill "$packing"
say "lanes are done"
pack
echo "$out/studies.tar.gz: $(stat -c %s "$out/studies.tar.gz") bytes"
rm -rf "$work"
