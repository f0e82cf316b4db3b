# What a newcomer types and what CI calls are the same targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# What this project is tested with. Where pip would fetch a CUDA build of it (gigabytes), name a CPU build:
# make TORCH='...' setup, with a version or the path of a wheel.
TORCH  ?= torch==2.13.0
# Without what it names and nobody here uses: tokenizers, Core ML, settings of language models.
EXECUTORCH := executorch==1.5.1 torchao==0.18.0
# Of what it names, that which lowering a program imports.
LOWERING := flatbuffers pandas pyyaml ruamel.yaml tabulate
EXTRAS := onnxruntime,export,aggregator,broker,sim,dev

MODEL   ?= mlpn
DEVICES ?= 8
ROUNDS  ?= 15

.PHONY: help setup system demo test check parity bench bench-step bench-bits bench-finished compare-quick \
	zoo vectors device mixed clean

help:            ## this list
	@grep -E '^[a-z-]+: .*##|^[a-z]+: *##' $(MAKEFILE_LIST) | sed -E 's/:.*## ?/\t/' | expand -t 18

setup: $(VENV)/.ready system  ## a virtual environment with everything, and a broker

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q '$(TORCH)'
	$(BIN)/python -m pip install -q -e '.[$(EXTRAS)]' $(LOWERING)
	$(BIN)/python -m pip install -q --no-deps $(EXECUTORCH)
	touch $@

system: $(VENV)/.ready  ## mosquitto and Fashion-MNIST: from apt where we may, else the next best thing
	@.ci/system '$(BIN)/python'

# The demo opens a bundle that ships, so it needs no torch: a small environment of its own, unless the whole one is here.
# Nothing is compiled ahead: that would take longer than the demo, for modules that it never imports.
DEMO := $(if $(wildcard $(VENV)/.ready),$(VENV),$(VENV)-demo)

$(VENV)-demo/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-demo
	$(VENV)-demo/bin/python -m pip install -q --no-compile -e '.[sim]'
	touch $@

demo: $(DEMO)/.ready  ## a fleet learns Fashion-MNIST over a real broker (MODEL=conv4n for a convolutional network)
	@.ci/system '$(DEMO)/bin/python'
	$(DEMO)/bin/seedmask simulate --model $(MODEL) --devices $(DEVICES) --rounds $(ROUNDS) --seed 1 --out out/demo

.PHONY: test-fast fuzz release-check full
# Tests of what needs neither processes, torch, a broker nor a browser.
CORE := not slow and not broker and not browser and not export and not sim

test-fast: setup ## the core's tests alone, in two minutes
	$(BIN)/python -m pytest -q -m '$(CORE)'

# In two halves, since coverage makes exporting twice as slow and learns nothing there.
test: setup      ## the whole suite, and how much of the core it reaches (a floor of branches: pyproject.toml)
	status=0; \
	CI_ENVIRONMENT=workbench $(BIN)/python -m coverage run -m pytest -m 'not export' || status=1; \
	CI_ENVIRONMENT=workbench-export $(BIN)/python -m pytest -m export || status=1; \
	$(BIN)/python -m coverage report || status=1; exit $$status

MINUTES ?= 5
fuzz: setup      ## properties on examples that nobody has tried (MINUTES=5)
	$(BIN)/python .ci/fuzz --minutes $(MINUTES)

check: setup     ## lint and types, of tests and benchmarks too
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file .ci/mypy-tests.ini --scripts-are-modules tests bench .ci/fuzz .ci/release-check .ci/what-ran

release-check: setup  ## wheel and sdist built, installed in clean environments, and tried there; into out/dist
	$(BIN)/python .ci/release-check --json out/dist.json

full:            ## .ci/run, and the long forms of everything: some hours; into out
	bash .ci/run
	$(MAKE) parity bench bench-step bench-bits bench-finished bench-browser compare-quick
	$(MAKE) fuzz MINUTES=60

bench: setup     ## speed, memory, bytes; into out/bench/*.json
	$(BIN)/python bench/step.py --models conv4,mlp --batches 32,128 --compile= --minutes 2 --json out/bench/quick.json
	$(BIN)/python bench/codecs.py --json out/bench/codecs.json
	$(BIN)/python bench/server.py --json out/bench/aggregator.json

bench-step: setup  ## a step on every runtime against torch, time and memory; 10 minutes; into out/bench/step.json
	$(BIN)/python bench/step.py $(BENCH_STEP) --json out/bench/step.json

parity: setup    ## every runtime on every network against torch in float64; into out/parity.json
	OMP_NUM_THREADS=1 $(BIN)/python bench/parity.py --json out/parity.json

bench-bits: setup  ## bytes of every codec over what a mask can tell, on a real training run; into out/bench/bits.json
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python bench/bits.py --json out/bench/bits.json

bench-finished: setup  ## a finished model's size, loading, latency and memory against the dense one; six minutes
	OMP_NUM_THREADS=1 $(BIN)/python bench/finished.py --json out/bench/finished.json

compare-quick: setup  ## masks against every baseline, up to 20 minutes; goes on where it stopped; into out/compare
	$(BIN)/seedmask compare --grid quick --out out/compare

.PHONY: browser bench-browser
browser:         ## Chromium and onnxruntime-web, for the browser's tests: from apt where we may, and from npm
	@.ci/browser

.PHONY: web
web:             ## the JavaScript client: its tests, and one minified module of it in web/dist
	npm --prefix web ci --no-audit --no-fund --silent
	npm --prefix web test
	npm --prefix web run build

bench-browser: setup browser  ## a training step in Chromium against native; into out/bench/browser.json
	OMP_NUM_THREADS=1 $(BIN)/python bench/browser.py --json out/bench/browser.json

zoo: setup       ## write the bundles that ship with the package again, from what the exporter makes now
	$(BIN)/python -m sim.bundles

.PHONY: docs
docs: .venvs/docs/.ready  ## the documentation's site into out/docs, warnings are errors; needs no torch
	.venvs/docs/bin/python -m sphinx -W --keep-going -E -q -d out/.doctrees -b html docs out/docs

.venvs/docs/.ready: pyproject.toml
	$(PYTHON) -m venv .venvs/docs
	.venvs/docs/bin/python -m pip install -q -e '.[docs]'
	touch $@

vectors: setup   ## both implementations against the golden vectors
	$(BIN)/python tests/vectors/make.py --check
	node tests/vectors/verify.mjs

device: setup    ## what a device installs, by runtime: its size, aarch64 wheels, and a job with it
	$(BIN)/python bench/device.py --json out/bench/device.json

mixed: setup     ## onnxruntime-training in its own environment, and a job in which every device has another runtime
	TORCH='$(TORCH)' EXECUTORCH='$(EXECUTORCH)' LOWERING='$(LOWERING)' .ci/ort-training

clean:           ## remove what the targets above made
	rm -rf $(VENV) $(VENV)-demo .venvs out .mypy_cache .ruff_cache .pytest_cache .hypothesis
