# The project's commands; `make` alone lists them. Needs a POSIX shell, make and Python 3.11 to 3.14.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

VENV ?= .venv
BIN := $(VENV)/bin
# Empty: the first of python3, python3.14, python3.13, python3.12 and python3.11 that will do.
PYTHON ?=
ARGS ?=
KILLS ?= 300
SEED ?= 1
ONLY ?=
# Test processes: as many as there are cores, four at most (each runs a PostgreSQL of its own).
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ "$$n" -gt 4 ] && n=4; echo $$n)

.PHONY: help
help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: install
install: $(VENV)/.runtime ## set up: virtual environment, locked dependencies, this project

.PHONY: up
up: $(VENV)/.runtime ## start the mesh and show it until Ctrl-C; ARGS="--for 60" stops by itself
	@exec $(BIN)/mesh up $(ARGS)

.PHONY: test
test: $(VENV)/.development ## run the tests; ARGS="-k fold" chooses some
	@exec $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

.PHONY: torture
torture: $(VENV)/.development ## kill the ingesting process KILLS times (300) with SEED (1) and compare
	@exec $(BIN)/python -m tests.crash.torture --kills $(KILLS) --seed $(SEED) $(ARGS)

.PHONY: bench
bench: $(VENV)/.development ## measure speed beside its peers; ONLY=capture runs one benchmark
	@exec $(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(ARGS)

.PHONY: check
check: $(VENV)/.development ## style, types and layers: ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/.development ## let ruff put the code in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: lock
lock: $(VENV)/.installer ## pin the newest allowed versions with their hashes, for every supported Python
	@rm -f requirements-new.lock
	@$(COMPILE) --group build --output-file requirements-new.lock pyproject.toml
	@mv requirements-new.lock requirements.lock
	@$(COMPILE) --group build --group dev --constraint requirements.lock --output-file requirements-new.lock pyproject.toml
	@mv requirements-new.lock requirements-dev.lock
	@$(COMPILE) --group installer --output-file requirements-new.lock
	@mv requirements-new.lock requirements-uv.lock

.PHONY: clean
clean: ## delete the virtual environment and caches; the mesh's data stays (see `mesh reset`)
	rm -rf $(VENV) build .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find mesh_assets products tests -name __pycache__ -prune -exec rm -rf {} +

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
	--no-header --no-strip-extras --no-emit-index-url --no-emit-find-links

# What a user has set for pip also holds for uv, which reads variables of its own only.
FOR_UV = \
	UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$${UV_INDEX_URL:-$$PIP_INDEX_URL}}"; \
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}"; \
	SSL_CERT_FILE="$${SSL_CERT_FILE:-$$PIP_CERT}"; \
	UV_HTTP_TIMEOUT="$${UV_HTTP_TIMEOUT:-$$PIP_DEFAULT_TIMEOUT}"; \
	for name in UV_DEFAULT_INDEX UV_FIND_LINKS SSL_CERT_FILE UV_HTTP_TIMEOUT; do \
		eval "value=\$$$$name"; if [ -n "$$value" ]; then export $$name; else unset $$name; fi; \
	done

# $(call INSTALL,lock): uv first, plain pip where uv cannot run or reaches nothing.
define INSTALL
	@echo "installing $(1)"
	@( $(FOR_UV); [ -x $(BIN)/uv ] && $(BIN)/uv pip install --python $(BIN)/python --no-build-isolation \
			--require-hashes --compile-bytecode --requirement $(1) ) \
		|| { echo "installing $(1) with pip instead"; \
			$(BIN)/python -m pip install --no-deps --no-build-isolation --require-hashes --requirement $(1); }
endef

# The project itself, editable; setuptools comes from the lock, so nothing is fetched.
define INSTALL_PROJECT
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@$(BIN)/python -m compileall -q mesh_assets products
endef

$(VENV)/.created:
	@wanted="$(PYTHON)"; \
	for name in $${wanted:-python3 python3.14 python3.13 python3.12 python3.11}; do \
		if "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then \
			found=$$name; break; \
		fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "This needs Python 3.11 to 3.14; found: $$($${wanted:-python3} --version 2>&1)." >&2; \
		echo "Install one of them, or name one: make PYTHON=/path/to/python3.12 ..." >&2; \
		exit 1; \
	fi; \
	echo "making $(VENV) with $$($$found --version)"; \
	if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "This Python has no venv or ensurepip (Debian and Ubuntu: apt install python3-venv)." >&2; \
		exit 1; \
	fi; \
	"$$found" -m venv $(VENV)
	@touch $@

$(VENV)/.installer: requirements-uv.lock $(VENV)/.created
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes \
		--requirement requirements-uv.lock || echo "there is no uv for this machine: going on with pip"
	@touch $@

$(VENV)/.runtime: requirements.lock pyproject.toml $(VENV)/.installer
	$(call INSTALL,requirements.lock)
	$(INSTALL_PROJECT)
	@echo "compiling the decoder"
	@$(BIN)/python -m mesh_assets.cdc.warm
	@touch $@

$(VENV)/.development: requirements-dev.lock $(VENV)/.runtime
	$(call INSTALL,requirements-dev.lock)
	@touch $@
