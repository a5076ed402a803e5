# Each target works alone on a fresh machine: an environment is built when what it is made of is newer than it.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
NEWEST := .venv-newest
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# What is compiled of the tests is kept, wherever it would be left out: with their assertions it takes ten seconds.
export PYTHONDONTWRITEBYTECODE :=

INSTALL := -m pip install --quiet --disable-pip-version-check
# Tests run on one thread each, so that every core takes a part of the files, in their order: what is long comes before
# what is short.
PYTEST := -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Said before anything is made: pip would say it only of an environment that is there already, and in other words.
CHECK = $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is expected, \
	$(PYTHON) is %d.%d; make PYTHON=... chooses another" % sys.version_info[:2])'

# What pyproject.toml names beside torch, and the torch that is installed.
NAMES := import re, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	names = [re.match(r"[\w.-]+", line)[0] for line in project["dependencies"]]; \
	print(*(name for name in names if name != "torch"))
TORCH := from importlib.metadata import version; print("torch==" + version("torch"))

.PHONY: setup demo test test-oldest test-newest lint clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(CHECK)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(INSTALL) --constraint constraints.txt --editable '.[dev]'
	touch $@

# The oldest transformers that pyproject.toml allows; the code itself is found through the working directory.
$(OLDEST)/.ready: pyproject.toml constraints-oldest.txt
	@$(CHECK)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(INSTALL) --constraint constraints-oldest.txt --editable '.[dev]'
	touch $@

$(NEWEST)/.ready: pyproject.toml
	@$(CHECK)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python $(INSTALL) --editable '.[dev]'
	touch $@

demo: setup
	$(VENV)/bin/python -m playground.demo

test: setup
	$(VENV)/bin/python $(PYTEST)

test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python $(PYTEST)

# What was released today, past our own cap on transformers: pip says so and goes on. It is eager for the sake of what
# others bring, tokenizers above all; torch stays as it was installed. Any FutureWarning is an error: which module a
# deprecation points to depends on how deep in transformers the call was.
test-newest: $(NEWEST)/.ready
	$(NEWEST)/bin/python -c '$(TORCH)' > $(NEWEST)/torch.txt
	$(NEWEST)/bin/python $(INSTALL) --upgrade --upgrade-strategy eager --constraint $(NEWEST)/torch.txt \
		$$($(NEWEST)/bin/python -c '$(NAMES)')
	$(NEWEST)/bin/python -m pip freeze | grep '^transformers=='
	$(NEWEST)/bin/python $(PYTEST) -W error::FutureWarning

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) *.egg-info playground/out
