# Two commands: `make quickstart` and `make test`. Both make what they need in .venv first.

PYTHON ?= python3
VENV ?= .venv
VENV_4 ?= .venv-4.57
RUN ?= runs/quickstart
STEPS ?=
BIN := $(VENV)/bin

# Threads that wait for each other spin a little, not long: on a busy machine that takes time from those they wait for.
export OMP_NUM_THREADS ?= 2
export GOMP_SPINCOUNT ?= 10000
export TOKENIZERS_PARALLELISM ?= false

.PHONY: quickstart install install-test install-4.57 install-browser lint test test-slow clean

quickstart: install
	$(BIN)/python trainer/quickstart.py --output $(RUN) $(if $(STEPS),--max_steps $(STEPS))

install: $(VENV)/.installed

install-test: $(VENV)/.installed-test

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

# The other line of transformers: without this project, only what loading and answering needs.
install-4.57: $(VENV_4)/.installed

$(VENV_4)/.installed: constraints-4.57.txt
	$(PYTHON) -m venv $(VENV_4)
	$(VENV_4)/bin/pip install --constraint constraints-4.57.txt torch transformers pillow accelerate
	touch $@

# For the tests of the demo, which skip without it; on Debian and its kin, as root.
install-browser:
	command -v chromium || (apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends chromium)

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint install-4.57
	LOGRAMED_TRANSFORMERS_4_PYTHON=$(abspath $(VENV_4)/bin/python) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

test-slow: lint install-4.57
	LOGRAMED_TRANSFORMERS_4_PYTHON=$(abspath $(VENV_4)/bin/python) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

clean:
	rm -rf $(VENV) $(VENV_4) runs build dist *.egg-info
