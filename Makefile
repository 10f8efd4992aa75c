# Everything a new user needs: `make demo` and `make test`. All set-up is done here, asking for nothing.
SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
IMAGE := build/image

.PHONY: demo test check bench deep setup image lock clean format

demo: $(IMAGE)/reference.json
	$(PY) -m secfl demo

test: $(IMAGE)/reference.json
	$(PY) -m pytest

check: $(IMAGE)/reference.json
	$(PY) tools/check.py

bench: $(IMAGE)/reference.json
	$(PY) -m benchmarks

deep: $(IMAGE)/reference.json
	$(PY) tools/deep.py

setup: $(VENV)/.installed

$(VENV)/.installed: requirements/dev.lock pyproject.toml tools/setup.sh
	sh tools/setup.sh

image: $(IMAGE)/reference.json

$(IMAGE)/reference.json: $(VENV)/.installed requirements/enclave.lock $(shell find src -name '*.py')
	$(PY) -m secfl image build --out $(IMAGE)

lock: $(VENV)/.installed
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sh tools/lock.sh

format: $(VENV)/.installed
	$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .

clean:
	rm -rf build run
