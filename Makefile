# Every target installs what it needs: `make run` and `make test` work on a fresh clone.
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
BIN := .venv/bin
PACKAGES := gateway gateway_console gateway_runtime tools_server

.PHONY: help run dev test test-quick test-all schedules chaos fuzz check format lock audit sbom wheel release-version image-digests schema node debian-packages previous-release real-servers pre-commit conformance mcpb docs release-schemas eval eval-record console-pictures demo bench bench-quick profile figures clean

run: .venv/.run ## install everything and run it: Postgres, a simulated Groq, the tool server, the gateway, the console
	@exec $(BIN)/agent-gateway up

dev: .venv/.run ## like run; starts again when the source changes, and allows pages of development servers (CORS)
	@exec $(BIN)/agent-gateway up --reload --dev-origins

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# Three tiers, each without network and in any order. ARGS="--no-shortcuts" replaces nothing to run faster.
PYTEST := $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder
COVERAGE := --cov --cov-report=term

# Without a database, processes and Node: under a minute.
test-quick: .venv/.dev ## tests without a database, processes and Node: under a minute
	$(PYTEST) -m "not database and not slow and not node and not faults" $(ARGS)

# Without Node and faults: under six minutes on two idle cores.
test: .venv/.dev ## tests without Node and faults: under six minutes
	$(PYTEST) -m "not node and not faults" $(ARGS)

# Everything: what CI runs. Prints the coverage of the code that runs in the test process; measuring it costs minutes. Tests that lack Node, or what `make node` installs, are skipped, or fail where CI is set.
test-all: .venv/.dev ## all tests, with coverage: what CI runs
	TURN_SCHEDULES=$(or $(TURN_SCHEDULES),200) $(PYTEST) $(COVERAGE) $(ARGS)

# Thousands of random schedules of faults against the runner and a real Postgres; `make test` runs the first 20.
schedules: .venv/.dev ## thousands of random schedules of faults
	TURN_SCHEDULES=$(or $(TURN_SCHEDULES),3000) $(BIN)/pytest tests/turn_schedules $(ARGS)

# Random faults of real processes for ten minutes; prints counts of broken promises. ARGS="--minutes 1 --seed 2".
chaos: .venv/.dev ## random faults of real processes for ten minutes
	PYTHONPATH=. $(BIN)/python -m tests.chaos $(ARGS)

# Random bytes of ten seeds, and requests that Schemathesis generates, to both servers and the console, with lag and memory
# watched.
fuzz: .venv/.dev ## random bytes and requests to both servers and the console
	FUZZ_SEEDS=$(or $(FUZZ_SEEDS),10) FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),50) $(BIN)/pytest tests/fuzz tests/gateway/api/test_contract.py $(ARGS)

check: .venv/.dev ## format, lint, types, import rules and documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest -q tests/test_architecture.py tests/test_docstrings.py
	@$(MAKE) --no-print-directory docs

format: .venv/.dev ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The lock files contain versions and hashes but no URLs, so they work with any mirror of the package index.
LOCK := pip compile --quiet --universal --generate-hashes --python-version 3.11 --custom-compile-command "make lock" pyproject.toml
LOCK_TOOLS := pip compile --quiet --universal --generate-hashes --python-version 3.11 --custom-compile-command "make lock"
REAL := servers hosts hosts-sdk-1 clients telemetry
lock: | $(UV) ## update the lock files
	$(UV) $(LOCK) --extra dev -o requirements-dev.lock
	$(UV) $(LOCK) -c requirements-dev.lock -o requirements.lock
	$(UV) $(LOCK_TOOLS) requirements-uv.in -o requirements-uv.lock
	$(UV) $(LOCK_TOOLS) requirements-tools.in -o requirements-tools.lock
	$(UV) $(LOCK_TOOLS) examples/gradio.in -o examples/requirements-gradio.lock
	for name in $(REAL); do \
		$(UV) $(LOCK_TOOLS) tests/real_servers/$$name.in -o tests/real_servers/requirements-$$name.lock || exit 1; \
	done

# Checks the locked packages for published vulnerabilities. Needs the JSON API of the package index (or of OSV, with
# ARGS="-s osv"). With --strict, it fails if a package cannot be checked.
audit: .tools/.installed ## check the locked packages for vulnerabilities
	.tools/bin/pip-audit -r requirements.lock --require-hashes --disable-pip --strict $(ARGS)

# A wheel holds the migrations and the default mcp.json, so `agent-gateway up` runs where it is installed.
wheel: | $(UV) ## build wheel and source archive in build/dist
	rm -rf build/dist
	$(UV) build --quiet --out-dir build/dist

# A release's tag is the version of the project: `make release-version TAG=v0.2.0`.
release-version: ## check that a tag is the version of the project
	@$(PYTHON) -c 'import sys, tomllib; v = "v" + tomllib.load(open("pyproject.toml", "rb"))["project"]["version"]; sys.exit(v != sys.argv[1] and f"{sys.argv[1]} is not {v}, the version in pyproject.toml")' "$(TAG)"

# The bill of materials of the locked packages, with their hashes: CycloneDX 1.6 in build/sbom.json. An image's system
# packages are listed by `docker buildx build --sbom=true`.
sbom: .tools/.installed ## write the bill of materials to build/sbom.json
	@mkdir -p build
	.tools/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON -o build/sbom.json requirements.lock

# Pins the images of the Dockerfile and compose.yaml to the digests that Docker Hub has for their tags. Needs network
# access, and no container engine.
image-digests: ## pin the container images to digests
	$(PYTHON) packaging/image_digests.py $(ARGS)

