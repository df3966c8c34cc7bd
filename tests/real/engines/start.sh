#!/usr/bin/env bash
# Start N real vLLM engines (CPU build) on loopback and wait until they are healthy: start.sh VENV RUN_DIR MODEL N [FIRST_PORT]
# Engine i listens on FIRST_PORT+i (default 18100), its NIXL side channel on FIRST_PORT+1000+i. Each pid is in RUN_DIR/engine-i.pid.
# Each engine is pinned to one core: two busy engines on two shared cores stall each other for seconds.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); venv=$1; run=$2; model=$3; n=$4; first=${5:-18100}
mkdir -p "$run"
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_HOST_IP=127.0.0.1 VLLM_NIXL_SIDE_CHANNEL_HOST=127.0.0.1
# POLITE=1 (default): NIXL's progress thread sleeps 1 ms between polls, one configuration field changed by polite/sitecustomize.py.
# POLITE=0: NIXL as shipped; every idle engine uses about one core.
if [[ ${POLITE:-1} == 1 ]]; then export PYTHONPATH="$here/polite${PYTHONPATH:+:$PYTHONPATH}" NIXL_POLL_DELAY_US=1000; fi
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 UCX_TLS=tcp,self,shm,sysv,posix UCX_NET_DEVICES=lo
for ((i = 0; i < n; i++)); do
  core=$(((first + i) % $(nproc)))
  VLLM_NIXL_SIDE_CHANNEL_PORT=$((first + 1000 + i)) nohup taskset -c "$core" "$venv/bin/vllm" serve "$model" --served-model-name tiny \
    --host 127.0.0.1 --port $((first + i)) --max-model-len 4096 --enforce-eager --dtype float32 \
    --enable-auto-tool-choice --tool-call-parser hermes \
    --kv-transfer-config '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_buffer_device":"cpu","kv_load_failure_policy":"recompute"}' \
    >"$run/engine-$i.log" 2>&1 &
  echo $! >"$run/engine-$i.pid"
done
for ((i = 0; i < n; i++)); do
  for ((s = 0; ; s++)); do
    curl -sf "http://127.0.0.1:$((first + i))/health" >/dev/null && break
    kill -0 "$(cat "$run/engine-$i.pid")" 2>/dev/null || { echo "engine $i ended: see $run/engine-$i.log" >&2; exit 1; }
    ((s < 900)) || { echo "engine $i is not healthy after 900 s" >&2; exit 1; }
    sleep 1
  done
  echo "engine $i is healthy on 127.0.0.1:$((first + i))"
done
