# `make demo` and `make test` need no preparation: .ci/setup installs missing build dependencies, or
# prints what to install.

CARGO ?= cargo

.PHONY: help demo test test-chaos test-real test-live test-fuzz test-dashboard bench evaluate docs manifests package setup

# Lists the targets.
help:
	@echo 'make demo       an emulated fleet, the proxy and a load in the terminal; ends by itself'
	@echo 'make test       formatting, lints and all tests'
	@echo 'make test-chaos engine faults of every kind, with clients of every kind; TIDEGATE_CHAOS_REQUESTS, _SEED'
	@echo 'make test-real  the proxy in front of real vLLM engines (CPU build, 6 GB from PyPI), and guidellm'
	@echo 'make test-live  attainment of the demo beside the simulator on slices of two traces; three minutes'
	@echo 'make test-fuzz  the seeds of the fuzz targets; needs a C++ compiler'
	@echo 'make test-dashboard  every view in headless Chromium with axe-core; needs chromium, node, npm'
	@echo 'make bench      micro-benchmarks, then the comparison with nginx and haproxy'
	@echo 'make evaluate   policies on 20 draws of each load, written to docs/evaluation.md; up to an hour, ARGS=--short five minutes'
	@echo 'make docs       regenerates docs/reference and builds the book; needs python3 with venv (mdbook comes from PyPI)'
	@echo 'make manifests  renders and checks the Helm chart and the Kustomize overlays, tests the alerts; needs python3, npm'
	@echo 'make package    builds and runs a wheel, a .deb, cargo install and the compose file; PROFILE=release is faster'
	@echo 'make setup      installs build dependencies'

# An emulated fleet, the proxy and a load in the terminal; ends within 90 s. ARGS="--scenario …"
demo: setup
	@echo 'building tidegate: about three minutes on two cores the first time, then the demo runs for up to 90 s'
	$(CARGO) run --profile demo --no-default-features --bin tidegate -- demo $(ARGS)

# Formatting, lints and all tests. Needs no GPU, and no network but crates.io.
test: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	CARGO="$(CARGO)" .ci/features ""
	$(CARGO) test --workspace --quiet

# Faults of every kind with clients of every kind, on emulated engines: tests/chaos/main.rs.
# TIDEGATE_CHAOS_REQUESTS (20,000) and TIDEGATE_CHAOS_SEED (printed) choose the run.
test-chaos: setup
	$(CARGO) test --release --test chaos -- --ignored --exact a_long_run --nocapture

# Two and three real vLLM engines on this machine (CPU build, 6 GB from PyPI): tests/real/run.sh
test-real: setup
	bash tests/real/run.sh

# The demo in real time beside the simulator; needs an otherwise idle machine.
test-live: setup
	$(CARGO) test --release --test live -- --ignored --nocapture --test-threads=1

# The dashboard in headless Chromium with axe-core; needs chromium, node and npm.
test-dashboard: setup
	tests/dashboard/run

# The fuzz targets' seeds, on stable Rust; needs a C++ compiler.
test-fuzz: setup
	$(CARGO) test --manifest-path fuzz/Cargo.toml

# The comparison installs nginx and haproxy from Debian if they are missing.
bench: setup
	$(CARGO) bench --workspace --benches
	benches/compare/run

# Every policy on every cell with confidence intervals, the ablation, the disturbances and the goodput,
# written to docs/evaluation.md. ARGS=--help lists sections and options.
evaluate: setup
	$(CARGO) run --release -p tidegate-sim --example evaluate -- --write $(ARGS)

# The references from the source, then the book into target/book.
docs:
	docs/generate
	docs/build

# Renders the Helm chart and the Kustomize overlays, checks them against Kubernetes' schemas, tests the alerts.
manifests:
	deploy/validate

# Builds and runs each package; names the packages that this machine cannot build: deploy/package
package: setup
	deploy/package

setup:
	@.ci/setup