# The combined result of all migrations, for a new embedded Postgres. A test fails if the file is out of date.
schema: .venv/.dev ## update migrations/schema.sql after a new migration
	DATABASE_URL=postgresql+asyncpg:// $(BIN)/alembic upgrade heads --sql > migrations/schema.sql

# The Node clients that some tests use; without them, these tests are skipped.
node: ## install the Node clients that some tests use (Node 22.19 or newer)
	cd tests/node && npm ci --silent

# The Debian packages that some tests use: PgBouncer, nginx, nss_wrapper, Chromium; without them, these tests are skipped.
DEBIAN_PACKAGES := pgbouncer nginx-light libnss-wrapper chromium
debian-packages: ## install the Debian packages that some tests use (as root, or with sudo)
	@dpkg --status $(DEBIAN_PACKAGES) >/dev/null 2>&1 || { set -e; \
	  sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); $$sudo apt-get -q update; \
	  DEBIAN_FRONTEND=noninteractive $$sudo apt-get -q install -y --no-install-recommends $(DEBIAN_PACKAGES); }

# The previous release in .upgrade/, with its own lock file, for tests/upgrade; without it, these tests are skipped.
previous-release: .venv/.dev ## install the previous release for tests/upgrade
	$(BIN)/python packaging/previous_release.py $(abspath $(UV)) $(PYTHON)

# MCP servers and hosts of others and a back end for traces, from npm and PyPI, in .real/ and
# tests/real_servers/node_modules; without them, these tests are skipped.
real-servers: .venv/.dev .real/.installed ## install MCP servers, hosts and a trace back end of others, and connect them in tests
	$(BIN)/pytest tests/real_servers $(ARGS)

.real/.installed: $(REAL:%=tests/real_servers/requirements-%.lock) tests/real_servers/package-lock.json | $(UV)
	cd tests/real_servers && npm ci --silent
	for name in $(REAL); do \
		$(UV) venv --quiet --allow-existing --python $(PYTHON) .real/$$name && \
		$(UV) pip install --quiet --python .real/$$name/bin/python --require-hashes \
			-r tests/real_servers/requirements-$$name.lock || exit 1; \
	done
	@touch $@

# Installs the hooks of .pre-commit-config.yaml in this clone: ruff and the import rules run before each commit.
pre-commit: .venv/.dev .tools/.installed ## install the git hooks
	.tools/bin/pre-commit install

# Only the official MCP conformance suite; `make test-all` includes it after `make node`.
conformance: .venv/.dev node ## the official MCP conformance suite
	$(BIN)/pytest tests/e2e/test_conformance.py $(ARGS)

# The documentation site, in build/site. A broken link or a page that is missing in the navigation is an error.
docs: .venv/.dev ## build the documentation site in build/site
	$(BIN)/python packaging/docs_site.py
	$(BIN)/zensical build --clean --strict

# The public schemas of a release, from its commit: docs/releases/<version>, for tests/test_compatibility.py.
release-schemas: .venv/.dev ## write the public schemas of a release
	$(BIN)/python packaging/release_schemas.py $(VERSION) $(or $(COMMIT),HEAD)

# Builds the tool server's bundle for Claude Desktop in build/.
mcpb: .venv/.dev node ## build the bundle for Claude Desktop in build/
	PYTHONPATH=. $(BIN)/python packaging/mcpb.py build

# The evaluation of the project against its recordings, which were made with the simulator: docs/evaluation.md.
eval: .venv/.dev ## run the evaluation against recordings
	$(BIN)/agent-gateway eval evaluations/agent.yaml --recordings evaluations/recordings $(ARGS)

eval-record: .venv/.dev ## record the evaluation again, with the simulator
	rm -rf evaluations/recordings
	$(BIN)/agent-gateway eval evaluations/agent.yaml --simulated --record evaluations/recordings $(ARGS)

# The gateway and its peers under the same loads: benchmarks/RESULTS.md. The quick variant writes no file.
bench: .venv/.dev ## compare the gateway with its peers, and write benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks $(ARGS)

bench-quick: .venv/.dev ## the same, quickly and without a file
	$(BIN)/python -m benchmarks --quick $(ARGS)

# py-spy reads the gateway's stacks from outside, as root or where processes may be traced. ARGS="--only burst --seconds 30".
profile: .venv/.dev .tools/.installed ## a flame graph of the gateway under a workload: build/profile.svg
	$(BIN)/python -m benchmarks.profiling $(ARGS)

# Figures on names and sizes in the code. ARGS="--names" lists what to change, ARGS="--against 8781ab0" compares.
figures: .venv/.dev ## figures on names and sizes in the code
	$(BIN)/python -m benchmarks.code_figures $(ARGS)

clean: ## remove everything that make installs, and the data in .data
	rm -rf .venv .uv .tools .bench .data .upgrade .real tests/node/node_modules tests/real_servers/node_modules

.uv/bin/uv: requirements-uv.lock
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@touch $@

# Without Chromium (`make debian-packages`) nothing is drawn.
console-pictures: .venv/.dev ## draw the pictures of docs/console.md
	CONSOLE_PICTURES=docs/pictures $(BIN)/pytest -q tests/gateway_console/test_pictures.py

# Gradio has 55 packages of its own, so it has an environment of its own.
.demo/.installed: examples/requirements-gradio.lock | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .demo
	$(UV) pip install --quiet --python .demo/bin/python --require-hashes -r examples/requirements-gradio.lock
	@touch $@

demo: .demo/.installed ## a chat with Gradio at http://127.0.0.1:8003, a client of the running gateway
	@exec .demo/bin/python examples/gradio_chat.py

# Tools that are no libraries of the project, so their requirements do not limit the project's.
.tools/.installed: requirements-tools.lock | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .tools
	$(UV) pip install --quiet --python .tools/bin/python --require-hashes -r requirements-tools.lock
	@touch $@

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
