# Two commands do everything: `make demo` and `make test`. Both make the virtual environment first.
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test slow lint catalogue clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt setup.sh
	sh setup.sh $(VENV)
	touch $@

demo: setup
	$(BIN)/twingpt demo --out $(or $(OUT),demo)

# Two frameworks and two test processes share the cores: threads that wait must not spin.
test: setup lint
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile

slow: setup
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Brings the Korean catalogue up to date with what the code says, and compiles it: both are committed.
catalogue: setup
	$(BIN)/python -m tests.catalogue

clean:
	rm -rf $(VENV) demo
