#!/usr/bin/env bash
# Real vLLM engines behind tidegate: install and start them through ../shared/real_engines, check, stop them.
# run.sh [VENV]    the virtual environment is kept (6 GB); default $TIDEGATE_REAL_VENV or target/real-venv
# guidellm has one of its own: $TIDEGATE_GUIDE_VENV or target/guide-venv. Three engines need 6 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/../.."
engines=${TIDEGATE_REAL_ENGINES:-$(pwd)/../shared/real_engines}
venv=${1:-${TIDEGATE_REAL_VENV:-$(pwd)/target/real-venv}}
[[ -x $engines/install.sh || -f $engines/install.sh ]] || { echo "test-real: no $engines: set TIDEGATE_REAL_ENGINES" >&2; exit 1; }
guide=${TIDEGATE_GUIDE_VENV:-$(pwd)/target/guide-venv}
[[ -x $guide/bin/guidellm ]] || { python3 -m venv "$guide" && "$guide/bin/pip" install --quiet guidellm==0.8.1; }
[[ -x $venv/bin/vllm ]] || bash "$engines/install.sh" "$venv"
cargo build --release --bin tidegate
run=$(mktemp -d)
stop() { bash "$engines/stop.sh" "$run"; }
trap stop EXIT
bash "$engines/start.sh" "$venv" "$run" 2
"$venv/bin/python" tests/real/clients.py --tidegate target/release/tidegate --model "$engines/tiny_llama"
"$venv/bin/python" tests/real/generator.py --tidegate target/release/tidegate --model "$engines/tiny_llama" --guide "$guide"
"$venv/bin/python" tests/real/membership.py --tidegate target/release/tidegate --model "$engines/tiny_llama" --venv "$venv" --engines "$engines"
"$venv/bin/python" tests/real/check.py --tidegate target/release/tidegate --engines "$run" --model "$engines/tiny_llama"
stop
"$venv/bin/python" tests/real/kv_events.py --venv "$venv" --tidegate target/release/tidegate --model "$engines/tiny_llama"
