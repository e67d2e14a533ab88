#!/usr/bin/env bash
# Installs the package of the last released version in clean Debians that systemd starts, makes a cluster
# of three by the commands of docs/operate/install.md, upgrades a node by the package of the present
# version and the others by the playbook, and removes one. Needs root, debootstrap, systemd-nspawn, the
# cgroups of systemd and Ansible.
#
#   test-package.sh OLD NEW   the binaries of both versions
#
# Everything is in namespaces that end with this script.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/muster

outside() {
    "$here/clean-root.sh"
    work=$(mktemp -d -p "${TMPDIR:-/var/tmp}" muster-package.XXXXXX)
    trap 'clear_up' EXIT
    old=$(version "$1") new=$(version "$2")
    "$here/deb/build.sh" "$1" "$work/old" --fast --deb-version "$old-1" >/dev/null
    "$here/deb/build.sh" "$2" "$work/new" --fast --deb-version "$new-1" >/dev/null
    unshare --mount --net --pid --fork --kill-child --mount-proc \
        "${BASH_SOURCE[0]}" --inside "$work" "$old" "$new"
}

version() { "$1" --version | cut -d ' ' -f 2; }

# Hierarchies by which systemd tells services apart: one, or two where there are older ones beside it.
hierarchies() { awk '$3 == "cgroup2" || $4 ~ /name=systemd/ { print $2 }' /proc/mounts; }

clear_up() {
    local base
    for base in $(hierarchies); do
        [ ! -d "$base/${work##*/}" ] || find "$base/${work##*/}" -depth -type d -exec rmdir {} +
    done
    rm -rf "$work"
}

say() { echo "package: $*"; }
fail() {
    echo "package: FAILED: $*" >&2
    tail -n 20 "$work"/node*/console "$work/said" >&2 || true
    exit 1
}
equal() { [ "$2" = "$3" ] || fail "$1 is \`$2\`, not \`$3\`"; }

# until_so WHAT COMMAND…: waits until the command succeeds.
until_so() {
    local what=$1 tries=0
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || fail "$what did not come about"
        sleep 0.2
    done
}

# on NODE COMMAND: runs a shell's command line as root there.
on() {
    nsenter --target "${leader[$1]}" --mount --uts --ipc --net --pid -- \
        env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 bash -c "cd && $2"
}

# watchdog NODE SECONDS: how long its unit waits for a sign of life.
watchdog() {
    mkdir -p "$work/$1/root/etc/systemd/system/muster.service.d"
    printf '[Service]\nWatchdogSec=%s\n' "$2" >"$work/$1/root/etc/systemd/system/muster.service.d/watchdog.conf"
}

# Makes a root for a node and puts the package into it.
unpack() {
    mkdir -p "$work/$1"/{upper,work,root}
    mount -t overlay overlay -o "lowerdir=$cache/clean-root/root,upperdir=$work/$1/upper,workdir=$work/$1/work" \
        "$work/$1/root"
    cp "$work/old"/*.deb "$work/$1/root/root/"
    echo "$1" >"$work/$1/root/etc/hostname"
    # 0.1.0 does not tell the watchdog that it lives.
    watchdog "$1" 0
}

# up NODE PROCESS: whether systemd runs there, below a process of nspawn that has helpers before.
up() {
    # It ends without a newline.
    read -r "leader[$1]" <"/proc/$2/task/$2/children" || true
    [ "${leader[$1]}" ] && on "$1" 'test -S /run/systemd/private'
}

# start NODE ADDRESS: boots it beside the others.
start() {
    local base
    (
        for base in $(hierarchies); do
            mkdir -p "$base/${work##*/}/$1"
            echo $BASHPID >"$base/${work##*/}/$1/cgroup.procs"
        done
        exec systemd-nspawn --quiet --register=no --keep-unit --boot --directory "$work/$1/root" \
            --machine "$1" --network-bridge=lan --console=pipe </dev/null >"$work/$1/console" 2>&1
    ) &
    local nspawn=$!
    until_so "the start of $1" up "$1" $nspawn
    on "$1" "ip address add $2/24 dev host0 && ip link set host0 up"
    on "$1" 'systemctl is-system-running --wait' >/dev/null || true
}

# The commands of a block of the documentation, each on a line.
documented() {
    awk -v wanted="$1" '/^```/ { if (within) exit; block++; within = block == 2 * wanted - 1; next }
        within' "$here/../docs/operate/install.md"
}

