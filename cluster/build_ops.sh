#!/usr/bin/env bash
# Builds the DeepSpeed operators that training on CPUs needs, once, so that no job has to.
#
#   cluster/build_ops.sh [.venv/bin/python]
#
# A build that was killed leaves a lock file that would hang the next for ever: one that is older
# than any build takes is removed first.
set -euo pipefail

python="${1:-python3}"
PATH="$(cd "$(dirname "$python")" && pwd):$PATH"
export PATH DS_ACCELERATOR=cpu

cache="${TORCH_EXTENSIONS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/torch_extensions}"
if [ -d "$cache" ]; then
  find "$cache" -name lock -mmin +15 -delete
fi

log="$(mktemp)"
trap 'rm -f "$log"' EXIT
for operator in ShareMemCommBuilder CPUAdamBuilder; do
  if ! "$python" - "$operator" >"$log" 2>&1 <<'PYTHON'; then
import sys
from deepspeed.accelerator import get_accelerator
get_accelerator().create_op_builder(sys.argv[1]).load(verbose=False)
PYTHON
    cat "$log" >&2
    echo "cluster/build_ops.sh: $operator could not be built" >&2
    exit 1
  fi
done
