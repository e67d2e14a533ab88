#!/usr/bin/env bash
# Puts together what is published of a release: `make release` builds the binary and calls this.
#
#   release.sh BINARY DIR    leaves in DIR, which is empty or not there, the package, the binary, what it
#                            is made of (CycloneDX), the licences of all that, and the SHA-256 of each
set -euo pipefail
binary=$(realpath "$1")
mkdir -p "$2"
dir=$(realpath "$2")
[ -z "$(ls -A "$dir")" ] || { echo "release: $2 is not empty" >&2; exit 1; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

version=$("$binary" --version | cut -d ' ' -f 2)
name=muster-$version-$(uname -m)-linux
work=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
trap 'rm -rf "$work"' EXIT

echo "release: the package and the binary"
deploy/deb/build.sh "$binary" "$work/artifacts"
install -m 755 "$binary" "$work/artifacts/$name"
strip "$work/artifacts/$name"

# cargo-cyclonedx writes beside the manifests.
echo "release: what it is made of"
mkdir "$work/source"
git ls-files -z --cached | xargs -0 cp --parents --target-directory "$work/source"
cyclonedx=$(deploy/tool.sh cargo-cyclonedx)
target=$(rustc -vV | sed -n 's/^host: //p')
(cd "$work/source" && "$cyclonedx" cyclonedx --quiet --manifest-path node/Cargo.toml --format json \
    --describe binaries --target "$target" --no-build-deps)
# Where it was put together is nobody's business.
sed "s|$work/source|/muster|g" "$work/source/node/muster_bin.cdx.json" >"$work/artifacts/$name.cdx.json"

echo "release: licences"
about=$(deploy/tool.sh cargo-about)
# Those that deny.toml allows, and no others.
sed -n '/^allow = \[/,/^\]/p' deny.toml | sed 's/^allow/accepted/' >"$work/licences.toml"
printf 'ignore-%s-dependencies = true\n' dev build >>"$work/licences.toml"
"$about" generate --fail --locked --manifest-path node/Cargo.toml --target "$target" --config "$work/licences.toml" \
    --output-file "$work/artifacts/$name.licences.txt" deploy/licences.hbs

(cd "$work/artifacts" && sha256sum -- * >"$work/SHA256SUMS")
install -m 644 -t "$dir" "$work/artifacts"/* "$work/SHA256SUMS"
chmod 755 "$dir/$name"
echo "release: $dir has"
ls -l "$dir"
