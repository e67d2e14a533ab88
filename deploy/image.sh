#!/usr/bin/env bash
# Makes a disk image that boots by BIOS: GRUB, and one ext4 partition that holds a directory.
#
#   image.sh ROOT MEBIBYTES ARGUMENTS IMAGE
#
# ROOT has boot/vmlinuz and boot/initrd.img (or links to them in its root directory); the kernel gets
# ARGUMENTS. The partition's label is `root`. Nothing is mounted, and no loop device is used. Files keep their owners: run it as root for a system's root directory.
set -euo pipefail

[ $# = 4 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
root=$1 size=$2 arguments=$3 image=$4
# In sectors of 512 octets: where the partition begins, and how long it is.
begin=2048
length=$((size * 2048 - begin))

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$root/boot/grub"
cat >"$root/boot/grub/grub.cfg" <<GRUB
serial --unit=0 --speed=115200
terminal_output serial
linux /boot/vmlinuz $arguments
initrd /boot/initrd.img
boot
GRUB
for file in vmlinuz initrd.img; do
    [ -e "$root/boot/$file" ] || cp -L "$root/$file" "$root/boot/$file"
done

rm -f "$image"
truncate -s "${size}M" "$image"
# GRUB 2.06 reads neither of these two.
mke2fs -q -F -t ext4 -L root -O '^metadata_csum_seed,^orphan_file' -E "offset=$((begin * 512))" \
    -d "$root" "$image" "$((length / 2))k"

# The boot sector looks for GRUB's core in the sectors behind it, where partitions leave room.
grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o "$work/core.img" \
    biosdisk part_msdos ext2 normal linux serial terminal echo
[ "$(stat -c %s "$work/core.img")" -lt $(((begin - 1) * 512)) ] || { echo "image: GRUB is too large" >&2; exit 1; }
dd if=/usr/lib/grub/i386-pc/boot.img of="$image" bs=440 count=1 conv=notrunc status=none
dd if="$work/core.img" of="$image" bs=512 seek=1 conv=notrunc status=none

# One partition, active, of type Linux; cylinders, heads and sectors say that they cannot say.
octets() { local n=$1; for _ in 1 2 3 4; do printf '\\x%02x' $((n % 256)); n=$((n / 256)); done; }
printf "\x80\xfe\xff\xff\x83\xfe\xff\xff$(octets $begin)$(octets $length)" |
    dd of="$image" bs=1 seek=446 conv=notrunc status=none
printf '\x55\xaa' | dd of="$image" bs=1 seek=510 conv=notrunc status=none
