#!/usr/bin/env bash
# Assembles an installer: a Debian kernel, and an initrd of busybox and drivers that writes an image to
# a disk.
#
#   installer.sh [DIR]   leaves DIR/vmlinuz and DIR/initrd.img; DIR is
#                        ${XDG_CACHE_HOME:-$HOME/.cache}/muster/installer if not given
#
# The initrd reads the kernel command line:
#   muster.image=PATH    the artifact to write, raw or gzip (`.gz`); PATH?sha256=… names its bytes, else
#                        they are those that the first answer names
#   muster.urls=URL,URL  base URLs of this machine on every live node: when one fails, the next goes on
#                        where it was
#   muster.token=TOKEN   shown with the callback and with requests for rendered files
#   muster.disk=DEVICE   what is written over (default /dev/vda)
#   muster.root=DEVICE   where the files below go, once the image is written (default DISK1)
#   muster.files=A,B     rendered files of this machine, each put at its own path there
#
# The first mebibyte of the image, without which a disk does not boot, is written when all else is on the
# disk and its SHA-256 is right. A failure is shown on the console, and the machine starts anew; one that
# would come again is told to the cluster.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/assemble.sh"

begin "${1:-$cache/installer}"
begin_initramfs
add_modules virtio_pci virtio_net virtio_blk virtio_scsi sd_mod nvme ext4

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
. /etc/start.sh
set -o pipefail

image=$(argument muster.image)
urls=$(argument muster.urls | tr , ' ')
token=$(argument muster.token)
disk=$(argument muster.disk /dev/vda)
partition=$(argument muster.root "${disk}1")
files=$(argument muster.files | tr , ' ')

# Octets asked for at a time, and seconds that they may take: what came in them counts, and a node that
# fell silent costs no more.
PIECE=4194304
PIECE_SECS=20
cr=$(printf '\r')

bases=$urls
query=${token:+?token=$token}

# Another attempt may fare better: the cluster counts them.
again() {
    echo "MUSTER-FAILED $*"
    sleep 10
    reboot -f
}

# No attempt will.
fail() {
    [ -z "$token" ] || anywhere "report$query&status=failed" --post-data "$*"
    again "$*"
}

# piece HOST PORT: sends octets of the image from $offset on to stdout. Leaves their number in
# /tmp/came, the whole length in /tmp/total, the digest in /tmp/digest.
piece() {
    echo 0 >/tmp/came
    # Opened for both, it never ends: a server takes the end of a request for the end of the client.
    rm -f /tmp/request
    mkfifo /tmp/request
    exec 3<>/tmp/request
    printf 'GET /artifacts/%s HTTP/1.1\r\nHost: %s:%s\r\nRange: bytes=%s-%s\r\nConnection: close\r\n\r\n' \
        "$image" "$1" "$2" "$offset" $((offset + PIECE - 1)) >&3
    timeout $PIECE_SECS nc -w 5 "$1" "$2" <&3 | {
        read -r _ status _
        while read -r name value && [ "$name" != "$cr" ]; do
            value=${value%"$cr"}
            case $name in
                [Cc]ontent-[Rr]ange:) total=${value##*/} ;;
                [Ee][Tt]ag:) digest=$(echo "$value" | tr -d '"') ;;
            esac
        done
        if [ "$status" = 206 ]; then
            echo "$total" >/tmp/total
            echo "$digest" >/tmp/digest
            wc -c </tmp/counted >/tmp/came &
            tee /tmp/counted
            wait
        elif [ -n "$status" ]; then
            echo "MUSTER-REFUSED $1 answers $status" >&2
        fi
    }
}

# Sends the whole image to stdout.
fetch() {
    offset=0 total= failures=0
    set -- $urls
    while [ "$offset" != "$total" ]; do
        [ $failures -lt 120 ] || { echo "MUSTER-RETRY no node gives $image" >&2; return 1; }
        place=${1#http://}
        place=${place%%/*}
        host=${place%:*}
        host=${host#[}
        piece "${host%]}" "${place##*:}"
        came=$(cat /tmp/came)
        if [ "${came:-0}" -gt 0 ]; then
            offset=$((offset + came)) failures=0
            total=$(cat /tmp/total)
            # All of it is to be of one upload.
            case $image in *\?sha256=*) ;; *) image="$image?sha256=$(cat /tmp/digest)" ;; esac
            echo "MUSTER-IMAGE $offset of $total octets, from $place" >&2
        fi
        if [ "${came:-0}" -lt $PIECE ] && [ "$offset" != "$total" ]; then
            failures=$((failures + 1))
            [ "${came:-0}" -gt 0 ] || [ $((failures % $#)) -ne 0 ] || sleep 1
            echo "MUSTER-RETRY $place failed at $offset" >&2
            failed=$1
            shift
            set -- "$@" "$failed"
        fi
    done
}

[ -n "$urls" ] || again "no muster.urls on the command line"
network_up
[ -n "$image" ] || fail "no muster.image on the command line"
for driver in virtio_blk virtio_scsi sd_mod nvme; do modprobe $driver; done
until_there "$disk" || fail "there is no $disk"

case ${image%%\?*} in
    *.gz) unpack=gunzip ;;
    *) unpack=cat ;;
esac
echo "MUSTER-INSTALL $image to $disk"
dd if=/dev/zero of="$disk" bs=1M count=1 conv=fsync 2>/dev/null || fail "$disk cannot be written"
mkfifo /tmp/counted /tmp/copy
sha256sum </tmp/copy >/tmp/sum &
# Short reads of a pipe are put together, so that blocks stay where they belong.
write() {
    dd of=/tmp/first bs=1M count=1 iflag=fullblock 2>/dev/null &&
        dd of="$disk" bs=1M seek=1 iflag=fullblock conv=fsync status=none
}
fetch | tee /tmp/copy | $unpack | write || again "the image did not come whole, or $disk cannot be written"
wait
read -r sum _ </tmp/sum
case $image in
    *\?sha256=*) expected=${image#*\?sha256=} ;;
    *) expected=$(cat /tmp/digest) ;;
esac
[ "$sum" = "$expected" ] || fail "the image has SHA-256 $sum, not $expected"
dd if=/tmp/first of="$disk" bs=1M conv=fsync 2>/dev/null || fail "$disk cannot be written"
echo "MUSTER-WRITTEN $image, SHA-256 $sum"

if [ -n "$files" ]; then
    blockdev --rereadpt "$disk"
    modprobe ext4
    until_there "$partition" || fail "there is no $partition"
    mkdir /mnt
    mount -t ext4 "$partition" /mnt || fail "$partition cannot be mounted"
    for file in $files; do
        anywhere "$file$query" || again "no $file"
        mkdir -p "/mnt/$(dirname "$file")"
        cat /tmp/answer >"/mnt/$file" || fail "$file cannot be written"
        echo "MUSTER-FILE $file"
    done
    umount /mnt || fail "$partition cannot be unmounted"
fi
sync
anywhere "report$query" --post-data "installed $sum" || again "no node takes the callback"
echo "MUSTER-REPORTED $from"
reboot -f
INIT
chmod 755 "$root/init"

pack initrd.img
cp "$kernel" "$work/vmlinuz"
finish vmlinuz initrd.img
echo "installer: $dir has kernel $version and its initrd ($(stat -c %s "$dir/initrd.img") bytes)"
