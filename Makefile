# The commands of this project; `make` alone lists them.

# Optimised, and built in a fraction of the time of a release build: one set of artefacts serves everything here.
PROFILE ?= quick
CARGO ?= cargo
# Where cargo puts what it built: the profile `dev` has a directory of another name.
OUT = target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

# Tests make network namespaces, so their binaries run as root whoever builds them.
ifneq ($(shell id -u),0)
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER = sudo -E
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER = sudo -E
endif

.PHONY: help demo test conformance check bench bench-mesh bench-smoke fuzz release

help:
	@echo "make demo         build a two-node mesh on this machine and carry real traffic through it"
	@echo "make test         every test, end to end ones included (they need root, and ask for it)"
	@echo "make conformance  the tunnel protocol against h2spec, Envoy and Python's h2 (it installs them, by go and pip)"
	@echo "make check        format, lints and documentation, warnings denied"
	@echo "make fuzz         bytes of hostile peers: TARGET=discovery|hpack|http2|http2_state|records|record_state SECONDS=60"
	@echo "make bench        the benches; read what each asks at the top of its file"
	@echo "make bench-mesh   the whole mesh against no mesh and another carrier: ROUNDS=5 SECONDS=3 ARGS='--only bulk --write docs'"
	@echo "make bench-smoke  each bench once, to see that it runs"
	@echo "make release      the binary as it is shipped: target/release/adit"

demo:
	@tools/setup.sh demo
	@$(CARGO) build --profile $(PROFILE)
	@$(OUT)/adit demo $(ARGS)

test:
	@tools/setup.sh test
	$(CARGO) test --profile $(PROFILE) --features testing
	TUNNEL=classic $(CARGO) test --profile $(PROFILE) --features testing --test traffic --test endurance

conformance:
	@tools/setup.sh demo
	@tools/setup.sh conformance
	env $(foreach arch,X86_64 AARCH64,-u CARGO_TARGET_$(arch)_UNKNOWN_LINUX_GNU_RUNNER) PATH="$(CURDIR)/target/tools:$$PATH" \
		$(CARGO) test --profile $(PROFILE) --features testing --test conformance --test envoy -- --nocapture
	$(CARGO) test --profile $(PROFILE) --features testing --test peers -- --nocapture

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items

# One target of fuzz/ for some seconds. `cargo install cargo-fuzz` brings the tool; the variable lets a stable compiler use sanitizers.
TARGET ?= http2
fuzz:
	RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --fuzz-dir fuzz $(TARGET) -- -max_total_time=$(or $(SECONDS),60) -max_len=4096

bench:
	$(CARGO) bench --features testing

# Built as it is shipped, unless a PROFILE is given. `make bench-mesh ARGS=--help` lists what ARGS may say.
bench-mesh:
	@tools/setup.sh demo
	$(CARGO) bench --bench mesh $(if $(filter-out file,$(origin PROFILE)),--profile $(PROFILE)) -- \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

bench-smoke:
	$(CARGO) bench --profile $(PROFILE) --features testing -- --test

release:
	$(CARGO) build --release
