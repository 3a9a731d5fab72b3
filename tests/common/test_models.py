"""The table against published counts, what `resolve` makes of a name and `load` of the flags."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from recipes.common import models
from recipes.common.args import GRPOArgs, ModelArgs, RunArgs, SFTArgs
from recipes.common.cli import explain
from recipes.common.model_table import (
    FUSED_PROJECTIONS,
    MODELS,
    OPT_PROJECTIONS,
    PROJECTIONS,
    ModelSpec,
    Shape,
    default_alias,
)
from recipes.common.models import (
    CONFIG,
    WEIGHTS,
    load,
    open_source,
    repair_tokenizer,
    resolve,
    start_from,
    weights_source,
)

MLP = ("gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("alias", "parameters", "nf4_gib", "bf16_gib", "kv_bytes"),
    [
        ("phi-4", 14_659_507_200, 8.47, 27.31, 204_800),
        ("mistral-7b", 7_248_023_552, 3.85, 13.50, 131_072),
        ("zephyr-sft", 7_241_732_096, 3.84, 13.49, 131_072),
        ("llama-3.2-3b", 3_212_749_824, 2.09, 5.98, 114_688),
        ("llama-3.1-8b", 8_030_261_248, 5.31, 14.96, 131_072),
        ("llama-3-8b", 8_030_261_248, 5.31, 14.96, 131_072),
        ("qwen2.5-1.5b", 1_543_714_304, 1.06, 2.88, 28_672),
        ("gemma-3-1b", 999_885_952, 0.90, 1.86, 26_624),
        ("smollm2-135m", 134_515_008, 0.10, 0.25, 23_040),
        ("opt-1.3b", 1_315_758_080, 0.78, 2.45, 196_608),
    ],
)
def test_sizes_are_the_published_ones(alias, parameters, nf4_gib, bf16_gib, kv_bytes):
    spec = MODELS[alias]
    assert spec.parameter_count() == parameters
    assert round(spec.weight_gib(load_in_4bit=True), 2) == nf4_gib
    assert round(spec.weight_gib(load_in_4bit=False), 2) == bf16_gib
    assert spec.kv_bytes_per_token() == kv_bytes


@pytest.mark.parametrize(
    ("alias", "rank", "targets", "parameters"),
    [  # as Unsloth's notebooks print them
        ("phi-4", 16, MLP, 44_236_800),
        ("mistral-7b", 32, None, 83_886_080),
        ("llama-3.1-8b", 32, None, 83_886_080),
        ("llama-3.1-8b", 16, None, 41_943_040),
        ("llama-3-8b", 16, None, 41_943_040),
        ("llama-3.2-3b", 64, None, 97_255_424),
        ("gemma-3-1b", 8, None, 6_522_880),
        ("smollm2-135m", 16, None, 4_884_480),
    ],
)
def test_lora_counts_are_those_of_the_notebooks(alias, rank, targets, parameters):
    assert MODELS[alias].lora_parameter_count(rank, targets) == parameters


def test_lora_count_of_fused_projections_exceeds_the_separate_ones():
    # One shared A matrix per fused group, so fewer parameters: 2 x rank x hidden for qkv, 1 x for gate_up.
    phi, rank = MODELS["phi-4"], 16
    fused = phi.lora_parameter_count(rank, FUSED_PROJECTIONS)
    assert phi.lora_parameter_count(rank) - fused == 40 * rank * 3 * 5120


def test_lora_count_refuses_a_layer_the_model_does_not_have():
    with pytest.raises(ValueError, match=r"phi-4 has no query_key_value for LoRA; it has q_proj, "):
        MODELS["phi-4"].lora_parameter_count(8, ("q_proj", "query_key_value"))


def test_table_is_consistent():
    for alias, spec in MODELS.items():
        assert alias == spec.alias == alias.lower()
        assert spec.hub_id.count("/") == 1 and spec.context and spec.licence
        assert spec.embedded or alias == "opt-1.3b" or spec.unsloth_4bit_id.startswith("unsloth/")
        assert spec.pad_token is None or spec.pad_token != spec.eos_token
        assert spec.lora_targets == (OPT_PROJECTIONS if alias == "opt-1.3b" else PROJECTIONS)
    assert [alias for alias, spec in MODELS.items() if spec.fp16_unsafe] == ["gemma-3-1b"]
    assert [alias for alias, spec in MODELS.items() if spec.embedded] == ["smollm2-135m"]


def test_default_alias():
    assert default_alias(gpu=True) == "llama-3.2-3b"
    assert default_alias(gpu=False) == "smollm2-135m"


def test_resolve_takes_an_alias_in_any_case():
    assert resolve("Phi-4") is MODELS["phi-4"]
    assert resolve("SmolLM2-135M") is MODELS["smollm2-135m"]


def test_resolve_knows_the_repositories_of_the_table():
    assert resolve("microsoft/phi-4") == MODELS["phi-4"]
    # Named by its hub id, the embedded model is the one on the hub.
    spec = resolve("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert spec == replace(MODELS["smollm2-135m"], embedded=False)
    assert weights_source(spec, load_in_4bit=True) == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_resolve_leaves_the_shape_of_another_repository_unknown():
    spec = resolve("Qwen/Qwen2.5-7B-Instruct")
    assert (spec.alias, spec.shape) == ("Qwen2.5-7B-Instruct", None)
    assert weights_source(spec, load_in_4bit=True) == "Qwen/Qwen2.5-7B-Instruct"
    for question in (spec.parameter_count, spec.kv_bytes_per_token, lambda: spec.weight_gib(True)):
        with pytest.raises(ValueError, match=r"the shape of Qwen2\.5-7B-Instruct is unknown"):
            question()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("phi4", "(did you mean phi-4?)"),
        ("llama3.2-3b", "(did you mean llama-3.2-3b or llama-3-8b?)"),
        ("gemma-3-1b-it", "(did you mean gemma-3-1b?)"),
        ("./not/here", "'./not/here': give one of phi-4,"),
        ("org/..", "'org/..': give one of"),
        ("xyzzy", "'xyzzy': give one of"),
    ],
)
def test_resolve_names_the_closest_aliases(name, hint):
    with pytest.raises(ValueError, match=r"^no model named .* folder with config\.json and safetensors$") as error:
        resolve(name)
    assert hint in str(error.value)


def test_without_a_gpu_what_is_loaded_without_unsloth_is_the_original(tiny):
    """As Unsloth does there; what it loads on a GPU is asked in its GPU path's test."""
    assert open_source(MODELS["phi-4"], load_in_4bit=False) == ("microsoft/phi-4", None)
    own = replace(resolve("somebody/a-model"), revision="abc")
    assert open_source(own, load_in_4bit=False) == ("somebody/a-model", "abc")
    copied = replace(MODELS["phi-4"], revision="abc")
    assert open_source(copied, load_in_4bit=True) == ("unsloth/phi-4-unsloth-bnb-4bit", None)
    assert open_source(resolve(str(tiny)), load_in_4bit=False) == (str(tiny), None)


