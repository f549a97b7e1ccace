# Every target does its own set-up: `make run` and `make test` work on a fresh clone.
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
BIN := .venv/bin
PACKAGES := gateway gateway_runtime tools_server

.PHONY: run test check format lock audit schema node conformance mcpb docs release-schemas bench bench-quick figures clean

run: .venv/.run
	@exec $(BIN)/agent-gateway up

test: .venv/.dev
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest -q tests/test_architecture.py
	@$(MAKE) --no-print-directory docs

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The locks name versions and hashes, never addresses, so they hold for any mirror of the package index.
LOCK := pip compile --quiet --universal --generate-hashes --python-version 3.11 --custom-compile-command "make lock" pyproject.toml
lock: | $(UV)
	$(UV) $(LOCK) --extra dev -o requirements-dev.lock
	$(UV) $(LOCK) -c requirements-dev.lock -o requirements.lock

# What is locked against the published advisories. Needs the package index's JSON API (or, with ARGS="-s osv", OSV's); with --strict
# it fails where they cannot be asked, instead of having found nothing.
audit: | $(UV)
	$(UV) tool run --quiet pip-audit -r requirements.lock --require-hashes --disable-pip --strict $(ARGS)

# What all migrations together make, for a new embedded Postgres. A test fails where it is not of today.
schema: .venv/.dev
	DATABASE_URL=postgresql+asyncpg:// $(BIN)/alembic upgrade heads --sql > migrations/schema.sql

# The clients in Node that some tests drive; without them those tests skip.
node:
	cd tests/node && npm ci --silent

# The official MCP conformance suite alone; `make test` runs it too where `make node` has been.
conformance: .venv/.dev node
	$(BIN)/pytest tests/e2e/test_conformance.py $(ARGS)

# The documentation site, in build/site. A broken link or a page that is missing in the navigation is an error.
docs: .venv/.dev
	$(BIN)/python packaging/docs_site.py
	$(BIN)/zensical build --clean --strict

# The public schemas of a release, from its commit: docs/releases/<version>, for tests/test_compatibility.py.
release-schemas: .venv/.dev
	$(BIN)/python packaging/release_schemas.py $(VERSION) $(or $(COMMIT),HEAD)

# The tool server's bundle for Claude Desktop, in build/.
mcpb: .venv/.dev node
	PYTHONPATH=. $(BIN)/python packaging/mcpb.py build

# Gateway and peers under the same loads, side by side: benchmarks/RESULTS.md. The quick one writes nothing.
bench: .venv/.dev
	$(BIN)/python -m benchmarks $(ARGS)

bench-quick: .venv/.dev
	$(BIN)/python -m benchmarks --quick $(ARGS)

# Figures on names and sizes in the code. ARGS="--names" lists what to change, ARGS="--against 8781ab0" compares.
figures: .venv/.dev
	$(BIN)/python -m benchmarks.code_figures $(ARGS)

clean:
	rm -rf .venv .uv .bench .data tests/node/node_modules

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

.venv/bin/python: | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv

.venv/.run: requirements.lock pyproject.toml | $(UV) .venv/bin/python
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	$(BIN)/python -m compileall -q $(PACKAGES)
	@touch $@

.venv/.dev: requirements-dev.lock .venv/.run
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements-dev.lock
	@touch $@
