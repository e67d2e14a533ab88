#!/usr/bin/env bash
# Makes a small disk image to install in tests: a real boot loader and kernel that say whose disk it is.
#
#   disk.sh [DIR]        leaves DIR/disk.img.gz; DIR is ${XDG_CACHE_HOME:-$HOME/.cache}/muster/disk if
#                        not given
#
# Its first partition is ext4. Booted, it writes `MUSTER-DISK` and what is in etc/hostname to the serial
# port, and switches the machine off.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/assemble.sh"

begin "${1:-$cache/disk}"
begin_initramfs
add_modules virtio_pci virtio_blk ext4

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
. /etc/start.sh
for driver in virtio_pci virtio_blk ext4; do modprobe $driver; done
until_there /dev/vda1
mkdir /mnt
mount -t ext4 -o ro /dev/vda1 /mnt && echo "MUSTER-DISK $(cat /mnt/etc/hostname)"
poweroff -f
INIT
chmod 755 "$root/init"

pack initrd.img
mkdir -p "$work/disk"/{boot,etc}
cp "$kernel" "$work/disk/boot/vmlinuz"
cp "$work/initrd.img" "$work/disk/boot/initrd.img"
echo nobody >"$work/disk/etc/hostname"
"$(dirname "$0")/image.sh" "$work/disk" 24 console=ttyS0 "$work/disk.img"
gzip -1n "$work/disk.img"
finish disk.img.gz
echo "disk: $dir has an image of $(stat -c %s "$dir/disk.img.gz") octets, compressed"
