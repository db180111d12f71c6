# make setup   the environment .venv for the scripts (GPU or CPU, by what the machine has); WHEELS=folder: from a folder
#              of wheels, without network; REQUIREMENTS=requirements-cu12.txt: for a driver too old for CUDA 13
# make demo    subliminal learning from start to end on this machine, in minutes
# make experiment NAME=mixing MODEL=pocket CORES=2   run an experiment of experiments/ (NAME=all: all of them); it is resumed where it was stopped
# make report  output/index.html: everything that has finished, with verdicts and figures, newest first
# make results every table and figure of experiments/results again, from the committed measurements
# make check   ruff, mypy and the fast tests, in under a minute
# make test    every test, in an environment that it makes itself; prints the time by file
# make audit   known advisories against the pinned packages (needs the network)
# make lock    requirements-cpu.lock and requirements.lock made again, after a change of the requirements

PYTHON_ENV := .venv/bin/python

.PHONY: setup demo experiment report results lint check test audit lock

setup:
	@util/make_env.sh run
	@echo "ready: . .venv/bin/activate"

demo:
	@util/make_env.sh run
	experiments/demo.sh

# Snakemake has an environment of its own, because it needs older versions of packages that the scripts use.
NAME ?= all
MODEL ?= pocket
CORES ?= 2
GPUS = $(shell util/list_allowed_gpus.sh | wc -l)

experiment:
	@util/make_env.sh run
	@experiments/make_snakemake_env.sh
	experiments/snakemake.sh --cores $(CORES) --resources gpu=$(GPUS) --rerun-incomplete --keep-incomplete \
		--keep-going --rerun-triggers mtime params --config "name=$(NAME)" "model=$(MODEL)"

report:
	@util/make_env.sh run
	$(PYTHON_ENV) experiments/index_page.py

results:
	@util/make_env.sh run
	experiments/remake_results.sh

lint:
	@util/make_env.sh test
	$(PYTHON_ENV) -m ruff check .
	$(PYTHON_ENV) -m ruff format --check .
	$(PYTHON_ENV) -m mypy generate train eval util pocket experiments bench

FAST := not torch and not vllm and not slow

# One worker for each core. These tests start processes of their own, which should not each compile every module again.
check: export PYTHONDONTWRITEBYTECODE =
check: lint
	$(PYTHON_ENV) -m pytest -q -n auto -m "$(FAST)"

# The slow tests run two at a time with one thread each, however many cores there are, because each may hold a model in
# memory. The tests with vLLM run one at a time: its threads keep the cores busy even while they wait.
test:
	@util/make_env.sh test
	$(PYTHON_ENV) -m pytest -q -n auto -m "$(FAST)"
	OMP_NUM_THREADS=1 $(PYTHON_ENV) -m pytest -n 2 --dist loadfile -m "not vllm and not ($(FAST))"
	$(PYTHON_ENV) -m pytest -m vllm

audit:
	@.ci/audit

# Without comments on where each line comes from: they would name folders of this machine.
UV_COMPILE = $(PYTHON_ENV) -m uv pip compile --universal --python-version 3.11 --generate-hashes --no-header \
	--no-annotate --quiet

lock:
	@util/make_env.sh test
	@{ sed -n '/^#/p' requirements-cpu.lock; echo torch | $(UV_COMPILE) requirements-cpu.txt --excludes /dev/stdin; } \
	    > .lock.new && mv .lock.new requirements-cpu.lock
	@{ sed -n '/^#/p' requirements.lock; $(UV_COMPILE) requirements.txt; } > .lock.new && mv .lock.new requirements.lock
