# Everything a developer does here, by name. `make` alone lists it.

.DEFAULT_GOAL := help
.PHONY: help demo build test lint fmt doc image interop fuzz sim kill-rounds power-loss partitions big-download clean
.PHONY: bench bench-forward bench-framing bench-scale bench-raft bench-hostile bench-revoke disk-growth

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Start three Servers and two Peers here, fetch a page through them, kill the Master (DEMO_KEEP=1 leaves it running)
	cargo run -p p2p-tests --bin demo

build: ## Build the release binaries: target/release/p2p-server and p2p-peer
	cargo build --release -p p2p-server -p p2p-peer

# One build of everything first, so that tests of real processes find binaries that match the sources.
# cargo-nextest is used where it is installed; the last lines are the summary of whichever runs.
test: ## Run all tests (Rust and a C compiler suffice; no protoc)
	cargo build --workspace --bins --tests
	cargo test --workspace --doc --quiet
	@if cargo nextest --version >/dev/null 2>&1; then set -x; P2P_BINARIES_BUILT=1 cargo nextest run --workspace; \
	else set -x; P2P_BINARIES_BUILT=1 cargo test --workspace --lib --bins --tests; fi

lint: ## Check formatting, clippy, the repository's own rules and, where installed, cargo-deny
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --workspace --test tidy --quiet
	@if ! cargo deny --version >/dev/null 2>&1; then \
		echo "skipped: licences, bans and advisories (cargo-deny is not installed: cargo install cargo-deny)"; \
	else \
		cargo deny --workspace check licenses bans sources && \
		if cargo deny fetch db >/dev/null 2>&1; then cargo deny --workspace check advisories; \
		else echo "skipped: advisories (their database cannot be fetched)"; fi; \
	fi

fmt: ## Format the sources
	cargo fmt --all

doc: ## Build the API documentation, refusing dead links in it: target/doc
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

interop: target/interop/installed ## Ask a real cluster with an independent gRPC client (Python; grpcio goes to target/interop)
	P2P_PYTHON=$(CURDIR)/target/interop/bin/python cargo run -p p2p-tests --bin interop

target/interop/installed: tests/interop/requirements.txt
	python3 -m venv target/interop
	target/interop/bin/pip install --quiet --requirement $<
	touch $@

fuzz: ## Fuzz every parser of bytes from a network, 10 minutes each (FUZZ_SECONDS=N; nightly compiler and cargo-fuzz)
	cargo +nightly fuzz build --fuzz-dir tests/fuzz
	@for target in $$(cargo +nightly fuzz list --fuzz-dir tests/fuzz); do \
		mkdir -p tests/fuzz/corpus/$$target; set -x; \
		cargo +nightly fuzz run --fuzz-dir tests/fuzz $$target tests/fuzz/corpus/$$target tests/fuzz/seeds/$$target -- \
			-dict=tests/fuzz/http.dict -max_total_time=$(or $(FUZZ_SECONDS),600) || exit 1; \
		{ set +x; } 2>/dev/null; \
	done

sim: ## Simulate 100,000 clusters full of faults on all cores (SIM_SEEDS=N): every promise holds in each
	SIM_SEEDS=$(or $(SIM_SEEDS),100000) cargo test --release -p p2p-server-raft --test simulation --test clusters promise -- --nocapture

kill-rounds: ## Kill 1,000 Servers of clusters of 3 and 5 under writes (KILLS=N, KILL_SERVERS=3,5): no acknowledged write may be lost
	cargo run -p p2p-tests --bin kill_rounds

power-loss: ## Take the disks' power under writes, 200 rounds (POWER_ROUNDS=N, as root): nothing acknowledged may be lost
	cargo run -p p2p-tests --bin power_loss

partitions: ## Cut, freeze and spoil the network between Servers, 66 faults each for 3 and 5 (PARTITION_ROUNDS=N, as root)
	cargo run -p p2p-tests --bin partitions

big-download: ## Fetch 10 GiB (BIG_BYTES=N) with curl through two Peers and compare the hashes of both ends
	cargo run --release -p p2p-tests --bin big_download

image: ## Build the container image p2pcore:latest (BINARIES=prebuilt compiles here and pulls nothing)
	deploy/container/build $(or $(BINARIES),built)

bench: bench-forward bench-framing bench-scale bench-raft bench-hostile bench-revoke ## Run all benches

bench-forward: ## Measure forwards beside a direct fetch, haproxy and rathole: target/bench/forward.json
	cargo run --release -p p2p-tests --bin bench_forward

bench-framing: ## Measure the framing of HTTP/1 beside hyper: target/bench/framing.json
	cargo run --release -p p2p-tests --bin bench_framing

bench-scale: ## Measure thousands of forwards and idle clients at once: target/bench/scale.json
	cargo run --release -p p2p-tests --bin bench_scale

bench-raft: ## Measure writes, reads and failover of three Servers beside etcd: target/bench/raft.json
	cargo run --release -p p2p-tests --bin bench_raft

bench-hostile: ## Measure what honest clients feel of 14 attacks, and what these cost: target/bench/hostile.json
	cargo run --release -p p2p-tests --bin bench_hostile

bench-revoke: ## Measure how soon everybody lets go of a revoked Peer, 3 Servers and 20 Peers: target/bench/revoke.json
	cargo run --release -p p2p-tests --bin bench_revoke

disk-growth: ## Measure disk and memory of a Server after 1,000,000 writes (DISK_GROWTH_WRITES=N): target/bench/disk-growth.json
	cargo run --release -p p2p-tests --bin disk_growth

clean: ## Remove what was built
	cargo clean
