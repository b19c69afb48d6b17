# Needs python3 (3.11 or newer), gcc and a package index; `make test-all` also Debian's Slurm, ssh and
# Chromium packages (see slurm-packages, hosts-packages and chromium), and root.
#
#   make setup [TORCH=torch==2.13.0]   the virtual environment .venv, with the tested versions of everything
#   make demo  [ARGS=--fast]           the whole pipeline on a tiny model
#   make test  [ARGS=tests/unit]       the tests, or those named, on all cores; without the long tail
#   make test  TRANSFORMERS=5.17.0 TORCH=2.11.0   the same with others of these, or one other, in an environment of its own
#   make test-all                      all tests: every model family, jobs killed at random moments, a real Slurm
#   make test-slurm [ARGS=...]         of these, those with a real Slurm
#   make test-hosts [ARGS=...]         of these, those with two hosts, as network namespaces; needs root
#   make lint                          style, types, room order, shell scripts, documentation
#   make bench [ARGS=...]              speed
#   make mutations [ARGS=wiring]       break the code in many places, one at a time: each time a test must go red
#   make soak  [ARGS="--kills 100"]    training jobs killed at random moments, compared with undisturbed ones bit for bit
#   make docs                          rewrite docs/configuration.md, and the table of model types in docs/families.md (minutes)
#   make site                          the documentation as pages, .cache/site/index.html

PYTHON ?= python3
TORCH ?= $(shell grep '^torch==' constraints.txt)
TRANSFORMERS ?=
ARGS ?=
# A requirement (torch==2.13.0, a wheel's address) goes into .venv, a mere version into an environment of its own.
OTHER_TORCH := $(filter 2.%,$(TORCH))
PINNED_TORCH := $(if $(OTHER_TORCH),torch==$(TORCH),$(TORCH))
ENV := .venv$(if $(OTHER_TORCH),-torch-$(TORCH))$(if $(TRANSFORMERS),-transformers-$(TRANSFORMERS))
BIN := $(ENV)/bin
STAMP := $(ENV)/setup.stamp
# Another transformers has its own hub library and tokenizers, and another torch may need an older setuptools; pip finds
# those that fit.
FREE := torch$(if $(OTHER_TORCH),|setuptools)$(if $(TRANSFORMERS),|transformers|huggingface_hub|tokenizers)
PINS := '$(PINNED_TORCH)' $(if $(TRANSFORMERS),'transformers==$(TRANSFORMERS)')

# DeepSpeed's compiled helpers: a cache of our own, as a killed build in the user's shared one blocks every later run.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.cache/torch_extensions

.PHONY: setup demo test test-all test-slurm test-hosts lint bench mutations soak docs slurm-packages hosts-packages \
	chromium triton s3 site

setup: $(STAMP)

# Another torch on the command line installs it over the one that is there.
ifeq ($(origin TORCH)$(OTHER_TORCH),command line)
.PHONY: $(STAMP)
endif

# torch goes first and alone, because its builds (CPU, CUDA) come from different places; nothing after it may change it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(ENV)
	{ grep -vE '^($(FREE))==' constraints.txt; printf '%s\n' $(PINS); } > $(ENV)/constraints.txt
	$(BIN)/python -m pip install -qq --constraint $(ENV)/constraints.txt '$(PINNED_TORCH)' setuptools
	$(BIN)/python -m pip install -qq --constraint $(ENV)/constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/dist-moe demo $(ARGS)

# Tests share the cores as processes, so each computes with one thread: two would wait for each other. The tests of a file
# share what they have trained, so they run in one process. What is written is synced to disk, hundreds of times in one
# analysis: so tests write to memory where there is room.
MEMORY := $(shell test "$$(df --output=avail --block-size=1G /dev/shm 2>/dev/null | tail -n 1)" -ge 8 2>/dev/null && \
	echo PYTEST_DEBUG_TEMPROOT=/dev/shm)
PYTEST := $(MEMORY) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile

test: setup
	$(PYTEST) -m 'not long' $(ARGS)

# Slurm's jobs have cores of their own to claim, so its tests run one after another.
test-all: setup slurm-packages hosts-packages chromium triton s3 site
	$(PYTEST) $(ARGS) tests/unit tests/bad_inputs tests/ranks tests/cli
	$(BIN)/python -m pytest tests/slurm
	$(MEMORY) $(BIN)/python -m pytest tests/hosts

test-slurm: setup slurm-packages
	$(BIN)/python -m pytest $(ARGS) tests/slurm

test-hosts: setup hosts-packages
	$(MEMORY) $(BIN)/python -m pytest $(ARGS) tests/hosts

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/shellcheck --external-sources tools/gpu_check/*.sh .ci/run
	$(BIN)/python tools/make_docs.py --check

bench: setup
	$(BIN)/python -m tools.bench $(ARGS)

mutations: setup
	$(BIN)/python -m tools.mutations $(ARGS)

soak: setup
	$(BIN)/python -m tools.soak $(ARGS)

docs: setup
	$(BIN)/python tools/make_docs.py --families

# Fails where a link leads nowhere.
site: setup
	$(BIN)/python -m pip install -qq --constraint .venv/constraints.txt mkdocs-material==9.8.2
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Triton's interpreter and compiler need no GPU. Not in the environment, where torch would find it.
triton: .cache/triton/triton
.cache/triton/triton: | $(STAMP)
	$(BIN)/python -m pip install -qq --no-deps --target .cache/triton triton==3.6.0

# s3fs and a server that speaks S3. Not in the environment: botocore needs an older python-dateutil than the tested one.
s3: .cache/s3/moto
.cache/s3/moto: | $(STAMP)
	mkdir -p .cache
	grep -v '^python-dateutil==' $(ENV)/constraints.txt > .cache/s3-constraints.txt
	$(BIN)/python -m pip install -qq --target .cache/s3 --constraint .cache/s3-constraints.txt \
		"s3fs==$$(sed -n 's/^fsspec==//p' constraints.txt)" 'moto[server]==5.2.5'

# tests/slurm starts a real Slurm. Without root the tests themselves say what to install.
slurm-packages:
	@if ! command -v slurmctld >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge; \
	fi

# tests/hosts makes two hosts, which deepspeed reaches by pdsh and ssh. In runlevel 1 Debian starts no new service.
hosts-packages:
	@if ! (command -v ip && command -v sshd && command -v pdsh) >/dev/null && [ "$$(id -u)" = 0 ] && \
			command -v apt-get >/dev/null; then \
		apt-get update && \
		RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
			iproute2 openssh-server openssh-client pdsh; \
	fi

# Tests look at the report's page in Chromium. Without root they themselves say what to install.
chromium:
	@if ! command -v chromium >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; \
	fi
