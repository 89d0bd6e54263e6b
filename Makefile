# Every target sets up what it needs in .venv, says what it is doing, and is quick when nothing changed.
# The environment reaches pip: PIP_EXTRA_INDEX_URL may point it at PyTorch's CPU builds, see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check -c constraints.txt
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py
PYTHONS := flowkern kernels tests bench examples setup.py

.PHONY: demo test test-long test-all bench bench-peers bench-small test-peers kernels gpu-check gpu-bench lint format clean
demo: $(VENV)/.demo
	$(BIN)/flowkern demo $(ARGS)

# One process per processor, each with one thread. What shows that the project works here; the long proofs; both.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal
test: $(VENV)/.built
	$(PYTEST) -m "not slow" $(ARGS)

test-long: $(VENV)/.built
	$(PYTEST) -m slow $(ARGS)

test-all: test test-long

bench: $(VENV)/.built
	$(BIN)/flowkern bench $(ARGS)

bench-peers: $(VENV)/.built
	$(BIN)/flowkern bench --suite peers $(ARGS)

bench-small: $(VENV)/.built
	$(BIN)/flowkern bench --suite small $(ARGS)

test-peers: $(VENV)/.peers
	$(BIN)/python tests/run_peers.py $(ARGS)

# Compiles the GPU kernels for GPUs that are not here and writes what they need into docs/kernels.md.
kernels: $(VENV)/.built
	$(BIN)/python tests/kernels/compiled.py --write $(ARGS)
	$(BIN)/python tests/cuda/resources.py --write

# On a machine with a GPU and without a network: the system's Python, with the torch and the pytest that it has.
.PHONY: gpu-install
gpu-install:
	@$(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
	  { echo "$(PYTHON) has no torch that sees a GPU; name another with PYTHON=..."; exit 1; }
	FLOWKERN_BUILD_EXT=1 $(PYTHON) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .

gpu-check: gpu-install
	$(PYTHON) -m pytest -m gpu --doctest-ignore-import-errors $$($(PYTHON) -c 'import xdist' 2>/dev/null && echo '-n 8 --dist worksteal') $(ARGS)

gpu-bench: gpu-install
	$(PYTHON) -m flowkern.cli bench --suite gpu --output bench/results $(ARGS)

lint: $(VENV)/.built
	$(BIN)/ruff check $(PYTHONS)
	$(BIN)/ruff format --check $(PYTHONS)
	$(BIN)/mypy
	find csrc tests -name '*.cpp' -o -name '*.cu' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/.built
	$(BIN)/ruff check --fix $(PYTHONS)
	$(BIN)/ruff format $(PYTHONS)
	find csrc tests -name '*.cpp' -o -name '*.cu' -o -name '*.h' | xargs $(BIN)/clang-format -i

clean:
	rm -rf build $(VENV) flowkern/_C*.so flowkern/_build_error.txt flowkern/cuda/*.cubin *.egg-info

# torch and the build tools first: the extension is built against this environment, not an isolated one.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "flowkern needs Python 3.10 or newer as '$(PYTHON)'; name another with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || \
	  { echo "No C++ compiler found; on Debian: apt-get install g++. (Without one: FLOWKERN_BUILD_EXT=0 pip install .)"; exit 1; }
	@echo '#include <Python.h>' | $${CXX:-c++} -x c++ -fsyntax-only -I"$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')" - 2>/dev/null || \
	  { echo "Python's headers are missing; on Debian: apt-get install python3-dev"; exit 1; }
	@echo "-- torch and the build tools into $(VENV): a download of 0.2 GB for the CPU, of some GB where pip takes PyTorch's CUDA builds"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) setuptools pybind11 cmake ninja torch
	@touch $@

# What the demo needs: the package with its kernels, and the library that it is compared with.
$(VENV)/.demo: $(VENV)/.installed $(SOURCES)
	@echo "-- the package: the compiler takes some minutes where it has not run yet, nvcc as many more where it is installed"
	@PATH="$(abspath $(BIN)):$$PATH" $(PIP) -q --no-build-isolation -e '.[train]' zuko
	@$(BIN)/flowkern doctor | grep "CPU kernels"
	@touch $@

# What tests, linters and benchmarks need besides. The package is there: only the rest of its dependencies is installed.
$(VENV)/.built: pyproject.toml constraints.txt | $(VENV)/.demo
	@echo "-- test tools, linters, the libraries that are accelerated, Triton: a download of 1 GB"
	@$(PIP) 'flowkern[dev]'
	@touch $@

# What the suites of those libraries need besides.
$(VENV)/.peers: $(VENV)/.built
	@$(PIP) -q torchtestcase parameterized pandas pytest-harvest pytest-mock
	@touch $@
