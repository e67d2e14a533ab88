#!/usr/bin/env bash
# Packs a binary that is there as muster_VERSION_ARCHITECTURE.deb.
#
#   build.sh BINARY DIR [ARGUMENT…]   leaves the package in DIR and prints its path; arguments go to
#                                     cargo-deb (`--deb-version 1.2.3`, `--fast`)
set -euo pipefail
binary=$(realpath "$1")
mkdir -p "$2"
dir=$(realpath "$2")
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# cargo-deb takes what it packs from a target directory, and strips it there.
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/release"
cp "$binary" "$stage/release/muster"
export CARGO_TARGET_DIR=$stage
"$(deploy/tool.sh cargo-deb)" deb --package muster-node --no-build --strip --quiet --output "$dir" "$@"
