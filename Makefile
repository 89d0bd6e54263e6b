# Every target sets up what it needs in .venv and is quick when nothing changed.
# The environment reaches pip: PIP_EXTRA_INDEX_URL may point it at PyTorch's CPU builds, see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py
PYTHONS := flowkern kernels tests bench examples setup.py

.PHONY: demo test bench bench-peers test-peers kernels gpu-check gpu-bench lint format clean
demo: $(VENV)/.peers
	$(BIN)/flowkern demo $(ARGS)

# One process per processor, each with one thread.
test: $(VENV)/.built
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

bench: $(VENV)/.peers
	$(BIN)/flowkern bench $(ARGS)

bench-peers: $(VENV)/.peers
	$(BIN)/flowkern bench --suite peers $(ARGS)

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
	$(PYTHON) -m pytest -m gpu $$($(PYTHON) -c 'import xdist' 2>/dev/null && echo '-n 8 --dist worksteal') $(ARGS)

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
	rm -rf build $(VENV) flowkern/_C*.so flowkern/cuda/*.cubin *.egg-info

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
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt setuptools pybind11 cmake ninja torch numpy
	touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.peers: $(VENV)/.built
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[peers]' torchtestcase parameterized || \
	  echo "Not all peers could be installed; what needs them is skipped and says so."
	touch $@
