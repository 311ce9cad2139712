#!/usr/bin/env bash
# Checks on one GPU what no CPU can: kernels against their references, and SGLang's servers with a
# real model beside stock ones. Adds a row for each feature to docs/validation.csv.
#
#   bash launch/check_gpu.sh [FILE]    rows to FILE instead
#
# Environment:
#   HATA_READY_PYTHON  interpreter that has SGLang, hata-sglang[test] and its plugin: nothing is set up
#   HATA_WORKERS       processes that compile and run kernels' tests (default: one a core, less one)
#   HATA_SERVERS       servers' tests at a time (default: 6, which takes 12 cores and 40 GB of GPU memory)
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
cores="$(nproc)"
status=0

# Run one part of the tests; whatever fails, the others run as well.
part() {
    local start=$SECONDS
    hata_say "$1"
    shift
    "$python" -m pytest -q --validation "$rows" "$@" || status=1
    hata_say "  after $((SECONDS - start)) s, $SECONDS s in all"
}

part "servers, several at a time" -m "gpu and not alone" -n "${HATA_SERVERS:-6}" --dist loadgroup \
    tests/gpu
part "servers with SGLang's defaults, one at a time" -m "gpu and alone" tests/gpu
part "kernels and decoders" -m gpu -n "${HATA_WORKERS:-$((cores > 2 ? cores - 1 : 1))}" \
    tests/kernels tests/plugin
hata_say "rows: $rows"
exit "$status"
