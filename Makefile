# The few commands, the same everywhere: .ci/run calls the same ones.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test check format protos constraints clean

# Draws nine pictures.
demo: $(INSTALLED)
	$(BIN)/smalti generate "a blue cat on a yellow background" --out pictures

# The whole test suite.
test: $(INSTALLED)
	$(BIN)/pytest -n 2

# Lint, types, dead links, the public contract.
check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/check_links.py
	$(BIN)/python scripts/protos.py --check

# Applies the formatter and the fixes that are safe.
format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch goes in first and alone, so that a CPU build that is already at hand is taken as it is.
$(INSTALLED): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[training,dev]'
	touch $@

# Generates smalti/v1/ from protos/.
protos: $(INSTALLED)
	$(BIN)/python scripts/protos.py

# Writes the versions that are installed now into constraints.txt.
constraints: $(INSTALLED)
	$(BIN)/python scripts/write_constraints.py

clean:
	rm -rf $(VENV) pictures build dist
