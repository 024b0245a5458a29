# Everything starts from a fresh clone: each target makes the virtual environment that it needs, once.
#
#   make demo         the whole way on real models: fine-tune four experts, search, compare, export (about 12 minutes)
#   make test         format, lint, types, layers, tests
#   make test-peers   mergekit and FusionBench beside ours, in environments of their own
#   make test-postgres  two processes on one Optuna study in PostgreSQL, one of them killed (Debian's package)
#   make test-browser   the report of the quick demo in Chromium (Debian's package), checked by axe-core (npm)
#   make test-reproduce  the quick demo's search again from its manifest, by a wheel in a new environment (20 minutes)
#   make test-ray     searches on a Ray cluster of two nodes, whose workers, nodes and driver are killed
#   make test-triton  the kernels for CUDA devices, interpreted and compiled on the CPU, in an environment of its own
#   make docs         the documentation site in build/docs, warnings being errors
#   make example-language   real language: LoRA experts of a small instruct model, trained here and merged
#   make bench        every measurement of benchmarks/, beside the peers (34 GB of disk; --work DIR chooses which)
#
# Another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
FUSIONBENCH := .venv-fusionbench
TRITON := .venv-triton
BIN := $(VENV)/bin

BENCHES := startup apply gradient memory merge large lora directions closed-form objectives selection time-to-quality levenberg-marquardt leaderboard static-methods workers idle-workers loop-cost

.PHONY: help demo docs example-language test lint test-peers test-triton test-postgres test-browser test-ray test-reproduce bench bench-env $(BENCHES:%=bench-%) clean-env
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile
	@echo "make bench-NAME   one of them: $(BENCHES) (BENCH=--small: only show that it runs)"
	@echo "make clean-env    remove the virtual environments"

demo: $(VENV)/.installed
	$(BIN)/optmerge demo

# One process per core with one thread each: tiny models are slower on two threads than on one.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Pages are made from Markdown and, without importing it, from the package's docstrings.
docs: $(VENV)/.installed
	@$(BIN)/python -c 'import mkdocs, mkdocstrings' 2>/dev/null || \
	  $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# gguf reads the archive that the base model is in.
example-language: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt gguf accelerate
	$(BIN)/python -m benchmarks.language $(BENCH)

test-peers: $(VENV)/.installed $(PEERS)/.installed $(FUSIONBENCH)/.installed
	OPTMERGE_PEERS=$(CURDIR)/$(PEERS) OPTMERGE_FUSIONBENCH=$(CURDIR)/$(FUSIONBENCH) $(BIN)/pytest -m peers tests/peers

# Nothing but torch and Triton is needed: the package is found in the folder, not installed.
test-triton: $(TRITON)/.installed
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 PYTHONPATH=$(CURDIR) $(TRITON)/bin/python -m pytest -m triton \
	  tests/merging/test_fused.py

# The server is of Debian's package, which is installed where there is none and this user may; it runs as an unprivileged
# user in a temporary folder, on a unix socket alone, and nothing is left of it.
test-postgres: $(VENV)/.installed
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
	  { apt-get update && apt-get install -y --no-install-recommends postgresql; } || \
	  { echo "PostgreSQL is not installed, and this user cannot: apt-get install postgresql" >&2; exit 1; }
	@$(BIN)/python -c 'import psycopg' 2>/dev/null || \
	  $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[postgres]'
	OMP_NUM_THREADS=1 $(BIN)/pytest -m postgres tests/runner/test_postgres.py

# A cluster of three processes on this machine; its nodes talk over the machine's own address.
test-ray: $(VENV)/.installed $(VENV)/.ray
	OMP_NUM_THREADS=1 $(BIN)/pytest --force-enable-socket -m ray tests/ray

# The page is that of the quick demo's first search; its pictures in docs/pictures are taken again.
test-browser: $(VENV)/.installed
	@command -v chromium >/dev/null || \
	  { apt-get update && apt-get install -y --no-install-recommends chromium; } || \
	  { echo "Chromium is not installed, and this user cannot: apt-get install chromium" >&2; exit 1; }
	@$(BIN)/python -c 'import playwright' 2>/dev/null || \
	  $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -r requirements/browser.txt
	@test -f build/node_modules/axe-core/axe.min.js || npm install --silent --no-fund --no-audit --prefix build axe-core@4.14.1
	$(BIN)/optmerge demo --quick --output build/browser
	OPTMERGE_REPORT=build/browser/adam/report.html OPTMERGE_AXE=build/node_modules/axe-core/axe.min.js \
	  $(BIN)/pytest -m browser tests/browser

