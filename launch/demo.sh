#!/usr/bin/env bash
# Sets everything up and serves the demo model, sparse, on this machine.
#
#   bash launch/demo.sh [flags of SGLang's server] [--hata-config FILE]
#   bash launch/demo.sh --once      asks about a hidden fact, compares with dense, and exits
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

hata_setup "$HATA_VENV" "$HATA_SGLANG_VERSION"

once=false
flags=()
for word in "$@"; do
    if [ "$word" = "--once" ]; then once=true; else flags+=("$word"); fi
done
if $once; then
    hata_say "starting the demo"
    exec "$HATA_VENV/bin/python" -m hata_sglang.demo "${flags[@]}"
fi
hata_say "starting the server (Ctrl-C stops it)"
exec "$HATA_VENV/bin/python" -m hata_sglang.launch_server "${flags[@]}"
