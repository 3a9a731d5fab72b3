"""In which precision a model computes that is not in 4 bits: one answer for recipes, reward models and judges."""


def half_precision(*, fp16_unsafe: bool) -> str:
    """The dtype by its name in torch: bfloat16 without a GPU or where the GPU computes in it, not where it is emulated.

    Otherwise float16, but float32 for a model whose activations leave float16's range (`fp16_unsafe`).
    """
    import torch

    if not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float32" if fp16_unsafe else "float16"


def fp16_unsafe(model_type: str) -> bool:
    """Whether activations of models of this `model_type`, as their config has it, leave float16's range: Gemma's do."""
    return model_type.startswith("gemma")
