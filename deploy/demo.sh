#!/usr/bin/env bash
# Three nodes provision a machine, lose their leader, and provision again: `make demo` sets up and
# calls this. What happens is told in chaos-tests/src/bin/demo.rs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export MUSTER_BIN="${MUSTER_BIN:-$PWD/target/bin/muster}"
exec "${CARGO_TARGET_DIR:-target}/debug/muster-demo" "$@"
