# Two commands: `make demo` (an energy to free energies on LJ13) and `make test`.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
BIN    := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -qq -c constraints.txt

.PHONY: demo test lint clean
demo: $(VENV)/.installed
	$(BIN)/bgwork run lj13

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/lint-imports

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp newer than the inputs means that what they ask for is installed; the test extra contains the plain installation.
$(VENV)/.installed: $(INPUTS) | $(BIN)/python
	@echo "Installing into $(VENV) (about a minute)"
	$(PIP) -e .
	touch $@

$(VENV)/.installed-test: $(INPUTS) | $(BIN)/python
	@echo "Installing into $(VENV) with the test extra (about a minute)"
	$(PIP) -e '.[test]'
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build dist *.egg-info
