# Two commands do everything: `make demo` and `make test`. Both make the virtual environment first.
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test slow lint clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt setup.sh
	sh setup.sh $(VENV)
	touch $@

demo: setup
	$(BIN)/twingpt demo --out $(or $(OUT),demo)

# Two frameworks share the cores of one test process: threads that wait must not spin.
test: setup lint
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

slow: setup
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo
