#!/usr/bin/env bash
# Write infra/requirements.lock: every package of `pip install -e '.[dev]'`, for Python 3.11 and newer, with the hashes
# of all its files. Needs uv (pip install uv). Versions of the present lock are kept; `infra/lock.sh --upgrade` moves them.
set -euo pipefail
cd "$(dirname "$0")/.."
unset UV_FIND_LINKS # the lock describes the public index, not a folder of this machine

# torch's CPU builds are on an index of their own; one is accepted in place of the public one, by `pip hash FILE`.
TORCH_CPU="6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b" # 2.13.0+cpu cp311 manylinux x86_64

lock=infra/requirements.lock
printf 'pip\nsetuptools\nwheel\n' |
  uv pip compile pyproject.toml - --extra dev --universal --python-version 3.11 --generate-hashes \
    --no-annotate --no-header --quiet --output-file "$lock" "$@"

# Left out: the CUDA libraries. torch's CUDA build pins them exactly and brings them; its CPU build needs none.
{
  echo "# Written by infra/lock.sh. Install: pip install --require-hashes --no-deps -r infra/requirements.lock"
  awk -v cpu="$TORCH_CPU" '
    index($0, cpu) { next } # kept from the present lock
    /^[a-z]/ { keep = !/^(nvidia-|cuda-|triton==)/ }
    keep { print }
    /^torch==/ { print "    --hash=sha256:" cpu " \\" }' "$lock"
} > "$lock.part"
mv "$lock.part" "$lock"
