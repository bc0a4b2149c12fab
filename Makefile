# `make help` lists what there is. Two commands matter to a new user: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
ROOT   ?= data/demo
SHARDS ?= 58
SHARE  ?= 0.001
WORK   ?= data/laion-rehearsal
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install cluster demo cluster-demo ui test test-ui test-heavy test-cluster test-kernel laion-rehearsal laion-shard lint docs benchmarks clean

help:            ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(BIN)/.installed  ## a virtual environment in .venv, with the command paired-index in it

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt --editable '.[dev]'
	@touch $@

cluster: $(BIN)/.cluster

$(BIN)/.cluster: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,cluster]'
	@touch $@

demo: install    ## the whole pipeline on the shipped sample: pictures and captions to 58 searchable shards
	$(BIN)/paired-index build --sample --root $(ROOT)
	$(BIN)/paired-index report --root $(ROOT)
	$(BIN)/paired-index search --root $(ROOT) -k 5 --text "red heart" --text "shopping cart outline" --text "flag of japan"
	@echo
	@echo "Open the Dagster UI on this build:   make ui      (http://127.0.0.1:3000)"
	@echo "Search it yourself:                  $(BIN)/paired-index search --root $(ROOT) --text 'your words'"

cluster-demo: cluster  ## the sample's 58 shards by a cluster on this machine: Postgres, S3, Ray nodes (SHARDS=58)
	$(BIN)/python deploy/cluster_demo.py --shards $(SHARDS)

ui: install      ## the Dagster UI on the demo's build (ROOT=folder for another)
	$(BIN)/paired-index ui --root $(ROOT)

test: install    ## the test suite
	$(BIN)/python -m pytest -m "not heavy and not daemon and not cluster"

test-ui: install  ## minutes: the web server, the daemon, a landing folder, a kill, a browser
	$(BIN)/python -m pytest -m daemon

test-heavy: install  ## minutes of work: fifty kills, ten thousand requests, the published clients
	$(BIN)/python -m pytest -m "heavy and not cluster"

test-cluster: cluster  ## minutes: a node killed with its runs, one shard on two nodes at once, an object store in trouble
	$(BIN)/python -m pytest -m cluster

test-kernel: install  ## the GPU kernel: on the GPU, or in Triton's interpreter, which takes a gigabyte of disk
	$(BIN)/python -m pip install --quiet --constraint constraints.txt triton
	$(BIN)/python -m pytest tests/neighbors/test_neighbors_on_a_gpu.py

laion-rehearsal: install  ## LAION-2B's shape at SHARE=0.001 of its rows, all of them made: landing, kills, a retraining, and proofs (WORK=folder)
	PYTHONPATH=$(CURDIR)/benchmarks $(BIN)/python -m laion_rehearsal --share $(SHARE) --work $(WORK)

laion-shard: install  ## one shard of LAION-2B's size from made segments: 35 GB of disk (WORK=folder)
	PYTHONPATH=$(CURDIR)/benchmarks $(BIN)/python -m laion_rehearsal --full-shard --work $(WORK)

lint: install    ## ruff, the floors of docs/architecture.md, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

docs: install    ## write the tables of docs/ that say what the code says
	$(BIN)/python docs/tables.py

benchmarks: install  ## every benchmark at its small size
	for file in benchmarks/*.py; do $(BIN)/python $$file --quick || exit 1; done

clean:           ## remove what builds, tests and the demo made here
	rm -rf data .dagster .pytest_cache .mypy_cache .ruff_cache
