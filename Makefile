# The commands of the project; .ci/run calls the same ones.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# What `make demo` needs, and what everything else needs beside it.
UP := $(VENV)/.up
INSTALLED := $(VENV)/.installed

# The folders of the data, the training runs, their settings and the shipped model.
DATA ?= data/shipped
RUNS ?= runs
RECIPES ?= smalti/training/runs
SHIPPED ?= smalti/assets/pictograms

.PHONY: demo picture test test-fast test-slow test-jax check docs bench scale accelerator tpu faults format protos model evaluate locks upgrade licences images image-check release deploy-check deploy-test compose-test clean

# Starts the whole system on free ports, draws nine pictures through the HTTP API, and stops it. Their grid is
# pictures/a-blue-cat-on-a-yellow-background-1-grid.png.
demo: $(UP)
	$(BIN)/smalti up --ports free --data build/demo -- \
		python scripts/demo.py

# Takes the picture of the page in the README, docs/pictures/page.webp, in Debian's Chromium.
picture: $(INSTALLED)
	$(BIN)/smalti up --ports free --data build/demo -- \
		python -m scripts.page_picture

# The programs that check what is in deploy/, apart from the environment.
TOOLS := build/deploy-tools

# Two processes; one that has no tests left takes over some of the other's.
PYTEST := $(BIN)/pytest -n 2 --dist worksteal

# Every test but the slow ones; the goal is five minutes on two idle cores.
test: $(INSTALLED)
	$(PYTEST) -m "not slow and not deploy"

# What needs no server, no training and no process of its own; the goal is a minute.
test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow and not server and not training and not process and not deploy"

# The slow tests; CI does not run them. Some need programs that check deploy/, and Debian's docker-registry and rclone.
test-slow: $(INSTALLED) $(TOOLS)/.installed
	$(PYTEST) -m "slow"

# Tests what computes with JAX with another Python, and the newest JAX that the project allows with it: make test-jax
# PYTHON=python3.12. The environment is in build/test-jax; it has no torch, so what needs torch is left out.
JAX_ENV = build/test-jax/$(notdir $(PYTHON))
NEEDS_TORCH := \
	--ignore tests/engines/test_ranker.py \
	--ignore tests/engines/test_refiner.py \
	--ignore tests/models/test_clip.py \
	--ignore tests/models/test_clip_network.py \
	--deselect tests/engines/test_compilation.py::test_next_start_traces_nothing_and_draws_the_same \
	--deselect tests/engines/test_generator.py::test_picture_that_is_not_square_is_refused \
	--deselect tests/models/test_refiner.py::test_refiner_is_a_part_of_the_model_with_its_own_revision \
	--deselect tests/models/test_refiner.py::test_damaged_refiner_is_found \
	--deselect tests/models/test_refiner.py::test_changed_refiner_revision_is_found \
	--deselect tests/models/test_refiner.py::test_refiner_of_another_model_is_refused
test-jax:
	$(PYTHON) -m venv $(JAX_ENV)
	$(JAX_ENV)/bin/pip install --quiet --upgrade --upgrade-strategy eager --editable '.[encoder,generator,decoder,refiner]' \
		beartype hypothesis psutil pytest pytest-timeout pytest-xdist
	$(JAX_ENV)/bin/python -c "import jax; print('JAX', jax.__version__)"
	$(JAX_ENV)/bin/pytest -n 0 -m "not slow" tests/engines tests/models tests/project/test_accelerator.py $(NEEDS_TORCH)

# Checks style, types, links, the public contract, the documentation site, and what is in deploy/.
check: $(INSTALLED) deploy-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/check_links.py
	$(BIN)/python scripts/protos.py --check
	$(BIN)/python scripts/build_docs.py

# Builds the documentation site in build/site; a warning is an error.
docs: $(INSTALLED)
	$(BIN)/python scripts/build_docs.py

# Measures the generator, the decoder, the whole system, and batches. Takes an hour on two cores; nothing else should run.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.batches.throughput
	$(BIN)/python -m benchmarks.batches.planning

# Counts what a job costs, simulates a fleet from it, and writes docs/scale.md. Takes half an hour on two cores.
scale: $(INSTALLED)
	$(BIN)/python -m benchmarks.cost --save
	$(BIN)/python -m benchmarks.fleet --write docs/scale.md

# Checks and times the generator and the decoder on this machine's GPU or TPU, with the Python that has JAX for it.
JAX_PYTHON ?= $(shell test -x $(BIN)/python && echo $(BIN)/python || echo python3)
accelerator:
	$(JAX_PYTHON) -m benchmarks.accelerator --out build/accelerator.json

# Compiles every program for TPUs that are not there, and writes what the compiler says into docs/performance.md. Takes many
# hours on two cores, and goes on where it was; ONLY="mini-step-*" picks rows.
ONLY ?= *
tpu: $(INSTALLED)
	$(BIN)/python -m benchmarks.tpu --only '$(ONLY)' --write docs/performance.md

# Runs the fault matrix: breaks every part and accounts for every job. Takes a quarter of an hour on two cores; half an hour
# with GATEWAYS=2, which needs RabbitMQ and PostgreSQL.
GATEWAYS ?= 1
faults: $(INSTALLED)
	$(BIN)/python -m faults $(if $(filter 1,$(GATEWAYS)),,--broker rabbitmq --database postgres --gateways $(GATEWAYS))

