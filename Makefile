# Works from a fresh clone on Debian 12 with git, make, root and a Rust toolchain; what else is
# needed is installed by apt-get, which is announced first. The binary is left at target/bin/muster,
# the tools that load and break a staging network at target/bin/muster-chaos.

SHELL := /bin/bash
# Cargo's own directory may be elsewhere (CI keeps it outside the clone).
cargo_target := $(or $(CARGO_TARGET_DIR),target)
# `make test LOCKED=--locked` refuses a Cargo.lock that is out of date.
LOCKED ?=

export MUSTER_BIN := $(CURDIR)/target/bin/muster
# An error says what was done and why it failed; the stack under it says nothing more.
export RUST_LIB_BACKTRACE ?= 0

.PHONY: build demo deb release test test-long test-package test-firmware test-upgrade sim chaos fuzz bench bench-dhcp bench-boot e2e-debian lint fmt clean setup setup-build setup-bench payload

build: setup-build
	cargo build $(LOCKED) --release --workspace --bins
	install -D -m 755 -t target/bin $(cargo_target)/release/muster $(cargo_target)/release/muster-chaos

# The Debian package, at target/package.
deb: build
	rm -rf target/package
	deploy/deb/build.sh target/bin/muster target/package

# What is published of a release, at target/release-artifacts: package, binary, SBOM, licences, checksums.
release: build
	rm -rf target/release-artifacts
	deploy/release.sh target/bin/muster target/release-artifacts

# Three nodes provision a machine, lose their leader, and provision again.
demo: setup payload build
	@deploy/demo.sh

# With the checks that a released binary leaves out.
test: export MUSTER_BIN := $(abspath $(cargo_target)/debug/muster)
test: setup payload
	deploy/previous.sh
	cargo build $(LOCKED) --workspace --bins
	cargo test $(LOCKED) --workspace
	deploy/test-package.sh "$$(deploy/previous.sh --kept)" $(MUSTER_BIN)

# The package alone: installed in clean Debians, upgraded, removed.
test-package: export MUSTER_BIN := $(abspath $(cargo_target)/debug/muster)
test-package: setup
	deploy/previous.sh
	cargo build $(LOCKED) --workspace --bins
	deploy/test-package.sh "$$(deploy/previous.sh --kept)" $(MUSTER_BIN)

# As `test`, with every variant of the stories that have many.
test-long: export MUSTER_LONG := 1
test-long: test

# From the last released version to this one and half way back, in every order of three nodes, while
# machines boot and an operator writes: a quarter of an hour.
test-upgrade: export MUSTER_LONG := 1
test-upgrade: export MUSTER_BIN := $(abspath $(cargo_target)/debug/muster)
test-upgrade: setup
	deploy/previous.sh
	cargo build $(LOCKED) --workspace --bins
	cargo test $(LOCKED) --workspace --test stories -- --exact --nocapture \
		upgrade::a_cluster_is_upgraded_while_it_serves

# Real firmware in QEMU while the node that it boots from dies at every moment; leaves the table at
# target/firmware.md. Takes the better part of an hour: `make test-firmware MATRIX='--modes bios-ipxe --at-once 2'`.
MATRIX ?=
test-firmware: setup payload build
	set -o pipefail; target/bin/muster-chaos boot matrix $(MATRIX) | tee target/firmware.md

# A real Debian is installed through three nodes on an emulated machine, and reached by SSH: minutes.
e2e-debian: export MUSTER_DEBIAN := 1
e2e-debian: export MUSTER_BIN := $(abspath $(cargo_target)/debug/muster)
e2e-debian: setup payload
	@deploy/debian.sh
	cargo build $(LOCKED) -p muster-node --bins
	cargo test $(LOCKED) -p muster-chaos --test stories -- --exact --nocapture \
		install_debian::debian_is_installed_and_reached_by_ssh

# Simulated clusters from seeds: `make sim SEEDS=2000 FIRST=1`, or one again with its trace: `make sim SEED=7`.
SEEDS ?= 200
FIRST ?= 1
SEED ?=
sim: export MUSTER_SIM_SEEDS := $(SEEDS)
sim: export MUSTER_SIM_FIRST := $(FIRST)
sim: export MUSTER_SIM_ECHO := $(SEED)
sim: export MUSTER_SIM_SEED := $(SEED)
sim: setup-build
	cargo test $(LOCKED) -p muster-raft --lib -- --exact --nocapture \
		sim::tests::$(if $(SEED),child,seeds_hold)

# Real nodes under load while everything breaks that can; the report is left in target/chaos:
# `make chaos MINUTES=60 NODES=5 SEED=7`, or with `CHAOS='--nemesis kill split'` less of it.
MINUTES ?= 10
NODES ?= 3
chaos: setup build
	target/bin/muster-chaos chaos --minutes $(MINUTES) --nodes $(NODES) --seed $(or $(SEED),1) $(CHAOS)

# Mutated DHCP packets, more of them than `make test` takes: `make fuzz ROUNDS=20000`.
ROUNDS ?= 20000
fuzz: export MUSTER_FUZZ_ROUNDS := $(ROUNDS)
fuzz: setup-build
	cargo test $(LOCKED) -p muster-node --test dhcp fuzz::

# Beside etcd (docs/performance.md), then the parts alone.
bench: setup-bench build
	$(cargo_target)/release/muster-bench $(BENCH)
	cargo bench $(LOCKED) --workspace --benches

# DHCP beside Kea, alone and as a pair, in network namespaces: `make bench-dhcp BENCH='--rounds 1'`.
bench-dhcp: setup-bench build
	$(cargo_target)/release/muster-bench-dhcp $(BENCH)

# What machines fetch: HTTP beside nginx, TFTP beside tftpd-hpa and dnsmasq, scripts:
# `make bench-boot BENCH='--parts tftp --rounds 3'`.
bench-boot: setup-bench build
	$(cargo_target)/release/muster-bench-boot $(BENCH)

lint: setup-build
	cargo fmt --all --check
	cargo clippy $(LOCKED) --workspace --all-targets -- -D warnings

fmt:
	cargo fmt --all

clean:
	cargo clean
	rm -rf target/bin

setup-build:
	@deploy/setup.sh build

setup-bench:
	@deploy/setup.sh bench

setup:
	@deploy/setup.sh

# What lab machines boot, what installs them, and a small disk to install.
payload: setup
	@deploy/payload.sh
	@deploy/installer.sh
	@deploy/disk.sh
