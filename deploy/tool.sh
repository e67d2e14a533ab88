#!/usr/bin/env bash
# Prints the path of a tool for packages and releases that Debian does not have; builds it the first time,
# with Cargo, below ${XDG_CACHE_HOME:-$HOME/.cache}/muster/tools.
#
#   tool.sh cargo-deb|cargo-cyclonedx|cargo-about
set -euo pipefail

options=()
case "$1" in
    cargo-deb) version=3.8.0 options=(--no-default-features --features gzip) ;;
    cargo-cyclonedx) version=0.5.9 ;;
    cargo-about) version=0.9.3 options=(--features cli) ;;
    *) echo "usage: $0 cargo-deb|cargo-cyclonedx|cargo-about" >&2; exit 2 ;;
esac

tools=${XDG_CACHE_HOME:-$HOME/.cache}/muster/tools
root=$tools/$1-$version
mkdir -p "$tools"
exec 9>"$tools/.lock"
flock 9
if [ ! -x "$root/bin/$1" ]; then
    echo "tool: building $1 $version with cargo, once" >&2
    work=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
    trap 'rm -rf "$work"' EXIT
    cargo install "$1" --version "$version" --locked "${options[@]}" --target-dir "$work" --root "$root" \
        >"$tools/log" 2>&1 || { tail -n 20 "$tools/log" >&2; exit 1; }
fi
echo "$root/bin/$1"
