# Every target builds .venv itself, from exact versions, so that a fresh clone needs one command.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ROOMS  := core engine strategies actors training serve ledger

.PHONY: install check test unit integration wheel clean format

install: $(STAMP)

# pip comes first for its dependency groups; setuptools because the editable build runs without
# isolation, so that the versions of the constraints file hold for the build as well.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip setuptools wheel
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation \
		--editable '.[serve,demo]' --group check --group test
	touch $(STAMP)

# Type checkers cannot follow the import hook of an editable install, so they get a tree of links.
.typing: $(STAMP)
	@mkdir -p .typing/tenancy/data_isolation
	@for room in $(ROOMS); do \
		if [ -d $$room ]; then ln -sfn ../../../$$room .typing/tenancy/data_isolation/$$room; fi; done

check: $(STAMP) .typing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: check unit integration

unit: $(STAMP)
	$(BIN)/pytest tests/unit

integration: $(STAMP)
	$(BIN)/pytest tests/integration

clean:
	rm -rf $(VENV) .typing build dist *.egg-info
