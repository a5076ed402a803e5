# Each target works alone on a fresh machine: the environment is built when pyproject.toml is newer than it.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test test-oldest lint clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# The oldest transformers that pyproject.toml allows; the code itself is found through the working directory.
$(OLDEST)/.ready: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' 'transformers==5.17.0'
	touch $@

demo: setup
	$(VENV)/bin/python -m playground.demo

# Tests run on one thread each, so that every core takes a part of the files.
test: setup
	$(VENV)/bin/python -m pytest -n auto --dist loadfile

test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest -n auto --dist loadfile

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) $(OLDEST) *.egg-info playground/out
