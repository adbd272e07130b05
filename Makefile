PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test lint types contracts unit long install clean

# A search over MOREL's loss weights, temperature and attack on scikit-learn's digits.
demo: $(STAMP)
	$(BIN)/morel tune demo

# Everything: lint, types, import contracts, tests.
test: lint types contracts unit

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/pyright

contracts: $(STAMP)
	$(BIN)/lint-imports

# In two processes; tests/conftest.py says which tests share one.
unit: $(STAMP)
	$(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder --durations=20

# AutoAttack on its authors' ResNet-18 and real CIFAR-10 (in MOREL_DATA_ROOT): over ten minutes.
long: $(STAMP)
	$(BIN)/pytest -m long

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
