# make train   install if needed, then train the local agent       make test    the whole suite with real services
# make check   format, lint, types                                 make clean   remove the environment
PYTHON ?= python3.11
BIN := .venv/bin
export HF_HUB_OFFLINE := 1
export PYTHONUNBUFFERED := 1

.PHONY: setup train test check bench clean
setup: .venv/ready

.venv/ready: deploy/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "milepost: needs Python 3.11; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-deps --requirement deploy/requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

train: setup
	$(BIN)/milepost train deploy/configs/local.toml

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m tests.benchmarks.asynchrony

clean:
	rm -rf .venv
