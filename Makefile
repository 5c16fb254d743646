# Everything a developer or CI types. `make setup` is the root: a virtual environment from pinned, hash-checked files.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCK := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --quiet --custom-compile-command "make lock"

.PHONY: help setup demo optimise test check format protos image image-test docs bench bench-quick bench-gpu soak lock clean

help:  ## what there is to type
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(STAMP)  ## the virtual environment; does nothing where it is current

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"inferd needs Python 3.11 or newer, found {sys.version.split()[0]}: make PYTHON=python3.11 setup")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup  ## train, export, verify, publish, serve, score the whole test set over gRPC
	$(BIN)/python examples/demo.py

optimise: setup  ## train, export, prune, optimise, publish, serve; MODEL=cnn, transformer or lstm
	$(BIN)/python examples/optimise.py $(or $(MODEL),cnn)

test: setup  ## every test
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: setup  ## lint, format, types, import rules, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check
	$(BIN)/python docs/generate.py --check

format: setup  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: setup  ## regenerate the message modules from the .proto files
	$(BIN)/python protos/generate.py

image:  ## the container image, with docker, podman or buildah
	deploy/image.sh build

image-test: setup  ## build the image, serve a model from a mounted repository, check an answer
	$(BIN)/python deploy/image_test.py

docs: setup  ## regenerate the command reference from the code
	$(BIN)/python docs/generate.py

bench: setup  ## measure inferd, its limit and its peers, in 25 minutes; BENCH="--soak 600" passes flags
	$(BIN)/python -m benchmarks $(BENCH)

bench-quick: setup  ## measure inferd and its limit, in under 3 minutes
	$(BIN)/python -m benchmarks --quick $(BENCH)

bench-gpu: setup  ## measure a GPU against what ONNX Runtime does on it in process
	$(BIN)/python -m benchmarks.gpu $(BENCH)

soak: setup  ## whether reloads are noticed: ten minutes of load while versions come, go and fail
	$(BIN)/python -m benchmarks.reloads --seconds 600

lock: setup  ## regenerate the pinned requirement files from pyproject.toml
	$(LOCK) --extra score --extra server --extra native --extra tracing --extra training --extra dev -o requirements/dev.txt
	$(LOCK) --extra server --extra native --extra tracing -c requirements/dev.txt -o requirements/server.txt
	$(LOCK) --extra gpu --extra native --extra tracing -c requirements/dev.txt -o requirements/gpu.txt
	$(LOCK) --extra build -c requirements/dev.txt -o requirements/build.txt

clean:  ## remove what was built here, the virtual environment included
	rm -rf $(VENV) build dist demo-output optimise-output
