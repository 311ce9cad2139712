#!/usr/bin/env bash
# Sets everything up and runs the tests; arguments go to pytest.
#
#   bash launch/test.sh
#   bash launch/test.sh tests/config -k budget
#   HATA_TEST_BOTH=1 bash launch/test.sh    also with the newest SGLang: seams, servers, compilation
#   HATA_VALIDATION=docs/validation.csv HATA_TEST_BOTH=1 bash launch/test.sh    adds rows of what ran
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

NEWEST_SGLANG=0.5.23

hata_setup "$HATA_VENV" "$HATA_SGLANG_VERSION"
cd "$HATA_ROOT"

rows=(${HATA_VALIDATION:+--validation "$HATA_VALIDATION"})
[ -z "${HATA_VALIDATION:-}" ] || hata_note_commit "$HATA_VENV/bin/python"
if [ $# -gt 0 ]; then
    exec "$HATA_VENV/bin/python" -m pytest ${rows[@]+"${rows[@]}"} "$@"
fi

# All parts run even if one fails; the script fails if any does.
logs="$(mktemp -d "${TMPDIR:-/tmp}/hata-tests.XXXXXX")"
trap 'rm -rf "$logs"' EXIT
status=0
part=0

# Run the tests of one environment: part PYTHON ARGUMENT...
run() {
    part=$((part + 1))
    "$1" -m pytest ${rows[@]+"${rows[@]}"} "${@:2}" 2>&1 | tee "$logs/$part" || status=1
}

# Spread over processes, of one thread each; what starts SGLang's servers takes all cores by itself.
spread() { OMP_NUM_THREADS=1 run "$1" -n "$(nproc)" --dist loadfile "${@:2}"; }
SERVERS=(tests/e2e tests/bench/test_serve_cpu.py)

spread "$HATA_VENV/bin/python" tests "${SERVERS[@]/#/--ignore=}"
run "$HATA_VENV/bin/python" "${SERVERS[@]}"
if [ "${HATA_TEST_BOTH:-0}" = 1 ]; then
    newest_venv="$HATA_VENV-$NEWEST_SGLANG"
    hata_setup "$newest_venv" "$NEWEST_SGLANG"
    hata_say "tests of the seams with SGLang $NEWEST_SGLANG, and its Triton compiles every kernel"
    # By themselves: tests beside the kernels' have Triton's interpreter, servers of users do not.
    run "$newest_venv/bin/python" tests/kernels/test_compile.py
    spread "$newest_venv/bin/python" tests/plugin
    run "$newest_venv/bin/python" tests/e2e
fi

# A library may still print after pytest's summary line.
hata_say "all parts:"
for log in $(seq "$part"); do
    grep -E '^=+ .* in [0-9.]+s.* =+$' "$logs/$log" | tail -n 1 || true
done
exit "$status"
