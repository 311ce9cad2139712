#!/usr/bin/env bash
# Rebuilds the demo model's shipped hash weights: texts, captures, training, card. Needs no GPU;
# takes about 15 minutes on two idle cores, and 2 GB of free disk beside the environment.
#
#   bash launch/train_demo_weights.sh [OUT] [WORK]
#
# OUT is the folder of the weights (default: the shipped one). WORK keeps the texts and captures,
# which a later run uses again (default: a temporary folder, removed at the end).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

hata_setup "$HATA_VENV" "$HATA_SGLANG_VERSION"

out="${1:-$HATA_ROOT/weights/hata_weights/smollm2-135m-instruct-hata-128b}"
work="${2:-}"
if [ -z "$work" ]; then
    work="$(mktemp -d "${TMPDIR:-/tmp}/hata-train.XXXXXX")"
    trap 'rm -rf "$work"' EXIT
fi

python="$HATA_VENV/bin/python"
hata_say "demo model and training texts"
model="$("$HATA_VENV/bin/hata-sglang" demo-model)"
"$python" -m hata_sglang.training.demo_corpus --model "$model" --out "$work"

hata_say "training"
"$HATA_VENV/bin/hata-sglang" train --model "$model" \
    --data "$work/train.jsonl" --held-out "$work/held_out.jsonl" --work-dir "$work/captures" \
    --method hata --bits 128 --seed 0 --out "$out" --description "$("$python" -c \
        'from hata_sglang.training.demo_corpus import DESCRIPTION; print(DESCRIPTION)')"