# Formats the code and applies safe fixes.
format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Trains the shipped model again: a quarter of an hour with an H100, a day and a half on two cores. An interrupted run
# continues where it stopped.
model: $(INSTALLED)
	test -d $(DATA)/world || $(BIN)/smalti data build --resolution 160 $(DATA)
	$(call train,tokenizer,tokenizer)
	$(call train,tokenizer,decoder,--from $(RUNS)/tokenizer)
	$(call train,generator,generator,--tokenizer $(RUNS)/tokenizer)
	$(call train,ranker,ranker,--vqgan $(RUNS)/tokenizer)
	$(BIN)/smalti export --generator $(RUNS)/generator --tokenizer $(RUNS)/decoder --ranker $(RUNS)/ranker \
		--name $(notdir $(SHIPPED)) --licence Apache-2.0 --half --vary --diversity 0.5 \
		--description '219 things as pictograms of 160 pixels, in five styles, up to four of them, or two together.' \
		--out $(SHIPPED) --overwrite

# Trains a judge, measures the shipped model with it, and writes docs/quality.md. Writes the model card too, if the
# model's runs are here, since the card reports on them.
evaluate: $(INSTALLED)
	test -d $(DATA)/world || $(BIN)/smalti data build --resolution 160 $(DATA)
	$(call train,judge,judge,--vqgan $(SHIPPED)/vqgan)
	$(BIN)/smalti evaluate --model $(SHIPPED) --judge $(RUNS)/judge --data $(DATA) --out docs \
		--before docs/quality-pictograms-1.json
	test ! -d $(RUNS)/generator || $(BIN)/smalti card --model $(SHIPPED) --data $(DATA) --evaluated docs \
		$(foreach run,tokenizer decoder generator ranker judge,--run $(RUNS)/$(run))

# Continues a run that exists; a finished one ends at once. Takes the network, the name of the run, and further options.
train = $(BIN)/smalti train $(1) --config $(RECIPES)/pictograms-$(2).toml --data $(DATA) --out $(RUNS)/$(2) $(3) \
	$(if $(wildcard $(RUNS)/$(2)/settings.toml),--resume)

# Everything that is installed is in a lock, with its hash, and is no code before that: no source is built but the
# project's own, with a build tool from a lock.
PIP := $(BIN)/pip install --require-hashes --no-deps --only-binary :all:

# torch is installed first and alone, so that pip keeps its CPU build.
$(UP): pyproject.toml locks/up.txt locks/build.txt scripts/install_torch.py
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m scripts.install_torch
	$(PIP) --requirement locks/up.txt --requirement locks/build.txt
	$(BIN)/pip install --no-index --no-deps --no-build-isolation --editable .
	touch $@

$(INSTALLED): $(UP) locks/dev.txt
	$(PIP) --requirement locks/dev.txt
	touch $@

# Generates smalti/v1/ from protos/.
protos: $(INSTALLED)
	$(BIN)/python scripts/protos.py

# Fits the locks to pyproject.toml; versions stay where they can.
locks: $(INSTALLED)
	$(BIN)/python -m scripts.locks
	$(MAKE) licences

# Takes the newest version of everything into the locks, and installs it.
upgrade: $(INSTALLED)
	$(BIN)/python -m scripts.locks --upgrade
	$(MAKE) licences

# Lists the licences of all packages in docs/licences.md.
licences: $(INSTALLED)
	$(BIN)/python -m scripts.licences

# Builds the images of the services, or some: make images SERVICES="gateway web" OPTIONS="--jax cuda12". Needs buildah or docker.
SERVICES ?=
images:
	$(PYTHON) -m scripts.images $(OPTIONS) $(SERVICES)

# Builds the gateway's image, or those of SERVICES, and runs them read-only, without rights. Needs buildah and podman, or
# docker; mmdebstrap, if no registry can be reached.
CHECKED = $(or $(SERVICES),gateway)
image-check: $(UP)
	base=$$($(BIN)/python -m scripts.base_image) && $(BIN)/python -m scripts.images --base "$$base" --tag check $(CHECKED)
	$(BIN)/python -m scripts.check_image $(CHECKED:%=smalti/%:check)

# Checks the Dockerfile, the workflows, the Compose file, the chart and the alerts with their own programs, which it installs
# in build/. Needs promtool (Debian's prometheus); with another Python than 3.11, docker-compose 2.20 or newer too.
deploy-check: $(INSTALLED) $(TOOLS)/.installed
	$(PYTEST) -m "deploy and not slow" tests/deploy

# Installs the chart in the cluster of KUBECONFIG, harms and upgrades it under load, and accounts for every job (docs/deploy.md).
# CLUSTER runs the command where the addresses of pods and Services can be reached: make deploy-test CLUSTER="nsenter --net=..."
CLUSTER ?=
deploy-test: $(INSTALLED) $(TOOLS)/.installed
	$(CLUSTER) $(BIN)/python -m faults.cluster $(OPTIONS)

# Starts the Compose file on this machine's Docker engine, kills each container and restarts the engine under load, and accounts
# for every job. It must run as root, on the host of the engine.
compose-test: $(INSTALLED) $(TOOLS)/.installed
	$(CLUSTER) $(BIN)/python -m faults.compose $(OPTIONS)

# Makes what a release publishes, in dist/VERSION: packages, chart, images with bills of materials, notes, checksums. OPTIONS
# are --key FILE to sign, --services to make some images only, and --snapshot to make it of the tree as it is.
release: $(INSTALLED) $(TOOLS)/.installed
	$(BIN)/python -m scripts.release $(OPTIONS)

$(TOOLS)/.installed: locks/deploy.txt scripts/deploy_tools.py
	rm -rf $(TOOLS)
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --require-hashes --no-deps --only-binary :all: --requirement locks/deploy.txt
	$(TOOLS)/bin/python -m scripts.deploy_tools $(TOOLS)
	touch $@

clean:
	rm -rf $(VENV) pictures build dist
