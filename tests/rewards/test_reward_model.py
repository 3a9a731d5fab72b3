"""The reward model as a judge: what of it is trained, in which precision, and scores that depend on the text alone."""

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recipes.common.cli import explain
from rewards import reward_model
from rewards.reward_model import load, load_trunk, prefer, reward, score

PROMPTS = [
    [{"role": "user", "content": text}]
    for text in ("What is 2 + 2?", "Name a colour.", "How many apples are left of 12 when 5 are eaten?", "Why?", "Who?")
]
LONG = "Blue is one, and so is green, and there are many more of them than anybody has counted."
FIRST = ["4", LONG, "There are 7 left.", "Because.", "Ada."]
SECOND = ["It is five, as far as anybody knows.", "No.", "3", LONG, "Nobody knows."]
NEAR = {"abs": 2e-2}  # bfloat16 rounds a batch of another shape otherwise; these scores differ by more than 0.03


def with_lora(trunk: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return get_peft_model(
        trunk, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=projections, modules_to_save=["score"])
    )


def save(folder: Path, tiny: Path, *, size: float = 1.0) -> Any:
    """Save an adapter that training has moved, here by chance, as the recipe does; its rewards are of about `size`."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    trunk = load_trunk(str(tiny), load_in_4bit=False)
    trunk.config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    model = with_lora(trunk).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
            elif "score.modules_to_save" in name:
                weight.normal_(std=size / 8)  # of 64 inputs of size 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def saved(unsloth: ModuleType, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """The folder of a reward model's adapter, and the model that was saved there."""
    folder = tmp_path_factory.mktemp("reward")
    return str(folder), save(folder, tiny)


@pytest.fixture(scope="module")
def loaded(saved: tuple[str, Any]) -> tuple[Any, Any]:
    return load(saved[0])


# The trunk and its head


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_head_and_lora_are_trained_in_float32_and_nothing_else(load_in_4bit: bool, unsloth: Any, tiny: Path) -> None:
    import torch

    trunk = load_trunk(str(tiny), load_in_4bit=load_in_4bit)
    kinds = {type(module).__name__ for name, module in trunk.named_modules() if name.endswith("_proj")}
    assert kinds == {"Linear4bit" if load_in_4bit else "Linear"}
    assert trunk.score.weight.dtype == torch.float32 and tuple(trunk.score.weight.shape) == (1, 64)
    model = with_lora(trunk)
    trained = {name: weight.dtype for name, weight in model.named_parameters() if weight.requires_grad}
    assert set(trained.values()) == {torch.float32}
    assert {"lora" if "lora_" in name else name for name in trained} == {
        "lora",
        "base_model.model.score.modules_to_save.default.weight",
    }
    assert len(trained) == 1 + 2 * 7 * 2  # two matrices for each of seven projections in each of two layers


@pytest.mark.parametrize("autocast", [False, True])
def test_the_head_computes_in_float32(autocast: bool, unsloth: Any, tiny: Path) -> None:
    """Also within the trainer's autocast, which casts both factors of a matrix product to bfloat16."""
    import torch

    model = with_lora(load_trunk(str(tiny), load_in_4bit=False))
    states = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        rewards = model.base_model.model.score(states)
    weight = model.base_model.model.score.modules_to_save["default"].weight
    assert rewards.dtype == torch.float32
    assert rewards[:, 0].tolist() == pytest.approx((states.double() @ weight[0].double()).tolist(), rel=1e-5)
    assert rewards.bfloat16().tolist() != rewards.tolist()


