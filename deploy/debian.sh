#!/usr/bin/env bash
# Makes a disk image of Debian 12 to install on machines: debootstrap, Debian's kernel for virtual
# machines, GRUB, systemd-networkd, an SSH server. Needs root, debootstrap and grub-pc-bin.
#
#   debian.sh [DIR]      leaves DIR/debian.img.gz; DIR is ${XDG_CACHE_HOME:-$HOME/.cache}/muster/debian if
#                        not given
#
# It knows no password and no network. What makes it one machine's own are rendered files
# (`muster.files=…` of installer.sh): etc/hostname, root/.ssh/authorized_keys and
# etc/systemd/network/lan.network. Its SSH host key is made when it starts first.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/assemble.sh"

begin "${1:-$cache/debian}"
root=$work/root

echo "debian: downloading and unpacking Debian 12 with debootstrap"
debootstrap --variant=minbase \
    --include=systemd-sysv,udev,dbus,iproute2,openssh-server,linux-image-cloud-amd64 \
    bookworm "$root" >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 1; }

ln -sf "$(basename "$(echo "$root"/boot/vmlinuz-*)")" "$root/boot/vmlinuz"
ln -sf "$(basename "$(echo "$root"/boot/initrd.img-*)")" "$root/boot/initrd.img"
echo 'LABEL=root / ext4 defaults 0 1' >"$root/etc/fstab"
chroot "$root" systemctl enable --quiet systemd-networkd
mkdir -p -m 700 "$root/root/.ssh"

# Keys of its own for each machine, and no others than are quickly made.
rm -f "$root"/etc/ssh/ssh_host_*
echo 'HostKey /etc/ssh/ssh_host_ed25519_key' >"$root/etc/ssh/sshd_config.d/host-key.conf"
mkdir -p "$root/etc/systemd/system/ssh.service.d"
cat >"$root/etc/systemd/system/ssh.service.d/host-key.conf" <<'UNIT'
[Service]
ExecStartPre=
ExecStartPre=/bin/sh -c 'test -e /etc/ssh/ssh_host_ed25519_key || ssh-keygen -q -N "" -t ed25519 -f /etc/ssh/ssh_host_ed25519_key'
ExecStartPre=/usr/sbin/sshd -t
UNIT
# systemd makes a new one at the first start.
: >"$root/etc/machine-id"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/lib/dbus/machine-id

"$(dirname "$0")/image.sh" "$root" 768 'root=LABEL=root ro console=ttyS0' "$work/debian.img"
gzip -1n "$work/debian.img"
finish debian.img.gz
echo "debian: $dir has an image of $(stat -c %s "$dir/debian.img.gz") octets, compressed"
