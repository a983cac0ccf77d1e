#!/usr/bin/env bash
# Run studies on one GPU, from a bare checkout, without a network, and pack what they give.
#
#   studies/gpu.sh NAME...          such as: studies/gpu.sh embedding-gpu lattice-gpu
#
# NAME stands for studies/NAME.toml and any studies/NAME-*.toml. The machine has python3 with PyTorch;
# the text lies in a folder (made on another machine by studies/make_text.py). Results: for each study
# NAME.tar.gz of a few MB, its directory without checkpoints, and gpu.log. A study that its time limit
# ends keeps the groups that it finished.
#
#   OUT=DIR       where results go (default: studies/gpu-results)
#   TEXT=DIR      folder of wiki.jsonl and speeches.jsonl (default: studies/text)
#   RESUME=DIR    study directories to go on from, by name (such as those of gpu_plan.py)
#   WHEELS=DIR    wheels of Python packages that the machine lacks (default: none)
#   LIMIT=SECONDS for each NAME (default: 300)
#   UNTIL=EPOCH   when all of it ends (default: never)
#   RUN=...       what runs a study file (default: "python3 -m hptransfer run"), with its -o and --checkpoint
#   OPTIONS=...   further options of `hptransfer run`, such as "--workers 2"
set -uo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || { sed -n '2,19s/^# \{0,1\}//p' "$0"; exit 2; }
out=$(realpath -m "${OUT:-studies/gpu-results}")
work=$(mktemp -d)
mkdir -p "$out"
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HPTRANSFER_CACHE="${HPTRANSFER_CACHE:-$work/cache}"
say() { echo "[$SECONDS s] $*" | tee -a "$out/gpu.log"; }

if ! python3 -c 'import pydantic, platformdirs, tokenizers, pyarrow, rich, safetensors' 2>/dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$work/site" \
        "${WHEELS:?set WHEELS to a folder of wheels: a Python package is missing}"/*.whl || exit 1
    export PYTHONPATH="$PYTHONPATH:$work/site"
fi
if [ -n "${TEXT:-}" ] && ! [ "$TEXT" -ef studies/text ]; then
    mkdir -p studies/text
    cp "$TEXT"/*.jsonl studies/text/ || exit 1
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | tee -a "$out/gpu.log"
say "$(python3 -c 'import sys, torch; print("python", sys.version.split()[0], "torch", torch.__version__)')"

worst=0
for name in "$@"; do
    ends=$((SECONDS + ${LIMIT:-300}))
    found=0
    for file in "studies/$name.toml" studies/"$name"-*.toml; do
        [ -e "$file" ] || continue
        found=1
        study=$(basename "$file" .toml)
        left=$((ends - SECONDS))
        [ $((${UNTIL:-99999999999} - $(date +%s))) -ge "$left" ] || left=$((UNTIL - $(date +%s)))
        if [ "$left" -le 0 ]; then
            say "$study: not begun, the limit of $name is reached"
            worst=1
            continue
        fi
        [ -d "${RESUME:-none}/$study" ] && cp -r "$RESUME/$study" "$work/$study"
        say "$study: begins, $left s left"
        # Finished groups are whole files: no checkpoints, no farewell.
        # shellcheck disable=SC2086
        timeout -s KILL "$left" ${RUN:-python3 -m hptransfer run} "$file" -o "$work/$study" \
            --checkpoint 1e9 ${OPTIONS:-} 2>&1 | tee -a "$out/gpu.log"
        code=${PIPESTATUS[0]}
        say "$study: ended with code $code$([ "$code" = 137 ] && echo ', its time limit')"
        [ "$code" = 0 ] || worst=1
        if [ -d "$work/$study" ]; then
            python3 -m hptransfer status "$work/$study" 2>&1 | tee -a "$out/gpu.log"
            tar czf "$out/$study.tar.gz" -C "$work" --exclude=checkpoints --exclude='*.tmp' "$study"
        fi
    done
    [ "$found" = 1 ] || { say "$name: no studies/$name.toml"; worst=2; }
done
say "packed: $(cd "$out" && ls -s --block-size=K | tail -n +2 | tr '\n' ' ')"
rm -rf "$work"
exit "$worst"
