"""Which engine writes the rollouts, and the same engine as a sampler for evaluation.

`vllm` on a GPU is Unsloth's `fast_inference`: one copy of the weights, adapters loaded into the engine (not yet
run). `vllm` on a CPU is TRL's colocate mode: a second copy of the weights in 16 bit, which takes the
merged adapter before it generates. `model` is the trained model's own `generate`.
"""

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

from eval.sampling import ModelSampler, Sampler, VllmSampler, settle_generation
from recipes.common import machine

Choice = Literal["auto", "vllm", "model"]


def choose(choice: Choice, load_in_4bit: bool) -> Literal["vllm", "model"]:
    """Settle `auto`, and refuse what cannot work.

    Raises ValueError where vLLM is asked for and does not load, or on a CPU with 4-bit weights.
    """
    on_cpu = not machine.has_gpu()
    if choice == "model":
        return "model"
    hindrance = machine.vllm_fault()
    if not hindrance and on_cpu and load_in_4bit:
        hindrance = "vLLM has no 4-bit kernels on a CPU: add --no-load-in-4bit"
    if hindrance and choice == "vllm":
        raise ValueError(f"--rollouts vllm does not work here, since {hindrance}")
    if hindrance:
        print(f"Rollouts go through the model itself, since {hindrance}.")
        return "model"
    if on_cpu:
        # Read when vLLM is imported: 1 GiB of key-value cache, and the engine in this process.
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    else:
        os.environ.setdefault("UNSLOTH_VLLM_STANDBY", "1")  # the engine's cache sleeps while the model trains
    return "vllm"


class Rollouts:
    """The engine of a run: `sampler` for evaluation, `attach` to make a trainer use the same one."""

    def __init__(self, engine: Literal["vllm", "model"], model: Any, tokenizer: Any, max_length: int) -> None:
        self.max_length = max_length
        self.colocated = None
        self.stops = settle_generation(model, tokenizer)
        if engine == "vllm" and machine.has_gpu() and getattr(model, "vllm_engine", None) is None:
            print("Rollouts go through the model itself, since Unsloth loaded this model without vLLM on this card.")
            engine = "model"
        self.engine = engine
        if engine == "model":
            if not machine.has_gpu():
                _generate_merged(model)
            self.sampler: Sampler = ModelSampler(model, tokenizer)
            if machine.has_gpu():
                # Sampling from nan would end the process on a GPU, without a word of the cause; from noise, the loss
                # is nan and says it. TRL's own config leaves this to the model's.
                model.generation_config.remove_invalid_values = True
        elif machine.has_gpu():
            self.scratch = tempfile.TemporaryDirectory()
            bring_adapter = partial(_unsloth_adapter, model, self.scratch.name)
            self.sampler = VllmSampler(model.vllm_engine, tokenizer, bring_adapter, self.stops)
        else:
            self.colocated = _cpu_engine(model, tokenizer, max_length)
            self.sampler = VllmSampler(self.colocated.llm, tokenizer, self.colocated.sync_weights, self.stops)

    def attach(self, trainer: Any) -> None:
        """Make a GRPOTrainer that was built without vLLM roll out through this run's CPU engine.

        Built with `use_vllm=True` it would start a second engine. On a GPU Unsloth shares the engine itself. Either
        ends completions where the sampler does.
        """
        if self.colocated is not None:
            trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, self.colocated, -1
            self.colocated.temperature = trainer.temperature
            self.colocated.max_completion_length = trainer.max_completion_length
        if (engine := getattr(trainer, "vllm_generation", None)) is not None:
            engine.generation_kwargs = {**engine.generation_kwargs, "stop_token_ids": self.stops}


def contiguous_head(model: Any) -> None:
    """Hand the output head of a model on a CPU a contiguous input, in place.

    The prefill's last position is a view across the batch, for which matmul would copy the vocabulary's matrix once per
    sequence: 1.8 GB for 32 sequences of SmolLM2.
    """
    model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))


def _generate_merged(model: Any) -> None:
    """Make `model.generate` run on merged weights, half as fast again on a CPU (eval/results/gsm8k-grpo-cpu.md).

    The merged weights are copies that replace the base's for the length of a call, so that the base keeps every bit.
    They round to 16 bit as vLLM's do. Weights in 4 bit cannot be merged and stay as they are. A model that already
    merges is left alone: a second time would add the adapter twice.
    """
    import torch

    if model.generate.__name__ == "generate_merged":
        return
    contiguous_head(model)
    if getattr(model, "is_loaded_in_4bit", False):
        return
    plain_generate = model.generate

    def generate_merged(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            merged = [(weight, new) for _, weight, new in _merged_weights(model)]
        base = [weight.data for weight, _ in merged]
        for weight, new in merged:
            weight.data = new
        try:
            with model.disable_adapter():
                return plain_generate(*args, **kwargs)
        finally:
            for (weight, _), data in zip(merged, base, strict=True):
                weight.data = data

    model.generate = generate_merged


def _merged_weights(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, base weight and merged copy of every matrix that has an adapter; in float32 until the last rounding."""
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            weight = module.base_layer.weight
            delta = module.get_delta_weight("default")
            yield f"{name}.weight", weight, (weight.float() + delta.float()).to(weight.dtype)


def _unsloth_adapter(model: Any, folder: str) -> Any:
    # Through a file, which the engine reads when it generates: `load_tensors` would hand it every adapter of the model,
    # a reference's and a value function's too.
    model.save_lora(folder, selected_adapters=["default"])
    return model.load_lora(folder)


def _cpu_engine(model: Any, tokenizer: Any, max_length: int) -> Any:
    import torch
    import vllm._custom_ops as ops
    from trl.generation.vllm_generation import VLLMGeneration

    # oneDNN packs weights into a layout of its own and drops the originals, which a sync overwrites.
    ops._supports_onednn = False

    class MergedSync(VLLMGeneration):
        """Sends merged weights without merging in place.

        TRL merges into the trained model's 16-bit weights and subtracts again at every sync. Both round, and
        the base that the saved adapter will be loaded on drifts away from the one it was trained on.
        """

        def _iter_named_params(self) -> Iterator[tuple[str, Any]]:
            with torch.no_grad():
                for name, _, merged in _merged_weights(self.model):
                    yield name, merged

    process = SimpleNamespace(
        num_processes=1,
        process_index=0,
        local_process_index=0,
        is_main_process=True,
        device=torch.device("cpu"),
        state=SimpleNamespace(deepspeed_plugin=None),
        wait_for_everyone=lambda: None,
    )
    return MergedSync(
        model=model,
        accelerator=process,
        processing_class=tokenizer,
        max_model_length=max_length,
        max_num_seqs=64,
        max_completion_length=max_length,
    )
