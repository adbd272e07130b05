PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test lint types contracts unit long docs audit install clean

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

# AutoAttack on its authors' ResNet-18 and real CIFAR-10 (in MOREL_DATA_ROOT), faults on clusters of
# several nodes, a cluster over SSH: an hour.
long: $(STAMP)
	$(BIN)/pytest -m long

# A report that fails nothing: what is installed (CycloneDX), and what is known against it. The tools
# have an environment of their own, so that they change no version here.
AUDIT := .audit/bin
audit: $(STAMP)
	mkdir -p build/audit
	-test -x $(AUDIT)/pip-audit || ($(PYTHON) -m venv .audit && timeout 120 \
	  $(AUDIT)/python -m pip install --quiet --disable-pip-version-check pip-audit cyclonedx-bom)
	-timeout 120 $(AUDIT)/cyclonedx-py environment $(BIN)/python --of JSON -o build/audit/sbom.json
	-timeout 120 $(AUDIT)/pip-audit --requirement constraints.txt --no-deps --disable-pip \
	  --progress-spinner off > build/audit/vulnerabilities.txt 2>&1
	@tail -n 3 build/audit/vulnerabilities.txt

# The site, into build/site; needs no network. docs/generate writes its reference pages.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .audit build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
