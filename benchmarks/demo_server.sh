#!/usr/bin/env bash
# Grades servers of the demo model on RULER tasks and on the likelihood of a novel: dense, exact
# top-k, every shipped method, random hyperplanes, sink and recent alone; at 1.56 %, 3.13 % and
# 6.25 % of the context. For one GPU; a server starts for every arm, budget and measurement.
#
#   bash benchmarks/demo_server.sh [WORK]     needs the environment of launch/test.sh
#
# WORK gets server_tasks.csv and server_nll.csv (default: a new temporary folder). A run that was
# cut off goes on from there.
#
# Environment:
#   HATA_VENV    virtual environment (default: .venv of this checkout)
#   HATA_JOBS    servers at a time on the GPU (default: 6, of 5 GB of GPU memory and 2 cores each)
#   HATA_PARTS   what to measure (default: "tasks nll")
#   HATA_ARMS    some of "dense exact asymmetric asymmetric-64b asymmetric-32b hata hata-64b
#                hashattention random streaming" (default: all)
#   HATA_BUDGETS shares of the context (default: 0.0156 0.0313 0.0625)
#   HATA_TASKS, HATA_LENGTHS, HATA_SAMPLES, HATA_SEED   of the tasks
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bin="${HATA_VENV:-$root/.venv}/bin"
work="${1:-$(mktemp -d "${TMPDIR:-/tmp}/hata-server.XXXXXX")}"
export HF_HUB_OFFLINE=1 PATH="$bin:$PATH"
model="$(hata-sglang demo-model)"
mkdir -p "$work/parts" "$work/logs"
cd "$work"
ln -sfn "$model" SmolLM2-135M-Instruct

cat >base.yaml <<YAML
method: exact
budget: 256
sink: 16
recent: 16
dense_layers: [0, 1]
YAML

arms="${HATA_ARMS:-dense exact asymmetric asymmetric-64b asymmetric-32b hata hata-64b \
hashattention random streaming}"
# Room for 16 requests of 8,000 tokens; no graphs of prefill, which is not measured here.
flags="--max-total-tokens 140000 --max-running-requests 16 --cuda-graph-max-bs-decode 16 \
--cuda-graph-backend-prefill disabled --log-level warning"
common=(--model SmolLM2-135M-Instruct --config base.yaml --concurrency 16 --server-flags "$flags")

# One line a job: PART ARM BUDGET.
jobs_of() {
    for part in ${HATA_PARTS:-tasks nll}; do
        for arm in $arms; do
            for budget in ${HATA_BUDGETS:-0.0156 0.0313 0.0625}; do
                echo "$part $arm $budget"
                [ "$arm" != dense ] || break
            done
        done
    done
}

run_job() {
    local part=$1 name=$2 budget=$3 arm=${2%-*b} bits words=()
    bits=${name#"$arm"}
    case $arm in
        asymmetric | hata) words=(--weights "$arm=smollm2-135m-instruct-$arm${bits:--128b}") ;;
        hashattention) words=(--weights "$arm=smollm2-135m-instruct-$arm-96b") ;;
    esac
    words+=(--arms "$arm" --budgets "$budget" --out "parts/$part-$name-$budget.csv")
    if [ "$part" = tasks ]; then
        # shellcheck disable=SC2086
        hata-sglang eval server "${common[@]}" "${words[@]}" --tasks ${HATA_TASKS:-ruler} \
            --lengths ${HATA_LENGTHS:-2048 4096 7168} --samples "${HATA_SAMPLES:-50}" \
            --seed "${HATA_SEED:-0}"
    else
        hata-sglang eval nll "${common[@]}" "${words[@]}" --chunks 16
    fi
}

merge() {
    local parts=(parts/"$1"-*.csv)
    [ -f "${parts[0]}" ] || return 0
    # Every part has the header; a quoted field may hold a line break, the header has none.
    awk 'FNR > 1 || NR == 1' "${parts[@]}" >"$2"
    echo "wrote $work/$2"
}

one() {
    local log="logs/$1-$2-$3.log" start=$SECONDS
    if run_job "$@" >"$log" 2>&1; then
        echo "$*: $((SECONDS - start)) s"
    else
        echo "$*: FAILED after $((SECONDS - start)) s, see $work/$log" >&2
        touch failed
    fi
}

rm -f failed
while read -r part arm budget; do
    while [ "$(jobs -rp | wc -l)" -ge "${HATA_JOBS:-6}" ]; do wait -n; done
    one "$part" "$arm" "$budget" &
done < <(jobs_of)
wait
merge tasks server_tasks.csv
merge nll server_nll.csv
[ ! -e failed ]
