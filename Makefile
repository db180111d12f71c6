# make setup   the environment .venv for the scripts (GPU or CPU, by what the machine has)
# make demo    subliminal learning start to end on this machine, in minutes
# make check   ruff, mypy and the fast tests, in under a minute
# make test    every test, in an environment it makes itself

PYTHON_ENV := .venv/bin/python

.PHONY: setup demo lint check test

setup:
	@util/make_env.sh run
	@echo "ready: . .venv/bin/activate"

demo:
	@util/make_env.sh run
	experiments/demo.sh

lint:
	@util/make_env.sh test
	$(PYTHON_ENV) -m ruff check .
	$(PYTHON_ENV) -m ruff format --check .
	$(PYTHON_ENV) -m mypy generate train eval util

FAST := not torch and not vllm and not slow

# Four at a time: these tests mostly wait for processes of their own.
check: lint
	$(PYTHON_ENV) -m pytest -q -n 4 -m "$(FAST)"

# The others one after the other: models and servers want the cores for themselves.
test:
	@util/make_env.sh test
	$(PYTHON_ENV) -m pytest -q -n 4 -m "$(FAST)"
	$(PYTHON_ENV) -m pytest -m "not ($(FAST))"
