# make book   build the HTML            make check      lint and toy models: while you work
# make run    execute the chapters      make test       lint, package, notebooks
#                                       make test-all   the same, the slow variants, random seeds
# make gpu    all that needs a GPU, within MINUTES=30, packed into few files (README)
# make pdf    the built book as one PDF (needs Chromium)
# make bench  time attacks, training, purification and evaluation (three quarters of an hour)
# make repository URL=https://github.com/NAME/REPOSITORY   write the book's address wherever it stands
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NOTEBOOKS := $(wildcard book/*.ipynb)
export TQDM_DISABLE := 1

.PHONY: book pdf check test test-all lint run weights bench gpu repository clean
.DEFAULT_GOAL := book

book: $(READY)
	$(BIN)/jupyter-book build . --warningiserror --keep-going --nitpick --quiet
	@echo "The book: file://$(CURDIR)/_build/html/index.html"

pdf: book
	$(BIN)/python scripts/pdf.py $(CHROMIUM)

# One worker for each core, one thread for each worker; a file stays with its worker, and the files
# come in their order: the notebooks, which take longest, and then the package's.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
QUICK := tests/test_house.py tests/core/test_arguments.py tests/core/test_files.py \
  tests/core/test_norms.py tests/core/test_record.py tests/core/test_scores.py \
  tests/data/test_image_files.py tests/models/test_networks.py tests/plots \
  tests/purification/test_steps.py tests/attacks/test_as_published.py \
  tests/attacks/test_attacks.py tests/attacks/test_objective.py tests/training/test_batches.py

# The pages are built first: some tests read them in a browser.
test: book lint
	$(PYTEST) --nbval -m "not slow" book tests

test-all: book lint
	APUDAE_RANDOM_SEEDS=1 $(PYTEST) --nbval book tests

check: lint
	$(PYTEST) -m "not slow" $(QUICK)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Execute chapters and store their outputs: make run NOTEBOOKS=book/05_direct_purification.ipynb
run: $(READY)
	$(BIN)/python scripts/execute.py $(NOTEBOOKS)

# Train the classifier and the DAE of digits again, beside the shipped ones (full MNIST, half an hour)
weights: $(READY)
	$(BIN)/python -m apudae.experiments mnist-weights --weights runs/weights --results runs/results

# torchattacks asks for an old `requests` that sphinx refuses; it works without.
bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torchattacks==3.5.1
	$(BIN)/python benchmarks/attacks.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/purification.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/imagenet.py
	$(BIN)/python benchmarks/certification.py

# It goes on where it was stopped, on another machine too, if that has the bundle.
gpu: $(READY)
	$(BIN)/python -m apudae.experiments gpu --minutes $(or $(MINUTES),30) $(GPU)

# Needs nothing but Python: the badges, the first cells and the buttons get the address.
repository:
	@test -n "$(URL)" || { echo "Say which: make repository URL=https://github.com/NAME/REPOSITORY"; exit 1; }
	@$(PYTHON) scripts/repository.py "$(URL)"

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
