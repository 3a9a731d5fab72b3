"""Random models in the table's shapes: they have the table's sizes, load wherever the real ones do, and compute."""

import functools
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from recipes.common.model_table import MODELS, ModelSpec, Shape
from recipes.common.models import resolve
from recipes.common.stand_ins import shapes
from recipes.common.stand_ins.shapes import TINY, by_name, meta_model, random_folder

LLAMA: dict[str, Any] = {
    "layers": 2,
    "hidden": 128,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 64,
    "intermediate": 192,
    "vocab": 512,
    "tied": False,
}
FAMILIES = {
    "llama": LLAMA,
    "qwen2": LLAMA | {"qkv_bias": True, "tied": True},
    "gemma3_text": LLAMA | {"head_dim": 32, "qk_norm": True, "norms_per_layer": 4, "tied": True},
    "opt": LLAMA | {"kv_heads": 2, "positions": 66, "tied": True},
}


def small(family: str) -> ModelSpec:
    return ModelSpec(alias=f"small-{family}", hub_id="", context=64, shape=Shape(**FAMILIES[family]))


@pytest.fixture(scope="module")
def folder(unsloth: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`folder(family, in_4bit)`: the family's small model, made once."""
    parent = tmp_path_factory.mktemp("shapes")
    return functools.cache(lambda family, in_4bit: random_folder(small(family), parent, in_4bit=in_4bit))


@pytest.fixture(scope="module")
def loaded(folder: Any) -> Any:
    """`loaded(family, in_4bit)`: the same as plain transformers loads it."""
    from transformers import AutoModelForCausalLM

    return functools.cache(lambda *which: AutoModelForCausalLM.from_pretrained(folder(*which)))


def finite_logits(model: Any, vocab: int) -> bool:
    import torch

    ids = torch.arange(20).reshape(2, 10)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
    return logits.shape == (2, 10, vocab) and bool(logits.isfinite().all()) and float(logits.float().std()) > 0.05


@pytest.mark.parametrize("alias", ["tiny", *MODELS])
def test_a_model_has_as_many_parameters_as_the_table_says(unsloth: Any, alias: str) -> None:
    spec = by_name(alias)
    parameters = list(meta_model(spec).parameters())
    assert sum(parameter.numel() for parameter in parameters) == spec.parameter_count()
    assert {parameter.device.type for parameter in parameters} == {"meta"}


def test_names() -> None:
    assert by_name("tiny") is TINY and by_name("Phi-4") is MODELS["phi-4"]
    assert TINY.parameter_count() == 15_730_944
    with pytest.raises(
        ValueError, match=r"no shape named 'llama-3\.1-8' \(did you mean llama-3\.1-8b .*give one of tiny"
    ):
        by_name("llama-3.1-8")


@pytest.mark.parametrize("family", FAMILIES)
def test_in_16_bits_transformers_reads_the_shape(loaded: Any, family: str) -> None:
    import torch

    model, spec = loaded(family, False), small(family)
    assert model.config.model_type == family
    assert model.num_parameters() == spec.parameter_count()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.max_position_embeddings == 64
    assert finite_logits(model, 512)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            assert abs(parameter.detach().float().std() - 0.02) < 0.001, name
        elif name.endswith(".bias"):
            assert not parameter.any(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_scale_by_one(loaded: Any, family: str) -> None:
    import torch

    norms = [module for module in loaded(family, False).modules() if type(module).__name__.endswith("Norm")]
    assert len(norms) == 2 * (6 if family == "gemma3_text" else 2) + 1
    for norm in norms:
        size = norm.weight.shape
        x = 3 * torch.randn(5, *size, generator=torch.Generator().manual_seed(0)).bfloat16()
        plain = torch.nn.functional.layer_norm if family == "opt" else torch.nn.functional.rms_norm
        assert torch.allclose(norm(x), plain(x.float(), size).bfloat16(), atol=0.02)


def quantised_projections(model: Any, original: Any) -> int:
    """The number of projections in NF4, each close to the original's; everything else is as in the original.

    Asked before the first forward pass: bitsandbytes then reorders the packed weights for some processors.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit, Params4bit

    projections = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    for name, parameter in original.named_parameters():
        quantised = model.get_parameter(name)
        if name.removesuffix(".weight") not in projections:
            assert torch.equal(quantised, parameter), name
            continue
        assert isinstance(quantised, Params4bit) and quantised.dtype == torch.uint8
        assert quantised.quant_state.nested and quantised.quant_state.shape == parameter.shape
        found = dequantize_4bit(quantised.data, quantised.quant_state)
        assert found.dtype == torch.bfloat16
        error = (found - parameter).detach().float()
        assert error.abs().max() < 0.015 and error.std() < 0.0025, name  # measured: 0.012, 0.0019
    return len(projections)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_4_bits_every_projection_is_the_16_bit_one_quantised(loaded: Any, family: str) -> None:
    model = loaded(family, True)
    assert model.is_loaded_in_4bit and model.num_parameters() == small(family).parameter_count()
    assert quantised_projections(model, loaded(family, False)) == 2 * (6 if family == "opt" else 7)
    assert finite_logits(model, 512)


@pytest.mark.parametrize("in_4bit", [False, True])
def test_unsloth_loads_it(unsloth: Any, folder: Any, loaded: Any, in_4bit: bool) -> None:
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        str(folder("llama", in_4bit)), max_seq_length=64, load_in_4bit=in_4bit
    )
    assert (len(tokenizer), tokenizer.eos_token, tokenizer.pad_token) == (512, "<|im_end|>", "<|endoftext|>")
    assert quantised_projections(model, loaded("llama", False)) == (14 if in_4bit else 0)
    assert finite_logits(model, 512)


def test_the_table_reads_the_folder_back(folder: Any) -> None:
    for family in FAMILIES.keys() - {"opt"}:  # whose folders the table does not describe
        spec = resolve(str(folder(family, False)))
        assert (spec.shape, spec.context) == (small(family).shape, 64)


@pytest.mark.parametrize("size", [512, 32_000, 50_272, 262_144])
def test_every_id_has_a_text_and_no_other(unsloth: Any, tmp_path: Path, size: int) -> None:
    from transformers import AutoTokenizer

    shapes._write_tokenizer(tmp_path, size, 64)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == size == len(tokenizer.get_vocab())
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))
    assert tokenizer.decode([size - 1]) and tokenizer.model_max_length == 64
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 0)
    for text in ("naïve 東京 12,345\n\n🙂 ectable", "<unused50000> negligence"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text and max(ids) < min(size, 49_152)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")


def test_a_small_vocabulary_spells_as_smollm2_does_where_it_can(unsloth: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    shapes._write_tokenizer(tmp_path, 32_000, 64)
    fitted, whole = (AutoTokenizer.from_pretrained(source) for source in (tmp_path, shapes.converted_folder()))
    text = "The cost of 12 pens is the product of their number and their price."
    assert fitted(text).input_ids == whole(text).input_ids


def test_shards_are_limited_and_indexed(unsloth: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import safe_open

    limit = 100_000  # the embeddings take 131,072
    monkeypatch.setattr(shapes, "SHARD_BYTES", limit)
    folder = random_folder(small("llama"), tmp_path, in_4bit=True)
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    sizes = {}
    for file in files:
        with safe_open(folder / file, "pt") as tensors:
            assert {name for name, place in index["weight_map"].items() if place == file} == set(tensors.keys())
            sizes[file] = sum(tensors.get_tensor(name).nbytes for name in tensors.keys())  # noqa: SIM118
    assert sum(sizes.values()) == index["metadata"]["total_size"]
    assert sorted(sizes.values())[-2:] == [131_072, 131_072]
    assert sorted(sizes.values())[-3] <= limit and len(files) >= 4


def test_the_same_call_writes_the_same_bytes(folder: Any, tmp_path: Path) -> None:
    for in_4bit in (False, True):
        first = folder("llama", in_4bit)
        second = random_folder(small("llama"), tmp_path, in_4bit=in_4bit)
        assert second.name == first.name == "small-llama" + "-nf4" * in_4bit
        assert not list(second.glob("[0-9]*"))  # shards have their last names
        assert {file.name: file.read_bytes() for file in first.iterdir()} == {
            file.name: file.read_bytes() for file in second.iterdir()
        }


def test_a_full_disk_leaves_nothing(unsloth: Any, tmp_path: Path) -> None:
    # The limit on file size stands in for the disk's. Config and tokenizer are smaller, the weights are not.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(ValueError, match=r"cannot write the random small-llama to .*; free 0\.00 GiB there"):
            random_folder(small("llama"), tmp_path, in_4bit=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["small-llama.lock"]


def test_without_a_shape_there_is_no_model(unsloth: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the shape or the context of new is unknown"):
        random_folder(ModelSpec(alias="new", hub_id="org/new"), tmp_path, in_4bit=False)
