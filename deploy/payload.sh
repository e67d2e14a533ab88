#!/usr/bin/env bash
# Assembles what a lab machine boots: a real Debian kernel and an initrd of busybox and virtio drivers.
#
#   payload.sh [DIR]     leaves DIR/vmlinuz, DIR/initrd.img and DIR/busybox (the client tools of the
#                        tests); DIR is ${XDG_CACHE_HOME:-$HOME/.cache}/muster/payload if not given
#
# The packages are downloaded by apt and unpacked, never installed: the host keeps its own kernel.
# What is there is kept until this script changes; remove DIR to get a newer kernel.
#
# The initrd reads the kernel command line:
#   lab.report=URL       where to call back; the files of this machine are beside it
#   lab.urls=URL,URL     base URLs of this machine on every live node, tried when one fails
#   lab.file=NAME        the rendered file to fetch and show (default hello.cfg)
#   lab.hold=SECONDS     stay up for so long before powering off (default 0)
set -euo pipefail

dir=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/muster/payload}
stamp=$(sha256sum <"${BASH_SOURCE[0]}")
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

# Two builds at once: the second waits, then finds all in place.
exec 9>"$dir/.lock"
flock 9
[ "$(cat "$dir/.stamp" 2>/dev/null || true)" != "$stamp" ] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

kernel=$(LC_ALL=C apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
if [ -z "$kernel" ]; then
    apt-get update -qq || true
    kernel=$(LC_ALL=C apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
fi
[ -n "$kernel" ] || { echo "payload: apt knows no linux-image-cloud-amd64" >&2; exit 1; }

echo "payload: downloading $kernel and busybox-static with apt-get (unpacked, not installed)"
fetch() { (cd "$work" && apt-get -o APT::Sandbox::User=root -o Acquire::Retries=3 download -qq "$kernel" busybox-static); }
# A package list older than the archive names files that are gone.
fetch || { apt-get update -qq || true; fetch; }
for package in "$work"/*.deb; do
    dpkg-deb --extract "$package" "$work/unpacked"
done

version=${kernel#linux-image-}
busybox=$work/unpacked/bin/busybox
root=$work/root
modules=lib/modules/$version
# Debian 12 keeps modules in /lib, later releases in /usr/lib.
from=$work/unpacked/$modules
[ -d "$from" ] || from=$work/unpacked/usr/$modules

mkdir -p "$root"/{bin,dev,proc,sys,etc,tmp} "$root/$modules/kernel"
install -m 755 "$busybox" "$root/bin/busybox"
for name in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover virtio_net virtio_blk; do
    file=$(find "$from" -name "$name.ko" -print -quit)
    [ -z "$file" ] || cp "$file" "$root/$modules/kernel/"
done
: >"$root/$modules/modules.order"
: >"$root/$modules/modules.builtin"
"$busybox" depmod -b "$root" "$version"

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec >/dev/console 2>&1 </dev/null
echo "MUSTER-KERNEL $(uname -r) up"

report= urls= file=hello.cfg hold=0
for word in $(cat /proc/cmdline); do
    case $word in
        lab.report=*) report=${word#lab.report=} ;;
        lab.urls=*) urls=$(echo "${word#lab.urls=}" | tr , ' ') ;;
        lab.file=*) file=${word#lab.file=} ;;
        lab.hold=*) hold=${word#lab.hold=} ;;
    esac
done

modprobe virtio_pci
modprobe virtio_net
ip link set lo up
tries=0
while [ ! -e /sys/class/net/eth0 ] && [ $tries -lt 50 ]; do tries=$((tries + 1)); sleep 0.1; done
ip link set eth0 up
udhcpc -i eth0 -s /etc/udhcpc -n -q -f -t 30 -T 2 || echo "MUSTER-FAILED no lease"

# Tries the node that this machine booted from, then each of the others, until one gives it.
# wget -T crashes in this busybox: timeout(1) bounds it instead.
base=${report%/report}
bases=$base
for url in $urls; do
    url=${url%/}
    [ "$url" = "$base" ] || bases="$bases $url"
done
anywhere() {
    round=0
    while [ $round -lt 20 ]; do
        for url in $bases; do
            if timeout 5 wget -q -O /tmp/answer "$@" "$url/$path"; then from=$url/$path; return 0; fi
            echo "MUSTER-RETRY $url/$path"
        done
        round=$((round + 1))
        sleep 1
    done
    echo "MUSTER-FAILED $path"
    return 1
}

if [ -n "$base" ]; then
    path=$file
    if anywhere; then
        text=$(cat /tmp/answer)
        echo "MUSTER-PAYLOAD $text"
        echo "MUSTER-FETCHED $from"
        path=report
        anywhere --post-data "$text" && echo "MUSTER-REPORTED $from"
    fi
else
    echo "MUSTER-FAILED no lab.report on the command line"
fi
sleep "$hold"
echo "MUSTER-DONE"
poweroff -f
INIT

cat >"$root/etc/udhcpc" <<'UDHCPC'
#!/bin/busybox sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr flush dev "$interface"
ip addr add "$ip/${mask:-24}" dev "$interface"
for gateway in $router; do ip route add default via "$gateway" && break; done
echo "MUSTER-LEASE $ip from ${serverid:-?}"
UDHCPC
chmod 755 "$root/init" "$root/etc/udhcpc"

(cd "$root" && find . | sort | "$busybox" cpio -o -H newc 2>/dev/null | gzip -9n) >"$work/initrd.img"
cp "$work/unpacked/boot/vmlinuz-$version" "$work/vmlinuz"
install -m 644 -t "$dir" "$work/vmlinuz" "$work/initrd.img"
install -m 755 -t "$dir" "$busybox"
echo "$stamp" >"$dir/.stamp"
echo "payload: $dir has kernel $version and its initrd ($(stat -c %s "$dir/initrd.img") bytes)"
