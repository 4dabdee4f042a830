#!/usr/bin/env bash
# A Ray head on this machine, with token authentication, that touches no other cluster here.
#
#   cluster/local.sh start                   start the head of this checkout
#   cluster/local.sh submit python -m ...    run a job on it and stream its log
#   cluster/local.sh stop                    stop it, and everything that runs on it
#   cluster/local.sh run python -m ...       a head of its own for one job, stopped at its end
#
# RAY_HEAD names the folder that remembers the head (default: runs/.head of this checkout).
# PYTHON names the interpreter with Ray (default: .venv/bin/python, else python3).
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
head="${RAY_HEAD:-$root/runs/.head}"
python="${PYTHON:-$root/.venv/bin/python}"
[ -x "$python" ] || python="$(command -v python3)"
ray="$(dirname "$("$python" -c 'import sys; print(sys.executable)')")/ray"

# Where `make setup` put DeepSpeed's operators.
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$(dirname "$(dirname "$ray")")/torch_extensions}"

unset RAY_ADDRESS
export RAY_AUTH_MODE=token
# What `ray job stop` waits for a job to save and end.
export RAY_JOB_STOP_WAIT_TIME_S=120
export RAY_USAGE_STATS_ENABLED=0
# One machine of one's own is not preempted: nothing to watch, and a process less to start.
export RAY_TRAIN_ENABLE_PREEMPTION_WATCHER=0
# What a job's log need not show: Serve's own messages, bars for loading small files, and colour
# where nobody sees it.
export RAY_SERVE_LOG_TO_STDERR=0
export HF_HUB_DISABLE_PROGRESS_BARS=1
[ -t 1 ] || export RAY_COLOR_PREFIX=0
# The memory monitor ends jobs, and the head with them, when the machine's memory is nearly full,
# whoever filled it: on one's own machine that is often another program. Without it, the kernel
# ends the largest process when memory has run out.
export RAY_memory_monitor_refresh_ms="${RAY_memory_monitor_refresh_ms:-0}"
# What is left out of the upload stands in .rayignore; Ray's own list would be announced each time.
export RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES=
# Every process started here finds this interpreter's tools (ninja, for DeepSpeed) first.
PATH="$(dirname "$ray"):$PATH"
export PATH

client=

fail() {
  echo "cluster/local.sh: $*" >&2
  exit 1
}

# After a restart of the machine another process may have the number that was written down.
is_running() {
  [ -f "$head/pid" ] && grep -qaF -- "$(cat "$head/temp")" "/proc/$(cat "$head/pid")/cmdline" 2>/dev/null
}

free_ports() {
  "$python" - "$1" <<'PYTHON'
import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(each.getsockname()[1] for each in sockets))
PYTHON
}

# Ray answers over HTTP, with 401 to a caller without the token.
wait_until_ready() {
  "$python" - "$1" "$2" <<'PYTHON'
import os, sys, time, urllib.error, urllib.request
address, pid = sys.argv[1], int(sys.argv[2])
for _ in range(600):
    os.kill(pid, 0)
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=5)
    except urllib.error.HTTPError:
        sys.exit(0)
    except OSError:
        time.sleep(0.2)
    else:
        sys.exit("the head answers without asking for a token")
sys.exit("no answer after two minutes")
PYTHON
}

start() {
  is_running && fail "a head is running already: $(cat "$head/address")"
  [ "$RAY_memory_monitor_refresh_ms" != 0 ] || echo "cluster/local.sh: Ray's memory monitor is off," \
    "so that no other program's memory ends a job; RAY_memory_monitor_refresh_ms=250 switches it on" >&2
  rm -rf "$head"
  mkdir -p "$head"
  "$ray" get-auth-token --generate >/dev/null 2>"$head/token.log" || fail "$(cat "$head/token.log")"
  local ports cpus
  read -ra ports <<<"$(free_ports 5)"
  cpus="$(nproc)"
  # Short, since Ray keeps Unix sockets in it, whose paths may have 107 characters.
  mktemp -d /tmp/metaalign.XXXXXX >"$head/temp"
  setsid "$ray" start --head --block --disable-usage-stats \
    --num-cpus="$((cpus < 2 ? 2 : cpus))" \
    --temp-dir="$(cat "$head/temp")" --object-store-memory="${RAY_OBJECT_STORE:-500000000}" \
    --port="${ports[0]}" --dashboard-host=127.0.0.1 --dashboard-port="${ports[1]}" \
    --dashboard-agent-listen-port="${ports[2]}" --dashboard-agent-grpc-port="${ports[3]}" \
    --ray-client-server-port="${ports[4]}" \
    >"$head/log" 2>&1 </dev/null &
  echo "$!" >"$head/pid"
  disown
  echo "http://127.0.0.1:${ports[1]}" >"$head/address"
  if ! wait_until_ready "$(cat "$head/address")" "$(cat "$head/pid")" 2>"$head/wait.log"; then
    tail -n 20 "$head/log" "$head/wait.log" >&2
    stop
    fail "the head did not start"
  fi
}

stop() {
  [ -f "$head/pid" ] || return 0
  local pid
  pid="$(cat "$head/pid")"
  if is_running || [ ! -d "/proc/$pid" ]; then
    # The head ends what it started; what is left of its session after six seconds is killed.
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 30); do
      pgrep -s "$pid" >/dev/null || break
      sleep 0.2
    done
    pkill -KILL -s "$pid" 2>/dev/null || true
  fi
  rm -rf "$(cat "$head/temp")" "$head"
}

submit() {
  is_running || fail "no head is running; start one: cluster/local.sh start"
  cd "$root"
  local color=false
  [ -t 1 ] && color=auto
  exec "$ray" --logging-level warning job submit --log-style pretty --log-color "$color" \
    --address "$(cat "$head/address")" --working-dir . -- "$@"
}

run() {
  head="${RAY_HEAD:-$root/runs/.head-$$}"
  trap '[ -z "$client" ] || kill "$client" 2>/dev/null || true; stop' EXIT
  trap 'exit 130' INT TERM HUP
  # A killed script runs no trap, so another waits for its end and stops the head then.
  RAY_HEAD="$head" setsid "${BASH_SOURCE[0]}" stop-after "$$" </dev/null >/dev/null 2>&1 &
  disown
  start
  # In the background, since bash runs traps only between commands.
  submit "$@" &
  client="$!"
  wait "$client"
  client=
}

# In braces, since bash would read on in this file, which may have changed, after a long command.
{
  command="${1:-}"
  shift || true
  case "$command" in
    start)
      start
      echo "Ray is running at $(cat "$head/address"). Submit jobs with: cluster/local.sh submit"
      ;;
    stop) stop ;;
    submit) submit "$@" ;;
    run) run "$@" ;;
    stop-after)
      tail --pid="$1" -f /dev/null
      stop
      ;;
    *) fail "expected start, stop, submit or run, got '$command'" ;;
  esac
  exit
}