def test_weights_that_are_quantised_already_keep_a_whole_head(unsloth: Any, tiny: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(tiny, quantization_config=quantised).save_pretrained(tmp_path)
    for load_in_4bit in (False, True):
        trunk = load_trunk(str(tmp_path), load_in_4bit=load_in_4bit)
        assert type(trunk.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
        assert isinstance(trunk.score, torch.nn.Linear) and trunk.score.weight.dtype == torch.float32


def test_a_trunk_with_holes_is_refused(unsloth: Any, tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    weights = load_file(tiny / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1.mlp" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 3 weights, model\.layers\.1\.mlp\.down_proj\.weight first"):
        load_trunk(str(tmp_path), load_in_4bit=False)


# What is read at once


def test_scores_are_the_same_where_memory_runs_out(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model, tokenizer = loaded
    whole = score(model, tokenizer, PROMPTS, FIRST)
    given: list[int] = []
    forward = model.forward

    def small(**inputs: Any) -> Any:
        given.append(len(inputs["input_ids"]))
        if given[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", small)
    assert score(model, tokenizer, PROMPTS, FIRST) == pytest.approx(whole, **NEAR)
    assert given == [5, 2, 1, 1, 1, 1, 1]


# What is saved


def test_a_saved_model_gives_the_same_scores(saved: tuple[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    folder, model = saved
    again, tokenizer = load(folder)
    assert caplog.text == ""  # transformers would say that the head is not trained: the trunk's is not
    found = score(again, tokenizer, PROMPTS, FIRST)
    assert found == pytest.approx(score(model, tokenizer, PROMPTS, FIRST), **NEAR)
    assert not again.training and min(abs(a - b) for a in found for b in found if a != b) > 0.03


def test_a_judge_that_scores_nothing_is_one_sentence(
    load_lora: Any, saved: tuple[str, Any], tiny: Path, tmp_path: Path
) -> None:
    load_lora(tiny)[0].save_pretrained(tmp_path / "dpo")
    for folder in (tmp_path / "dpo", tmp_path, tmp_path / "nowhere", tiny):
        for refuse in (load, prefer):  # prefer at once, and not when a run has trained for hours
            with pytest.raises(ValueError, match=r"holds no reward model .* give the adapter folder of") as refused:
                refuse(str(folder))
            assert explain(refused.value) == str(refused.value) and "\n" not in str(refused.value)


def test_a_base_model_that_is_gone_is_one_sentence(saved: tuple[str, Any], tmp_path: Path) -> None:
    import json

    config = json.loads((Path(saved[0]) / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"gone, the base model of .*, cannot be loaded .*: fetch it first") as refused:
        load(str(tmp_path))
    assert "\n" not in str(refused.value)


# Scores


def test_scores_are_those_of_the_texts_by_themselves(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model, tokenizer = loaded
    expected = []
    for prompt, text in zip(PROMPTS, FIRST, strict=True):
        ids = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": text}], return_dict=False)
        with torch.no_grad():
            expected.append(model(input_ids=torch.tensor([ids])).logits.item())
    for size in (1, 2, 3, 8):
        monkeypatch.setattr(reward_model, "BATCH", size)
        near = {"abs": 1e-5} if size == 1 else NEAR
        assert score(model, tokenizer, PROMPTS, FIRST) == pytest.approx(expected, **near)
        backwards = score(model, tokenizer, PROMPTS[::-1], FIRST[::-1])
        assert backwards[::-1] == pytest.approx(expected, **near)


def test_a_text_is_read_to_the_limit(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    whole = len(tokenizer.apply_chat_template([*PROMPTS[1], {"role": "assistant", "content": LONG}])["input_ids"])
    ends = [f"{LONG} {end}" for end in ("Red.", "Not red.")]
    cut, other = score(model, tokenizer, [PROMPTS[1]] * 2, ends, max_length=whole - 5)
    assert cut == other
    one, other = score(model, tokenizer, [PROMPTS[1]] * 2, ends)
    assert abs(one - other) > 0.02


def test_a_preference_is_the_odds_of_the_two_scores(saved: tuple[str, Any], loaded: tuple[Any, Any]) -> None:
    judge = prefer(saved[0])
    found, swapped = judge(PROMPTS, FIRST, SECOND), judge(PROMPTS, SECOND, FIRST)
    ahead = [score(*loaded, PROMPTS, side) for side in (FIRST, SECOND)]
    assert found == pytest.approx([1 / (1 + math.exp(b - a)) for a, b in zip(*ahead, strict=True)], abs=1e-6)
    assert [p + q for p, q in zip(found, swapped, strict=True)] == pytest.approx([1.0] * 5, abs=1e-6)
    assert min(found) < 0.45 and max(found) > 0.55
    assert judge(PROMPTS, FIRST, FIRST) == [0.5] * 5


def test_rewards_far_apart_are_still_probabilities(unsloth: Any, tiny: Path, tmp_path: Path) -> None:
    save(tmp_path, tiny, size=1e4)
    found = prefer(str(tmp_path))(PROMPTS, FIRST, SECOND)
    assert set(found) == {0.0, 1.0}


# As a reward


COMPLETIONS = [[{"role": "assistant", "content": text}] for text in FIRST]


def move(model: Any) -> Any:
    """A policy that has learnt something, so that its adapter is not without effect."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    return model


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits


def state(model: Any) -> tuple[Any, ...]:
    flags = {name: weight.requires_grad for name, weight in model.named_parameters()}
    return model.active_adapter, flags, {name: module.training for name, module in model.named_modules()}


def test_a_reward_is_the_score(saved: tuple[str, Any], loaded: tuple[Any, Any]) -> None:
    found = reward(saved[0])
    assert found.__name__ == "reward_model_reward"
    assert found(prompts=PROMPTS, completions=COMPLETIONS, answer=["4"] * 5) == score(*loaded, PROMPTS, FIRST)


@pytest.mark.parametrize("training", [True, False])
def test_on_the_policys_trunk_it_is_the_same_model(
    training: bool,
    load_lora: Any,
    tiny: Path,
    saved: tuple[str, Any],
    loaded: tuple[Any, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch

    policy = move(load_lora(tiny)[0]).train(training)
    policy.base_model.model.model.layers[0].eval()  # whatever its trainer has set
    before, weights, flags = logits(policy), policy.state_dict(), state(policy)
    held = sum(weight.numel() for weight in policy.parameters())
    capsys.readouterr()
    on_trunk = reward(saved[0], policy)
    assert capsys.readouterr().out == ""
    lora = sum(weight.numel() for name, weight in saved[1].named_parameters() if "lora_" in name)
    assert sum(weight.numel() for weight in policy.parameters()) == held + lora
    added = {name: False for name, _ in policy.named_parameters() if ".reward." in name}
    assert len(added) == 28

    found = on_trunk(prompts=PROMPTS, completions=COMPLETIONS, answer=["4"] * 5)
    assert found == pytest.approx(score(*loaded, PROMPTS, FIRST), abs=1e-4)
    assert on_trunk(prompts=PROMPTS, completions=COMPLETIONS) == found
    assert on_trunk.__name__ == "reward_model_reward"

    adapter, trained, modes = state(policy)
    assert (adapter, trained) == (flags[0], flags[1] | added) and any(trained.values())
    assert {name: modes[name] for name in flags[2]} == flags[2]
    assert torch.equal(logits(policy), before)
    assert all(torch.equal(policy.state_dict()[name], weight) for name, weight in weights.items())


def test_what_the_policy_saves_holds_nothing_of_it(
    load_lora: Any, tiny: Path, saved: tuple[str, Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    policy = move(load_lora(tiny)[0])
    policy.save_pretrained(tmp_path / "before")
    reward(saved[0], policy)(prompts=PROMPTS, completions=COMPLETIONS)
    policy.save_pretrained(tmp_path / "after", selected_adapters=["default"])
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("before", "after"))
    assert all(after[name].equal(weight) for name, weight in before.items()) and set(after) == set(before)
    assert {file.name for file in (tmp_path / "after").iterdir()} == {
        file.name for file in (tmp_path / "before").iterdir()
    }


def test_a_failure_leaves_the_policy_as_it_was(load_lora: Any, tiny: Path, saved: tuple[str, Any]) -> None:
    policy = move(load_lora(tiny)[0]).train()
    on_trunk = reward(saved[0], policy)
    before = state(policy)
    with pytest.raises(ValueError, match="shorter"):
        on_trunk(prompts=PROMPTS, completions=COMPLETIONS[:3])
    assert state(policy) == before


def test_on_another_base_model_it_is_a_model_of_its_own(
    load_lora: Any, nano: Any, tiny: Path, saved: tuple[str, Any], loaded: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = load_lora(nano.folder)[0]
    before = {name for name, _ in policy.named_parameters()}
    capsys.readouterr()
    apart = reward(saved[0], policy)
    (line,) = capsys.readouterr().out.splitlines()
    assert str(tiny) in line and str(nano.folder) in line and "memory of its own" in line
    assert {name for name, _ in policy.named_parameters()} == before
    assert apart(prompts=PROMPTS, completions=COMPLETIONS) == score(*loaded, PROMPTS, FIRST)


def test_one_base_model_has_several_names(
    load_lora: Any, tiny: Path, saved: tuple[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path by way of a link; but another revision is another model, whatever its name."""
    import json
    import shutil

    (tmp_path / "link").symlink_to(tiny)
    for number, (change, shared) in enumerate(
        [({"base_model_name_or_path": str(tmp_path / "link")}, True), ({"revision": "other"}, False)]
    ):
        copy = shutil.copytree(saved[0], tmp_path / str(number))
        config = json.loads((copy / "adapter_config.json").read_text(encoding="utf-8"))
        (copy / "adapter_config.json").write_text(json.dumps(config | change), encoding="utf-8")
        policy = load_lora(tiny)[0]
        capsys.readouterr()
        reward(str(copy), policy)
        assert ("reward" in policy.peft_config) == shared == (capsys.readouterr().out == "")


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "head", "file"])
def test_other_weights_than_the_adapters_are_refused(
    change: str, load_lora: Any, tiny: Path, saved: tuple[str, Any], tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(saved[0], tmp_path / "copy")
    file = copy / "adapter_model.safetensors"
    weights = load_file(file)
    first = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    head = "base_model.model.score.weight"
    if change == "missing":
        del weights[first]
    elif change == "unexpected":
        weights["base_model.model.model.embed_tokens.weight"] = weights[first].clone()
    elif change == "shape":
        weights[first] = weights[first][:2].clone()
    elif change == "head":
        weights[head] = weights[head][:, :32].clone()
    save_file(weights, file)
    if change == "file":
        file.unlink()
    number = 29 if change == "file" else 1
    with pytest.raises(ValueError, match=rf"is not what its config says: {number} weights are missing") as refused:
        reward(str(copy), load_lora(tiny)[0])
    assert explain(refused.value) == str(refused.value) and "\n" not in str(refused.value)
