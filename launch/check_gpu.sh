#!/usr/bin/env bash
# Checks on a GPU what no CPU can: kernels against their references, and SGLang's servers with a
# real model beside stock ones. Adds a row for each feature to docs/validation.csv.
#
#   bash launch/check_gpu.sh [FILE]    rows to FILE instead
#
# Servers with SGLang's defaults take all of a GPU's memory: they have the last GPU for themselves,
# and where there is one GPU, the others wait for them.
#
# Environment:
#   HATA_READY_PYTHON  interpreter that has SGLang, hata-sglang[test] and its plugin: nothing is set up
#   HATA_WORKERS       processes that compile and run kernels' tests (default: one a core, less one)
#   HATA_SERVERS       servers' tests at a time (default: 6; each takes up to 14 GB of GPU memory)
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

rows="$(realpath "${1:-$HATA_ROOT/docs/validation.csv}")"
if [ -n "${HATA_READY_PYTHON:-}" ]; then
    python="$HATA_READY_PYTHON"
else
    hata_setup "$HATA_VENV" "$HATA_SGLANG_VERSION"
    python="$HATA_VENV/bin/python"
fi
cd "$HATA_ROOT"
# Else every server may have to compile SGLang's Python anew, which takes it half a minute.
unset PYTHONDONTWRITEBYTECODE
hata_note_commit "$python"
gpus="${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)}"
first="${gpus%%,*}" last="${gpus##*,}"
cores="$(nproc)"
workers="${HATA_WORKERS:-$((cores > 2 ? cores - 1 : 1))}"
logs="$(mktemp -d "${TMPDIR:-/tmp}/hata-gpu.XXXXXX")"
trap 'rm -rf "$logs"' EXIT

# Run one part of the tests on one GPU: part TITLE GPU ARGUMENT... Its output comes when it ends.
part() {
    local title="$1" start=$SECONDS log
    log="$(mktemp "$logs/part.XXXXXX")"
    hata_say "$title: started on GPU $2"
    CUDA_VISIBLE_DEVICES="$2" "$python" -m pytest -q --validation "$rows" "${@:3}" >"$log" 2>&1 ||
        touch "$logs/failed"
    cat "$log"
    hata_say "$title: $((SECONDS - start)) s, $SECONDS s in all"
}

part "servers with SGLang's defaults" "$last" -m "gpu and alone" tests/gpu &
[ "$first" != "$last" ] || wait
part "servers, several at a time" "$first" -m "gpu and not alone" -n "${HATA_SERVERS:-6}" \
    --dist loadgroup tests/gpu &
# References run on the CPU: processes of as many threads as there are cores would stall all else.
OMP_NUM_THREADS=1 part "kernels and decoders" "$first" -m gpu -n "$workers" \
    tests/kernels tests/plugin &
wait
hata_say "rows: $rows"
[ ! -e "$logs/failed" ]