ready() { on "$1" 'muster cluster status >/dev/null'; }
voters() { on "$1" 'muster cluster status -o json' | grep -cE '"role": "(leader|voter)"'; }
pid() { on "$1" 'systemctl show --property MainPID --value muster'; }
property() { on "$1" "systemctl show --property $2 --value muster"; }

# follow NODE BLOCK: gives the commands of a block of the documentation there, in one shell.
follow() {
    local commands
    commands=$(documented "$2")
    say "$1: ${commands//$'\n'/; }"
    on "$1" "set -e; ${export_before:-}$commands" >"$work/said" 2>&1 </dev/null || fail "$commands"
}

# astray SETTINGS REASON: node2 is told what cannot be, and says so.
astray() {
    ! on node2 "$1 apt-get install ./muster_*.deb" >"$work/said" 2>&1 </dev/null || fail "$1 goes well"
    grep -q "$2" "$work/said" || fail "no reason is given for $1"
}

check_files() {
    equal "/etc/muster" "$(on "$1" 'stat -c %a:%U:%G /etc/muster')" 750:root:muster
    equal "muster.env" "$(on "$1" 'stat -c %a:%U:%G /etc/muster/muster.env')" 644:root:root
    equal "the unit" "$(on "$1" 'systemctl is-enabled muster; systemctl is-active muster')" $'enabled\nactive'
    equal "/var/lib/muster" "$(on "$1" 'stat -c %a:%U:%G /var/lib/muster')" 700:muster:muster
    equal "/usr/bin/muster" "$(on "$1" 'stat -c %a:%U:%G /usr/bin/muster')" 755:root:root
    on "$1" 'test -e /usr/lib/ipxe/snponly.efi' || fail "there are no loaders"
    on "$1" 'systemd-analyze verify muster.service' || fail "the unit is not right"
    on "$1" 'systemd-analyze security --offline=true --threshold=20 muster.service >/dev/null' ||
        fail "the unit lets the service do more than before"
}

check_process() {
    local status
    status=$(on "$1" "cat /proc/$(pid "$1")/status")
    equal "the user" "$(on "$1" "stat -c %U /proc/$(pid "$1")")" muster
    # To bind ports below 1024, and to send raw packets.
    equal "capabilities" "$(awk '/^Cap(Eff|Bnd)/ { print $2 }' <<<"$status" | uniq)" 0000000000002400
    equal "NoNewPrivs" "$(awk '/^NoNewPrivs/ { print $2 }' <<<"$status")" 1
    equal "the filter of system calls" "$(awk '/^Seccomp:/ { print $2 }' <<<"$status")" 2
}

inside() {
    declare -gA leader
    mount --make-rprivate /
    # nspawn keeps notes there.
    mount -t tmpfs tmpfs /run
    ip link set lo up
    ip link add lan type bridge
    ip link set lan up
    # Whence the playbook is run.
    ip address add 192.0.2.1/24 dev lan

    unpack bare
    chroot "$work/bare/root" sh -c 'apt-get install /root/muster_*.deb' >"$work/said" 2>&1 </dev/null ||
        fail "it cannot be installed where nothing runs"
    say "installs where no systemd runs"

    local node
    for node in 1 2 3; do
        unpack "node$node"
        start "node$node" "192.0.2.1$node"
    done

    follow node1 1
    check_files node1
    astray 'MUSTER_FOUND=true MUSTER_JOIN=192.0.2.11:8093' 'give it either'
    astray 'MUSTER_JOIN=192.0.2.11:8093' 'MUSTER_JOIN needs MUSTER_JOIN_TOKEN'
    astray 'MUSTER_FOUND=true MUSTER_ADVERTISE=nowhere' 'the node does not serve'
    export_before='export MUSTER_ADVERTISE=192.0.2.12; ' follow node2 2
    follow node3 2
    equal "what node2 was told" "$(on node2 'grep -v ^# /etc/muster/muster.env | grep . | sort')" \
        $'MUSTER_ADVERTISE=192.0.2.12\nMUSTER_JOIN=192.0.2.11:8093\nMUSTER_JOIN_TOKEN_FILE=/etc/muster/join-token'
    equal "the join token" "$(on node2 'stat -c %a:%U:%G /etc/muster/join-token')" 640:root:muster
    until_so "a cluster of three voters" eval "[ \$(voters node1) = 3 ]"
    for node in 1 2 3; do check_process "node$node"; done
    say "three nodes, with the capabilities of the unit alone"

    upgrade
    play
    hang
    purge
}

