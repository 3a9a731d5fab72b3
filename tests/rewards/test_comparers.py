"""Who a name stands for, as a judge and as a reward, and when the reader learns that it stands for nobody."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.common.cli import explain
from recipes.common.stand_ins.tiny import write_pairrm
from rewards import comparers, pairrm, reward_model

PROMPTS = [[{"role": "user", "content": "Name a colour."}], [{"role": "user", "content": "Why?"}]]
FIRST, SECOND = ["Blue.", "Because."], ["No.", "I do not know."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairrm")
    write_pairrm(folder)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The folder of a reward model, as far as its config tells."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"task_type": "SEQ_CLS"}), encoding="utf-8")
    return tmp_path


def test_nobody_judges() -> None:
    assert comparers.by_name("none") is None


def test_pairrm_judges_and_rewards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its folder, and by its name, which means the hub's."""
    completions = [[{"role": "assistant", "content": text}] for text in FIRST]
    judge = pairrm.load(str(folder))
    asked: list[str] = []
    fetch = pairrm.fetch

    def fetched(source: str, revision: str | None = None) -> Path:
        asked.append(source)
        return fetch(str(folder) if source == "llm-blender/PairRM-hf" else source)

    monkeypatch.setattr(pairrm, "fetch", fetched)
    for name, source in (("pairrm", "llm-blender/PairRM-hf"), (str(folder), str(folder))):
        asked.clear()
        prefer = comparers.by_name(name)
        make = comparers.reward_by_name(name)
        assert asked == [source] * 2  # before anything is loaded
        assert prefer is not None
        assert prefer(PROMPTS, FIRST, SECOND) == judge.compare(PROMPTS, FIRST, SECOND, symmetric=False)
        reward = make(None)
        assert reward.__name__ == "pairrm_reward"
        assert reward(prompts=PROMPTS, completions=completions, reference=SECOND) == judge.logits(
            PROMPTS, FIRST, SECOND
        )


def test_an_adapter_folder_is_a_reward_model(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(reward_model, "reward", lambda *whom: given.append(whom))
    monkeypatch.setattr(reward_model, "prefer", lambda *whom: given.append(whom))
    make = comparers.reward_by_name(str(adapter))
    assert given == []
    make("the policy")
    comparers.by_name(str(adapter))
    assert given == [(str(adapter), "the policy"), (str(adapter),)]


def test_a_folder_of_neither_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    match = r"holds no reward model .* recipes/ultrafeedback_reward\.py"
    for name in (tmp_path, tmp_path / "model", tmp_path / "nowhere"):
        for find in (comparers.by_name, comparers.reward_by_name):
            with pytest.raises(ValueError, match=match) as refused:
                find(str(name))
            assert explain(refused.value) == str(refused.value) and "\n" not in str(refused.value)


def test_a_damaged_pairrm_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    for find in (comparers.by_name, comparers.reward_by_name):
        with pytest.raises(ValueError, match="holds no safetensors"):
            find(str(tmp_path))


def test_without_the_hub_there_is_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("Got: ConnectError\nPlease check.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    for find in (comparers.by_name, comparers.reward_by_name):
        with pytest.raises(ValueError, match=r"train a reward model of your own with recipes/ultrafeedback_reward\.py"):
            find("pairrm")
