# Two commands on a fresh machine: `make demo` and `make test`. They make .venv and install into it what is missing;
# with PYTHON=/path/to/python your own environment is used as it is. `make` alone prints the map.

GPUS  ?= 1
DATA  ?= $(if $(SYNTH),data/synth)
OUT   ?= $(if $(SYNTH),runs/synth,runs)
SEED  ?= 0
SPLIT ?= $(if $(or $(SYNTH),$(filter evidence-% real-% speedrun%,$(MAKECMDGOALS))),1,1 2 3)  # of the drawn and the cut sets: one

ifeq ($(origin PYTHON), undefined)
PYTHON := .venv/bin/python
READY  := .venv/ready
endif

RUN    = $(PYTHON) run.py
LAUNCH = $(if $(filter 1,$(GPUS)),$(PYTHON),$(PYTHON) -m accelerate.commands.launch --multi_gpu --num_processes $(GPUS)) run.py

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -o pipefail -c
.PHONY: help demo test lint list

# What `make` alone prints
define MAP
Background Erasing, a reproduction. What can be done here, in what time, with what:

  make test                              all tests                      5 minutes, 2 CPU cores
  make demo                              synthetic videos: pre-train,   a quarter of an hour,
                                         fine-tune, test, report        2 CPU cores, 3 GB
  make table1-moco-be SYNTH=1            any target, rehearsed on       2 minutes, a CPU core
                                         small synthetic videos
  make evidence-methods                  the drawn benchmark            hours, CPU cores
  make speedrun DATA=/datasets           the method on UCF101 alone     a GPU, UCF101: docs/DATA.md
  make table1-moco-be DATA=/datasets     a row of the paper             `run.py plan --cfg NAME`
  make table1 DATA=/datasets GPUS=8      all rows of a table            says hours and memory
  make list                              all experiments, with the paper's numbers

At first each makes .venv, which downloads some GB; PYTHON=python takes your own environment.
`make -n TARGET` shows its commands. What is done is not done again; FORCE=1 does it again.
SPLIT="1 2 3" SEED="0 1" choose, SET="accumulate=4 ..." adds settings, QUICK=1 is a smaller demo.
Results: runs/report.html, of the demo runs/demo/report.html.
endef

help:  # the map
	$(info $(MAP))@:

$(READY): pyproject.toml
	@echo "making .venv and installing torch and the rest (pyproject.toml); some minutes, some GB, once"
	@for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	  if $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info)' 2>/dev/null; then found=$$p; break; fi; done; \
	  if [ -z "$$found" ]; then echo "Python 3.10 or newer is needed, none was found on the PATH"; exit 1; fi; \
	  $$found -m venv .venv
	@.venv/bin/python -m pip install --quiet --upgrade pip
	@.venv/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@

test: $(READY)  # in two processes where pytest-xdist is installed
	$(PYTHON) -m pytest $(shell $(PYTHON) -c 'import xdist' 2>/dev/null && printf %s '-n2 --dist=worksteal')

lint: $(READY)
	$(PYTHON) -m ruff check be benchmarks tests run.py

list: $(READY)
	@$(RUN) list

# ---- the demo: random init, MoCo and MoCo + BE on synthetic videos, on a laptop's CPU. QUICK=1: smaller, one seed.
# The seeds run side by side with a thread each, which for such small networks is faster than one after the other with
# all cores.

DEMO_DATA  = data/demo
DEMO_RUNS  = runs/demo$(if $(QUICK),-quick)
DEMO_SEEDS = $(if $(QUICK),0,0 1)
DEMO_SIZE  = $(if $(QUICK),epochs=2 lr_steps=[1])
DEMO       = data=$(DEMO_DATA) out=$(DEMO_RUNS)
.PHONY: $(DEMO_SEEDS:%=demo-seed-%)

demo: $(READY)
	@echo "a smoke test: all parts work together; its networks are too small to show that BE wins (docs/RUN.md)"
	$(RUN) synth root=$(DEMO_DATA)/ucf101
	@$(MAKE) --no-print-directory -j $(words $(DEMO_SEEDS)) $(DEMO_SEEDS:%=demo-seed-%)
	$(RUN) show-batch --cfg demo-moco-be $(DEMO)
	$(RUN) report out=$(DEMO_RUNS) names='demo-*'
	@echo "open $(DEMO_RUNS)/report.html in a browser"

$(DEMO_SEEDS:%=demo-seed-%): demo-seed-%:
	@( set -e; export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1; \
	for name in demo-random demo-moco demo-moco-be; do \
	  if [ $$name != demo-random ]; then $(RUN) pretrain --cfg $$name $(DEMO) seed=$* $(DEMO_SIZE); fi; \
	  $(RUN) finetune --cfg $$name $(DEMO) seed=$* $(DEMO_SIZE); \
	  $(RUN) evaluate --cfg $$name $(DEMO) seed=$* $(DEMO_SIZE) subset=test,swapped; \
	done ) 2>&1 | sed -u 's/^/seed $* | /'

# ---- the paper and the evidence. A target is an experiment, or all of a table: `make list`. What is finished is not
# done again.
#
#   make table1-moco-be DATA=/datasets GPUS=8     one row; SPLIT="1 2 3" SEED="0 1 2" for splits and seeds
#   make table1                                   all of its rows, shared stages once
#   make linear-moco-be                           a linear classifier and kNN on the frozen backbone of table1-moco-be
#   make table1-moco-be SYNTH=1                   the same commands on small synthetic stand-ins, in a minute or two
#   make -n table1-moco-be                        nothing but the commands
#   FORCE=1  removes what the target has left and does it again     SET="accumulate=4 ..."  any other key=value

EXPERIMENTS := $(shell sed -nE '/^(defaults|presets|demo)/d; s/^([a-z][^:]*):.*/\1/p' experiments.yaml)
GROUPS := table1 table2 table3 table4 linear figure4 figure5 figure6 figure7 sweep-gamma sweep-stride analyses more \
	speedrun real-methods real-figure5 real-erase real-gamma evidence-methods evidence-erase-side \
	evidence-hard-negative-view evidence-erase
.PHONY: $(EXPERIMENTS) $(GROUPS) evidence-real
evidence-real: real-methods real-erase real-gamma  ## parts of UCF101 and HMDB51, small networks: docs/EVIDENCE.md

$(if $(SYNTH),$(eval export OMP_NUM_THREADS ?= 1))

# .DEFAULT: what is no target, of which run.py says what comes nearest
$(EXPERIMENTS) $(GROUPS) .DEFAULT: $(READY)
	$(or $(subst ;;,$(newline),$(shell $(STEPS) | sed 's/$$/;;/')),@exit 2)

STEPS = $(RUN) steps target=$@ words='$(if $(DATA),data=$(call quote,$(DATA))) out=$(call quote,$(OUT)) $(SET)' \
	splits=$(call list,$(SPLIT)) seeds=$(call list,$(SEED)) $(if $(SYNTH),synth=true) $(if $(FORCE),force=true) run='$(RUN)' launch='$(LAUNCH)'
quote = "$(subst ','\'',$(subst \$(space),$(space),$(1)))"
list = [$(subst $(space),$(comma),$(strip $(1)))]
space := $(subst ,, )
comma := ,
define newline


endef
