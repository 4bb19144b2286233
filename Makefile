# Every habit has one name. `make verify` never writes; `make fix` does.

CARGO ?= cargo

# For others: make image IMAGE=registry.example.com/podkv:0.1.0 IMAGE_FLAGS="--platform linux/amd64,linux/arm64 --push"
DOCKER ?= docker
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
IMAGE ?= podkv:$(VERSION)
FLAGS_IMAGE ?= podkv-flags:$(VERSION)
IMAGE_FLAGS ?=

.PHONY: help setup build try demo flags test sim sim-planted fuzz chaos chaos-points compat etcd-client rehearse examples bench bench-micro bench-embedded bench-checkpoint bench-etcd verify fix audit image image-flags manifests

help:
	@echo "make try      the tour on memory storage: no C++, nothing durable"
	@echo "make demo     three nodes, real data, a killed leader, nothing lost"
	@echo "make flags    an example: feature flags in a web service of three replicas"
	@echo "make examples podkv from Python, Node and curl, also while the leader is killed"
	@echo "make test     all tests"
	@echo "make sim      real nodes in a simulated world, one seed one run: SEED=7, or SEEDS=10000; make sim-planted: bugs that must be found"
	@echo "make fuzz     every decoder, programs of commands and the handlers of both APIs under libFuzzer: TIME=60 seconds each; FUZZ=api for one"
	@echo "make chaos    real nodes killed, paused, cut off, starved; every promise checked: MINUTES=10 SEED=1 (all of it as root)"
	@echo "make chaos-points  the same, with nodes that end and stop at named places: MINUTES=30"
	@echo "make rehearse all scenarios of the rehearsal of Kubernetes: real nodes as pods (root, Linux, an hour)"
	@echo "make compat   the etcd API against a real etcd: SEEDS=300 random programs, planted slips, etcdctl"
	@echo "make etcd-client  the tests of the etcd-client crate, unmodified, against podkv"
	@echo "make bench    podkv beside etcd and beside gRPC that does nothing, in one run: ratios, tables, pictures (an hour)"
	@echo "make bench-micro  codec, apply, log and watch fan-out alone"
	@echo "make bench-embedded  reads of a node inside a program, beside a bare RocksDB"
	@echo "make bench-checkpoint  the longest gap in apply while a snapshot of 2 GB is built"
	@echo "make bench-etcd  podkv beside a real etcd: pages of a million keys with their count, defragmentation"
	@echo "make verify   what CI checks: format, lints, dependencies, layout"
	@echo "make fix      format, and apply what the lints can mend"
	@echo "make audit    known vulnerabilities of dependencies (needs the network)"
	@echo "make image    the container image; make image-flags that of the embedded example"
	@echo "make manifests  render k8s/ and check it against Kubernetes' schemas"
	@echo "make setup    install what the build needs (called by the others)"

setup:
	@.ci/setup
	@.ci/rocksdb

build: setup
	$(CARGO) build --locked --workspace --bins

# No feature that needs C++: this builds in a few minutes.
try:
	$(CARGO) run --locked --quiet -p podkv-tests --no-default-features --bin podkv-tour

demo: build
	$(CARGO) run --locked --quiet -p podkv-tests --bin podkv-demo

flags: setup
	$(CARGO) run --locked -p podkv --features embed --example flags

examples: build
	@.ci/examples

# A test that hangs is to be a failure with a name: each program of tests has half an hour, several times what it needs.
BOUNDED := $(if $(shell command -v timeout),--config "target.'cfg(all())'.runner = 'timeout --foreground 1800'")

# The tests wait for fsyncs: what the compiler wrote goes to the disk first, or they wait for that.
test: build
	@.ci/etcd
	$(CARGO) test --locked --workspace --no-run
	sync
	$(CARGO) $(BOUNDED) test --locked --workspace

# `make test` plays half a minute of it. What is checked, and how: RELIABILITY.md.
MINUTES ?= 10
SEED ?= 1
CHAOS ?=
chaos: build
	$(CARGO) run --locked --quiet --bin podkv-chaos -- --seed $(SEED) --minutes $(MINUTES) $(CHAOS)

