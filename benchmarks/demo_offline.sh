#!/usr/bin/env bash
# Judges every selector offline on the demo model: two stretches of a novel and two chats that no
# weights were trained or chosen on, 7,168 tokens or a little less each. About 20 minutes on a CPU.
#
#   bash benchmarks/demo_offline.sh [WORK]     needs the environment of launch/test.sh
#
# WORK gets the texts and offline_selectors.csv (default: a new temporary folder).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bin="${HATA_VENV:-$root/.venv}/bin"
work="${1:-$(mktemp -d "${TMPDIR:-/tmp}/hata-offline.XXXXXX")}"
export HF_HUB_OFFLINE=1
model="$("$bin/hata-sglang" demo-model)"
cd "$work"

ln -sfn "$model" SmolLM2-135M-Instruct
gzip -dc "$root/hata_sglang/evaluation/tasks/data/pride-and-prejudice.txt.gz" |
    "$bin/python" -c 'import sys; print(sys.stdin.read()[:66000], end="")' >pride.txt
gzip -dc "$root/hata_sglang/training/data/persuasion.txt.gz" |
    "$bin/python" -c 'import sys; print(sys.stdin.read()[:36000], end="")' >calibration.txt
# Another seed than the training corpus: other chats, about documents that were held out there.
"$bin/python" -m hata_sglang.training.demo_corpus --model SmolLM2-135M-Instruct --length 7168 \
    --seed 1 --chats 1 --plains 1 --novels 1 --out corpus
grep '"messages"' corpus/held_out.jsonl >chats.jsonl

sets=()
for card in "$root"/weights/hata_weights/*/card.json; do
    sets+=("$(basename "$(dirname "$card")")")
done
"$bin/hata-sglang" eval offline --model SmolLM2-135M-Instruct --data pride.txt chats.jsonl \
    --length 7168 --weights "${sets[@]}" --calibration calibration.txt \
    --budgets 0.0156 0.0313 0.0625 --out offline_selectors.csv
echo "wrote $work/offline_selectors.csv"
