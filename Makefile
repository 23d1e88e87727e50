# Everything runs from a fresh clone: each command first sets up .venv from pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.dlc-installed
TEST_STAMP := $(VENV)/.dlc-test-installed

.PHONY: help setup test-setup demo test fuzz lint bench docs clean

help:
	@echo "make demo   compile the embedded model in fp32 and int8, run it on real images, compare with onnxruntime"
	@echo "make test   run the test suite"
	@echo "make fuzz   random graphs and damaged models through the compiler, SECONDS=600 of each"
	@echo "make lint   ruff and mypy"
	@echo "make bench  timings beside the installed peers"
	@echo "make docs   regenerate the parts of docs/ that are made from the code"

setup: $(STAMP)

# What the tests need besides: the zoo's and the targets' extras, and an OpenCL device. Without the emulator of AArch64 some
# tests are skipped.
POCL := /etc/OpenCL/vendors/pocl.icd
test-setup: $(TEST_STAMP)

$(TEST_STAMP): $(STAMP) scripts/install-system-packages.sh
	$(BIN)/pip install --quiet -e ".[zoo,gpu,distributed]" 2> $(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }
	@{ test -e $(POCL) && command -v qemu-aarch64 > /dev/null; } \
		|| scripts/install-system-packages.sh > $(VENV)/apt.log 2>&1 || test -e $(POCL) \
		|| { tail -3 $(VENV)/apt.log; echo "run scripts/install-system-packages.sh as root, then make test again"; exit 1; }
	@touch $@

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=24"
	$(BIN)/pip install --quiet -e ".[dev,bench]" 2> $(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }
	@touch $@

demo: setup
	@$(BIN)/python bench/demo.py

# Two workers: the suite is sized for two cores. The closing line is pytest's own summary.
test: test-setup
	@$(BIN)/python -m pytest -n 2 --dist worksteal tests

# Both fuzzers side by side; SEED=N repeats a run. Exits with 1 and the paths of the stored cases when one finds something.
SECONDS ?= 600
fuzz: setup
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

lint: test-setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/typecheck.py

bench: setup
	@$(BIN)/python bench/demo.py
	@$(BIN)/python bench/overhead.py
	@$(BIN)/python bench/contract_kernels.py
	@$(BIN)/python bench/symbolic.py
	@$(BIN)/python bench/threads.py
	@$(BIN)/python bench/attention.py
	@$(BIN)/python bench/cpu.py

docs: setup
	@$(BIN)/python scripts/make_docs.py

clean:
	rm -rf $(VENV) build dist *.egg-info