# take NODE [SETTING]: upgrades it.
take() { on "$1" "${2:-} dpkg --install new.deb" >"$work/said" 2>&1 </dev/null; }

upgrade() {
    local before
    cp "$work/new"/*.deb "$work/node1/root/root/new.deb"
    before=$(pid node1)
    on node2 'muster cluster drain node2' >/dev/null
    ! take node1 || fail "two nodes drain at once"
    grep -q 'node `node2` is draining' "$work/said" || fail "no reason is given"
    equal "the process after a refused upgrade" "$(pid node1)" "$before"
    ready node1 || fail "a node whose upgrade is refused does not serve"
    say "an upgrade is refused while another node drains"

    take node1 MUSTER_UPGRADE_UNDRAINED=1 || fail "it is refused in spite of the setting"
    ready node1 || fail "the upgraded node is not ready"
    on node2 'systemctl restart muster'
    until_so "node2's return" ready node2
    say "and done all the same when it is told to"

    until_so "the lead of node1" on node1 'muster cluster transfer node1'
    before=$(pid node1)
    take node1 || fail "the upgrade"
    ready node1 || fail "the upgraded node is not ready"
    [ "$(pid node1)" != "$before" ] || fail "the old process still runs"
    equal "files about which dpkg would ask" "$(on node1 "dpkg-query -W -f '\${Conffiles}' muster")" ""
    equal "the version" "$(on node1 "dpkg-query -W -f '\${Version}' muster")" "$new-1"
    [[ $(on node1 "journalctl --unit muster _PID=$before") == *'this node is drained'* ]] || fail "it was not drained"
    on node1 'test ! -e /run/muster-upgrade' || fail "a note is left"
    say "the leader is drained, stopped, replaced and started"
}

# play: runs the playbook, by which nodes named as their hosts are upgraded.
play() {
    local node
    {
        echo '[muster]'
        for node in 1 2 3; do
            echo "node$node ansible_host=192.0.2.1$node"
        done
    } >"$work/hosts"
    # The second time there is nothing left.
    for _ in first second; do
        HOME=$work ANSIBLE_HOST_KEY_CHECKING=false ANSIBLE_PRIVATE_KEY_FILE=$work/node1/root/root/.ssh/id_ed25519 \
            ansible-playbook --inventory "$work/hosts" "$here/ansible/upgrade.yml" --user root \
            --extra-vars "version=$new package=$(echo "$work/new"/*.deb)" >"$work/said" 2>&1 </dev/null ||
            fail "the playbook"
        until_so "a cluster of three voters" eval "[ \$(voters node1) = 3 ]"
        equal "versions" "$(on node1 "muster cluster status -o json" | grep -o '"version": "[^"]*"' | sort | uniq -c | xargs)" \
            "3 version: $new"
    done
    grep -q 'changed=0 ' "$work/said" || fail "the playbook changes something when all is done"
    for node in 1 2 3; do
        on "node$node" 'rm -r /etc/ssl/certs'
        ready "node$node" || fail "its own node is not reached where there are no authorities"
    done
    say "the playbook upgrades the others, and does nothing when it is run again"
}

hang() {
    watchdog node3 5
    on node3 'systemctl daemon-reload && systemctl restart muster'
    until_so "node3's return" ready node3
    equal "restarts of a node that is well" "$(property node3 NRestarts)" 0
    on node3 'systemctl kill --kill-whom=main --signal=STOP muster'
    until_so "a restart by the watchdog" eval '[ "$(property node3 NRestarts)" = 1 ]'
    until_so "the return of a node that hung" ready node3
    say "the watchdog restarts a node that hangs"
}

purge() {
    on node3 'apt-get purge muster' >"$work/said" 2>&1 </dev/null || fail "purge"
    on node3 'test -d /var/lib/muster/log -o -d /var/lib/muster/state && test ! -e /etc/muster/muster.env' ||
        fail "purge removed too much, or too little"
    ready node1 || fail "the others do not go on"
    say "a node is removed, and its data kept"
}

if [ "$1" = --inside ]; then
    work=$2 old=$3 new=$4
    inside
else
    outside "$1" "$2"
fi
