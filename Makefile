# make book   build the HTML            make test       lint, package, notebooks
# make run    execute the chapters      make test-all   the same and the slow variants
# make bench  time attacks, training, purification and evaluation (three quarters of an hour)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NOTEBOOKS := $(wildcard book/*.ipynb)
export TQDM_DISABLE := 1

.PHONY: book test test-all lint run weights bench clean
.DEFAULT_GOAL := book

book: $(READY)
	$(BIN)/jupyter-book build . --warningiserror --keep-going --nitpick --quiet
	@echo "The book: file://$(CURDIR)/_build/html/index.html"

test: $(READY) lint
	$(BIN)/python -m pytest -m "not slow"
	$(BIN)/python -m pytest --nbval book/

test-all: $(READY) lint
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --nbval book/

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Execute chapters and store their outputs: make run NOTEBOOKS=book/05_direct_purification.ipynb
run: $(READY)
	$(BIN)/python scripts/execute.py $(NOTEBOOKS)

# Train the shipped weights again (full MNIST, about half an hour on two cores)
weights: $(READY)
	$(BIN)/python -m apudae.experiments mnist-weights

# torchattacks asks for an old `requests` that sphinx refuses; it works without.
bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torchattacks==3.5.1
	$(BIN)/python benchmarks/attacks.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/purification.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/imagenet.py
	$(BIN)/python benchmarks/certification.py

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed, and $(PYTHON) is not; name another with: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make a virtual environment. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

clean:
	rm -rf _build $(VENV) build *.egg-info