# With a podkv of its own, built with fail points.
chaos-points: build
	$(CARGO) run --locked --quiet --bin podkv-chaos -- --seed $(SEED) --minutes $(MINUTES) --fail-points $(CHAOS)

# For one: make rehearse REHEARSE="--scenario kills --seed 7"; --list tells which there are.
REHEARSE ?=
rehearse: build
	$(CARGO) run --locked --quiet --bin podkv-rehearse -- $(REHEARSE)

# One seed that is named, or many: make sim SEED=7, make sim SEEDS=10000. No RocksDB, so no C++. For a night of seeds,
# SIM_BUILD=--release is worth its compilation: a seed is the same run in every build.
SIM_BUILD ?=
FROM ?= 1
JOBS ?= $(shell nproc)
SIM ?= $(if $(filter command% environment%,$(origin SEED)),--seed $(SEED),--seeds $(SEEDS) --from $(FROM) --jobs $(JOBS))
sim:
	$(CARGO) run --locked --quiet $(SIM_BUILD) -p podkv-sim -- $(SIM)

# Each must be found; how many seeds that took is printed.
sim-planted:
	$(CARGO) build --locked --quiet -p podkv-sim --features planted
	@for bug in $(PLANTED); do $(CARGO) run --locked --quiet -p podkv-sim --features planted -- --seeds $(SEEDS) --jobs $(JOBS) --planted $$bug || exit 1; done
PLANTED ?= lost-fsync reused-node-id stale-read double-apply skipped-event fast-clock lost-renewal expired-session \
	apply-ahead-of-fsync purge-ahead-of-snapshot clock-across-restart lease-read

# Seconds for each target. The tests replay the corpora, and some thousands of mutations, without libFuzzer.
TIME ?= 60
FUZZ ?=
fuzz:
	@.ci/fuzz $(TIME) $(FUZZ)

# Some of it is in `make test` already, for a few seeds.
SEEDS ?= 300
compat: setup
	@.ci/etcd
	SEEDS=$(SEEDS) $(CARGO) test --locked --workspace --test compat

etcd-client: build
	@.ci/etcd-client

# For one: make bench BENCH="--rows put-100 --repetitions 3"; --list tells which rows there are.
BENCH ?=
bench: setup
	@.ci/bench $(BENCH)

# One thread, no network: codec, apply, log, watch fan-out.
MICRO ?=
bench-micro: setup
	$(CARGO) bench --locked --workspace --bench micro -- $(MICRO)

# Optimised: a read is as long as the code is.
EMBEDDED ?=
bench-embedded: setup
	$(CARGO) build --release --locked --quiet --workspace --bin embedded-reads
	$${CARGO_TARGET_DIR:-target}/release/embedded-reads $(EMBEDDED)

# Needs about three times as much free space: `make bench-checkpoint GIGABYTES=0.5` needs less.
GIGABYTES ?= 2
bench-checkpoint: setup
	$(CARGO) run --locked --quiet -p podkv-benches --bin checkpoint-gap -- --gigabytes $(GIGABYTES)

KEYS ?= 1000000
bench-etcd: build
	@.ci/etcd
	$(CARGO) run --locked --quiet -p podkv-benches --bin beside-etcd -- --keys $(KEYS)

verify: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p podkv-node --no-default-features -- -D warnings
	$(CARGO) deny --locked check bans licenses sources
	$(CARGO) test --locked --workspace --test layout

fix:
	$(CARGO) fmt --all
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged

audit:
	$(CARGO) deny check advisories

# Needs Docker with BuildKit, or what speaks its language.
image:
	DOCKER_BUILDKIT=1 $(DOCKER) build --target podkv --tag $(IMAGE) $(IMAGE_FLAGS) .

image-flags:
	DOCKER_BUILDKIT=1 $(DOCKER) build --target flags --tag $(FLAGS_IMAGE) $(IMAGE_FLAGS) .

manifests:
	@.ci/manifests
