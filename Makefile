# make run      start voicegate on this machine and talk to it
# make cluster  the same as separate processes: Redis, a relay, two transceivers, signaling, the parrot
# make check    format, lint, spelling, types, import contracts
# make test     check, then every test (what .ci/run calls)
# make bench    beside aiortc: CPU, set-up time and memory per call, data channels; events; killed relays
# make bench-relay  the relay beside a Go relay, a C forwarder and coturn: CPU per packet, latency, memory per flow
# make bench-media  the media path beside aiortc and the floors: CPU, smoothness, latency, bad networks, memory
# make soak     five minutes of calls that come and go: memory, tasks and descriptors must not
# make clean    remove the virtual environment and the caches

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# A newer one can be named: make PYTHON=python3.13 run
PYTHON ?= python3
# Relative on purpose: a path with spaces in front of it does no harm.
PY := .venv/bin/python

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help run cluster check test unit bench bench-relay bench-media soak clean system-test system-cluster system-bench-relay

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# The stamps hold what was installed: nothing is done again until pyproject.toml or constraints.txt change.
.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "voicegate needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Name another one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "This Python has no venv module (Debian, Ubuntu: apt-get install python3-venv)." >&2; exit 1; }
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.run: .venv/.python pyproject.toml constraints.txt
	@echo "Installing voicegate into .venv ..."
	@$(PY) -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/.dev: .venv/.python pyproject.toml constraints.txt
	@echo "Installing voicegate and its development tools into .venv ..."
	@$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch .venv/.run $@

run: .venv/.run
	@exec .venv/bin/voicegate

# In the background, so that the shell can pass SIGTERM on, which make sends to it alone, and wait for the end of all.
cluster: .venv/.dev system-cluster
	@PATH="$$PWD/.venv/bin:$$PATH"; export PATH; \
	$(PY) -m honcho start & honcho=$$!; \
	trap : INT; trap 'kill -TERM $$honcho' TERM; status=0; \
	while kill -0 $$honcho 2>/dev/null; do status=0; wait $$honcho || status=$$?; done; \
	case $$status in 130|143) ;; *) exit $$status;; esac

check: .venv/.dev
	@PATH="$$PWD/.venv/bin:$$PATH"; \
	step() { echo "  $$*"; "$$@"; }; \
	step ruff format --check .; \
	step ruff check .; \
	step codespell --ignore-words-list=speaches --skip='./.git,./.venv,./bench/results,./tests/artifacts,./tests/.cache,*/node_modules,bundle.js,*.egg-info,constraints.txt' .; \
	step mypy; \
	step lint-imports

# What needs no second process shares the machine's cores; what measures time has it for itself.
test: system-test check
	@export PATH="$$PWD/.venv/bin:$$PATH"; \
	if test -n "$(TESTS)"; then exec $(PY) -m pytest $(TESTS); fi; \
	status=0; \
	$(PY) -m pytest -n auto --dist loadfile -m "not e2e" || status=$$?; \
	$(PY) -m pytest -m e2e || status=$$?; \
	exit $$status

# The quick half, for the edit-and-run loop: no browser, no Redis, no second process.
unit: .venv/.dev
	@$(PY) -m pytest -q -n auto --dist loadfile -m "not e2e" $(TESTS)

bench: .venv/.dev system-test
	@PATH="$$PWD/.venv/bin:$$PATH" $(PY) -m bench.bench_calls
	@PATH="$$PWD/.venv/bin:$$PATH" $(PY) -m bench.bench_setup
	@PATH="$$PWD/.venv/bin:$$PATH" $(PY) -m bench.bench_events
	@PATH="$$PWD/.venv/bin:$$PATH" $(PY) -m bench.bench_kills

# Anything else that works on this machine meanwhile is in the figures.
bench-relay: .venv/.run system-bench-relay
	@$(PY) -m bench.relay.run $(BENCH)

bench-media: .venv/.dev
	@PATH="$$PWD/.venv/bin:$$PATH" $(PY) -m bench.media.run $(BENCH)

soak: .venv/.dev
	@PATH="$$PWD/.venv/bin:$$PATH" VOICEGATE_SOAK_SECONDS=300 $(PY) -m pytest -s tests/e2e/test_soak.py

system-test:
	@bash tests/support/system_packages chromium espeak-ng iproute2 redis-server nodejs npm

system-cluster:
	@bash tests/support/system_packages redis-server

system-bench-relay:
	@bash tests/support/system_packages gcc golang coturn

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
