# make setup   the environment .venv for the scripts (GPU or CPU, by what the machine has)
# make check   ruff, mypy and the fast tests, in under a minute
# make test    every test, in an environment it makes itself

PYTHON_ENV := .venv/bin/python

.PHONY: setup check test

setup:
	@util/make_env.sh run
	@echo "ready: . .venv/bin/activate"

check:
	@util/make_env.sh test
	$(PYTHON_ENV) -m ruff check .
	$(PYTHON_ENV) -m ruff format --check .
	$(PYTHON_ENV) -m mypy generate train eval util
	$(PYTHON_ENV) -m pytest -q -m "not torch and not vllm and not slow"

test:
	@util/make_env.sh test
	$(PYTHON_ENV) -m pytest
