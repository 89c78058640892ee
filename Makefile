# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
KERNEL := $(wildcard src/assay/engines/csrc/* src/assay/engines/*/csrc/*)
READY := $(VENV)/.ready-$(shell cat pyproject.toml setup.py constraints.txt $(KERNEL) 2>/dev/null | cksum | cut -d' ' -f1)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STUDY := studies/addition/d8.toml

.PHONY: demo test test-long check bench docs format clean setup

demo: setup ## Run the main study on this machine, judge it, write the log and figures.
	$(BIN)/assay run $(STUDY)
	$(BIN)/assay table d8 test/exact_match val/loss_nats
	$(BIN)/assay verdict d8 || case $$? in 1|5) ;; *) exit 1;; esac
	$(BIN)/assay log

test: setup ## All tests but the long ones.
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not long"

test-long: setup ## The long ones: minutes each.
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m long --timeout 1800

check: setup ## Style, types, import rules, spelling: exactly what CI runs.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python tools/budget.py

bench: setup ## Benchmarks that take seconds; the records say how the others are run.
	$(BIN)/python -m pytest -q benchmarks/micro --benchmark-only

docs: setup ## The documentation as HTML, in docs/_build.
	$(PIP) install -c constraints.txt -e '.[docs]'
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(READY)

$(READY): pyproject.toml setup.py constraints.txt $(KERNEL)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; this is " + sys.version'
	@echo "installing into $(VENV): some minutes, once"
	$(PIP) install -c constraints.txt -e '.[dev]'
	rm -f $(VENV)/.ready-*
	touch $@

clean:
	rm -rf $(VENV) build docs/_build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
