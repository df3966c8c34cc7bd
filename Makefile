# tidegate: what people run. `make demo` and `make test` work on a fresh Debian-like machine with a Rust toolchain.
.PHONY: help setup test demo test-real bench
SHELL := bash

help:
	@echo "make demo       eight emulated engines, the proxy and a load, watched live"
	@echo "make test       format, lints and all tests"
	@echo "make test-real  against two real vLLM engines (CPU build, 6 GB)"
	@echo "make bench      micro-benchmarks, and beside nginx and haproxy"

# cmake and a C++ compiler build zlib-ng under pingora and oniguruma under the parity tests.
setup:
	@command -v cargo >/dev/null || { echo "tidegate: install Rust first (rustup.rs), then try again"; exit 1; }
	@if ! command -v cmake >/dev/null || ! command -v c++ >/dev/null; then \
	  if command -v apt-get >/dev/null && { [ "$$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then \
	    run=""; [ "$$(id -u)" = 0 ] || run="sudo -n"; \
	    $$run apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$run apt-get install -y -qq cmake g++ >/dev/null; \
	  else echo "tidegate: install cmake and a C++ compiler (Debian: apt-get install cmake g++), then try again"; exit 1; fi; fi

test: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --workspace

demo: setup
	cargo run --release --bin tidegate -- demo $(ARGS)

test-real: setup
	bash tests/real/run.sh

bench: setup
	cargo bench
	benches/compare/run
