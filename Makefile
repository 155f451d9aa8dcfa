# Two commands on a fresh machine: `make demo` and `make test`. Each sets up what it needs in .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-fast test-long lint clean

setup: .venv/ready

.venv/ready: requirements/cpu.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements/cpu.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch .venv/ready

demo: .venv/ready
	$(BIN)/moaa demo

test: .venv/ready lint
	$(BIN)/python -m pytest -n logical
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not long"

test-long: .venv/ready
	$(BIN)/python -m pytest -m long

test-fast: .venv/ready
	$(BIN)/python -m pytest -n logical

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf runs