# All is new: a clone of the last commit with its environment, and another one with the wheel that is built from it.
test-reproduce: check-python
	rm -rf build/reproduce
	git clone --quiet . build/reproduce/clone
	$(MAKE) -C build/reproduce/clone PYTHON=$(PYTHON) .venv/.installed
	build/reproduce/clone/.venv/bin/optmerge demo --quick --output build/reproduce/first
	$(PYTHON) -m venv build/reproduce/other
	build/reproduce/other/bin/python -m pip install --disable-pip-version-check --progress-bar off \
	  -c constraints.txt ./build/reproduce/clone
	cd build/reproduce/clone && OPTMERGE_REPRODUCE=$(CURDIR)/build/reproduce .venv/bin/pytest -m reproduce tests/reproduce

# Options for any of them: make bench-merge BENCH='--work /data/bench'
bench: $(BENCHES:%=bench-%)

bench-env: $(PEERS)/.installed $(FUSIONBENCH)/.installed

bench-startup bench-apply bench-large bench-lora bench-directions bench-objectives bench-selection bench-leaderboard: bench-%: $(VENV)/.installed
	$(BIN)/python -m benchmarks.$* $(BENCH)

bench-closed-form: $(VENV)/.installed
	$(BIN)/python -m benchmarks.closed_form $(BENCH)

# Ray is one of the ways that workers are reached.
bench-workers: $(VENV)/.installed $(VENV)/.ray
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.workers $(BENCH)

bench-idle-workers: $(VENV)/.installed
	$(BIN)/python -m benchmarks.idle_workers $(BENCH)

bench-loop-cost: $(VENV)/.installed
	$(BIN)/python -m benchmarks.loop_cost $(BENCH)

bench-gradient: $(VENV)/.installed $(FUSIONBENCH)/.installed
	$(BIN)/python -m benchmarks.gradient $(BENCH)

bench-time-to-quality: $(VENV)/.installed $(FUSIONBENCH)/.installed
	$(BIN)/python -m benchmarks.time_to_quality $(BENCH)

bench-levenberg-marquardt: $(VENV)/.installed
	$(BIN)/python -m benchmarks.levenberg_marquardt $(BENCH)

bench-memory: $(VENV)/.installed $(FUSIONBENCH)/.installed
	$(BIN)/python -m benchmarks.growth $(BENCH)

bench-merge: $(VENV)/.installed $(PEERS)/.installed
	$(BIN)/python -m benchmarks.merge $(BENCH)

bench-static-methods: $(VENV)/.installed $(PEERS)/.installed
	$(BIN)/python -m benchmarks.static_methods $(BENCH)

clean-env:
	rm -rf $(VENV) $(PEERS) $(FUSIONBENCH) $(TRITON)

# The stamps are newer than what they were installed from, so a second run installs nothing.
$(VENV)/.installed: pyproject.toml constraints.txt | check-python
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev,peft,lm-eval]'
	touch $@

$(VENV)/.ray: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[ray]'
	touch $@

$(PEERS)/.installed: requirements/peers-mergekit.txt | check-python
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --disable-pip-version-check --progress-bar off -r requirements/peers-mergekit.txt
	touch $@

$(FUSIONBENCH)/.installed: requirements/peers-fusionbench.txt | check-python
	test -x $(FUSIONBENCH)/bin/python || $(PYTHON) -m venv $(FUSIONBENCH)
	$(FUSIONBENCH)/bin/python -m pip install --disable-pip-version-check --progress-bar off --no-deps \
	  -r requirements/peers-fusionbench.txt
	touch $@

$(TRITON)/.installed: requirements/triton.txt constraints.txt | check-python
	test -x $(TRITON)/bin/python || $(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt \
	  -r requirements/triton.txt
	touch $@

.PHONY: check-python
check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "optmerge needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
