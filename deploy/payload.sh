#!/usr/bin/env bash
# Assembles what a lab machine boots: a real Debian kernel and an initrd of busybox and virtio drivers.
#
#   payload.sh [DIR]     leaves DIR/vmlinuz, DIR/initrd.img and DIR/busybox (the client tools of the
#                        tests); DIR is ${XDG_CACHE_HOME:-$HOME/.cache}/muster/payload if not given
#
# The initrd reads the kernel command line:
#   lab.report=URL       where to call back; the files of this machine are beside it
#   lab.urls=URL,URL     base URLs of this machine on every live node, tried when one fails
#   lab.file=NAME        the rendered file to fetch and show (default hello.cfg)
#   lab.hold=SECONDS     stay up for so long before powering off (default 0)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/assemble.sh"

begin "${1:-$cache/payload}"
begin_initramfs
add_modules virtio_pci virtio_net virtio_blk

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
. /etc/start.sh
report=$(argument lab.report)
file=$(argument lab.file hello.cfg)
hold=$(argument lab.hold 0)
network_up

# The node that this machine booted from, then each of the others.
base=${report%/report}
bases=$base
for url in $(argument lab.urls | tr , ' '); do
    url=${url%/}
    [ "$url" = "$base" ] || bases="$bases $url"
done

if [ -n "$base" ]; then
    if anywhere "$file"; then
        text=$(cat /tmp/answer)
        echo "MUSTER-PAYLOAD $text"
        echo "MUSTER-FETCHED $from"
        anywhere report --post-data "$text" && echo "MUSTER-REPORTED $from"
    fi
else
    echo "MUSTER-FAILED no lab.report on the command line"
fi
sleep "$hold"
echo "MUSTER-DONE"
poweroff -f
INIT
chmod 755 "$root/init"

pack initrd.img
cp "$kernel" "$work/vmlinuz"
install -m 755 -t "$dir" "$busybox"
finish vmlinuz initrd.img
echo "payload: $dir has kernel $version and its initrd ($(stat -c %s "$dir/initrd.img") bytes)"
