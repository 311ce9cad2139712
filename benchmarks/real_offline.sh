#!/usr/bin/env bash
# Judges selectors offline on a model of your own: trains four sets on the package's texts, then
# measures them on its evaluation texts, one of 32,768 tokens of each of six kinds, from other
# sources than those to train on. Needs a GPU, and a model with a context as long.
#
#   bash benchmarks/real_offline.sh MODEL [WORK]     needs the environment of launch/test.sh
#
# MODEL is a Hugging Face checkpoint folder. WORK gets captures (12 GB for
# Qwen2.5-Coder-1.5B-Instruct), sets, texts and offline.csv (default: a new temporary folder). Sets
# that have a card are left alone.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bin="${HATA_VENV:-$root/.venv}/bin"
[ $# -ge 1 ] || { echo "MODEL: expected a checkpoint folder, found nothing" >&2; exit 2; }
folder="$(cd "$1" && pwd)"
work="${2:-$(mktemp -d "${TMPDIR:-/tmp}/hata-offline.XXXXXX")}"
export HF_HUB_OFFLINE=1
mkdir -p "$work"
cd "$work"
model="$(basename "$folder")"
ln -sfn "$folder" "$model"

sets=()
for name in asymmetric-128b asymmetric-64b hata-128b rotate-128b; do
    bits="${name##*-}"
    # All sets share the captures: the model runs once, for the first of them.
    [ -f "sets/$name/card.json" ] || "$bin/hata-sglang" train --model "$model" --device cuda \
        --method "${name%-*}" --bits "${bits%b}" --work-dir captures --out "sets/$name"
    sets+=("sets/$name")
done

"$bin/python" -m hata_sglang.training.texts --split test --tokenizer "$model" --length 32768 \
    --per-kind 1 --out texts
for texts in texts/test-*.jsonl; do
    kind="$(basename "${texts#texts/test-}" .jsonl)"
    "$bin/hata-sglang" eval offline --model "$model" --data "$texts" --device cuda --length 32768 \
        --sequences 1 --queries 128 --budgets 0.0156 0.05 --bits 128 \
        --selectors exact streaming quest16 random --weights "${sets[@]}" --out "offline-$kind.csv"
done

# One file, with the kind of text before the other columns.
awk -F, -v OFS=, '
    FNR == 1 { kind = FILENAME; gsub(/^offline-|\.csv$/, "", kind); if (NR > 1) next }
    { print (NR == 1 ? "kind" : kind), $0 }
' offline-*.csv >offline.csv
echo "wrote $PWD/offline.csv"
