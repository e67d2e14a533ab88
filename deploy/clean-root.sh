#!/usr/bin/env bash
# Makes a Debian 12 as small as it can be started and reached by SSH, in which packages are tried.
#
#   clean-root.sh [DIR]  leaves DIR/root; DIR is ${XDG_CACHE_HOME:-$HOME/.cache}/muster/clean-root if not
#                        given. What is tried in it goes into an overlay.
#
# Root may log in from one to the other. What the package recommends lies in apt's cache: it is installed
# where there is no other network.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/assemble.sh"

begin "${1:-$cache/clean-root}"
root=$work/root

echo "clean-root: downloading and unpacking Debian 12 with debootstrap"
# Python is Ansible's; 0.1.0 does not talk to its own node where there are no authorities.
include=systemd-sysv,dbus,iproute2,openssh-server,openssh-client,python3-apt,ca-certificates
debootstrap --variant=minbase --include=$include bookworm "$root" >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 1; }

echo 'APT::Get::Assume-Yes "true";' >"$root/etc/apt/apt.conf.d/unattended"
chroot "$root" apt-get clean
chroot "$root" apt-get install --download-only -qq ipxe >/dev/null

mkdir -p -m 700 "$root/root/.ssh"
ssh-keygen -q -t ed25519 -N '' -C tried -f "$root/root/.ssh/id_ed25519"
cp "$root/root/.ssh/id_ed25519.pub" "$root/root/.ssh/authorized_keys"
echo 'StrictHostKeyChecking accept-new' >"$root/root/.ssh/config"
# systemd makes a new one at the first start.
: >"$root/etc/machine-id"

rm -rf "$dir/root"
mv "$root" "$dir/root"
echo "$stamp" >"$dir/.stamp"
