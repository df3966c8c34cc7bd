#!/usr/bin/env bash
# Real vLLM engines behind tidegate: install and start them (tests/real/engines), check, stop them.
# run.sh [VENV]    the virtual environment is kept (6 GB); default $TIDEGATE_REAL_VENV or target/real-venv
# guidellm has its own environment: $TIDEGATE_GUIDE_VENV or target/guide-venv. Three engines need 6 GB of memory.
# TIDEGATE_BINARY=PATH checks that binary instead of building one.
# TIDEGATE_REAL_PARTS="clients speed ..." runs only those parts. Parts that kill or stop engines run last, on separate
# engines: the lease of a hand-off to a killed engine expires 30 s later, within the counters of the next part.
set -euo pipefail
cd "$(dirname "$0")/../.."
engines=$(pwd)/tests/real/engines
venv=${1:-${TIDEGATE_REAL_VENV:-$(pwd)/target/real-venv}}
guide=${TIDEGATE_GUIDE_VENV:-$(pwd)/target/guide-venv}
parts=" ${TIDEGATE_REAL_PARTS:-clients generator face speed check stops membership kv_events} "
wanted() { [[ $parts == *" $1 "* ]]; }
if wanted generator && [[ ! -x $guide/bin/guidellm ]]; then python3 -m venv "$guide" && "$guide/bin/pip" install --quiet guidellm==0.8.1; fi
[[ -x $venv/bin/vllm ]] || bash "$engines/install.sh" "$venv"
tidegate=${TIDEGATE_BINARY:-target/release/tidegate}
[[ -n ${TIDEGATE_BINARY:-} ]] || cargo build --release --bin tidegate
run=$(mktemp -d)
model=$run/tiny_llama
"$venv/bin/python" "$engines/make_model.py" "$model" 2>/dev/null
stop() { bash "$engines/stop.sh" "$run"; }
trap stop EXIT
start() { bash "$engines/start.sh" "$venv" "$run" "$model" 2; }
check() {
  local part=$1; shift
  wanted "$part" || return 0
  echo "== $part"
  "$venv/bin/python" "tests/real/$part.py" --tidegate "$tidegate" --model "$model" "$@"
}
if wanted clients || wanted generator || wanted face || wanted speed || wanted check; then
  start
  check clients
  check generator --guide "$guide"
  check face
  check speed
  check check --engines "$run"
  stop
fi
if wanted stops || wanted membership; then
  start
  check stops --engines "$run"
  check membership --venv "$venv" --engines "$engines"
  stop
fi
check kv_events --venv "$venv"
echo "test-real: every part has passed"
