#!/usr/bin/env bash
# Grades servers of the demo model: RULER tasks, and the likelihood of a novel, arm by arm. Needs a
# GPU. A run that was cut off goes on from there.
#
#   bash benchmarks/demo_server.sh WORK     needs the environment of launch/test.sh
#
# WORK gets server_tasks.csv, server_nll.csv and server_tasks_2048.csv. Arms are dense, exact top-k,
# the shipped methods, random hyperplanes, sink and recent alone. The tasks at 4,096 and 7,168 tokens
# are those of RULER that the dense model answered half of in a trial with other samples.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
hata="${HATA_VENV:-$root/.venv}/bin/hata-sglang"
mkdir -p "$1"
cd "$1"
export HF_HUB_OFFLINE=1
model="$("$hata" demo-model)"
cat >base.yaml <<'YAML'
method: exact
budget: 256
sink: 16
recent: 16
dense_layers: [0, 1]
inner_backend: flashinfer
YAML
set_of() { echo "$1=smollm2-135m-instruct-$1-$2"; }
sets=("$(set_of asymmetric 128b)" "$(set_of hata 128b)" "$(set_of hashattention 96b)")
arms=(dense exact asymmetric hata hashattention random streaming)
budgets=(0.0156 0.0313 0.0625)
# 16 requests of 8,000 tokens; likelihoods need the last two, so tasks get them as well.
flags="--max-total-tokens 140000 --max-running-requests 16 --cuda-graph-max-bs-decode 16"
flags+=" --cuda-graph-backend-prefill disabled --log-level warning"
flags+=" --enable-custom-logit-processor --disable-overlap-schedule"
common=(--model "$model" --config base.yaml --server-flags "$flags" --concurrency 16)

tasks() {
    "$hata" eval server "${common[@]}" --samples 50 "$@" \
        --tasks niah_single_1 niah_single_2 niah_multivalue --lengths 4096 7168 --out server_tasks.csv
}
likelihood() { "$hata" eval nll "${common[@]}" --chunks 16 "$@" --out server_nll.csv; }

for grade in tasks likelihood; do
    "$grade" --arms "${arms[@]}" --weights "${sets[@]}" --budgets "${budgets[@]}"
    "$grade" --arms asymmetric --weights "$(set_of asymmetric 64b)" --budgets 0.0156
done
"$hata" eval server "${common[@]}" --samples 50 --arms "${arms[@]}" --weights "${sets[@]}" \
    --budgets 0.0156 --tasks niah_single_{1,2,3} niah_multikey_1 niah_multivalue niah_multiquery \
    --lengths 2048 --out server_tasks_2048.csv
