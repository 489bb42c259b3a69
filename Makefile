# Two commands on a fresh machine: `make demo` and `make test`. They make .venv and install into it what is missing;
# with PYTHON=/path/to/python your own environment is used as it is. `make help` lists the targets.

GPUS ?= 1
DATA ?= data
SEED ?= 0
SPLIT ?= 1 2 3
OUT  ?= runs

ifeq ($(origin PYTHON), undefined)
PYTHON := .venv/bin/python
READY  := .venv/ready
endif

RUN    = $(PYTHON) run.py
LAUNCH = $(if $(filter 1,$(GPUS)),$(PYTHON),$(PYTHON) -m accelerate.commands.launch --multi_gpu --num_processes $(GPUS)) run.py
SETTINGS = data=$(DATA) out=$(OUT) seed=$(SEED)

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -o pipefail -c
.PHONY: help demo test lint list

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 34

$(READY): pyproject.toml
	@echo "making .venv and installing torch and the rest (pyproject.toml); some minutes, some GB, once"
	@for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	  if $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info)' 2>/dev/null; then found=$$p; break; fi; done; \
	  if [ -z "$$found" ]; then echo "Python 3.10 or newer is needed, none was found on the PATH"; exit 1; fi; \
	  $$found -m venv .venv
	@.venv/bin/python -m pip install --quiet --upgrade pip
	@.venv/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@

test: $(READY)  ## all tests, on a CPU
	$(PYTHON) -m pytest

lint: $(READY)  ## ruff
	$(PYTHON) -m ruff check be tests run.py

list: $(READY)  ## the experiments and the paper's numbers
	@$(RUN) list

# ---- the demo: random init, MoCo and MoCo + BE on synthetic videos, on a laptop's CPU. QUICK=1: smaller, one seed.
# The seeds run side by side with a thread each, which for such small networks is faster than one after the other with
# all cores.

DEMO_DATA  = data/demo
DEMO_RUNS  = runs/demo$(if $(QUICK),-quick)
DEMO_SEEDS = $(if $(QUICK),0,0 1)
DEMO_SIZE  = $(if $(QUICK),epochs=3 lr_steps=[2])
DEMO_CORES = $(if $(QUICK),2,1)
DEMO       = data=$(DEMO_DATA) out=$(DEMO_RUNS)
.PHONY: $(DEMO_SEEDS:%=demo-seed-%)

demo: $(READY)  ## synthetic videos -> pre-train, fine-tune, test -> a table (QUICK=1: three minutes)
	$(RUN) synth root=$(DEMO_DATA)/ucf101
	@$(MAKE) --no-print-directory -j $(words $(DEMO_SEEDS)) $(DEMO_SEEDS:%=demo-seed-%)
	$(RUN) strip --cfg demo-moco-be $(DEMO)
	$(RUN) report out=$(DEMO_RUNS) names='demo-*'
	@echo "look at $(DEMO_RUNS)/report.md (curves, pictures), and in README.md at how to read it"

$(DEMO_SEEDS:%=demo-seed-%): demo-seed-%:
	@( set -e; export OMP_NUM_THREADS=$(DEMO_CORES) PYTHONUNBUFFERED=1; \
	for name in demo-random demo-moco demo-moco-be; do \
	  if [ $$name != demo-random ]; then $(RUN) pretrain --cfg $$name $(DEMO) seed=$* $(DEMO_SIZE); fi; \
	  $(RUN) finetune --cfg $$name $(DEMO) seed=$* $(DEMO_SIZE); \
	  $(RUN) evaluate --cfg $$name $(DEMO) seed=$* $(DEMO_SIZE) subset=test,swapped; \
	done ) 2>&1 | sed -u 's/^/seed $* | /'

# ---- Table 1: one pre-training, then fine-tuning and testing on the three splits of both data sets

table1-random: $(READY)  ## I3D from random initialisation (paper: 60.5 / 21.2)
	$(call finetune-both,$@)

table1-moco table1-moco-be table1-moco-be-i3d-ucf101 table1-moco-be-r3d34-ucf101 table1-moco-be-r3d34-k400 table1-moco-be-c3d-ucf101 table1-moco-c3d-ucf101: $(READY)
	$(LAUNCH) pretrain --cfg $@ $(SETTINGS)
	$(call finetune-both,$@)

define finetune-both
$(foreach dataset,ucf101 hmdb51,$(foreach split,$(SPLIT),$(call finetune-one,$(1),$(dataset),$(split))))
$(RUN) report out=$(OUT) names=$(1)
endef

define finetune-one
$(LAUNCH) finetune --cfg $(1) $(SETTINGS) dataset=$(2) split=$(3)
$(LAUNCH) evaluate --cfg $(1) $(SETTINGS) dataset=$(2) split=$(3)

endef
