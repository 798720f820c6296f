# make app: set up and serve; make test: set up and run the checks, with SLOW=1 those that take minutes too.
# Only Python >= 3.11 and the package index are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup app test clean

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -r requirements-dev.txt
	@touch $@

setup: $(VENV)/.installed
	@$(BIN)/python -m backend.assets

app: setup
	@exec $(BIN)/python app.py

test: setup $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(if $(SLOW),,-m "not slow")

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
