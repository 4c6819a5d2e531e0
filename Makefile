# Two commands do everything: `make demo` and `make test`. Both make the virtual environment first.
VENV ?= .venv
BIN := $(VENV)/bin
# On Linux, MLX calls whatever BLAS the system has; OpenBLAS makes it 15 to 20 times faster than the reference one.
OPENBLAS := $(shell ldconfig -p 2>/dev/null | awk '/libopenblas.so.0/ {print $$NF; exit}')
RUN := $(if $(OPENBLAS),env LD_PRELOAD=$(OPENBLAS),)

.PHONY: setup demo test slow lint clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt setup.sh
	sh setup.sh $(VENV)
	touch $@

demo: setup
	$(RUN) $(BIN)/twingpt demo --out $(or $(OUT),demo)

test: setup lint
	$(RUN) $(BIN)/python -m pytest

slow: setup
	$(RUN) $(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo
