#!/usr/bin/env bash
# Builds the last released version, which upgrades are proved from, with the checks that a released
# binary leaves out; prints the path of its binary, which is kept outside the clone.
#
# With --kept it builds nothing, and fails when it is not there. The dependencies are shared with the present version: only its own crates are compiled, once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

read -r version commit < <(grep -v '^#' deploy/releases | tail -n 1)
kept="${XDG_CACHE_HOME:-$HOME/.cache}/muster/releases/$commit"
binary="$kept/muster"
if [ ! -x "$binary" ] && [ "${1:-}" = --kept ]; then
    echo "previous: $version is not built; run deploy/previous.sh, as \`make test\` does" >&2
    exit 1
fi
if [ ! -x "$binary" ]; then
    echo "previous: building $version ($commit)" >&2
    rm -rf "$kept/source"
    mkdir -p "$kept/source"
    git archive "$commit" | tar -x -C "$kept/source"
    target="$(realpath -m "${CARGO_TARGET_DIR:-target}")"
    (cd "$kept/source" && CARGO_TARGET_DIR="$target" cargo build --locked --workspace --bin muster >&2)
    cp "$target/debug/muster" "$binary.part"
    mv "$binary.part" "$binary"
    rm -rf "$kept/source"
fi
echo "$binary"
