#!/usr/bin/env bash
# Makes hash weights for the demo model with the recipes of the shipped sets, all from the same texts
# and captures. Validation texts choose each layer's training step; the shipped sets are older and
# chose it on their held-out texts, so sets made now differ a little. Needs no GPU, and 2 GB of free
# disk beside the environment. After running the model once, all seven sets took 83 minutes of one
# CPU thread; on one H100 one to two minutes each. Prints what each set took.
#
#   bash launch/train_demo_weights.sh [SET...]
#
# SET is METHOD-BITSb, for example asymmetric-64b (default: all seven). A set whose folder has a
# card is left alone.
#
# Environment, beside that of _setup.sh:
#   HATA_OUT      parent of the sets' folders (default: weights/hata_weights, the shipped ones)
#   HATA_WORK     keeps texts, captures and finished layers; a run that was cut off goes on from
#                 there (default: a temporary folder, removed at the end)
#   HATA_AGAIN    1 trains sets that have a card again
#   HATA_DEVICE   cpu (default) or cuda
#   HATA_THREADS  CPU threads (default: PyTorch's own choice)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

HATA_DEMO_SETS=(hata-32b hata-64b hata-128b asymmetric-32b asymmetric-64b asymmetric-128b
    hashattention-96b)

sets=("$@")
[ $# -gt 0 ] || sets=("${HATA_DEMO_SETS[@]}")
for name in "${sets[@]}"; do
    case " ${HATA_DEMO_SETS[*]} " in
        *" $name "*) ;;
        *) hata_fail "SET: expected some of ${HATA_DEMO_SETS[*]}, found $name" ;;
    esac
done

hata_setup "$HATA_VENV" "$HATA_SGLANG_VERSION"

out="${HATA_OUT:-$HATA_ROOT/weights/hata_weights}"
work="${HATA_WORK:-}"
if [ -z "$work" ]; then
    work="$(mktemp -d "${TMPDIR:-/tmp}/hata-train.XXXXXX")"
    trap 'rm -rf "$work"' EXIT
fi
threads=()
[ -z "${HATA_THREADS:-}" ] || threads=(--threads "$HATA_THREADS")

python="$HATA_VENV/bin/python"
model="$("$HATA_VENV/bin/hata-sglang" demo-model)"
description="$("$python" -c \
    'from hata_sglang.training.demo_corpus import DESCRIPTION; print(DESCRIPTION)')"
if [ ! -f "$work/train.jsonl" ] || [ ! -f "$work/validation.jsonl" ] ||
    [ ! -f "$work/held_out.jsonl" ]; then
    hata_say "training texts"
    "$python" -m hata_sglang.training.demo_corpus --model "$model" --out "$work"
fi

for name in "${sets[@]}"; do
    folder="$out/smollm2-135m-instruct-$name"
    if [ -f "$folder/card.json" ] && [ "${HATA_AGAIN:-0}" != 1 ]; then
        hata_say "$name: has a card, left alone (HATA_AGAIN=1 trains it again)"
        continue
    fi
    method="${name%-*}" bits="${name##*-}"
    recipe=()
    # Three times the published rate: on this model it keeps more attention after as many steps.
    [ "$method" != hashattention ] || recipe=(--learning-rate 0.003 --steps 600)
    start=$SECONDS
    hata_say "$name: training"
    # All sets share the work folder: the model runs once, for the first of them.
    "$HATA_VENV/bin/hata-sglang" train --model "$model" \
        --data "$work/train.jsonl" --validation "$work/validation.jsonl" \
        --held-out "$work/held_out.jsonl" --work-dir "$work/captures" \
        --method "$method" --bits "${bits%b}" --seed 0 --dtype float16 \
        ${recipe[@]+"${recipe[@]}"} \
        --device "${HATA_DEVICE:-cpu}" ${threads[@]+"${threads[@]}"} \
        --out "$folder" --description "$description"
    hata_say "$name: done in $((SECONDS - start)) s"
done
