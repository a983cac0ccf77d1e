#!/bin/bash
# A round of a search as a Slurm array, and the next round after it:  bash slurm.sh
set -euo pipefail
search=search.toml
commands=$(mktemp -p "$PWD" round-XXXXXX.txt)
hptransfer search "$search" --ask 64 > "$commands"
count=$(wc -l < "$commands")
if [ "$count" = 0 ]; then rm "$commands"; exit 0; fi # done, or others run what is left
array=$(sbatch --parsable --array="1-$count" --gpus-per-task=1 --time=04:00:00 \
    --wrap "exec bash -c \"\$(sed -n \"\${SLURM_ARRAY_TASK_ID}p\" '$commands')\"")
sbatch --dependency="afterany:$array" --time=00:10:00 --wrap "exec bash slurm.sh"
