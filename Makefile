# Textmill from a fresh clone: `make up`. Needs Python 3.11+ with pip, and make; never root.

VENV := .venv
BIN := $(VENV)/bin
# Extra arguments for the program behind a target: make test ARGS="-k stream -x"
ARGS ?=
# Processes that run tests side by side; JOBS=0 runs them in one, as a debugger needs it.
JOBS ?= auto
# The first Python on PATH that is new enough; override with make PYTHON=/path/to/python3.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$name"; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help up test faults soak check format bench lock clean distclean environment dev-environment

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

environment:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Textmill needs Python 3.11 or newer; none was found on PATH. Name one with make PYTHON=/path/to/python3." >&2; \
		exit 1; fi
	@"$(PYTHON)" scripts/setup_environment.py run

dev-environment: environment
	@"$(PYTHON)" scripts/setup_environment.py dev

# Ends the supervisor when make is killed.
up: environment ## install what is missing, then run everything until Ctrl-C
	@exec $(BIN)/python -I -S cli/die_with_parent.py TERM "$$PPID" $(BIN)/textmill up $(ARGS)

test: dev-environment ## the whole test suite (ARGS="-k stream -x" goes to pytest)
	@exec $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

faults: dev-environment ## every fault at 20 random moments, for hours; writes docs/reliability.md
	@exec $(BIN)/python -m tests.faults $(ARGS)

soak: dev-environment ## half an hour of load and random faults: what grows?
	@exec $(BIN)/python -m tests.faults.soak $(ARGS)

check: dev-environment ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py
	@if command -v node >/dev/null; then \
		for file in $$(find web/static -name '*.js'); do \
			echo "node --check $$file"; \
			node --input-type=module --check - < "$$file" || exit 1; done; \
	else echo "No Node.js on PATH: the scripts are checked by the browser tests alone."; fi
	@if command -v tsc >/dev/null; then echo "tsc -p web/jsconfig.json"; tsc -p web/jsconfig.json; \
	else echo "No tsc on PATH: the types of the scripts are not checked."; fi

format: dev-environment ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: dev-environment ## the benchmarks: a table, and JSON in bench-results/
	@exec $(BIN)/python -m benchmarks $(ARGS)

lock: dev-environment ## resolve the dependencies anew and write the lock files
	@exec $(BIN)/python scripts/lock.py

clean: ## remove caches and build products; never .textmill, which holds the texts
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and the environment too
	rm -rf $(VENV)
