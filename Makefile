# `make demo` and `make test` need nothing but Python 3.10 or later: they set up .venv on their first run.
PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-lowest gpu docs lint clean

demo: $(VENV)/installed
	$(BIN)/python train.py experiment=demo

# Two processes of one thread each: two of two threads, on two cores, would wait for each other most of the time.
test: $(VENV)/installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/ops/triton -n 2

test-slow: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --timeout=3600 -n 2

# On the lowest versions of all packages that pyproject.toml names; best with the lowest Python, PYTHON=python3.10.
test-lowest: $(LOWEST)/installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -m "not slow" -n 2 $(addprefix tests/,ops test_poolers.py layers detection training)
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(LOWEST)/bin/python -m pytest tests/ops/triton -n 2

# On a machine with a GPU: what is most worth knowing, the tests, then the whole benchmark, whose results are named after
# the GPU. Nothing is installed where $(PYTHON) has PyTorch, torchvision, Triton, numba, pytest and matplotlib.
NEEDED := import torch, torchvision, triton, numba, pytest, matplotlib
GPU_PYTHON = $(shell $(PYTHON) -c "$(NEEDED)" 2>/dev/null && echo $(PYTHON) || echo $(BIN)/python)
# Most of the tests' time is compiling, on CPU cores; what one process has compiled, the others find on disk.
PROCESSES = $(shell $(GPU_PYTHON) -c "import xdist; print('-n 8')" 2>/dev/null)

gpu:
	$(PYTHON) -c "$(NEEDED)" 2>/dev/null || $(MAKE) $(VENV)/installed-dev
	PYTHONPATH=. $(GPU_PYTHON) tools/gpu_first.py
	$(if $(PROCESSES),,@echo "pytest-xdist is not installed: one process runs the tests")
	PYTHONPATH=. $(GPU_PYTHON) -m pytest -m gpu tests/ops/triton $(PROCESSES)
	PYTHONPATH=. $(GPU_PYTHON) tools/bench_ops.py --device cuda --box-gradients --dtypes float32 float16 --output \
		"results/ops_$$($(GPU_PYTHON) -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "_"))')"

# The pages of docs/, the API reference and the executed notebook as a site in site/; any warning, of links too, is an error.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/python -m mkdocs build --strict

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell *.md docs detpool tools configs tests train.py eval.py

clean:
	rm -rf $(VENV) $(LOWEST) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamps make the second start instant; a change of the dependencies installs again.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[train]"
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@ $(VENV)/installed

# pip takes the highest versions; uv can take the lowest.
$(LOWEST)/installed: pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable ".[test]"
	touch $@
