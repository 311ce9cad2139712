# Sourced by demo.sh and test.sh; sets nothing up by itself.
#
#   hata_setup VENV SGLANG_VERSION    makes the environment and the demo model, whatever is missing
#   hata_note_commit PYTHON           sets HATA_COMMIT, which rows of validation name
#
# Environment:
#   HATA_PYTHON          interpreter to make the environment with (else the first that fits)
#   HATA_VENV            folder of the environment (default: .venv in the repository)
#   HATA_SGLANG_VERSION  SGLang release to install (default: 0.5.16)
#   HATA_CACHE           parent of the demo model's folder (default: ~/.cache/hata-sglang)

HATA_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
HATA_VENV="${HATA_VENV:-$HATA_ROOT/.venv}"
HATA_SGLANG_VERSION="${HATA_SGLANG_VERSION:-0.5.16}"
HATA_PYTHONS="Python 3.10 to 3.13 (3.11 or newer for SGLang above 0.5.16) with the venv module"
HATA_DISK_GB=12 # SGLang 0.5.23 with torch takes 10.5 GB

# Models come from the cache folder; without this, libraries ask the network about each of them.
export HF_HUB_OFFLINE=1
export PIP_DISABLE_PIP_VERSION_CHECK=1

hata_say() { printf '[hata] %s\n' "$*"; }

hata_fail() {
    printf '[hata] error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '[hata]        %s\n' "$@" >&2
    exit 2
}

# Whether interpreter $1 fits SGLang release $2.
hata_python_fits() {
    "$1" - "$2" 2>/dev/null <<'PYTHON'
import sys

import ensurepip  # Debian splits it off, and a virtual environment needs it
import venv

release = tuple(int(part) for part in sys.argv[1].split(".")[:3])
# SGLang 0.5.23 asks for Python 3.11; releases in between were not looked at.
lowest = (3, 10) if release == (0, 5, 16) else (3, 11)
if not lowest <= sys.version_info[:2] < (3, 14):
    raise SystemExit(1)
PYTHON
}

hata_version() { "$1" --version 2>&1 | head -n 1 || true; }

# Set HATA_PYTHON_FOUND to an interpreter for SGLang release $1.
hata_find_python() {
    local candidate
    if [ -n "${HATA_PYTHON:-}" ]; then
        hata_python_fits "$HATA_PYTHON" "$1" || hata_fail \
            "HATA_PYTHON: expected $HATA_PYTHONS, found $HATA_PYTHON ($(hata_version "$HATA_PYTHON"))"
        HATA_PYTHON_FOUND="$HATA_PYTHON"
        return
    fi
    for candidate in python3.12 python3.11 python3.13 python3.10 python3 python; do
        if hata_python_fits "$candidate" "$1"; then
            HATA_PYTHON_FOUND="$candidate"
            return
        fi
    done
    hata_fail "no Python that fits SGLang $1 was found on PATH" \
        "expected: $HATA_PYTHONS" \
        "on Debian or Ubuntu: sudo apt install python3.12-venv (or the version you have: python3 --version)" \
        "elsewhere: install one, then HATA_PYTHON=/path/to/python3.12 bash launch/demo.sh"
}

# Refuse when the file system that will hold $1 is too full.
hata_check_disk() {
    local folder="$1" free_kb
    while [ ! -d "$folder" ]; do folder="$(dirname "$folder")"; done
    free_kb="$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')"
    if [ "$free_kb" -lt $((HATA_DISK_GB * 1000 * 1000 * 1000 / 1024)) ]; then
        hata_fail \
            "disk: expected $HATA_DISK_GB GB free for $1, found $((free_kb * 1024 / 1000000000)) GB" \
            "free some space, or put the environment elsewhere: HATA_VENV=/other/disk/venv"
    fi
}

# Run a long command quietly: its output goes to a log that is shown when it fails, and a line
# every 20 seconds says what it is at and how large the environment $1 has become.
hata_quietly() {
    local venv="$1" log pid start=$SECONDS seconds=0
    shift
    log="$(mktemp "${TMPDIR:-/tmp}/hata-setup.XXXXXX")"
    "$@" >"$log" 2>&1 &
    pid=$!
    # A command in the background does not hear Ctrl-C.
    trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        if [ $((seconds % 20)) -eq 0 ]; then
            hata_say "  $((SECONDS - start)) s, $(du -sm "$venv" | cut -f1) MB:" \
                "$(grep -v WARNING "$log" | tail -n 1 | sed 's/^ *//' | cut -c 1-60)"
        fi
    done
    trap - INT TERM
    if ! wait "$pid"; then
        tail -n 40 "$log" >&2
        hata_fail "failed: $*" "the whole log: $log" \
            "after mending the cause, run the same command again"
    fi
    rm -f "$log"
}

# What an environment was made from; a change of it means installing again.
hata_fingerprint() {
    { cat "$HATA_ROOT/pyproject.toml"; echo "$1 $HATA_ROOT"; } | sha256sum | cut -d' ' -f1
}

# Note of which commit the rows of a run are, before the first of them changes a file of it.
# $1: interpreter with hata-sglang
hata_note_commit() {
    local words="from hata_sglang.evaluation.provenance import provenance as of; print(of()['commit'])"
    export HATA_COMMIT="${HATA_COMMIT:-$(cd "$HATA_ROOT" && "$1" -c "$words")}"
}

hata_setup() {
    local venv="$1" release="$2" stamp="$1/.hata-stamp" wanted
    wanted="$(hata_fingerprint "$release")"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        hata_say "environment: $venv (SGLang $release), ready"
    else
        if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
            hata_python_fits "$venv/bin/python" "$release" || hata_fail \
                "$venv: expected $HATA_PYTHONS, found $(hata_version "$venv/bin/python")" \
                "remove the folder, or name another one with HATA_VENV"
        else
            hata_check_disk "$venv"
            hata_find_python "$release"
            hata_say "environment: making $venv with $(hata_version "$HATA_PYTHON_FOUND")"
            "$HATA_PYTHON_FOUND" -m venv "$venv"
        fi
        rm -f "$stamp"
        # SGLang first and alone: its exact pins then decide every version that both need.
        hata_say "installing SGLang $release (about 10 GB, some minutes on first use)"
        hata_quietly "$venv" "$venv/bin/python" -m pip install --progress-bar off "sglang==$release"
        hata_say "installing hata-sglang from $HATA_ROOT"
        hata_quietly "$venv" "$venv/bin/python" -m pip install --progress-bar off -e "$HATA_ROOT[test]"
        echo "$wanted" >"$stamp"
    fi
    # Prints its own progress; the folder's name, its result, is of no use here.
    "$venv/bin/hata-sglang" demo-model >/dev/null
    hata_say "demo model: ready"
}
