#!/usr/bin/env bash
# Installs what building, the demo and the tests need on Debian 12 beside git, make and Rust.
#
# Says what apt-get will do before it does it, and does nothing when all is there.
# `setup.sh build` installs only what compiling needs; without an argument also what the demo and the
# tests need; `setup.sh bench` what compiling needs and what Muster is measured beside.
set -euo pipefail

build=(
    g++             # RocksDB is C++
    libclang-dev    # bindgen reads RocksDB's C header with it
    xz-utils        # packs the package
)
lab=(
    qemu-system-x86 # the machines that boot
    ipxe            # first-stage loaders: undionly.kpxe, snponly.efi, ipxe.efi
    ipxe-qemu       # the PXE ROM of an emulated network card
    ovmf            # UEFI firmware
    pxelinux        # another loader for BIOS, and the modules that it loads
    syslinux-common
    grub-efi-amd64-signed # another loader for UEFI
    iproute2        # namespaces, bridge, taps
    nftables        # faults: cut links, silenced services
    libfaketime     # faults: wall clocks of nodes that jump
    curl            # an HTTP and TFTP client
    atftp           # a TFTP client that negotiates block and window size
    netbase         # /etc/services, without which atftp does not know its port
    prometheus      # scrapes nodes of the tests; promtool checks deploy/monitoring
    tftp-hpa        # the TFTP client that most people have
    isc-dhcp-client # dhclient
    grub-common     # makes boot loaders of images that are installed
    grub-pc-bin     # the parts of such a boot loader
    debootstrap     # clean Debians to install the package in, or to install on machines
    openssh-client  # reaches them
    systemd-container # starts them
    ansible-core    # upgrades them
)

bench=(
    etcd-server     # three of them, on ports of their own
    kea-dhcp4-server # alone and as a pair, in namespaces
    nginx-light     # of the files that machines fetch, by HTTP
    tftpd-hpa       # the same by TFTP
    dnsmasq-base    # the same
    iproute2        # the namespaces
)

case "${1:-all}" in
    build) wanted=("${build[@]}") ;;
    bench) wanted=("${build[@]}" "${bench[@]}") ;;
    all) wanted=("${build[@]}" "${lab[@]}") ;;
    *) echo "usage: $0 [build|bench|all]" >&2; exit 2 ;;
esac

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
for package in "${wanted[@]}"; do
    installed "$package" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "setup: needs root to install: ${missing[*]}" >&2
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive LC_ALL=C
apt=(apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
install=("${apt[@]}" install --yes --no-install-recommends --no-install-suggests)

echo "setup: about to install with apt-get: ${missing[*]}"
# A list that cannot be refreshed (a third party's, say) is no reason to stop: the install will tell.
"${apt[@]}" update -qq || echo "setup: apt-get update had problems; going on with the lists at hand" >&2

# A package of another origin at a version that does not fit (qemu-utils from backports beside
# qemu-system from stable) has to give way: name it, rather than remove it silently.
removed=$("${install[@]}" --simulate "${missing[@]}" | sed -n 's/^Remv \([^ ]*\).*/\1/p' | tr '\n' ' ')
[ -z "$removed" ] || echo "setup: they conflict with, and apt-get will remove: $removed"

# Nothing that is installed here is to run by itself: the tests and benchmarks start what they need,
# on networks of their own. policy-rc.d keeps packages from starting their services now.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
"${install[@]}" -qq "${missing[@]}" >/dev/null
# And this keeps them from starting when the system does. Those that ran before are left alone.
if command -v systemctl >/dev/null; then
    for pair in prometheus:prometheus etcd-server:etcd kea-dhcp4-server:kea-dhcp4-server nginx-light:nginx tftpd-hpa:tftpd-hpa; do
        [[ " ${missing[*]} " != *" ${pair%:*} "* ]] || systemctl disable --quiet "${pair#*:}" || true
    done
fi
echo "setup: done"