def test_weights_source():
    phi, zephyr = MODELS["phi-4"], MODELS["zephyr-sft"]
    assert weights_source(phi, load_in_4bit=True) == "unsloth/phi-4-unsloth-bnb-4bit"
    assert weights_source(phi, load_in_4bit=False) == "microsoft/phi-4"
    assert weights_source(zephyr, load_in_4bit=True) == "unsloth/zephyr-sft-bnb-4bit"
    assert weights_source(zephyr, load_in_4bit=False) == "HuggingFaceH4/mistral-7b-sft-beta"


CONFIGS = {
    # model_type, extra keys, parameters as published for the model with these sizes
    "qwen2": (
        {"num_hidden_layers": 28, "hidden_size": 1536, "num_attention_heads": 12, "num_key_value_heads": 2}
        | {"intermediate_size": 8960, "vocab_size": 151_936, "tie_word_embeddings": True},
        1_543_714_304,  # Qwen2.5-1.5B
    ),
    "qwen3": (
        {"num_hidden_layers": 36, "hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 8}
        | {"intermediate_size": 9728, "vocab_size": 151_936, "tie_word_embeddings": True, "head_dim": 128},
        4_022_468_096,  # Qwen3-4B
    ),
    "mistral": (
        {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
        | {"intermediate_size": 14_336, "vocab_size": 32_000},
        7_241_732_096,  # Zephyr
    ),
    "gemma3_text": (
        {"num_hidden_layers": 26, "hidden_size": 1152, "num_attention_heads": 4, "num_key_value_heads": 1}
        | {"intermediate_size": 6912, "vocab_size": 262_144},
        999_885_952,
    ),
    "phi3": (
        {"num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 10}
        | {"intermediate_size": 17_920, "vocab_size": 100_352},
        14_659_507_200,  # Phi-4
    ),
}


def _model_folder(path: Path, config: object) -> str:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (path / "model.safetensors").touch()
    return str(path)


@pytest.mark.parametrize("kind", CONFIGS)
def test_resolve_reads_the_shape_of_a_local_folder(tmp_path, kind):
    config, parameters = CONFIGS[kind]
    folder = _model_folder(tmp_path / "mine", {"model_type": kind, "max_position_embeddings": 4096} | config)
    spec = resolve(folder)
    assert spec.parameter_count() == parameters
    assert (spec.alias, spec.hub_id, spec.context) == ("mine", folder, 4096)
    assert spec.fp16_unsafe == (kind == "gemma3_text")
    assert spec.lora_targets == (FUSED_PROJECTIONS if kind == "phi3" else PROJECTIONS)
    assert weights_source(spec, load_in_4bit=True) == folder


@pytest.mark.usefixtures("unsloth")  # before transformers, as everywhere in this file
@pytest.mark.parametrize(
    ("kind", "classes"),
    [
        ("llama", ("LlamaConfig", "LlamaForCausalLM")),
        ("qwen2", ("Qwen2Config", "Qwen2ForCausalLM")),
        ("qwen3", ("Qwen3Config", "Qwen3ForCausalLM")),
        ("gemma3_text", ("Gemma3TextConfig", "Gemma3ForCausalLM")),
        ("phi3", ("Phi3Config", "Phi3ForCausalLM")),
        ("mistral", ("MistralConfig", "MistralForCausalLM")),
    ],
)
def test_counts_agree_with_transformers_and_peft(tmp_path, kind, classes):
    import peft
    import transformers

    config_class, model_class = (getattr(transformers, name) for name in classes)
    sizes = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}
    config = config_class(**sizes, head_dim=8, intermediate_size=80, vocab_size=96, pad_token_id=0)
    model = model_class(config)
    model.save_pretrained(tmp_path)
    spec = resolve(str(tmp_path))
    assert spec.parameter_count() == model.num_parameters()
    lora = peft.LoraConfig(r=4, target_modules=list(spec.lora_targets))
    trainable, _ = peft.get_peft_model(model, lora).get_nb_trainable_parameters()
    assert spec.lora_parameter_count(4) == trainable


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "opt", "hidden_size": 2048},
        {"model_type": "llama", "hidden_size": 2048},
        {"model_type": "llama", "attention_bias": True} | CONFIGS["mistral"][0],
    ],
)
def test_a_folder_whose_shape_is_not_understood_still_loads(tmp_path, config):
    assert resolve(_model_folder(tmp_path, config)).shape is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has no config\.json"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "holds an adapter and not a model"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, r"has no \*\.safetensors; pickled weights"),
        ({"config.json": "{", "model.safetensors": ""}, r"config\.json cannot be read as JSON: .*line 1"),
        ({"config.json": "[]", "model.safetensors": ""}, r"config\.json names no model_type"),
    ],
)
def test_resolve_refuses_a_folder_that_cannot_be_loaded(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        resolve(str(tmp_path))


@pytest.fixture
def tokenizer():
    """Twelve words, with the special tokens of Phi-4 and eos = pad = `<|endoftext|>`, as it was published."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|dummy_87|>"]
    words = ["system", "user", "assistant", "hello", "there", "general", "kenobi"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + words)}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def test_repair_gives_phi4_its_tokens_and_its_template(tokenizer):
    repair_tokenizer(tokenizer, MODELS["phi-4"])
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (3, 4)
    chat = [{"role": "user", "content": "hello"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user<|im_sep|>hello<|im_end|><|im_start|>assistant<|im_sep|>"
    chat.append({"role": "assistant", "content": "there"})
    assert tokenizer.apply_chat_template(chat, tokenize=False) == prompt + "there<|im_end|>"
    ids = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert ids == [1, 6, 2, 8, 3, 1, 7, 2, 9, 3]


def test_repair_leaves_alone_what_is_right(tokenizer):
    tokenizer.chat_template = "{{ 'mine' }}"
    repair_tokenizer(tokenizer, MODELS["mistral-7b"])
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.chat_template == "{{ 'mine' }}"


def test_repair_refuses_a_token_that_is_not_in_the_vocabulary(tokenizer):
    size = len(tokenizer)
    with pytest.raises(ValueError, match=r"the pad_token of llama-3\.2-3b is <\|finetune_right_pad_id\|>"):
        repair_tokenizer(tokenizer, MODELS["llama-3.2-3b"])
    assert len(tokenizer) == size


def test_shape_without_options_is_a_plain_llama():
    shape = Shape(layers=1, hidden=4, heads=2, kv_heads=1, head_dim=2, intermediate=8, vocab=10)
    spec = ModelSpec(alias="nano", hub_id="nano", shape=shape)
    # q 16 + k 8 + v 8 + o 16 + 3 x 32 = 144; norms 3 x 4; embeddings 2 x 40
    assert spec.parameter_count() == 144 + 12 + 80
    assert spec.weight_gib(load_in_4bit=False) == 2 * 236 / 2**30
    assert spec.weight_gib(load_in_4bit=True) == pytest.approx((144 * 0.516 + 92 * 2) / 2**30)
    assert spec.kv_bytes_per_token() == 8


# In memory


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs, ModelArgs):
    lora_rank: int = 16
    load_in_4bit: bool = False


@dataclass(frozen=True, kw_only=True)
class Supervised(SFTArgs):
    lora_rank: int = 16
    lr_scheduler_type: str = "linear"
    weight_decay: float = 0.0
    max_steps: int = 4
    batch_size: int = 4
    max_length: int = 64
    eval_problems: int = 8


@dataclass(frozen=True, kw_only=True)
class OnPolicy(GRPOArgs):
    load_in_4bit: bool = False
    lora_rank: int = 16
    learning_rate: float = 1e-5
    lr_scheduler_type: str = "constant"
    weight_decay: float = 0.0
    max_steps: int = 4
    sft_steps: int = 0
    sft_learning_rate: float = 1e-4
    prompts_per_step: int = 1
    num_generations: int = 4
    max_completion_length: int = 8
    eval_problems: int = 8


@pytest.mark.usefixtures("unsloth")
@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (Args(), {"r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": {*PROJECTIONS}}),  # unscaled
        (Args(lora_rank=4), {"r": 4, "lora_alpha": 4}),
        (Args(lora_rank=4, lora_alpha=12), {"r": 4, "lora_alpha": 12}),
        (Args(lora_dropout=0.25), {"lora_dropout": 0.25}),
        (Args(lora_target_modules=("q_proj", "v_proj")), {"target_modules": {"q_proj", "v_proj"}}),
        (Supervised(adapter="lora", lora_alpha=8), {"lora_alpha": 8, "use_dora": False}),
        (Supervised(adapter="dora", lora_rank=4), {"r": 4, "use_dora": True}),
    ],
)
def test_flags_of_the_adapter_reach_it(args: Any, expected: dict[str, Any], tiny: Path) -> None:
    model, tokenizer = load(args, resolve(str(tiny)), max_seq_length=64)
    config = model.peft_config["default"]
    assert {name: getattr(config, name) for name in expected} == expected
    assert tokenizer.chat_template and model.max_seq_length == 64
    adapted = {
        name.split(".")[-4] for name, weight in model.named_parameters() if weight.requires_grad and "_A" in name
    }
    assert adapted == set(config.target_modules)


@pytest.mark.usefixtures("unsloth")
def test_the_seed_makes_the_adapter(tiny: Path) -> None:
    import torch

    def first(seed: int) -> Any:
        model, _ = load(Args(seed=seed), resolve(str(tiny)), max_seq_length=64)
        return next(weight for name, weight in model.named_parameters() if "lora_A" in name)

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


@pytest.mark.usefixtures("unsloth")
def test_four_bits_and_no_adapter_at_all(tiny: Path) -> None:
    packed, _ = load(Args(load_in_4bit=True), resolve(str(tiny)), max_seq_length=64)
    assert "Params4bit" in {type(weight).__name__ for weight in packed.parameters()}
    whole, _ = load(Supervised(adapter="full"), resolve(str(tiny)), max_seq_length=64)
    assert not hasattr(whole, "peft_config") and all(weight.requires_grad for weight in whole.parameters())


# Where training starts


def move(model: Any) -> None:
    """As training moves an adapter, here by chance."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".default." in name:
                weight.normal_(std=0.2)


def logits(model: Any) -> list[list[float]]:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits[0].float().tolist()


def trainable(model: Any) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.fixture(scope="module")
def adapter(load_lora: Any, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of a moved adapter of the tiny model, and the model that it was saved from."""
    folder = tmp_path_factory.mktemp("adapter")
    model, _ = load_lora(tiny)
    move(model)
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def fresh(load_lora: Any, tiny: Path) -> Any:
    return load_lora(tiny)[0]


def test_training_goes_on_from_an_adapter(adapter: tuple[Path, Any], load_lora: Any, tiny: Path) -> None:
    (folder, earlier), (model, _) = adapter, load_lora(tiny)
    untrained, names = logits(model), trainable(model)
    start_from(model, str(folder))
    assert logits(model) == logits(earlier) != untrained
    assert trainable(model) == names and all(".default." in name for name in names)


def test_grpo_goes_on_from_an_adapter_too(adapter: tuple[Path, Any], tiny: Path) -> None:
    folder, earlier = adapter
    model, _ = load(OnPolicy(start_from=str(folder)), resolve(str(tiny)), max_seq_length=64)
    assert logits(model) == logits(earlier)
    with pytest.raises(ValueError, match=r"has lora_alpha 16 .* this recipe trains 32"):
        load(OnPolicy(start_from=str(folder), lora_alpha=32), resolve(str(tiny)), max_seq_length=64)


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        (folder / CONFIG).write_text(json.dumps(config | changes), encoding="utf-8")

    return edit


def edit_weights(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)

    return edit


def wider(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: weight.repeat(1, 2) if "lora_A" in name else weight for name, weight in weights.items()}


def deeper(weights: dict[str, Any]) -> dict[str, Any]:
    return weights | {name.replace(".layers.1.", ".layers.2."): weight.clone() for name, weight in weights.items()}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), rf"has no {WEIGHTS}: give the adapter folder of a finished run$"),
        (lambda folder: (folder / CONFIG).unlink(), rf"has no {CONFIG}: give the adapter folder"),
        (edit_config(r=8), "has r 8 .* this recipe trains 16: give --lora-rank and --model as they were"),
        (edit_config(lora_alpha=32), "has lora_alpha 32 .* this recipe trains 16.* or merge it into its model"),
        (edit_config(use_rslora=True), "has use_rslora True .* trains False"),
        (edit_config(use_dora=True), "has use_dora True .* trains False"),
        (edit_config(target_modules=["v_proj", "q_proj"]), r"has target_modules \['q_proj', 'v_proj'\] .* trains \['d"),
        (edit_config(peft_type="PROMPT_TUNING", r=None), "has peft_type PROMPT_TUNING .* trains LORA"),
        (edit_config(task_type="SEQ_CLS"), "has task_type SEQ_CLS .* trains CAUSAL_LM"),
        (edit_weights(wider), r"does not fit .* \(size mismatch for .*torch\.Size.*\): give the model it was trained"),
        (
            edit_weights(lambda weights: {name: w for name, w in weights.items() if ".layers.1." not in name}),
            r"does not fit .* \(no weights for .*layers\.1\..*\): give the model it was trained on$",
        ),
        (
            edit_weights(deeper),
            r"does not fit .* \(weights for .*layers\.2\..*, which it lacks\): give the model it was trained on$",
        ),
    ],
    ids=[
        *("no weights", "no config", "rank", "alpha", "rank-stabilised", "dora", "layers", "virtual tokens", "reward"),
        *("wider", "shallower", "deeper"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_sentence(
    edit: Callable[[Path], None], message: str, adapter: tuple[Path, Any], fresh: Any, tmp_path: Path
) -> None:
    for file in (CONFIG, WEIGHTS):
        (tmp_path / file).write_bytes((adapter[0] / file).read_bytes())
    edit(tmp_path)
    with pytest.raises(ValueError, match=message) as refused:
        start_from(fresh, str(tmp_path))
    sentence = str(refused.value)
    assert sentence.startswith(f"--start-from {tmp_path} ") and "\n" not in sentence
    assert explain(refused.value) == sentence


def test_no_folder_at_all_is_one_sentence(fresh: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"nowhere has no {WEIGHTS}: give the adapter folder of a finished run$"):
        start_from(fresh, str(tmp_path / "nowhere"))


def test_an_adapter_of_an_older_peft_fits(adapter: tuple[Path, Any], fresh: Any, tmp_path: Path) -> None:
    """Its config lacks what PEFT has learnt since."""
    (tmp_path / WEIGHTS).write_bytes((adapter[0] / WEIGHTS).read_bytes())
    config = json.loads((adapter[0] / CONFIG).read_text(encoding="utf-8"))
    del config["use_dora"], config["use_rslora"]
    (tmp_path / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    start_from(fresh, str(tmp_path))


def test_importing_the_table_pulls_in_nothing_heavy():
    script = (
        "import sys, recipes.common.model_table, recipes.common.models, recipes.common.stand_ins.smollm2;"
        "sys.exit(sorted({'torch', 'transformers', 'gguf', 'numpy', 'filelock'} & set(sys.modules)) or 0)"
    )
    root = Path(models.__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True)
    assert run.returncode == 0, run.stderr
