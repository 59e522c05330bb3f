# Two commands do all on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Small models gain nothing from many threads, and lose much where cores are shared.
export OMP_NUM_THREADS ?= 2
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint bench docs browser model clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

.venv/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/.dev: .venv/.run
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

.venv/.docs: .venv/.run
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

demo: .venv/.run ## the whole story on the built-in model and corpus
	$(BIN)/sordino demo

test: .venv/.dev ## the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/.dev ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: .venv/.dev ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.dev ## the benchmarks; results go to benchmarks/RESULTS.md
	$(BIN)/python benchmarks/run.py

docs: .venv/.docs ## the documentation as a site
	$(BIN)/mkdocs build --strict

model: .venv/.run ## train the built-in model again (about half an hour)
	$(BIN)/python scripts/make_base_model.py

browser: ## install Chromium and its driver, for the tests that look at the report (Debian, as root)
	command -v chromium chromedriver >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium chromium-driver; }

clean: ## remove everything that was made
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis site demo
