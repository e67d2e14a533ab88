# What the scripts that assemble what machines boot share; it is sourced. A Debian kernel and busybox are
# downloaded by apt and unpacked, never installed: the host keeps its own kernel.
#
# What is there is kept: remove $cache to get a newer kernel.

cache=${XDG_CACHE_HOME:-$HOME/.cache}/muster

# begin DIR: makes DIR and `work`, which goes at the end. Ends the script at once when DIR has what these
# scripts make; of two at a time the second waits for the first.
begin() {
    local here name
    here=$(dirname "${BASH_SOURCE[0]}") name=$(basename "$0")
    dir=$1
    stamp=$(cat "$here"/{assemble.sh,image.sh,"$name"} | sha256sum)
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    exec 9>"$dir/.lock"
    flock 9
    [ "$(cat "$dir/.stamp" 2>/dev/null || true)" != "$stamp" ] || exit 0
    work=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
    trap 'rm -rf "$work"' EXIT
}

# finish FILE…: puts these, made in `work`, into DIR.
finish() {
    (cd "$work" && install -m 644 -t "$dir" "$@")
    echo "$stamp" >"$dir/.stamp"
}

# begin_initramfs: `root` with busybox and /etc/start.sh, to which drivers and an init are added.
begin_initramfs() {
    root=$work/root
    unpack_packages
    mkdir -p "$root"/{bin,dev,proc,sys,etc,tmp}
    install -m 755 "$busybox" "$root/bin/busybox"
    write_start
}

# Leaves the packages in `unpacked`; sets `version`, `busybox`, `kernel` and `modules`.
unpack_packages() {
    local packages=$cache/packages unpacked=$cache/packages/unpacked
    mkdir -p "$packages"
    exec 8>"$packages/.lock"
    flock 8
    if [ ! -e "$packages/.version" ]; then
        local found=
        for _ in 1 2; do
            found=$(LC_ALL=C apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
            [ -z "$found" ] || break
            apt-get update -qq || true
        done
        [ -n "$found" ] || { echo "$0: apt knows no linux-image-cloud-amd64" >&2; exit 1; }
        echo "downloading $found and busybox-static with apt-get (unpacked, not installed)"
        download() { (cd "$work" && apt-get -o APT::Sandbox::User=root -o Acquire::Retries=3 download -qq "$found" busybox-static); }
        # A package list older than the archive names files that are gone.
        download || { apt-get update -qq || true; download; }
        rm -rf "$unpacked"
        for package in "$work"/*.deb; do
            dpkg-deb --extract "$package" "$unpacked"
        done
        # Debian 12 keeps modules in /lib, later releases in /usr/lib; depmod looks in /lib.
        [ -d "$unpacked/lib/modules" ] || { mkdir -p "$unpacked/lib"; mv "$unpacked/usr/lib/modules" "$unpacked/lib/modules"; }
        "$unpacked/bin/busybox" depmod -b "$unpacked" "${found#linux-image-}"
        echo "${found#linux-image-}" >"$packages/.version"
    fi
    version=$(cat "$packages/.version")
    busybox=$unpacked/bin/busybox
    kernel=$unpacked/boot/vmlinuz-$version
    modules=$unpacked/lib/modules/$version
    exec 8>&-
}

# add_modules NAME…: drivers, and all that they need.
add_modules() {
    local name file
    local to=$root/lib/modules/$version
    mkdir -p "$to/kernel"
    for name in "$@"; do
        # DRIVER: what it needs, all as paths below the directory of modules.
        for file in $(sed -n "s|^\([^:]*/$name\.ko\): *|\1 |p" "$modules/modules.dep"); do
            cp "$modules/$file" "$to/kernel/"
        done
    done
    : >"$to/modules.order"
    cp "$modules/modules.builtin" "$to/"
    "$busybox" depmod -b "$root" "$version"
}

# pack FILE: the root as an initramfs.
pack() {
    (cd "$root" && find . | sort | "$busybox" cpio -o -H newc 2>/dev/null | gzip -9n) >"$work/$1"
}

# What every init begins with, as /etc/start.sh in the initramfs.
write_start() {
    cat >"$root/etc/start.sh" <<'START'
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec >/dev/console 2>&1 </dev/null
echo "MUSTER-KERNEL $(uname -r) up"

# argument NAME [DEFAULT]: its value on the kernel command line.
argument() {
    for word in $(cat /proc/cmdline); do
        case $word in
            "$1="*) echo "${word#"$1="}"; return ;;
        esac
    done
    echo "$2"
}

# until_there FILE: waits some seconds for a device.
until_there() {
    tries=0
    while [ ! -e "$1" ] && [ $tries -lt 50 ]; do tries=$((tries + 1)); sleep 0.1; done
    [ -e "$1" ]
}

network_up() {
    modprobe virtio_pci
    modprobe virtio_net
    ip link set lo up
    until_there /sys/class/net/eth0
    ip link set eth0 up
    udhcpc -i eth0 -s /etc/udhcpc -n -q -f -t 30 -T 2 || echo "MUSTER-FAILED no lease"
}

# anywhere PATH [ARGUMENT…]: has wget fetch it from each of $bases in turn, until one gives it, into
# /tmp/answer; leaves where it came from in $from. wget -T crashes in this busybox: timeout(1) bounds it.
anywhere() {
    path=$1
    shift
    round=0
    while [ $round -lt 20 ]; do
        for url in $bases; do
            if timeout 5 wget -q -O /tmp/answer "$@" "$url/$path"; then from=$url/${path%%\?*}; return 0; fi
            echo "MUSTER-RETRY $url/${path%%\?*}"
        done
        round=$((round + 1))
        sleep 1
    done
    echo "MUSTER-FAILED ${path%%\?*}"
    return 1
}
START
    cat >"$root/etc/udhcpc" <<'UDHCPC'
#!/bin/busybox sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr flush dev "$interface"
ip addr add "$ip/${mask:-24}" dev "$interface"
for gateway in $router; do ip route add default via "$gateway" && break; done
echo "MUSTER-LEASE $ip from ${serverid:-?}"
UDHCPC
    chmod 755 "$root/etc/udhcpc"
}
