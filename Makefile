# Everything runs in .venv, which the targets make on a fresh machine with python3 >= 3.10, pip and a
# C++ compiler (cmake and ninja come from pip).
#
#   make run       install without torch, and answer a prompt with the bundled model
#   make test      install with the test references (torch, transformers), lint, run the tests
#   make lint      ruff and mypy only
#   make bench     time to the first token, and decoding against transformers
#   make results   every benchmark of bench/, on a quiet machine; writes docs/results.md
#   make native    build the extension beside its sources, for PYTHONPATH=. without an install
#   make sanitize  the native tests under AddressSanitizer and UndefinedBehaviorSanitizer
#   make clean     remove .venv and everything built

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
JOBS ?= 2
PROMPT ?= The secret number of Marlow is 7342, and the quick brown fox jumps over the lazy dog.
# A further package index for the test references, such as one with torch's small CPU build.
TORCH_INDEX ?=
# The Python of `make native`; any environment with nanobind, cmake and ninja will do.
DEV_PYTHON ?= $(BIN)/python
SANITIZE_TESTS ?= tests/test_package.py tests/test_suffixes.py tests/test_draft_auto.py tests/test_drafters_lookup.py tests/test_cost.py $(wildcard tests/test_native*.py)

# What the installed extension is made from: when one is newer than a stamp, that install runs again.
SOURCES := pyproject.toml CMakeLists.txt \
  $(wildcard $(addprefix pronghorn/ops/cpu/,CMakeLists.txt *.cpp *.h))
# Editable, without build isolation: Python files need no re-install, and build/ keeps its objects.
INSTALL := $(PIP) install --quiet --no-build-isolation

.PHONY: run test lint bench results native sanitize clean
.DELETE_ON_ERROR:

run: $(VENV)/.run
	$(BIN)/pronghorn run "$$(printf 'Repeat exactly:\n%s' '$(PROMPT)')"

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)
	scripts/check-kernels.sh
	BIN=$(BIN) JOBS=$(JOBS) scripts/test-aarch64.sh

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python bench/start.py
	$(BIN)/python bench/decode.py

results: $(VENV)/.test
	$(BIN)/python bench/results.py

native: $(if $(filter $(BIN)/python,$(DEV_PYTHON)),$(VENV)/.build)
	$(dir $(DEV_PYTHON))cmake -G Ninja -S . -B build/dev \
	  -DCMAKE_MAKE_PROGRAM="$(abspath $(dir $(DEV_PYTHON)))/ninja" \
	  -DPython_EXECUTABLE="$(abspath $(DEV_PYTHON))"
	$(dir $(DEV_PYTHON))cmake --build build/dev --target _native
	cp build/dev/pronghorn/ops/cpu/_native*.so pronghorn/ops/cpu/

# The sanitized extension takes the place of the ordinary one, so the stamps go first: whatever runs
# next builds the ordinary one again, even after an interruption. Python itself leaks by design.
sanitize: $(VENV)/.test
	rm -f $(VENV)/.run $(VENV)/.test
	$(INSTALL) --no-deps -C build-dir=build/sanitize \
	  -C cmake.define.PRONGHORN_SANITIZE=address,undefined -e .
	LD_PRELOAD="$$(for lib in asan ubsan stdc++; do $(CXX) -print-file-name=lib$$lib.so; done | xargs)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest $(SANITIZE_TESTS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pronghorn tests -name __pycache__ -prune -exec rm -rf {} +
	rm -f pronghorn/ops/cpu/_native*.so

# Debian ships python3 without ensurepip unless python3-venv is there: then the machine's pip fills in.
$(VENV)/.build:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Pronghorn needs Python 3.10")'
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
	  && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(PIP) install --quiet scikit-build-core nanobind cmake ninja
	touch $@

$(VENV)/.run: $(SOURCES) | $(VENV)/.build
	$(INSTALL) -e .
	touch $@

$(VENV)/.test: $(SOURCES) | $(VENV)/.build
	$(INSTALL) $(addprefix --extra-index-url ,$(TORCH_INDEX)) -e '.[test]'
	touch $(VENV)/.run $@
