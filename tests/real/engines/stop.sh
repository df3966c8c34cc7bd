#!/usr/bin/env bash
# Stop the engines that start.sh started, and wait until they have ended: stop.sh RUN_DIR
for f in "$1"/engine-*.pid; do
  [[ -f $f ]] || continue
  pid=$(cat "$f"); rm -f "$f"
  # A stopped process handles other signals only after SIGCONT.
  kill -CONT "$pid" 2>/dev/null
  kill "$pid" 2>/dev/null || continue
  for ((s = 0; s < 100; s++)); do kill -0 "$pid" 2>/dev/null || break; sleep 0.2; done
  # A starting engine ignores SIGTERM; its child processes end when their pipe closes.
  kill -KILL "$pid" 2>/dev/null
done
exit 0
