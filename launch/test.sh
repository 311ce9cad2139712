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
if [ $# -gt 0 ] || [ "${HATA_TEST_BOTH:-0}" != 1 ]; then
    exec "$HATA_VENV/bin/python" -m pytest ${rows[@]+"${rows[@]}"} "$@"
fi

# All suites run even if one fails; the script fails if any does.
logs="$(mktemp -d "${TMPDIR:-/tmp}/hata-tests.XXXXXX")"
trap 'rm -rf "$logs"' EXIT
status=0
"$HATA_VENV/bin/python" -m pytest ${rows[@]+"${rows[@]}"} 2>&1 | tee "$logs/1" || status=1

newest_venv="$HATA_VENV-$NEWEST_SGLANG"
hata_setup "$newest_venv" "$NEWEST_SGLANG"
hata_say "tests of the seams with SGLang $NEWEST_SGLANG, and its Triton compiles every kernel"
# By themselves: tests beside the kernels' have Triton's interpreter, servers of users do not.
newest() { "$newest_venv/bin/python" -m pytest ${rows[@]+"${rows[@]}"} "$@" 2>&1; }
newest tests/kernels/test_compile.py | tee "$logs/2" || status=1
newest tests/plugin tests/e2e | tee "$logs/3" || status=1

# A library may still print after pytest's summary line.
summary() { grep -E '^=+ .* in [0-9.]+s.* =+$' "$1" | tail -n 1 || true; }
hata_say "SGLang $HATA_SGLANG_VERSION, all tests; then $NEWEST_SGLANG: compilation, tests/plugin and tests/e2e"
summary "$logs/1"
summary "$logs/2"
summary "$logs/3"
exit "$status"
