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
	else echo "No Node.js on PATH: the syntax of the scripts is left to the browser tests."; fi

format: dev-environment ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: dev-environment ## the benchmarks: a table, and JSON in bench-results/
	@exec $(BIN)/python -m benchmarks $(ARGS)

# Locked versions stay while the ranges in pyproject.toml allow them; ARGS=--upgrade takes the newest.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
	--custom-compile-command "make lock"
COMPILE_HASHED := $(COMPILE) --generate-hashes --no-emit-package torch

lock: dev-environment ## write locks/ from pyproject.toml (ARGS=--upgrade: newest versions)
	$(COMPILE_HASHED) $(ARGS) pyproject.toml --group build --group default-model --output-file locks/full.txt
	$(COMPILE_HASHED) --constraint locks/full.txt --group build --group web --output-file locks/web.txt
	$(COMPILE_HASHED) --constraint locks/full.txt --group build --group worker --output-file locks/worker.txt
	$(COMPILE_HASHED) $(ARGS) --constraint locks/full.txt --group dev --output-file locks/dev.txt
	$(COMPILE_HASHED) $(ARGS) --no-deps --group redis-server --output-file locks/redis.txt
	$(COMPILE) --no-deps --group torch --output-file locks/torch.txt

clean: ## remove caches and build products; never .textmill, which holds the texts
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and the environment too
	rm -rf $(VENV)
