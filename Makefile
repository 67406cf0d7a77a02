# `make demo` and `make test` need nothing but Python 3.11 or newer: the environment is made in .venv at first use.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A thread each: processes that share the cores wait for one another's threads. Bytecode is kept, whatever the caller has
# set: else each process of each test compiles the package anew, and each call of pytest all tests.
PYTHON_FOR_TESTS = RAY_AUTH_MODE=disabled OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python
TEST = $(PYTHON_FOR_TESTS) -m pytest

# Files are dealt to so many processes, a file to one of them, since its tests share what takes long to make.
JOBS ?= 2
ALL = -n $(JOBS) --dist loadfile --no-loadscope-reorder

# The first interpreter that is new enough and able to make an environment; `make PYTHON=/path/to/python3` overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo test check lint long slow slow-part gpu bench docs clean

demo: $(INSTALLED)  ## the embedded default, end to end
	$(BIN)/dasm-ray distill digits

test: $(INSTALLED)
	$(TEST) $(ALL)

check: lint  ## what CI runs: format, lint, types, the command of `make test`, the long tests, and a part of the slow ones
	$(TEST) $(ALL)
	$(MAKE) long
	$(MAKE) slow-part

long: $(INSTALLED)  ## the tests of whole commands
	$(TEST) $(ALL) -m 'long and not slow'

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

slow: $(INSTALLED)  ## the tests that take minutes
	$(TEST) -m slow -n $(JOBS)

# Of the random faults of the soak there are fewer than in `make slow`, others each time.
slow-part: $(INSTALLED)  ## one part of them, by turns: a landing has the next; SLOW_PART=3 has the third
	SLOW_PART=$${SLOW_PART:-next} DASM_SOAK_FAULTS=$${DASM_SOAK_FAULTS:-4} $(TEST) -m slow -n $(JOBS)

# What is installed is taken as it is: neither Ray nor the other tools of the tests are needed. GPU_PYTHON names it.
GPU_PYTHON ?= $(BIN)/python
gpu:  ## on a machine with a GPU: its tests, then figures, 8 minutes of them at a time: the next `make gpu` goes on
	PYTHONPATH='$(CURDIR)' CUBLAS_WORKSPACE_CONFIG=:4096:8 $(GPU_PYTHON) -m pytest -q -m gpu --confcutdir=tests/gpu \
	  -W ignore::pytest.PytestConfigWarning tests/gpu
	PYTHONPATH='$(CURDIR):$(CURDIR)/tests/benchmarks' CUBLAS_WORKSPACE_CONFIG=:4096:8 $(GPU_PYTHON) tests/benchmarks/on_gpu.py $(BENCH) \
	  || test $$? -eq 3 # its minutes are over

bench: $(INSTALLED)  ## one table against plain twins, JSON beside it; make bench BENCH='--rows match --width 32,128'
	@$(PYTHON_FOR_TESTS) tests/benchmarks/bench.py $(BENCH)

docs: $(INSTALLED)  ## the pages of docs/ as a site, in site/; every warning is an error
	$(BIN)/dasm-ray config --markdown > docs/config.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:  ## back to a fresh checkout; runs/ stays
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find dasm_ray tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is the last thing made, so an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  python="$(PYTHON)"; \
	  test -n "$$python" || { echo "Python 3.11 or newer (with venv and pip) was not found on the PATH; install it, or run make PYTHON=/path/to/python3."; exit 1; }; \
	  echo "Creating $(VENV) with $$python ($$("$$python" --version))."; \
	  "$$python" -m venv --clear $(VENV); }
	@echo "Installing dasm-ray and what it needs into $(VENV); the first time this downloads a few GB, and takes 8 GB of the disk."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
